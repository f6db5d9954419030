"""The choice of λ: of each target the one with the smallest error on models that were kept aside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from datamodels.regress.arrays import keep_columns, on_device, put_columns, to_numpy
from datamodels.regress.score import error_of
from datamodels.regress.solvers import Lasso
from datamodels.subsets import BoolArray, IndexArray

PATIENCE = 5
"""Values of λ without a smaller error after which a target's path ends."""


class Choice:
    """Of each of T targets the λ with the smallest error so far, its place `at` (T,), and the weights `best` (N, T).

    `packed` are the masks and `truth` the margins (m, T) of the models that judge; `step` is told, after each λ, how many
    targets had one, its place, and how many go on.
    """

    def __init__(
        self, lasso: Lasso, packed: Any, truth: Any, n: int, dtype: Any, xp: Any, step: Callable[[int, int, int], None]
    ) -> None:
        self.lasso, self.packed, self.truth, self.xp, self.step = lasso, packed, truth, xp, step
        t = truth.shape[1]
        self.best = xp.zeros((n, t), dtype)
        self.least, self.at, self.since, self.of = (
            np.full(t, np.inf),
            np.zeros(t, np.int64),
            np.zeros(t, np.int64),
            np.arange(t),
        )
        self.steps = 0

    def judge(self, k: int, targets: IndexArray, found: Any) -> BoolArray:
        """See `walk`."""
        xp, t = self.xp, len(self.at)
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
        self.step(t, k, len(targets))
        self.steps += t
        return np.asarray(self.since[targets] < PATIENCE)
