"""Rank correlations over masks, and how sure they are: resampled masks, resampled targets, the ceiling that noise sets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit
from scipy.stats import rankdata

from datamodels.subsets import Array

FloatArray = npt.NDArray[np.float64]

LEVEL = 0.95
FEW_TARGETS = 10
FEWEST_REPEATED = 10
"""Masks with several trainings each, for a ceiling."""
MOST_RANKS = 2**28
"""Ranks of resampled masks that are reckoned for one set of scores; where it would be more, of some of the targets."""


@dataclass(frozen=True)
class Interval:
    """Where a figure lies with 95 % confidence."""

    low: float
    high: float

    @classmethod
    def of(cls, drawn: FloatArray) -> Interval:
        """The middle 95 % of what was drawn."""
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls(float(low), float(high))

    def __str__(self) -> str:
        return f"{self.low:.3f} … {self.high:.3f}"


def spearman(predicted: FloatArray, true: FloatArray) -> FloatArray:
    """Spearman's rank correlation (T,) of each column of (m, T); rows where `true` is NaN do not count for that column.

    Equal values share the mean of their ranks. 0 where one of the two does not vary, or fewer than 2 rows are left.
    """
    found = np.zeros(true.shape[1])
    there = np.isfinite(true)
    whole = there.all(0)
    if whole.any():
        found[whole] = _pearson(rankdata(predicted[:, whole], axis=0), rankdata(true[:, whole], axis=0))
    for k in np.flatnonzero(~whole & (there.sum(0) > 1)):
        rows = there[:, k]
        found[k] = _pearson(rankdata(predicted[rows, k])[:, None], rankdata(true[rows, k])[:, None])[0]
    return found


def resampled(predicted: FloatArray, true: FloatArray, counts: FloatArray) -> FloatArray:
    """The same (B, T) on resampled rows: `counts` (B, m) says how often each row was drawn. Ranks are those among the drawn."""
    found = np.zeros((len(counts), true.shape[1]))
    for k in range(true.shape[1]):
        rows = np.isfinite(true[:, k])
        drawn = counts[:, rows]
        a, b = _drawn_ranks(predicted[rows, k], drawn), _drawn_ranks(true[rows, k], drawn)
        total = np.maximum(drawn.sum(1), 1)
        a -= ((drawn * a).sum(1) / total)[:, None]
        b -= ((drawn * b).sum(1) / total)[:, None]
        size = np.sqrt((drawn * a * a).sum(1) * (drawn * b * b).sum(1))
        np.divide((drawn * a * b).sum(1), size, out=found[:, k], where=size > 0)
    return found


def _drawn_ranks(values: FloatArray, counts: FloatArray) -> FloatArray:
    """Mean ranks (B, m) of values (m,) where each stands `counts` (B, m) times."""
    distinct, which = np.unique(values, return_inverse=True)
    of_value = np.zeros((len(counts), len(distinct)))
    order = np.argsort(which, kind="stable")
    starts = np.searchsorted(which[order], np.arange(len(distinct)))
    if len(distinct):
        of_value = np.add.reduceat(counts[:, order], starts, axis=1)
    upto = np.cumsum(of_value, axis=1)
    ranks: FloatArray = (upto - (of_value - 1) / 2)[:, which]
    return ranks


def _pearson(a: FloatArray, b: FloatArray) -> FloatArray:
    """Pearson's correlation of each column; 0 where one does not vary."""
    a, b = a - a.mean(0), b - b.mean(0)
    size = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    found: FloatArray = np.divide((a * b).sum(0), size, out=np.zeros(a.shape[1]), where=size > 0)
    return found


def over_targets(values: FloatArray, resamples: int, seed: int) -> Interval:
    """Of the mean of values (T,), the models being as they are: targets are drawn again, with replacement.

    Of fewer than 10 targets the bootstrap says little: Student's t of them, or of one the whole range of a correlation.
    """
    if len(values) < FEW_TARGETS:
        mean, half = float(values.mean()), 2.0
        if len(values) > 1:
            half = float(-stdtrit(len(values) - 1, (1 - LEVEL) / 2) * values.std(ddof=1) / np.sqrt(len(values)))
        return Interval(max(-1.0, mean - half), min(1.0, mean + half))
    rng = np.random.default_rng([seed, 0])
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    return Interval.of(np.array(means))


def drawn_masks(m: int, resamples: int, seed: int) -> FloatArray:
    """How often each of m masks is drawn, (B, m), with replacement."""
    return np.random.default_rng([seed, 1]).multinomial(m, np.full(m, 1 / m), resamples).astype(np.float64)


def some_targets(t: int, m: int, resamples: int) -> npt.NDArray[np.int64]:
    """The targets, evenly spaced, on which masks are resampled: all, unless that is too much to reckon."""
    most = max(30, MOST_RANKS // (m * resamples))
    return np.unique(np.linspace(0, t - 1, min(t, most)).astype(np.int64))


def ceiling_of(halves: tuple[FloatArray, FloatArray], ratio: float) -> float:
    """The largest LDS that anything can have, of the means over the halves of each mask's trainings, (m, T) each.

    r, their correlation, is the reliability of a half; that of the mean of `ratio` times as many trainings is
    ratio·r / (1 + (ratio − 1)·r) (Spearman 1910, Brown 1910), and nothing correlates with it by more than its square root.
    """
    r = max(float(spearman(*halves).mean()), 0.0)
    return float(np.sqrt(ratio * r / (1 + (ratio - 1) * r)))


def mean_of(rows: Array) -> FloatArray:
    """Means (T,) over rows (k, T), NaN left out; NaN where nothing is left."""
    there = np.isfinite(rows)
    counts = there.sum(0)
    total = np.where(there, rows, 0.0).sum(0, dtype=np.float64)
    found: FloatArray = np.divide(total, counts, out=np.full(rows.shape[1], np.nan), where=counts > 0)
    return found
