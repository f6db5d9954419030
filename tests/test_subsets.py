import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodels.subsets import draw_mask, draw_masks, mask_without, pack, unpack

sizes = st.integers(2, 300)


@given(st.integers(0, 2**31), st.integers(0, 2**31), sizes, st.floats(0.01, 0.99))
def test_a_mask_has_exactly_its_share_of_ones_and_follows_from_seed_and_id(seed, i, n, alpha):
    mask = draw_mask(seed, i, n, alpha)
    assert mask.shape == (n,)
    assert mask.sum() == max(1, round(alpha * n))
    assert np.array_equal(mask, draw_mask(seed, i, n, alpha))


def test_masks_of_different_ids_and_seeds_are_different_and_even():
    masks = draw_masks(3, range(2000), 40, 0.5)
    assert len(np.unique(masks, axis=0)) == 2000
    assert not np.array_equal(masks[0], draw_mask(4, 0, 40, 0.5))
    # Each image is in half of the models: five standard deviations of a binomial share.
    assert np.abs(masks.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(2000)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), sizes)
def test_packing_is_little_endian_and_loses_nothing(seed, k, n):
    masks = np.random.default_rng(seed).random((k, n)) < 0.5
    packed = pack(masks)
    assert packed.shape == (k, -(-n // 8))
    by_hand = [[bool(packed[row, j // 8] >> (j % 8) & 1) for j in range(n)] for row in range(k)]
    assert np.array_equal(masks, by_hand)
    assert np.array_equal(unpack(packed, n), masks)


def test_a_removal_leaves_the_others():
    assert mask_without(5, [1, 3]).tolist() == [True, False, True, False, True]
    assert mask_without(3, []).all()
    with pytest.raises(IndexError):
        mask_without(3, [3])
