"""Down the path of λ, for a block of targets, some of which end before others.

Each solution starts from the last two: between kinks it is linear in λ. Where few targets are left, a step costs less in
products than in all that goes with them; then several values of λ are solved side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from datamodels.regress.arrays import keep_columns, on_device, to_numpy
from datamodels.regress.memory import MOST_TOGETHER
from datamodels.regress.solvers import Lasso
from datamodels.subsets import Array, BoolArray, IndexArray

LEAST_LAM = 1e-300

Judge = Callable[[int, IndexArray, Any], BoolArray]
"""Sees the weights (N, T') of some of the targets at the k-th λ, and says which of these go on."""


def walk(lasso: Lasso, ratios: Array, n: int, dtype: Any, xp: Any, judge: Judge) -> Array:
    """Solve for λ = ratios · λ_max, from the first on, until nobody goes on. Returns what was taken for λ_max, (T,)."""
    # A target without any correlation keeps zero weights; its λ only has to be positive.
    top: Array = np.maximum(to_numpy(lasso.top), LEAST_LAM)
    active, k = np.arange(len(top)), 0
    last, before = (xp.zeros((n, len(top)), dtype) for _ in range(2))
    while k < len(ratios) and len(active):
        count = max(1, min(lasso.side_by_side // len(active), MOST_TOGETHER, len(ratios) - k))
        starts = [foreseen(last, before.copy() if at < count - 1 else before, ratios, k, xp, k + at) for at in range(count)]
        start = starts[0] if count == 1 else on_device(xp.concatenate(starts, 1), xp)
        del starts
        lam = np.concatenate([top[active] * ratios[k + at] for at in range(count)])
        found = lasso.solve(np.tile(active, count), on_device(lam, xp), start)
        goes = np.ones(len(active), bool)
        for at in range(count):
            left = np.flatnonzero(goes)
            if not len(left):
                break
            columns = left + at * len(active)
            part = found if len(columns) == found.shape[1] else xp.take(found, on_device(columns, xp), axis=1)
            goes[left] = judge(k + at, active[left], part)
            del part
        before, last = last, found
        if count > 1:
            before = on_device(found[:, -2 * len(active) : -len(active)].copy(), xp)
            last = on_device(found[:, -len(active) :].copy(), xp)
        del start, found
        if not goes.all():
            left = np.flatnonzero(goes)
            active, keep = active[left], on_device(left, xp)
            last, before = keep_columns(last, keep, xp), keep_columns(before, keep, xp)
        k += count
    return top


def foreseen(last: Any, before: Any, ratios: Array, k: int, xp: Any, at: int | None = None) -> Any:
    """Weights to begin with at the k-th λ, or at one further on, in the place of those at the (k − 2)-th.

    They are those at the (k − 1)-th, moved on as they moved before where they are not zero.
    """
    if k < 2:
        before[...] = last
        return before
    to = ratios[k if at is None else at]
    onward = last.dtype.type((to - ratios[k - 1]) / (ratios[k - 1] - ratios[k - 2]))
    xp.subtract(last, before, out=before)
    before *= onward
    before *= last != 0
    before += last
    return before
