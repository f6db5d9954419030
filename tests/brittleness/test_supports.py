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
    assert (ran.failed, ran.attempted) == (0, 3)


def test_the_package_offers_its_main_names():
    import datamodels

    assert datamodels.support is supports.support
    assert datamodels.Store.__name__ == "Store"
    assert datamodels.Datamodels.__name__ == "Datamodels"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = datamodels.nothing
