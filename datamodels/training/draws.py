"""Everything random about one model, drawn ahead of its training from its own key, in NumPy.

A model's key is a tuple of integers, (seed, i) for model i of a store. The generators come from the key alone, so a model is
the same on every device, in every group and after every crash. Drawing ahead costs a few milliseconds a model and leaves the
training loop without a host synchronisation.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datamodels.subsets import BoolArray

Key = Sequence[int]

# The mask of model i is drawn from default_rng([seed, i]); these streams are told apart from it by a third number.
INITIALISATION, ORDER, AUGMENTATION = 1, 2, 3
SECOND_TRY = 4
RANDOMNESS, SHARED_ORDER = 5, 6
ORDERS = 4
"""Of S, for the models of a seed that share their batches."""


def generator(key: Key, stream: int) -> np.random.Generator:
    """The generator of one purpose (`stream`) of the model with this key."""
    return np.random.default_rng([*key, stream])


def second_key(key: Key) -> Key:
    """The key by which a model is trained once more when it has diverged."""
    return (*key, SECOND_TRY)


def num_steps(images: int, batch_size: int, epochs: int) -> int:
    """Steps of one training: as many whole batches as `epochs` passes over `images` images fill, at least 1."""
    return max(1, epochs * images // batch_size)


@dataclass(frozen=True)
class Draws:
    """Batches and augmentation of one model: the arrays have shape (steps, B)."""

    image: npt.NDArray[np.int32]
    """Index of the training image."""
    dy: npt.NDArray[np.int8]
    """Downward translation of the window, 0 … 2·max_shift pixels into the padded image."""
    dx: npt.NDArray[np.int8]
    flip: npt.NDArray[np.bool_]
    """Whether the image is mirrored left to right."""
    cut_y: npt.NDArray[np.int16]
    """First row of the square that is cut out of the mirrored and shifted image; the square lies within it."""
    cut_x: npt.NDArray[np.int16]


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image: shifts in pixels, a mirror image, a square cut out."""

    max_shift: int
    flip: bool
    cutout: int


def draw_order(key: Key, mask: BoolArray, batch_size: int, epochs: int) -> npt.NDArray[np.int32]:
    """Training images in the order of their use, int32 (steps, B).

    A fresh permutation of the model's subset for each epoch, one after another, cut into batches: every batch is full and
    every image is used `epochs` times, up to the last, incomplete batch that is dropped.
    """
    return _order(generator(key, ORDER), np.flatnonzero(mask).astype(np.int32), batch_size, epochs)


def _order(rng: np.random.Generator, subset: npt.NDArray[np.int32], batch_size: int, epochs: int) -> npt.NDArray[np.int32]:
    steps = num_steps(len(subset), batch_size, epochs)
    passes = -(-steps * batch_size // len(subset))
    order = np.concatenate([rng.permutation(subset) for _ in range(passes)])
    return order[: steps * batch_size].reshape(steps, batch_size)


def draw(key: Key, mask: BoolArray, batch_size: int, epochs: int, augmentation: Augmentation, height: int, width: int) -> Draws:
    """Draw one model's whole training from its key and its mask, bool (N,)."""
    order, rng = draw_order(key, mask, batch_size, epochs), generator(key, AUGMENTATION)
    shift = rng.integers(0, 2 * augmentation.max_shift + 1, (2, *order.shape), dtype=np.int8)
    flip = rng.integers(0, 2 if augmentation.flip else 1, order.shape, dtype=np.int8).view(bool)
    cut = [rng.integers(0, size - augmentation.cutout + 1, order.shape, dtype=np.int16) for size in (height, width)]
    return Draws(order, shift[0], shift[1], flip, *cut)


@dataclass(frozen=True)
class SharedDraws:
    """What is random about a model that shares its batches with others."""

    image: npt.NDArray[np.int32]
    """Rows of S, (steps, B'), of which the model learns those that its mask has."""
    order: tuple[int, int]
    """The seed, and which of its orders that is."""
    mask: BoolArray
    """What the model sees, (N,)."""


def draw_shared(key: Key, mask: BoolArray, batch_size: int, epochs: int) -> SharedDraws:
    """The order of S that one model takes, drawn from its key; the order itself is of the seed, the key's first number."""
    order, rows = int(generator(key, ORDER).integers(ORDERS)), rows_for(int(mask.sum()), len(mask), batch_size)
    return SharedDraws(_shared_order(key[0], order, len(mask), rows, epochs), (key[0], order), mask)


def rows_for(images: int, n: int, batch_size: int) -> int:
    """So many rows of S, of n, hold in the mean `batch_size` of the images that a model sees, to the nearest row; n at most."""
    return min(n, max(1, round(batch_size * n / max(images, 1))))


@functools.lru_cache(maxsize=16 * ORDERS)
def _shared_order(seed: int, order: int, n: int, rows: int, epochs: int) -> npt.NDArray[np.int32]:
    rng = np.random.default_rng([seed, order, SHARED_ORDER])
    return _order(rng, np.arange(n, dtype=np.int32), rows, epochs)
