"""What the lasso needs to know of masks and margins: sums that one pass over the models gathers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodels.regress.arrays import unpacked
from datamodels.store.layout import Array
from datamodels.subsets import ByteArray


@dataclass(frozen=True)
class Problem:
    """The centred problem, for all targets: G = XᵀX/m (N, N), c = XᵀY/m (N, T), v = Σy²/m (T,), X and Y less their means.

    `xx` (N, N) is XᵀX of the raw masks of `m` models; G is never formed, for it would be another matrix of that size. `mean_x`
    (N,) and `mean_y` (T,) are the means.
    """

    xx: Any
    m: int
    correlation: Any
    variance: Any
    mean_x: Any
    mean_y: Any

    def times(self, weights: Any) -> Any:
        """G w, for weights (N,) or (N, T)."""
        means = self.mean_x.reshape(-1, *(1,) * (weights.ndim - 1))
        return self.xx @ weights / self.m - means * (self.mean_x @ weights)

    def bias(self, weights: Any) -> Any:
        """The unpenalised intercept (T,) that goes with weights (N, T) on raw 0/1 masks."""
        return self.mean_y - self.mean_x @ weights

    def of(self, targets: Any) -> Problem:
        """The problem of some of the targets, by index or slice."""
        c, v, y = self.correlation[:, targets], self.variance[targets], self.mean_y[targets]
        return Problem(self.xx, self.m, c, v, self.mean_x, y)


class Moments:
    """Running sums over models: XᵀX, XᵀY, Σx, Σy, Σy², of raw 0/1 masks x and margins y, and the range of y.

    XᵀX is exact: a tile's entries are whole numbers below 2²⁴, which float32 holds, and tiles are added in float64.
    """

    def __init__(self, n: int, t: int, xp: Any) -> None:
        self.xp, self.n, self.m = xp, n, 0
        self.xx, self.xy = xp.zeros((n, n)), xp.zeros((n, t))
        self.x, self.y, self.yy = xp.zeros(n), xp.zeros(t), xp.zeros(t)
        self.low, self.high = xp.full(t, xp.inf), xp.full(t, -xp.inf)

    def add(self, packed: ByteArray, margins: Array) -> None:
        """Take in a tile of models: packed masks (m, ⌈N/8⌉) and margins (m, T)."""
        xp = self.xp
        x, y = unpacked(packed, self.n, xp), xp.asarray(margins, np.float64)
        self.m += len(x)
        self.xx += x.T @ x
        self.xy += x.T.astype(np.float64) @ y
        self.x += x.sum(0, dtype=np.float64)
        self.y += y.sum(0)
        self.yy += (y * y).sum(0)
        self.low, self.high = xp.minimum(self.low, y.min(0)), xp.maximum(self.high, y.max(0))

    def problem(self) -> Problem:
        """The centred problem of all models taken in so far; it stands until more are taken in, for it shares XᵀX."""
        m, mean_x, mean_y = self.m, self.x / self.m, self.y / self.m
        correlation = self.xy / m - mean_x[:, None] * mean_y
        return Problem(self.xx, m, correlation, self.xp.maximum(self.yy / m - mean_y**2, 0), mean_x, mean_y)

    def constants(self) -> tuple[Any, Any]:
        """Images in all of the masks or in none, about which nothing can be learnt; targets with one margin in all models."""
        xp = self.xp
        return xp.flatnonzero((self.x == 0) | (self.x == self.m)), xp.flatnonzero(self.low == self.high)
