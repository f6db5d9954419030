"""Judging a target from several models' margins, looked at more than once.

The first look has few models; when it does not decide, twice as many are looked at, and so on. To look L times at a 95 %
interval would be wrong more than 5 % of the time; each look has the level 1 − 0.05/L instead (Bonferroni), so that over all
looks together a mean above 0 is called flipped, and one of 0 or less held, at most 2.5 % of the time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student_t

from datamodels.errors import InputError
from datamodels.subsets import Array, BoolArray

CONFIDENCE = 0.95
FLIPPED, HELD, UNDECIDED = "flipped", "held", "undecided"


@dataclass(frozen=True)
class Outcome:
    """What J models trained alike say of one target.

    `mean_margin` in logits with its interval from `low` to `high` (Student's t, at the level of one of L looks), the share of
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


def looks(first: int, most: int) -> list[int]:
    """How many models each look has: twice as many as the last, up to `most`."""
    numbers = [first]
    while numbers[-1] * 2 <= most:
        numbers.append(numbers[-1] * 2)
    return numbers


def judge(margins: Array, confidences: Array | None = None, of_looks: int = 1) -> Outcome:
    """The outcome of margins (J,) as one of so many looks; models that diverged, with NaN, do not count.

    Raises InputError where fewer than 2 are left.
    """
    values = np.asarray(margins, np.float64)
    finite = np.isfinite(values)
    values = values[finite]
    if len(values) < 2:
        raise InputError(f"all but {len(values)} of {len(margins)} retrained models could not be trained: too few to judge by")
    mean, j = float(values.mean()), len(values)
    level = 1 - (1 - CONFIDENCE) / of_looks
    half = float(student_t.ppf((1 + level) / 2, j - 1) * values.std(ddof=1) / np.sqrt(j))
    known = confidences is not None and np.isfinite(confidences[finite]).all()
    confidence = float(confidences[finite].mean()) if known and confidences is not None else None
    right = int((values > 0).sum())
    return Outcome(j, mean, mean - half, mean + half, right / j, *wilson(right, j), confidence)


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
    half = student_t.ppf((1 + level) / 2, len(values) - 1) * values.std(0, ddof=1) / np.sqrt(len(values))
    mean = values.mean(0)
    return mean - half > 0, mean + half <= 0


def wilson(right: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (J. Am. Stat. Assoc. 22, 1927)."""
    z = float(norm.ppf((1 + CONFIDENCE) / 2))
    share, weight = right / of, z * z / of
    middle = (share + weight / 2) / (1 + weight)
    half = z * np.sqrt(share * (1 - share) / of + weight / (4 * of)) / (1 + weight)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))
