"""How much several models on one mask say, beside as many on masks of their own.

Let a margin's variance over models be that of its mean on a subset, a share ρ, and the training's own noise. Sums over m
models, n_g of them on mask g, then have the variance that they would have over

    m / (1 + (k − 1) ρ),    k = Σ n_g²/m,

models on as many masks: the design effect of sampling in clusters (Kish, Survey Sampling, 1965). Where all masks differ, k = 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datamodels.regress.source import TILE_ROWS, Source
from datamodels.regress.split import Subsets
from datamodels.subsets import Array


@dataclass(frozen=True)
class Repeats:
    """How often masks come again: `size` is k, `noise` (T,) the variance of each target's margin among models on one mask."""

    size: float
    noise: Array

    def effect(self, variance: Array) -> Array:
        """The design effect (T,) of sums of what has this variance (T,), the noise of the training included."""
        share = 1 - np.divide(self.noise, variance, out=np.ones_like(variance), where=variance > 0)
        found: Array = 1 + (self.size - 1) * np.clip(share, 0, 1)
        return found

    def of(self, targets: slice) -> Repeats:
        """The same of some of the targets."""
        return Repeats(self.size, self.noise[targets])


def repeats(source: Source, subsets: Subsets) -> Repeats:
    """How often the masks of some models come again, and the noise, in one pass over these where any mask does."""
    _, counts = np.unique(subsets.first, return_counts=True)
    if not subsets.repeated:
        return Repeats(1.0, np.zeros(source.t))
    order = np.argsort(subsets.first, kind="stable")
    squares, freedom = np.zeros(source.t), 0
    for start in range(0, len(order), TILE_ROWS):
        tile = order[start : start + TILE_ROWS]
        # A mask whose models are cut apart here counts as two, which leaves the variance within them what it is.
        _, begin, sizes = np.unique(subsets.first[tile], return_index=True, return_counts=True)
        margins = source.margins(subsets.ids[tile], slice(None), np).astype(np.float64)
        means = np.add.reduceat(margins, begin) / sizes[:, None]
        squares += ((margins - np.repeat(means, sizes, axis=0)) ** 2).sum(0)
        freedom += len(tile) - len(sizes)
    return Repeats(float((counts.astype(np.float64) ** 2).sum() / len(order)), squares / max(freedom, 1))
