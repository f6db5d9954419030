import dataclasses
import doctest
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodels.brittleness import largest_weights, smallest_support, supports

weights_lists = st.lists(st.integers(-20, 20).map(lambda k: k / 8), min_size=1, max_size=9)


@given(weights_lists, st.integers(-40, 40).map(lambda k: k / 8), st.integers(-16, 0).map(lambda k: k / 8))
def test_no_smaller_set_reaches_the_threshold(values, bias, threshold):
    """Brute force over all subsets; eighths are exact in binary, so no rounding decides."""
    weights = np.array(values)
    n, total = len(weights), weights.sum() + bias
    reaching = [
        size for size in range(1, n + 1) for r in combinations(range(n), size) if total - weights[list(r)].sum() <= threshold
    ]
    support = smallest_support(weights, total, threshold, n)
    r = support.indices
    assert len(set(r.tolist())) == len(r)
    assert (weights[r] > 0).all()
    assert support.predicted == total - weights[r].sum()
    assert support.predicted_before == total
    assert support.reaches == (support.predicted <= threshold)
    if support.reaches and len(r):
        assert len(r) == min(reaching)
    elif not support.reaches:
        assert not reaching
        assert set(r.tolist()) == set(np.flatnonzero(weights > 0).tolist())


def test_the_size_is_bounded():
    support = smallest_support(np.full(50, 0.1), 10.0, 0.0, 7)
    assert len(support.indices) == 7
    assert not support.reaches


def test_fixed_sizes_take_the_largest_weights_first():
    weights = np.array([0.5, -1, 2, 0.5, 0])
    support = largest_weights(weights, 3.0, 4)
    assert support.indices.tolist() == [2, 0, 3, 4]
    assert support.weights.tolist() == [2, 0.5, 0.5, 0]
    assert (support.predicted_before, support.predicted, support.reaches) == (3.0, 0.0, True)


def test_the_examples_of_the_docstrings_run():
    ran = doctest.testmod(supports)
    assert (ran.failed, ran.attempted) == (0, 4)


def test_the_package_offers_its_main_names():
    import datamodels
    from datamodels.verify import measured

    assert datamodels.support is measured.support
    assert datamodels.Store.__name__ == "Store"
    assert datamodels.Datamodels.__name__ == "Datamodels"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = datamodels.nothing


@pytest.mark.parametrize(
    ("weights", "base", "told"),
    [
        ([0.5, 0.4, 0.3, 0.2, -1], 1.1, "<Support: 3 images (0, 1, 2) should bring the margin from 1.10 to -0.10>"),
        ([0.5], 0.4, "<Support: 1 image (0) should bring the margin from 0.40 to -0.10>"),
        ([0.1] * 5, 9, "<Support: 5 images (0, 1, 2, …) should bring the margin from 9.00 to 8.50, which is not enough>"),
        ([-1.0], 2, "<Support: no image has a positive weight, and the margin stays 2.00>"),
        ([1.0], -0.25, "<Support: the margin is -0.25 without any removal>"),
    ],
)
def test_a_support_is_told_in_a_sentence(weights, base, told):
    assert repr(smallest_support(np.array(weights), base)) == told


def test_one_by_weights_alone_says_that_it_extrapolates():
    weights = np.array([0.1, 0.5, -1.0, 0.4])
    found = supports.support(weights, 0.8)
    assert found.predicted_before == pytest.approx(weights.sum() + 0.8)
    assert (found.base, found.measured, found.extrapolation, found.verified) == ("extrapolated", None, None, None)
    assert "extrapolated to all of S" in repr(found)
    assert "was not measured" in repr(found)
    off = supports.Extrapolation(-2.5, 30)
    assert repr(dataclasses.replace(found, extrapolation=off)).endswith("30 measured targets was 2.50 too low>")
    needed = supports.Needed(1.5, 4)
    assert repr(dataclasses.replace(found, needed=needed)).endswith(
        "of 4 searched targets retraining needed 1.5 times as many>"
    )
    never = supports.Needed(np.inf, 1)
    assert repr(dataclasses.replace(found, needed=never)).endswith(
        "1 searched target retraining needed more than could be found>"
    )
