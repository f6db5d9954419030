"""What the lasso needs to know of masks and margins: sums that one pass over the models gathers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodels.regress.arrays import on_device, row_tiles
from datamodels.regress.kernels import unpacked

GRAM_ROWS = 1024
"""Rows of XᵀX and XᵀY that one product makes."""
WIDE_ROWS = 128
"""Rows of XᵀX, or of a block's targets, that are in float64 at once."""


@dataclass(frozen=True)
class Problem:
    """The centred problem of some targets: G = XᵀX/m (N, N), c = Xᵀy/m (N, T), v = Σy²/m (T,), X and Y less their means.

    `mean_x` (N,) and `mean_y` (T,) are the means, `penalty` the factors p of the penalty λ Σ p|w|, (N, 1) or
    (N, T). G, c and p are float32 or float64, everything else float64; `xp` is NumPy or CuPy.
    """

    gram: Any
    correlation: Any
    variance: Any
    mean_x: Any
    mean_y: Any
    penalty: Any
    xp: Any

    def times(self, weights: Any, out: Any = None) -> Any:
        """G w for weights (N,) or (N, T), into `out` where that is given.

        A float32 G is widened, some rows at a time, for weights in float64.
        """
        if weights.dtype == self.gram.dtype:
            return self.xp.matmul(self.gram, weights, out=out)
        out = self.xp.empty_like(weights) if out is None else out
        for rows in row_tiles(len(self.gram), WIDE_ROWS):
            self.xp.matmul(self.gram[rows].astype(weights.dtype), weights, out=out[rows])
        return out

    def bias(self, weights: Any, targets: Any = slice(None)) -> Any:
        """The unpenalised intercepts (T,) that go with weights (N, T) of all the targets, or of some, on raw 0/1 masks.

        In float64, of which a part of the rows is had at once.
        """
        found = self.mean_y[targets].copy()
        for rows in row_tiles(len(weights), GRAM_ROWS):
            found -= self.mean_x[rows] @ weights[rows].astype(np.float64)
        return found

    def lam_max(self) -> Any:
        """The smallest λ (T,) at which all weights of a target are zero: max |c|/p, float64."""
        xp = self.xp
        top = xp.zeros(self.correlation.shape[1])
        for rows in row_tiles(len(self.correlation), WIDE_ROWS):
            steep = xp.abs(self.correlation[rows]).astype(np.float64) / self.penalty[rows]
            top = xp.maximum(top, steep.max(0))
        return top


class Sums:
    """Running sums over models: Σx, Σy of raw 0/1 masks x and margins y, and the range of y."""

    def __init__(self, n: int, t: int, xp: Any) -> None:
        self.xp, self.n, self.m = xp, n, 0
        self.x, self.y = xp.zeros(n), xp.zeros(t)
        self.low, self.high = xp.full(t, xp.inf), xp.full(t, -xp.inf)

    def add(self, packed: Any, margins: Any) -> tuple[Any, Any]:
        """Take in a tile of models: packed masks (m, ⌈N/8⌉) and margins (m, T), on the host or the device.

        Returns both as numbers, float32 and 64.
        """
        xp = self.xp
        x, y = unpacked(packed, self.n, xp), on_device(margins, xp, np.float64)
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

    def add(self, packed: Any, margins: Any) -> tuple[Any, Any]:
        """As `Sums.add`."""
        if self.centred:
            self._uncentre()
        x, y = super().add(packed, margins)
        self.shift = y.mean(0) if self.shift is None else self.shift
        y = y - self.shift
        self.yy += (y * y).sum(0)
        shifted = y.astype(self.dtype, copy=False)
        for rows in row_tiles(self.n, GRAM_ROWS):
            ours = x[:, rows].T
            part = self.xx[rows, rows.start :]
            part += ours @ x[:, rows.start :]
            part = self.xy[rows]
            part += ours.astype(self.dtype, copy=False) @ shifted
        return x, y

    def problem(self, targets: slice = slice(None), standardise: bool = False) -> Problem:
        """The centred problem of some targets and all models taken in so far; it stands until more are taken in."""
        if not self.centred:
            self._centre()
        mean_x, mean_y = self.x / self.m, self.y[targets] / self.m
        around = mean_y - (0 if self.shift is None else self.shift[targets])
        variance = self.xp.maximum(self.yy[targets] / self.m - around**2, 0)
        c = self.xp.empty((self.n, len(mean_y)), self.dtype)
        for rows in row_tiles(self.n, WIDE_ROWS):
            c[rows] = self.xy[rows, targets] / self.m - mean_x[rows, None] * around
        penalty = self.penalty(standardise).astype(self.dtype)
        return Problem(self.xx, c, variance, mean_x, mean_y, penalty, self.xp)

    def _centre(self) -> None:
        mean = self.x / self.m
        for rows in row_tiles(self.n, WIDE_ROWS):
            counts = self.xx[rows, rows.start :].astype(np.float64)
            counts /= self.m
            counts -= mean[rows, None] * mean[rows.start :]
            # On the diagonal, too, only the upper half need be up to date.
            square = counts[:, : rows.stop - rows.start]
            square[...] = self.xp.triu(square) + self.xp.triu(square, 1).T
            self.xx[rows, rows.start :] = counts
            self.xx[rows.stop :, rows] = self.xx[rows, rows.stop :].T
        self.centred = True

    def _uncentre(self) -> None:
        mean = self.x / self.m
        for rows in row_tiles(self.n, WIDE_ROWS):
            counts = self.xx[rows, rows.start :].astype(np.float64)
            counts += mean[rows, None] * mean[rows.start :]
            counts *= self.m
            self.xx[rows, rows.start :] = self.xp.rint(counts)
        self.centred = False
