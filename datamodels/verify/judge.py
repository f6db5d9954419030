"""Judging a target from several models' margins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

from datamodels.errors import InputError
from datamodels.store.layout import Array

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Outcome:
    """What J models trained alike say of one target.

    `mean_margin` in logits with its 95 % interval from `low` to `high` (Student's t), and the share of models that are right.
    """

    models: int
    mean_margin: float
    low: float
    high: float
    correct: float

    @property
    def wrong(self) -> bool:
        """Whether the target is misclassified on average, beyond doubt: the whole interval lies at or below 0."""
        return self.high <= 0


def judge(margins: Array) -> Outcome:
    """The outcome of margins (J,); models that diverged, with NaN, do not count.

    Raises InputError where fewer than 2 are left.
    """
    values = np.asarray(margins, np.float64)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        raise InputError(
            f"all but {len(values)} of {len(margins)} retrained models diverged; lower training.peak_lr in a new run"
        )
    mean, j = float(values.mean()), len(values)
    half = float(student_t.ppf((1 + CONFIDENCE) / 2, j - 1) * values.std(ddof=1) / np.sqrt(j))
    return Outcome(j, mean, mean - half, mean + half, float((values > 0).mean()))
