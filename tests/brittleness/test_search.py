"""The search for the smallest set that flips, on made-up targets whose truth is known."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datamodels.brittleness import Search, at_random, by_similarity, by_weight, cosine

CASES = {
    "length": st.integers(1, 300),
    "truth": st.integers(1, 400),
    "ratio": st.sampled_from([1.0, 1.1, 1.25, 2.0]),
    "scale": st.sampled_from([None, 0.2, 0.7, 1.0, 1.5, 10.0]),
}


def run(length, truth, ratio, scale, base=2.0):
    """A search whose first `truth` images flip; the datamodel predicts drops that are `scale` times the real ones."""
    drops = None if scale is None else np.cumsum(np.full(length, scale * base / truth))
    search, tried = Search(np.arange(length), drops, base, ratio), []
    while not search.done:
        tried.append(search.size)
        search.learn(search.size >= truth)
    return search, tried


@settings(max_examples=300, deadline=None)
@given(**CASES)
def test_what_is_found_is_right_and_as_tight_as_asked(length, truth, ratio, scale):
    search, tried = run(length, truth, ratio, scale)
    assert all(1 <= size <= length for size in tried)
    assert len(set(tried)) == len(tried)
    if truth > length:
        assert (search.high, search.low) == (None, length)
        return
    assert search.high is not None
    assert search.low < truth <= search.high
    assert search.high <= search.low + 1 or search.high <= ratio * search.low
    # 2 log₂ of the bracket, and a few steps up to it.
    assert len(tried) <= 22


def test_a_good_prediction_takes_few_probes():
    for truth in (3, 20, 90):
        _, tried = run(100, truth, 1.25, 1.0)
        assert len(tried) <= 6
        assert abs(tried[0] - truth) <= 1
    assert len(run(1000, 90, 1.25, None)[1]) <= 8


def test_the_first_size_is_where_the_predicted_drop_reaches_the_base_margin():
    weights = np.array([0.5, 0.4, 0.3, 0.2, 0.1])
    assert Search(np.arange(5), np.cumsum(weights), 0.85, 1.25).size == 2
    assert Search(np.arange(5), np.cumsum(weights), 0.95, 1.25).size == 3
    assert Search(np.arange(5), np.cumsum(weights), 9.0, 1.25).size == 5
    # And C is lowered from there: −½ and −1 of the base margin.
    search = Search(np.arange(100), np.cumsum(np.full(100, 0.125)), 1.0, 1.25)
    sizes = [search.size]
    for _ in range(2):
        search.learn(False)
        sizes.append(search.size)
    assert sizes == [8, 12, 16]
    assert search.level == -1.0


def test_orders():
    weights = np.array([0.1, -1.0, 0.5, 0.0, 0.3])
    assert by_weight(weights, 10).tolist() == [2, 4, 0]
    assert by_weight(weights, 2).tolist() == [2, 4]
    same_class = np.array([1, 3, 4, 8])
    shuffled = at_random(same_class, 3, 5, 7)
    assert set(shuffled) < set(same_class)
    assert len(shuffled) == 3
    assert np.array_equal(shuffled, at_random(same_class, 3, 5, 7))
    assert any(not np.array_equal(shuffled, at_random(same_class, 3, 5, target)) for target in range(8))
    similarity = np.array([9, 0.1, 9, 0.9, 0.5, 9, 9, 9, 0.9])
    assert by_similarity(similarity, same_class, 3).tolist() == [3, 8, 4]


def test_beyond_what_is_predicted_the_search_goes_on_in_steps_of_a_half():
    search, tried = Search(np.arange(60), np.minimum(np.arange(1, 61), 8) / 8, 1.0, 1.1), []
    while not search.done:
        tried.append(search.size)
        search.learn(search.size >= 33)
    assert tried[:5] == [8, 12, 18, 27, 40]


def test_cosine():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
    found = cosine(a, 7 * b)
    assert found[1, 2] == pytest.approx(a[1] @ b[2] / np.linalg.norm(a[1]) / np.linalg.norm(b[2]))
    assert np.diag(cosine(a, a)) == pytest.approx(np.ones(3))
    assert (cosine(np.zeros((1, 5)), a) == 0).all()


@given(st.integers(1, 200), st.sampled_from([1.0, 1.1, 1.25, 2.0]), st.lists(st.booleans(), max_size=6))
def test_the_probes_left_are_those_of_a_search_whose_present_one_flips_and_the_others_do_not(n, ratio, verdicts):
    search = Search(np.arange(n), np.linspace(0.1, 2, n), 1.0, ratio)
    for verdict in verdicts:
        if not search.done:
            search.learn(verdict)
    assume(not search.done)
    told, probes = search.probes_left, 0
    search.learn(True)
    while not search.done:
        search.learn(False)
        probes += 1
    assert told == probes
