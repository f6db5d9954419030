"""Judging a target from several models' margins: their mean with an interval, and how many are right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit
from scipy.stats import ttest_ind

from datamodels.brittleness.spread import Spread
from datamodels.errors import InputError
from datamodels.subsets import Array, BoolArray

CONFIDENCE = 0.95
FLIPPED, HELD, UNDECIDED = "flipped", "held", "undecided"


@dataclass(frozen=True)
class Outcome:
    """What J models trained alike say of one target.

    `mean_margin` in logits with its interval from `low` to `high` (Student's t), the share of
    models that are right, `correct`, with its 95 % interval `correct_low` to `correct_high` (Wilson 1927), and the mean softmax
    `confidence` in the right class, None where it is not known.
    """

    models: int
    mean_margin: float
    low: float
    high: float
    correct: float
    correct_low: float
    correct_high: float
    confidence: float | None

    @property
    def verdict(self) -> str:
        """'flipped' where the whole interval lies at or below 0, 'held' where it lies above, else 'undecided'."""
        if self.high <= 0:
            return FLIPPED
        return HELD if self.low > 0 else UNDECIDED


NOTHING_KNOWN = Spread()


def judge(
    margins: Array, confidences: Array | None = None, level: float = CONFIDENCE, spread: Spread = NOTHING_KNOWN
) -> Outcome:
    """The outcome of margins (J,), its interval at a level; models that diverged, with NaN, do not count.

    What is known of the margin's spread is taken into the variance (see `spread`). Raises InputError where fewer than 2 are
    left, or none where the spread is known.
    """
    values = np.asarray(margins, np.float64)
    finite = np.isfinite(values)
    values = values[finite]
    if len(values) < (1 if spread.degrees else 2):
        raise InputError(f"all but {len(values)} of {len(margins)} retrained models could not be trained: too few to judge by")
    mean, j = float(values.mean()), len(values)
    variance, degrees = spread.moderated(float(((values - mean) ** 2).sum()), j - 1)
    half = float(stdtrit(degrees, (1 + level) / 2) * np.sqrt(variance / j))
    known = confidences is not None and np.isfinite(confidences[finite]).all()
    confidence = float(confidences[finite].mean()) if known and confidences is not None else None
    right = int((values > 0).sum())
    return Outcome(j, mean, mean - half, mean + half, right / j, *wilson(right, j), confidence)


def drop_of(before: Array, after: Array) -> tuple[float, float, float]:
    """The drop of a mean margin, from margins (J,) before to margins (K,) after, with its 95 % interval (Welch 1947), in
    logits.

    The interval counts the spread of both sides. Models that diverged, with NaN, do not count; raises InputError as `judge`.
    """
    drop = judge(before).mean_margin - judge(after).mean_margin
    sides = [margins[np.isfinite(margins)].astype(np.float64) for margins in (before, after)]
    if not any(np.ptp(side) for side in sides):
        return drop, drop, drop
    low, high = ttest_ind(*sides, equal_var=False).confidence_interval(CONFIDENCE)
    return drop, float(low), float(high)


def beyond_doubt(margins: Array, of: int) -> tuple[BoolArray, BoolArray]:
    """Of margins (J, T) which targets are right, and which wrong, beyond doubt: bool (T,) each, as one of so many intervals.

    The interval of each target's mean is Student's t at the level 1 − 0.05/of: with `of` the targets times the looks, all
    targets and looks together call one right that is wrong, or has a margin of 0, at most 2.5 % of the time, and so the other
    way round (Bonferroni). Models that diverged, with NaN, do not count; of fewer than 2 nothing is beyond doubt.
    """
    values = margins[np.isfinite(margins).all(1)].astype(np.float64)
    if len(values) < 2:
        nothing = np.zeros(margins.shape[1], bool)
        return nothing, nothing.copy()
    level = 1 - (1 - CONFIDENCE) / of
    half = stdtrit(len(values) - 1, (1 + level) / 2) * values.std(0, ddof=1) / np.sqrt(len(values))
    mean = values.mean(0)
    return mean - half > 0, mean + half <= 0


def wilson(right: int, of: int, level: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's interval of a share (J. Am. Stat. Assoc. 22, 1927)."""
    z = float(ndtri((1 + level) / 2))
    share, weight = right / of, z * z / of
    middle = (share + weight / 2) / (1 + weight)
    half = z * np.sqrt(share * (1 - share) / of + weight / (4 * of)) / (1 + weight)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))
