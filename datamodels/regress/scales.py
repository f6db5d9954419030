"""For which masks weights are: 0 and 1, or standardised ones; from the latter to the former, and what the models say to it.

The solver by which published datamodels were made fits masks less their mean, over their standard deviation, and saves weights
and biases as they are for these. For raw masks, of image j in a share α_j of the subsets,

    w_j = w'_j / d_j,    b = b' − Σ_j α_j w_j,    d_j = √(α_j (1 − α_j)).

Taken for weights of raw masks they are too small by the factor d, half at α = 0.5, with no sign of it. Only models tell: over
these, the margins' slope on the predictions is near 1, and their means agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodels.errors import InputError, shown
from datamodels.reading import Unreadable, is_there, open_npy
from datamodels.store import Store
from datamodels.subsets import Array

RAW, BY_STORE = "raw", "store"
MOST_MODELS, TILE_ROWS = 4096, 512
SLOPES, OFFSET = (0.8, 1.25), 0.1
"""What is near 1, and a difference of means, in standard deviations of a margin, that is none."""


@dataclass(frozen=True)
class Scale:
    """Masks were reckoned from `mean` (N,) in units of `deviation` (N,), float64; `name` says so in words."""

    mean: Array
    deviation: Array
    name: str

    @property
    def raw(self) -> bool:
        """Whether these are masks of 0 and 1."""
        return not self.mean.any() and bool((self.deviation == 1).all())

    @property
    def constant(self) -> int:
        """How many images are in all of the masks or in none, and have no weight."""
        return int((self.deviation == 0).sum())

    def to_raw(self, weights: Array, bias: Array) -> tuple[Array, Array]:
        """Weights (N, T) and biases (T,) for raw masks, float32. An image that does not vary has no weight.

        Raises InputError where a weight is beyond float32.
        """
        if self.raw:
            return weights, bias
        inverse = np.divide(1, self.deviation, out=np.zeros_like(self.deviation), where=self.deviation > 0)
        with np.errstate(over="ignore"):  # what is beyond float32 is refused before it is written
            found: Array = (weights * inverse.astype(np.float32)[:, None]).astype(np.float32, copy=False)
        if not np.isfinite(found).all():
            raise InputError("the weights for masks of 0 and 1 would be beyond float32")
        # In float64, for many terms nearly cancel, and some rows at a time, for there may be gigabytes of them.
        tiles = (slice(first, first + TILE_ROWS) for first in range(0, len(found), TILE_ROWS))
        shift = sum((self.mean[rows] @ found[rows].astype(np.float64) for rows in tiles), np.zeros(len(bias)))
        with np.errstate(over="ignore"):
            return found, (bias - shift).astype(np.float32)


def scale_named(given: str, n: int, store: Store | None) -> Scale:
    """The scale that is named: 'raw', a share α, an .npy file of the masks, or 'store' for that of a store's masks.

    Raises InputError for another.
    """
    if given == RAW:
        return Scale(np.zeros(n), np.ones(n), "masks of 0 and 1")
    if given == BY_STORE:
        if store is None:
            told = "the share of images in each mask, as 0.5, an .npy file of the masks, or --store DIR with them"
            raise InputError(f"--standardised takes {told}")
        return _of_mean(_mean_mask(store), str(store.folder))
    try:
        alpha = float(given)
    except ValueError:
        alpha = 0.0
    if alpha == 0 and is_there(given):
        return _of_mean(_mean_of_file(Path(given), n), given)
    if not 0 < alpha < 1:
        told = f"between 0 and 1, or an .npy file of the masks, not {shown(given, 200)!r}"
        raise InputError(f"--standardised takes the share of images in each mask, {told}")
    return Scale(np.full(n, alpha), np.full(n, np.sqrt(alpha * (1 - alpha))), f"masks standardised by α = {alpha:g}")


@dataclass(frozen=True)
class Trial:
    """Predictions beside the margins of `models` models: the margins' slope on them, the means' difference, mean square error.

    The slope is of each target's deviations from its mean, all targets together. `offset`, in standard deviations of a margin,
    is of the target for which it is largest.
    """

    models: int
    slope: float
    offset: float
    error: float

    @property
    def fits(self) -> bool:
        """Whether the weights can be for such models."""
        return SLOPES[0] <= self.slope <= SLOPES[1] and abs(self.offset) <= OFFSET

    def __str__(self) -> str:
        return f"slope {self.slope:.2f}, predictions off by {self.offset:.2f} of a margin's standard deviation"


def tried(store: Store, weights: Array, bias: Array) -> Trial:
    """Weights for raw masks (N, T) and biases (T,) beside a store's models. Raises InputError when they are of another size."""
    n, t = store.meta.num_train, store.meta.num_targets
    if weights.shape != (n, t):
        ours = " images and ".join(map(str, weights.shape))
        raise InputError(f"the weights are of {ours} targets, {store.folder} of {n} images and {t} targets")
    ids = store.done[np.linspace(0, len(store.done) - 1, min(len(store.done), MOST_MODELS)).astype(np.int64)]
    if len(ids) < 2:
        raise InputError(f"{store.folder} has {len(ids)} finished models, too few to compare weights with")
    sums = np.zeros((5, t))
    for start in range(0, len(ids), TILE_ROWS):
        rows = ids[start : start + TILE_ROWS]
        y = store.margins(rows).astype(np.float64)
        p = (store.masks(rows).astype(np.float32) @ weights + bias).astype(np.float64)
        sums += np.stack([p.sum(0), y.sum(0), (p * p).sum(0), (y * y).sum(0), (p * y).sum(0)])
    p, y, pp, yy, py = sums / len(ids)
    varied, spread = np.maximum(pp - p**2, 0).sum(), np.sqrt(np.maximum(yy - y**2, 0))
    offsets = np.divide(p - y, spread, out=np.zeros(t), where=spread > 0)
    slope = float((py - p * y).sum() / varied) if varied > 0 else float("inf")
    return Trial(len(ids), slope, float(offsets[np.abs(offsets).argmax()]), float((pp - 2 * py + yy).mean()))


def _of_mean(mean: Array, what: str) -> Scale:
    return Scale(mean, np.sqrt(mean * (1 - mean)), f"masks standardised as those of {what}")


def _mean_of_file(file: Path, n: int) -> Array:
    """The mean (N,) of masks (M, N) of 0 and 1 in an .npy file. Raises InputError for another file."""
    try:
        masks = open_npy(file, (None, n))
    except Unreadable as e:
        raise InputError(f"cannot read {file} as masks (M, {n}): it {e.why}") from e
    total = np.zeros(n)
    for start in range(0, len(masks), TILE_ROWS):
        tile = masks[start : start + TILE_ROWS]
        if tile.dtype.kind not in "biuf" or not np.isin(tile, (0, 1)).all():
            raise InputError(f"{file} must hold masks of 0 and 1, and has something else")
        total += tile.sum(0)
    if not len(masks):
        raise InputError(f"{file} has no masks")
    return total / len(masks)


def _mean_mask(store: Store) -> Array:
    if not len(store.done):
        raise InputError(f"{store.folder} has no finished models")
    total = np.zeros(store.meta.num_train)
    for start in range(0, len(store.done), TILE_ROWS):
        total += store.masks(store.done[start : start + TILE_ROWS]).sum(0)
    found: Array = total / len(store.done)
    return found
