"""Each hostile input is refused in one sentence, or gone on from rightly, within 5 seconds and 500 MB.

Of the values and bytes that are drawn or enumerated a sixth is tried here, always the same; `make robustness` tries them all.
Two thirds of what is tried are left to `make test-slow`.
"""

import zlib

import pytest

from tests.robustness.hostile import CASES, run_case

ENUMERATED = ("values", "random", "pickle", "header")


def _is_tried(case):
    by_the_dozen = case.reader.endswith(ENUMERATED) or case.reader.startswith(".beton") or case.damage.startswith("random")
    return not by_the_dozen or zlib.crc32(case.name.encode()) % 6 == 0


TRIED = [case for case in CASES if _is_tried(case)]
READERS = {reader: [case for case in TRIED if case.reader == reader] for reader in sorted({case.reader for case in TRIED})}


@pytest.mark.parametrize(
    ("reader", "third"),
    [
        *((reader, 0) for reader in READERS),
        *(
            pytest.param(reader, k, marks=pytest.mark.slow)
            for k in (1, 2)
            for reader, cases in READERS.items()
            if len(cases) > k
        ),
    ],
)
def test_every_damage_is_a_sentence_or_gone_on_from(reader, third, tmp_path):
    bad = []
    for number, case in enumerate(READERS[reader][third::3]):
        outcome = run_case(case, tmp_path / str(number))
        if outcome.what not in case.expected or not outcome.within_limits:
            told = f"{outcome.what}, {outcome.seconds:.1f} s, {outcome.peak_mb:.0f} MB: {outcome.said}"
            bad.append(f"{case.name}: {told}")
    assert not bad, "\n".join(bad)


def test_no_two_cases_have_one_name_and_no_reader_is_left_out():
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.reader for case in CASES} == set(READERS)
    assert len(TRIED) > 1000
