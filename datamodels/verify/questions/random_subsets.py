"""Datamodels against networks on random subsets of size αN, and how well any prediction could do there.

One network's margin is its mean over trainings and noise. Several networks are trained on each subset, in two halves; how well
the halves' means agree over subsets, r, says how much of what is to be predicted is noise. The mean of both halves has the
reliability 2r/(1 + r) (Spearman 1910, Brown 1910), and correlates with nothing by more than its square root: the ceiling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from datamodels.durable import read_arrays, write_arrays
from datamodels.regress import Datamodels
from datamodels.settings import Settings
from datamodels.subsets import Array, BoolArray, draw_masks
from datamodels.verify.questions import Listed
from datamodels.verify.record import RandomSubsetsRecord
from datamodels.verify.retrain import Request, Retrained

FILE = "random_subsets.npz"
FIRST_SUBSET = 2**30
"""Subsets are numbered from here: not those of a store with the same seed."""


@dataclass(frozen=True)
class Margins:
    """Predicted margins (s, T') of s subsets, and true ones (2, s, T'), means of each half of the networks on a subset."""

    predicted: Array
    halves: Array

    @property
    def true(self) -> Array:
        """Mean margins (s, T') of all networks on a subset."""
        found: Array = self.halves.mean(0)
        return found

    def record(self) -> RandomSubsetsRecord:
        """The correlations, each with its ceiling."""
        ranks = [rankdata(x, axis=0) for x in (self.predicted, self.true, *self.halves)]
        lds, agree = _correlations(ranks[0], ranks[1]).mean(), _correlations(ranks[2], ranks[3]).mean()
        flat = [x.reshape(-1, 1) for x in (self.predicted, self.true, *self.halves)]
        pooled, pooled_agree = _correlations(flat[0], flat[1])[0], _correlations(flat[2], flat[3])[0]
        return RandomSubsetsRecord(
            subsets=len(self.predicted),
            lds=float(lds),
            lds_ceiling=ceiling(float(agree)),
            pooled=float(pooled),
            pooled_ceiling=ceiling(float(pooled_agree)),
        )

    def write(self, folder: Path) -> None:
        """Keep them, for the page."""
        write_arrays(folder / FILE, {"predicted": self.predicted, "halves": self.halves})


def read_margins(folder: Path, subsets: int) -> Margins | None:
    """The margins that were kept of so many subsets; None where there are none, or others."""
    kept = read_arrays(folder / FILE)
    return Margins(kept["predicted"], kept["halves"]) if kept is not None and _is_of_subsets(kept, subsets) else None


class RandomSubsets(Listed):
    """As many repetitions as `verify.subset_models` on each of `verify.subsets` subsets."""

    def __init__(self, settings: Settings, models: Datamodels, n: int) -> None:
        self.models, self.half = models, settings.verify.subset_models // 2
        self.masks = masks_of(settings, n)
        repetitions = range(settings.verify.subset_models)
        self.by_subset = [[Request.of(mask, repetition) for repetition in repetitions] for mask in self.masks]
        super().__init__([request for of_subset in self.by_subset for request in of_subset])

    def judge(self, found: Retrained) -> None:
        """A network that diverged does not count; a subset with a half that has none left is left out."""
        requests = [of_subset[k] for k in range(2 * self.half) for of_subset in self.by_subset]
        targets = slice(self.models.targets.start, self.models.targets.stop)
        by_half = found.margins(requests)[:, targets].reshape(2, self.half, len(self.by_subset), -1)
        counts, sums = np.isfinite(by_half).sum(1), np.nansum(by_half, axis=1)
        whole = (counts > 0).all((0, 2))
        predicted = self.models.predict(self.masks[whole]).astype(np.float64)
        self.margins = Margins(predicted, sums[:, whole] / counts[:, whole])


def masks_of(settings: Settings, n: int) -> BoolArray:
    """The masks of the subsets, bool (s, N), of the store's α: a function of `verify.seed`."""
    ids = range(FIRST_SUBSET, FIRST_SUBSET + settings.verify.subsets)
    return draw_masks(settings.verify.seed, ids, n, settings.store.alpha)


def ceiling(agreement: float) -> float:
    """The largest correlation that anything can have with the mean of two halves that correlate with each other like this."""
    r = max(agreement, 0.0)
    return float(np.sqrt(2 * r / (1 + r)))


def _is_of_subsets(kept: Mapping[str, Array], subsets: int) -> bool:
    """Whether arrays are predictions (s, T') and the two halves (2, s, T') of what s subsets say."""
    if kept.keys() != {"predicted", "halves"} or kept["predicted"].ndim != 2:
        return False
    shape = kept["predicted"].shape
    numbers = all(array.dtype.kind == "f" and bool(np.isfinite(array).all()) for array in kept.values())
    return numbers and len(kept["predicted"]) == subsets and kept["halves"].shape == (2, *shape)


def _correlations(a: Array, b: Array) -> Array:
    """Pearson's correlation of each column; 0 where one does not vary."""
    a, b = a - a.mean(0), b - b.mean(0)
    size = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    found: Array = np.divide((a * b).sum(0), size, out=np.zeros(a.shape[1]), where=size > 0)
    return found
