"""Which training images each model sees: masks drawn by seed, masks for removals, and their packed form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]
IndexArray = npt.NDArray[np.int64]


def subset_size(n: int, alpha: float) -> int:
    """How many of n training images each model sees: round(αN), at least 1."""
    return max(1, round(alpha * n))


def draw_mask(seed: int, model_id: int, n: int, alpha: float) -> BoolArray:
    """The mask of one model, a function of (seed, model_id) alone: bool (n,) with exactly round(αN) ones."""
    mask = np.zeros(n, bool)
    mask[np.random.default_rng([seed, model_id]).permutation(n)[: subset_size(n, alpha)]] = True
    return mask


def draw_masks(seed: int, model_ids: Iterable[int], n: int, alpha: float) -> BoolArray:
    """The masks of several models, bool (K, n)."""
    return np.stack([draw_mask(seed, i, n, alpha) for i in model_ids])


def mask_without(n: int, removed: npt.ArrayLike) -> BoolArray:
    """The mask of S∖R: bool (n,), False at the indices in `removed`.

    Raises IndexError when an index lies outside 0 … n-1.
    """
    mask = np.ones(n, bool)
    mask[np.asarray(removed, np.int64)] = False
    return mask


def pack(masks: BoolArray) -> ByteArray:
    """Bits for bytes: bool (…, N) to uint8 (…, ⌈N/8⌉), image 0 in the lowest bit of byte 0, padding bits 0."""
    return np.packbits(masks, axis=-1, bitorder="little")


def unpack(packed: ByteArray, n: int) -> BoolArray:
    """The inverse of `pack`: uint8 (…, ⌈N/8⌉) to bool (…, N)."""
    return np.unpackbits(packed, axis=-1, count=n, bitorder="little").view(bool)
