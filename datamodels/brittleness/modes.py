"""Whether some networks lie far above the others: a margin with two modes, of which a few networks may show one only.

The mean of such a margin can be above 0 though nearly all networks are below. So the networks of all sets of a search are
looked at together, each as it lies beside the median of its set: where a gap of more than 2 standard deviations of those below
it sets a few apart, they are a mode of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from datamodels.brittleness.judging import wilson
from datamodels.subsets import Array

GAP = 2.0
"""Standard deviations; of 25 normal numbers some are set apart like that in about 2 cases of 100, of 12 in 10, of 6 in 23."""
LEAST_BELOW = 4
ONE_SIDED = 0.9
"""The level of an interval whose upper end is passed in one case of 20."""


class HighMode(NamedTuple):
    """Networks far above the others: the largest `share` that they may well be of all, and how far above, `gap`, in logits."""

    share: float
    gap: float

    @property
    def lift(self) -> float:
        """By how much they raise the mean, in logits."""
        return self.share * self.gap


def high_mode(of_sets: Sequence[Array]) -> HighMode | None:
    """The mode above, of the margins that networks have on each of some sets; None where there is none."""
    parts = [_beside_the_median(margins) for margins in of_sets if len(margins) > 1]
    values = np.sort(np.concatenate(parts)) if parts else np.zeros(0)
    above = _set_apart(values)
    if not above:
        return None
    gap = float(values[-above:].mean() - values[:-above].mean())
    return HighMode(wilson(above, len(values), ONE_SIDED)[1], gap)


def below(margins: Array, mode: HighMode) -> Array:
    """The margins of a set that are not of the mode above."""
    found: Array = margins[margins - np.median(margins) < mode.gap / 2]
    return found


def _beside_the_median(margins: Array) -> Array:
    # Of few numbers the median takes a part of the spread with it.
    found: Array = (margins - np.median(margins)) * np.sqrt(len(margins) / (len(margins) - 1))
    return found


def _set_apart(values: Array) -> int:
    """How many of sorted values, fewer than half, lie above a gap; 0 where there is none."""
    for above in range(len(values) // 2, 0, -1):
        rest = values[:-above]
        if len(rest) >= LEAST_BELOW and values[-above] - rest[-1] > GAP * rest.std(ddof=1):
            return above
    return 0
