"""Each hostile input is refused in one sentence, or gone on from rightly, within 5 seconds and 500 MB."""

import pytest

from tests.robustness.hostile import CASES, run_case

READERS = {reader: [case for case in CASES if case.reader == reader] for reader in sorted({case.reader for case in CASES})}


@pytest.mark.parametrize("reader", READERS)
def test_every_damage_is_a_sentence_or_gone_on_from(reader, tmp_path):
    bad = []
    for number, case in enumerate(READERS[reader]):
        outcome = run_case(case, tmp_path / str(number))
        if outcome.what not in case.expected or not outcome.within_limits:
            told = f"{outcome.what}, {outcome.seconds:.1f} s, {outcome.peak_mb:.0f} MB: {outcome.said}"
            bad.append(f"{case.name}: {told}")
    assert not bad, "\n".join(bad)


def test_no_two_cases_have_one_name():
    assert len({case.name for case in CASES}) == len(CASES) > 1000
