"""What the lasso needs to know of masks and margins: sums that one pass over the models gathers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from datamodels.regress.kernels import unpacked
from datamodels.store.layout import Array
from datamodels.subsets import ByteArray

GRAM_ROWS = 1024


@dataclass(frozen=True)
class Problem:
    """The centred problem of some targets: G = XᵀX/m (N, N), c = Xᵀy/m (N, T), v = Σy²/m (T,), X and Y less their means.

    `mean_x` (N,) and `mean_y` (T,) are the means, `penalty` the factors p of the penalty λ Σ p|w|, (N, 1) or
    (N, T). G and c are float32 or float64, everything else float64; `xp` is NumPy or CuPy.
    """

    gram: Any
    correlation: Any
    variance: Any
    mean_x: Any
    mean_y: Any
    penalty: Any
    xp: Any

    def times(self, weights: Any) -> Any:
        """G w for weights (N,) or (N, T). A float32 G is widened, some rows at a time, for weights in float64."""
        if weights.dtype == self.gram.dtype:
            return self.gram @ weights
        return self.xp.concatenate([self.gram[rows].astype(weights.dtype) @ weights for rows in _tiles(len(self.gram))])

    def bias(self, weights: Any, targets: Any = slice(None)) -> Any:
        """The unpenalised intercepts (T,) that go with weights (N, T) of all the targets, or of some, on raw 0/1 masks."""
        return self.mean_y[targets] - self.mean_x @ weights

    def of(self, targets: Any) -> Problem:
        """The problem of some of the targets, by index."""
        c = self.xp.take(self.correlation, targets, axis=1)
        penalty = columns_of(self.penalty, targets, self.xp)
        return replace(self, correlation=c, variance=self.variance[targets], mean_y=self.mean_y[targets], penalty=penalty)

    def lam_max(self) -> Any:
        """The smallest λ (T,) at which all weights of a target are zero: max |c|/p."""
        return (self.xp.abs(self.correlation) / self.penalty).max(0)


class Sums:
    """Running sums over models: Σx, Σy of raw 0/1 masks x and margins y, and the range of y."""

    def __init__(self, n: int, t: int, xp: Any) -> None:
        self.xp, self.n, self.m = xp, n, 0
        self.x, self.y = xp.zeros(n), xp.zeros(t)
        self.low, self.high = xp.full(t, xp.inf), xp.full(t, -xp.inf)

    def add(self, packed: ByteArray, margins: Array) -> tuple[Any, Any]:
        """Take in a tile of models: packed masks (m, ⌈N/8⌉) and margins (m, T). Returns both as numbers, float32 and 64."""
        xp = self.xp
        x, y = unpacked(packed, self.n, xp), xp.asarray(margins, np.float64)
        self.m += len(x)
        self.x += x.sum(0, dtype=np.float64)
        self.y += y.sum(0)
        self.low, self.high = xp.minimum(self.low, y.min(0)), xp.maximum(self.high, y.max(0))
        return x, y

    def constants(self) -> tuple[Any, Any]:
        """Images in all of the masks or in none, about which nothing can be learnt; targets with one margin in all models."""
        xp = self.xp
        return xp.flatnonzero((self.x == 0) | (self.x == self.m)), xp.flatnonzero(self.low == self.high)

    def penalty(self, standardise: bool) -> Any:
        """The factors p (N, 1): 1, or with `standardise` each image's standard deviation over the masks.

        λ Σ sd|w| on raw masks is λ‖w‖₁ on masks divided by sd, of which w here is already divided back. An image of no
        deviation has 1: its weight stays 0 by itself.
        """
        xp, mean = self.xp, self.x / self.m
        if not standardise:
            return xp.ones((self.n, 1))
        deviation = xp.sqrt(mean * (1 - mean))
        return xp.where(deviation > 0, deviation, 1.0)[:, None]


class Moments(Sums):
    """Sums that also hold XᵀX, XᵀY and Σy².

    XᵀX is exact: it counts models, float32 holds every whole number up to 2²⁴, and whichever way the tiles are added the result
    is one of these. One copy of it is all there is. `problem` centres it in place, upper half and lower, and `add` takes the
    centring back, exactly, by rounding to whole numbers; only the upper half is kept up while tiles are added.

    Margins are reckoned from their mean in the first tile, which spares their squares a cancellation.
    """

    def __init__(self, n: int, t: int, xp: Any, dtype: Any = np.float64) -> None:
        super().__init__(n, t, xp)
        self.dtype = np.dtype(dtype)
        self.xx, self.xy, self.yy = xp.zeros((n, n), self.dtype), xp.zeros((n, t)), xp.zeros(t)
        self.shift: Any = None
        self.centred = False

    def add(self, packed: ByteArray, margins: Array) -> tuple[Any, Any]:
        """As `Sums.add`."""
        if self.centred:
            self._uncentre()
        x, y = super().add(packed, margins)
        self.shift = y.mean(0) if self.shift is None else self.shift
        shifted = y - self.shift
        for rows in _tiles(self.n):
            self.xx[rows, rows.start :] += x[:, rows].T @ x[:, rows.start :]
        self.xy += x.T.astype(self.dtype, copy=False) @ shifted.astype(self.dtype)
        self.yy += (shifted * shifted).sum(0)
        return x, y

    def problem(self, targets: slice = slice(None), standardise: bool = False) -> Problem:
        """The centred problem of some targets and all models taken in so far; it stands until more are taken in."""
        if not self.centred:
            self._centre()
        mean_x, mean_y = self.x / self.m, self.y[targets] / self.m
        around = mean_y - (0 if self.shift is None else self.shift[targets])
        correlation = self.xy[:, targets] / self.m - mean_x[:, None] * around
        variance = self.xp.maximum(self.yy[targets] / self.m - around**2, 0)
        c = correlation.astype(self.dtype)
        return Problem(self.xx, c, variance, mean_x, mean_y, self.penalty(standardise), self.xp)

    def _centre(self) -> None:
        mean = self.x / self.m
        for rows in _tiles(self.n):
            counts = self.xx[rows, rows.start :].astype(np.float64)
            self.xx[rows, rows.start :] = counts / self.m - mean[rows, None] * mean[rows.start :]
            self.xx[rows.stop :, rows] = self.xx[rows, rows.stop :].T
        self.centred = True

    def _uncentre(self) -> None:
        mean = self.x / self.m
        for rows in _tiles(self.n):
            centred = self.xx[rows, rows.start :].astype(np.float64)
            self.xx[rows, rows.start :] = self.xp.rint((centred + mean[rows, None] * mean[rows.start :]) * self.m)
        self.centred = False


def columns_of(penalty: Any, targets: Any, xp: Any) -> Any:
    """The factors of some targets, by index; one column is for all of them."""
    return penalty if penalty.shape[1] == 1 else xp.take(penalty, targets, axis=1)


def _tiles(n: int) -> Iterator[slice]:
    for start in range(0, n, GRAM_ROWS):
        yield slice(start, min(start + GRAM_ROWS, n))
