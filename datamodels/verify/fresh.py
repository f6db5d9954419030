"""Datamodels against networks on fresh random subsets, and how well any prediction could do there.

One network's margin is its mean over trainings and noise. Several networks are trained on each subset, in two halves; how well
the halves' means agree over subsets, r, says how much of what is to be predicted is noise. The mean of both halves has the
reliability 2r/(1 + r) (Spearman 1910, Brown 1910), and correlates with nothing by more than its square root: the ceiling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from datamodels.regress import Datamodels
from datamodels.settings import Settings
from datamodels.store.layout import Array
from datamodels.subsets import BoolArray, draw_masks
from datamodels.verify.retrain import Retrained
from datamodels.verify.subject import Request

FIRST_SUBSET = 2**30
"""Subsets are numbered from here: not those of a store with the same seed."""


@dataclass(frozen=True)
class Fresh:
    """Predicted margins (s, T') of s subsets, and true ones (2, s, T'), means of each half of the networks on a subset."""

    predicted: Array
    halves: Array

    @property
    def true(self) -> Array:
        """Mean margins (s, T') of all networks on a subset."""
        found: Array = self.halves.mean(0)
        return found

    def summary(self) -> dict[str, float | int]:
        """LDS (mean over targets), and Pearson's correlation over all pairs, each with its ceiling."""
        ranks = [rankdata(x, axis=0) for x in (self.predicted, self.true, *self.halves)]
        lds, agree = _correlations(ranks[0], ranks[1]).mean(), _correlations(ranks[2], ranks[3]).mean()
        flat = [x.reshape(-1, 1) for x in (self.predicted, self.true, *self.halves)]
        pooled, pooled_agree = _correlations(flat[0], flat[1])[0], _correlations(flat[2], flat[3])[0]
        return {
            "subsets": len(self.predicted),
            "lds": float(lds),
            "lds_ceiling": ceiling(float(agree)),
            "pooled": float(pooled),
            "pooled_ceiling": ceiling(float(pooled_agree)),
        }


def ceiling(agreement: float) -> float:
    """The largest correlation that anything can have with the mean of two halves that correlate with each other like this."""
    r = max(agreement, 0.0)
    return float(np.sqrt(2 * r / (1 + r)))


def fresh_requests(settings: Settings, n: int) -> list[list[Request]]:
    """The networks to train: for each subset as many repetitions as `verify.subset_models`."""
    chosen = settings.verify
    masks = fresh_masks(settings, n)
    return [[Request.of(mask, repetition) for repetition in range(chosen.subset_models)] for mask in masks]


def fresh_masks(settings: Settings, n: int) -> BoolArray:
    """The masks of the subsets, bool (s, N), of the store's α: a function of `verify.seed`."""
    ids = range(FIRST_SUBSET, FIRST_SUBSET + settings.verify.subsets)
    return draw_masks(settings.verify.seed, ids, n, settings.store.alpha)


def judge_fresh(settings: Settings, models: Datamodels, found: Retrained, n: int) -> Fresh:
    """What came of them. A network that diverged does not count; a subset with a half that has none left is left out."""
    requests = fresh_requests(settings, n)
    half = settings.verify.subset_models // 2
    rows = np.array([[found.rows[request] for request in of_subset] for of_subset in requests])
    margins = found.store.margins(rows.T.ravel())[:, models.targets.start : models.targets.stop].astype(np.float64)
    by_half = margins.reshape(2, half, len(requests), -1)
    counts, sums = np.isfinite(by_half).sum(1), np.nansum(by_half, axis=1)
    whole = (counts > 0).all((0, 2))
    predicted = models.predict(fresh_masks(settings, n)[whole])
    return Fresh(predicted.astype(np.float64), sums[:, whole] / counts[:, whole])


def _correlations(a: Array, b: Array) -> Array:
    """Pearson's correlation of each column; 0 where one does not vary."""
    a, b = a - a.mean(0), b - b.mean(0)
    size = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    found: Array = np.divide((a * b).sum(0), size, out=np.zeros(a.shape[1]), where=size > 0)
    return found
