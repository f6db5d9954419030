"""The choice of λ: of each target the one with the smallest error on models that were kept aside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from datamodels.regress.arrays import keep_columns, on_device, put_columns, to_numpy
from datamodels.regress.score import error_of
from datamodels.regress.solvers import Lasso
from datamodels.subsets import BoolArray, IndexArray

if TYPE_CHECKING:
    from datamodels.regress.path import _Run

PATIENCE = 5
"""Values of λ without a smaller error after which a target's path ends."""


class Choice:
    """Of each of a block's targets the λ with the smallest error so far, its place `at` (T,), and the weights `best` (N, T)."""

    def __init__(self, run: _Run, block: slice, packed: Any, truth: Any, lasso: Lasso) -> None:
        self.run, self.block, self.packed, self.truth, self.lasso = run, block, packed, truth, lasso
        t = block.stop - block.start
        self.best = run.xp.zeros((run.source.n, t), run.solver.dtype)
        self.least, self.at, self.since, self.of = (
            np.full(t, np.inf),
            np.zeros(t, np.int64),
            np.zeros(t, np.int64),
            np.arange(t),
        )
        self.steps = 0

    def judge(self, k: int, targets: IndexArray, found: Any) -> BoolArray:
        """See `walk`."""
        xp, t = self.run.xp, self.block.stop - self.block.start
        if len(targets) < len(self.of):
            self.truth = keep_columns(self.truth, on_device(np.searchsorted(self.of, targets), xp), xp)
            self.of = targets
        error = to_numpy(error_of(found, self.lasso.bias(targets, found), self.packed, self.truth, xp))
        better = error < self.least[targets]
        won = targets[better]
        self.least[won], self.at[won] = error[better], k
        put_columns(self.best, on_device(won, xp), found, on_device(np.flatnonzero(better), xp), xp)
        self.since[targets] += 1
        self.since[won] = 0
        where = f"λ {k + 1} of {self.run.settings.lams}, {len(targets)} of {t} targets"
        self.run.step(t, f"targets {self.block.start} to {self.block.stop} of {self.run.source.t}, {where}")
        self.steps += t
        return np.asarray(self.since[targets] < PATIENCE)
