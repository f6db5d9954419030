"""The lasso from the models themselves, batch by batch, where XᵀX does not fit into memory.

The objective is that of `lasso.py`, and so are the stopping rule and the answer. The smooth part is a mean of K functions, one
for each batch B of neighbouring models,

    f_B(w) = (K/2m) ‖y_B − X_B w‖²,        X and y centred by the means over all m models,

and SAGA (Defazio, Bach & Lacoste-Julien, 2014) goes over them: with a table of every model's residual at the time when its
batch was last seen, and a = Xᵀ·table/m,

    d = X_Bᵀ (r_B − table_B),    w ← prox(w + γ (K d/m + a)),    table_B ← r_B,    a ← a + d/m,

for batches drawn at random by a fixed seed. The step is γ = 1/(3 L), L the largest of the K Lipschitz constants
(K/m) λ_max(X_BᵀX_B), which are computed, not guessed. Every few passes the whole table is renewed at the weights as they are;
that makes a the exact gradient, gives the duality gap, and sends targets home whose gap is below the tolerance.

A step costs two products with X_B for all targets of the block, a pass over the models two products with X. Memory holds the
table (m, T), weights and a (N, T), and one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodels.regress.arrays import keep_columns, on_device, put_columns, row_tiles, to_numpy
from datamodels.regress.kernels import saga_residuals, saga_step, unpacked
from datamodels.regress.lasso import relative_gap, unsolved
from datamodels.regress.moments import GRAM_ROWS, WIDE_ROWS, Sums
from datamodels.regress.source import Source
from datamodels.subsets import IndexArray

BATCH_ROWS = 512
FEWEST_BATCHES = 8
PASSES_BETWEEN_CHECKS = 3
MOST_CHECKS = 5_000


class Stream:
    """Batches of a growing set of models, and what all targets share: means, penalty factors, L."""

    def __init__(self, source: Source, dtype: Any, standardise: bool, xp: Any) -> None:
        self.source, self.dtype, self.standardise, self.xp = source, np.dtype(dtype), standardise, xp
        self.sums = Sums(source.n, source.t, xp)
        self.ids: IndexArray = np.zeros(0, np.int64)
        self.work = {"passes": 0}

    def add(self, ids: IndexArray, advance: Callable[[int], None]) -> None:
        """Take in models; needs a pass over these for the means, and one over all for L."""
        for tile in self.source.tiles(ids):
            self.sums.add(self.source.packed(tile), self.source.margins(tile, slice(None), self.xp))
            advance(len(tile))
        self.ids = np.sort(np.concatenate([self.ids, ids]))
        batches = max(-(-len(self.ids) // BATCH_ROWS), min(FEWEST_BATCHES, len(self.ids)))
        self.batches = np.array_split(np.arange(len(self.ids)), batches)
        self.mean_x = self.sums.x / self.sums.m
        self.penalty = self.sums.penalty(self.standardise).astype(self.dtype)
        self.step = 1 / (3 * max(self._lipschitz(rows) for rows in self.batches))

    def masks(self, rows: IndexArray) -> Any:
        """Raw masks (b, N) of a batch, as numbers."""
        return unpacked(self.source.packed(self.ids[rows]), self.source.n, self.xp, self.dtype)

    def _lipschitz(self, rows: IndexArray) -> float:
        x = self.masks(rows)
        x -= self.mean_x.astype(self.dtype)
        largest = float(to_numpy(self.xp.linalg.eigvalsh(x @ x.T))[-1])
        return max(largest, float(np.finfo(self.dtype).tiny)) * len(self.batches) / self.sums.m


@dataclass
class _State:
    """The targets still at work: their columns of the source, means, weights, residual table, a, and λ."""

    columns: IndexArray
    mean_y: Any
    w: Any
    table: Any
    mean: Any
    lam: Any

    def keep(self, left: IndexArray, xp: Any) -> None:
        """Go on with some of the targets."""
        which, self.columns = on_device(left, xp), self.columns[left]
        self.w, self.table, self.mean = (keep_columns(a, which, xp) for a in (self.w, self.table, self.mean))
        self.mean_y, self.lam = xp.take(self.mean_y, which), xp.take(self.lam, which)


class StreamLasso:
    """The lasso of one block of targets over a stream."""

    def __init__(self, stream: Stream, targets: slice, gap: float) -> None:
        self.stream, self.gap, self.xp = stream, gap, stream.xp
        self.columns = np.arange(stream.source.t)[targets]
        self.mean_y = stream.sums.y[targets] / stream.sums.m
        t, xp = len(self.columns), self.xp
        # At w = 0 the table holds y, and a is Xᵀy/m.
        state = self._state(np.arange(t), xp.zeros(t), xp.zeros((stream.source.n, t), stream.dtype))
        self.top = self._renew(state)[3]

    def solve(self, which: IndexArray, lam: Any, start: Any) -> Any:
        """Weights (N, len(which)) of some of the block's targets; lam and start as for `lasso.solve`.

        Raises InputError when a gap is above the tolerance after thousands of passes.
        """
        xp, stream, rng = self.xp, self.stream, np.random.default_rng(0)
        todo, batches = np.arange(len(which)), stream.batches
        state = self._state(which, lam, start.astype(stream.dtype))
        for _ in range(MOST_CHECKS):
            gap = to_numpy(relative_gap(xp, *self._renew(state), state.lam))
            done, left = np.flatnonzero(gap <= self.gap), np.flatnonzero(~(gap <= self.gap))
            if len(done):
                put_columns(start, on_device(todo[done], xp), state.w, on_device(done, xp), xp)
            if not len(left):
                return start
            if len(done):
                todo = todo[left]
                state.keep(left, xp)
            stream.work["passes"] += PASSES_BETWEEN_CHECKS + 1
            for batch in rng.integers(len(batches), size=PASSES_BETWEEN_CHECKS * len(batches)):
                self._step(state, batches[batch])
        raise unsolved(len(todo), len(which), self.gap, f"{MOST_CHECKS * (PASSES_BETWEEN_CHECKS + 1)} passes over the models")

    def bias(self, which: IndexArray, weights: Any) -> Any:
        """The unpenalised intercepts that go with weights (N, len(which)) on raw masks."""
        found = self.xp.take(self.mean_y, on_device(which, self.xp))
        for rows in row_tiles(len(weights), GRAM_ROWS):
            found -= self.stream.mean_x[rows] @ weights[rows].astype(np.float64)
        return found

    def _state(self, which: IndexArray, lam: Any, w: Any) -> _State:
        """The state at weights w, which it takes over."""
        xp, dtype = self.xp, self.stream.dtype
        table, mean = xp.zeros((len(self.stream.ids), w.shape[1]), dtype), xp.zeros(w.shape, dtype)
        return _State(self.columns[which], xp.take(self.mean_y, on_device(which, xp)), w, table, mean, lam)

    def _look(self, state: _State, rows: IndexArray) -> tuple[Any, Any, Any]:
        """Masks (b, N) and centred margins (b, T) of a batch, and by how much its residuals have changed in the table."""
        stream, x = self.stream, self.stream.masks(rows)
        raw = stream.source.known_margins(stream.ids[rows], state.columns, self.xp)
        y = (raw.astype(np.float64) - state.mean_y).astype(stream.dtype)
        fitted = x @ state.w - stream.mean_x.astype(stream.dtype) @ state.w
        return x, y, saga_residuals(y, fitted, _of_batch(state.table, rows), self.xp)

    def _pulled(self, x: Any, residuals: Any) -> Any:
        """Xᵀr, (N, T), of a batch, X centred."""
        pulled, sums, mean = x.T @ residuals, residuals.sum(0), self.stream.mean_x.astype(x.dtype)
        for rows in row_tiles(len(pulled), WIDE_ROWS):
            part = pulled[rows]
            part -= mean[rows, None] * sums
        return pulled

    def _step(self, state: _State, rows: IndexArray) -> None:
        x, _, change = self._look(state, rows)
        stream, pulled = self.stream, self._pulled(x, change)
        m, batches = stream.sums.m, len(stream.batches)
        saga_step(state.w, state.mean, pulled, m, batches, state.lam, stream.penalty, stream.step, self.xp)

    def _renew(self, state: _State) -> tuple[Any, Any, Any, Any]:
        """Renew every residual and a at the weights as they are. Returns ‖r‖²/m, y·r/m, Σ p|w|, max |Xᵀr|/(m p), (T,) each."""
        xp, m, t = self.xp, self.stream.sums.m, len(state.columns)
        residual, along, norm, steepest, pulled = *(xp.zeros(t) for _ in range(4)), xp.zeros(state.mean.shape)
        for rows in self.stream.batches:
            of_batch = self._renew_batch(state, rows, pulled)
            residual += of_batch[0]
            along += of_batch[1]
        pulled /= m
        state.mean[...] = pulled
        for part in row_tiles(len(pulled), WIDE_ROWS):
            penalty = self.stream.penalty[part].astype(np.float64)
            norm += (penalty * xp.abs(state.w[part])).sum(0)
            steepest = xp.maximum(steepest, (xp.abs(pulled[part]) / penalty).max(0))
        return residual / m, along / m, norm, steepest

    def _renew_batch(self, state: _State, rows: IndexArray, pulled: Any) -> tuple[Any, Any]:
        """Add Xᵀr of one batch to `pulled`. Returns its ‖r‖² and y·r; it lets go of its masks before the next are there."""
        x, y, _ = self._look(state, rows)
        r = _of_batch(state.table, rows)
        pulled += self._pulled(x, r)
        return (r * r).sum(0, dtype=np.float64), (y * r).sum(0, dtype=np.float64)


def _of_batch(table: Any, rows: IndexArray) -> Any:
    return table[rows[0] : rows[-1] + 1]
