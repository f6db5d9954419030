"""Records: what was written is what is read, and files of another form are refused."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodels.brittleness import Outcome
from datamodels.errors import InputError
from datamodels.reading import Unreadable
from datamodels.seals import write_sealed
from datamodels.verify.methods import METHODS
from datamodels.verify.record import (
    FORMAT_VERSION,
    KINDS,
    SUPPORT,
    CounterfactualRecord,
    OnAll,
    Probe,
    RandomSubsetsRecord,
    RemovalRecord,
    SearchRecord,
    Verified,
    read_claims,
    read_verified,
    write_verified,
)
from datamodels.verify.typed import form_of, read, to_json

N, T, CLASSES = 12, 6, 4
number = st.floats(allow_nan=False, allow_infinity=False)
count, label, target = st.integers(0, 2**31), st.integers(0, CLASSES - 1), st.integers(0, T - 1)
images = st.lists(st.integers(0, N - 1), unique=True, min_size=1).map(tuple)
plain = st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | st.integers(-9, 9) | number | st.text(max_size=5))
outcome = st.builds(Outcome, count, number, number, number, number, number, number, st.none() | number)
probe = st.builds(Probe, count, number, count, st.text(max_size=5), outcome, number, count)


@st.composite
def searches(draw, targets):
    order = draw(images)
    size = draw(st.none() | st.integers(1, len(order)))
    weights = tuple(draw(st.lists(number, min_size=len(order), max_size=len(order))))
    about = draw(st.sampled_from(targets)), draw(label), draw(st.sampled_from(METHODS)), draw(st.none() | label)
    probes = tuple(draw(st.lists(probe, max_size=2)))
    return SearchRecord(*about, draw(st.text(max_size=5)), size, draw(count), order, weights, draw(number), draw(count), probes)


@st.composite
def removals(draw, targets):
    removed, both = draw(images), draw(st.booleans())
    weights = tuple(draw(st.lists(number, min_size=len(removed), max_size=len(removed))))
    rule = draw(st.just(SUPPORT) | st.integers(0, 99).map(str))
    states = [draw(outcome), *(draw(outcome) if both else None for _ in range(2))]
    about = draw(st.sampled_from(targets)), draw(label), rule, len(removed), draw(count), removed, weights
    return RemovalRecord(*about, draw(number), draw(number), *states, *(draw(st.booleans()) for _ in range(3)))


@st.composite
def drops(draw):
    removed = draw(images)
    about = draw(target), draw(st.sampled_from(KINDS)), len(removed), removed
    return CounterfactualRecord(*about, draw(number), draw(number), draw(number), draw(number), draw(count))


@st.composite
def verdicts(draw):
    base = draw(st.dictionaries(target, st.builds(OnAll, outcome, st.integers(-1, 9)), min_size=1))
    return Verified(
        FORMAT_VERSION,
        draw(st.text(max_size=5)),
        draw(st.text(max_size=5)),
        draw(plain),
        draw(plain),
        draw(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2)),
        tuple(draw(st.lists(count, max_size=2))),
        draw(count),
        draw(st.none() | st.builds(RandomSubsetsRecord, count, number, number, number, number)),
        base,
        tuple(draw(st.lists(searches(sorted(base)), max_size=2))),
        tuple(draw(st.lists(removals(sorted(base)), max_size=2))),
        tuple(draw(st.lists(drops(), max_size=2))),
    )


@settings(max_examples=60, deadline=None)
@given(verified=verdicts())
def test_what_was_written_is_read_and_written_again_to_the_byte(verified, tmp_path_factory):
    folder = tmp_path_factory.mktemp("record")
    write_verified(folder, verified)
    file = folder / "verify.json"
    first = file.read_bytes()
    found = read_verified(file, N, T, CLASSES)
    assert found == verified
    write_verified(folder, found)
    assert file.read_bytes() == first
    assert [claim.order for claim in read_claims(file, N, T, CLASSES).searches] == [s.order for s in verified.searches]


@dataclasses.dataclass(frozen=True)
class Twins:
    a: tuple[OnAll, ...]
    b: dict[int, float]


def test_the_form_in_json_is_that_of_the_fields(tmp_path):
    on_all = OnAll(Outcome(2, 0.5, 0.0, 1.0, 1.0, 0.3, 1.0, None), 3)
    content = to_json(Twins((on_all,), {7: 1.5}))
    names = [*(field.name for field in dataclasses.fields(Outcome)), "label"]
    assert list(content["a"][0]) == names == list(form_of(OnAll))
    assert content["b"] == {"7": 1.5}
    assert read(Twins, json.loads(json.dumps(content)), tmp_path) == Twins((on_all,), {7: 1.5})
    damaged: list[Any] = [{**content, "b": {"07": 1.0}}, {**content, "b": {"x": 1.0}}, {"a": []}, {**content, "a": [{}]}, []]
    for bad in damaged:
        with pytest.raises(Unreadable, match="is damaged"):
            read(Twins, bad, tmp_path)


@pytest.mark.parametrize("version", [1, 6, 8])
def test_other_formats_are_refused(tmp_path, version):
    write_sealed(tmp_path / "verify.json", {"format_version": version})
    with pytest.raises(InputError, match=f"has format version {version}, this program reads 7; give --verify.name"):
        read_verified(tmp_path / "verify.json", N, T, CLASSES)


def test_the_majority_rule_takes_the_smallest_set_from_which_on_at_most_half_of_the_networks_are_right():
    def majority(base, of_sizes):
        probes = [
            Probe(size, 0.0, 4, "undecided", Outcome(4, 0.0, -1.0, 1.0, correct, 0.0, 1.0, None), 0.0)
            for size, correct in of_sizes
        ]
        tried = max(size for size, _ in of_sizes)
        return SearchRecord(0, 0, "datamodel", None, "censored", None, tried, (), (), base, 0, tuple(probes)).majority

    assert majority(1.0, [(8, 0.25), (2, 0.5), (4, 0.75), (6, 0.5)]) == 6
    assert majority(1.0, [(8, 0.75), (6, 0.0)]) is None
    assert majority(-1.0, [(8, 0.75), (4, 0.5), (6, 1.0)]) == 6
    assert majority(-1.0, [(8, 0.5), (4, 1.0)]) is None
