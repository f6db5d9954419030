"""The smallest set that flips one target's prediction: a search along an order of the training images, verified at each step.

min |R| s.t. the mean margin of networks trained on S∖R is at most 0, over the sets R that are the first images of an order. The
first size to be tried follows from the drop that a datamodel predicts, where there is one: with the base margin measured on all
of S, the smallest R for which base − Σ_{i∈R} w_i ≤ C, C = 0. Extrapolating from α to 1 is off in the level, not in the drop.
While R does not flip the prediction, C is lowered, to −½, −1, −2, … of the base margin; without weights the size is doubled.
Once it does, the size is bisected between the largest that did not and the smallest that did, by geometric means.

What comes out is an upper bound on the true minimum. Larger sets of an order are taken to flip what smaller ones do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from datamodels.subsets import Array, IndexArray

UNINFORMED_START = 8
LEAST_GROWTH, UNPREDICTED_GROWTH, MOST_GROWTH = 1.25, 1.5, 3.0


@dataclass
class Search:
    """The search for one target along one order.

    `order` are the images to try, most important first, no more than R may hold; `drops` the predicted drop of the margin for
    1, 2, … of them, or None where nothing predicts it. `base` is the mean margin on all of S, > 0. The search ends when a set
    that flips is at most `ratio` times one that does not, or one image more, or when the whole order does not flip.
    """

    order: IndexArray
    drops: Array | None
    base: float
    ratio: float
    low: int = 0
    high: int | None = None
    level: float = field(default=0.0, init=False)
    lowered: int = field(default=0, init=False)
    size: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.size = min(self._predicted() or UNINFORMED_START, len(self.order))

    @property
    def done(self) -> bool:
        """Whether there is nothing more to try."""
        if self.high is None:
            return self.low >= len(self.order)
        return self._close(self.low, self.high)

    @property
    def probes_left(self) -> int:
        """About how many more sets are to be tried after the present one: this one taken to flip, the others not."""
        low, high, probes = self.low, self.size, 0
        while not self._close(low, high):
            low, probes = self._between(low, high), probes + 1
        return probes

    def learn(self, flipped: bool) -> None:
        """Take in the verdict on the first `size` images; `size` is the next to try then, unless the search is done."""
        if flipped:
            self.high = self.size
        else:
            self.low = self.size
        if not self.done:
            self.size = self._larger() if self.high is None else self._between(self.low, self.high)

    def _larger(self) -> int:
        self.lowered += 1
        self.level = -self.base * 2.0 ** (self.lowered - 2)
        least, most = int(np.ceil(self.low * LEAST_GROWTH)), int(self.low * MOST_GROWTH)
        wanted = 2 * self.low if self.drops is None else self._predicted() or int(self.low * UNPREDICTED_GROWTH)
        return min(max(wanted, least, self.low + 1), max(most, self.low + 1), len(self.order))

    def _close(self, low: int, high: int) -> bool:
        return high <= low + 1 or high <= self.ratio * low

    def _between(self, low: int, high: int) -> int:
        middle = round(np.sqrt(max(low, high / 4) * high))
        return int(min(max(middle, low + 1), high - 1))

    def _predicted(self) -> int | None:
        """The fewest images whose predicted drop brings the base margin to the level C; None where it is not known, but all of
        them at the first probe: whether the whole order flips the prediction decides whether to search it.
        """
        if self.drops is None:
            return None
        enough = np.flatnonzero(self.base - self.drops <= self.level)
        return int(enough[0]) + 1 if len(enough) else (len(self.order) if self.lowered == 0 else None)
