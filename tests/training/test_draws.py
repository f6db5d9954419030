import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datamodels.training.draws import Augmentation, draw, draw_order, num_steps


@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 70), st.integers(1, 6))
def test_every_epoch_uses_every_image_of_the_subset_once_and_no_other(seed, subset, batch, epochs):
    mask = np.zeros(80, bool)
    mask[np.random.default_rng(seed).permutation(80)[:subset]] = True
    order = draw_order((seed, 1), mask, batch, epochs)
    assert order.shape == (max(1, epochs * subset // batch), batch) == (num_steps(subset, batch, epochs), batch)
    flat = order.ravel()
    for start in range(0, len(flat) - subset + 1, subset):
        assert sorted(flat[start : start + subset]) == np.flatnonzero(mask).tolist()
    assert mask[flat].all()


def test_draws_follow_from_the_key_and_stay_in_bounds():
    mask, augmentation = np.ones(30, bool), Augmentation(max_shift=2, flip=True, cutout=3)
    first, again, other = (draw((7, i), mask, 10, 20, augmentation, 8, 9) for i in (0, 0, 1))
    for name in ("image", "dy", "dx", "flip", "cut_y", "cut_x"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))
    assert set(first.dy.ravel()) == set(first.dx.ravel()) == set(range(5))
    assert set(first.cut_y.ravel()) == set(range(6))
    assert set(first.cut_x.ravel()) == set(range(7))
    assert 0.4 < first.flip.mean() < 0.6


def test_without_augmentation_nothing_is_drawn():
    draws = draw((0, 0), np.ones(10, bool), 5, 2, Augmentation(0, False, 0), 8, 8)
    assert not draws.dy.any()
    assert not draws.dx.any()
    assert not draws.flip.any()
