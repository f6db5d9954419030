"""The search for the smallest set that flips one target's prediction, along the order of images that one method gives.

Where `verify.goal` is repair, one that is wrong: the same search on the negated margin, which ends with a set whose networks
are right beyond doubt. What becomes of all other predictions is told by the margins of the same networks.

A probe is judged in looks of more and more models (see `brittleness.judging`) until one decides. Models are kept (see
`retrain`): a search that was cut off goes through what it knew at once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from datamodels.brittleness import Search
from datamodels.brittleness.judging import FLIPPED, HELD, UNDECIDED, Outcome, beyond_doubt, judge
from datamodels.subsets import Array, BoolArray, mask_without
from datamodels.verify.methods import DATAMODEL, Orders
from datamodels.verify.questions import Question
from datamodels.verify.questions.removals import Removal
from datamodels.verify.record import REPAIRED, Probe, SearchRecord
from datamodels.verify.retrain import Request, Retrained

CENSORED = "censored"


@dataclass(eq=False)
class SearchQuestion(Question):
    """One target, one method: its search, and what the probes so far have found.

    `relabelled` is the class that the images of R get where they are not removed, else -1; `before` which of the columns are
    right, and which wrong, beyond doubt, on all of S; `looks` are numbers of models. `beside` are the other columns that the
    smallest set so far breaks, and those that it repairs.
    """

    orders: Orders
    target: int
    method: str
    search: Search
    relabelled: int
    before: tuple[BoolArray, BoolArray]
    looks: list[int]
    look: int = 0
    probes: list[Probe] = field(default_factory=list)
    beside: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @classmethod
    def of(
        cls,
        orders: Orders,
        method: str,
        target: int,
        base: Outcome,
        before: tuple[BoolArray, BoolArray],
        steps: list[int],
    ) -> SearchQuestion:
        """The search along a method's order for a target whose margin on all of S is known, as is what all columns are."""
        order = orders.of(method, target)
        search = Search(order, orders.drops(method, target, order), orders.sign * base.mean_margin, orders.settings.ratio)
        return cls(orders, target, method, search, orders.relabelled(method, target), before, steps)

    @property
    def done(self) -> bool:
        """Whether the search is at its end; one without any image to try is."""
        return not len(self.search.order) or self.search.done

    @property
    def size(self) -> int | None:
        """The smallest number of images that reaches the goal, as far as it is verified, or None."""
        return self.search.high

    @property
    def found(self) -> Probe | None:
        """The probe of the smallest set that reaches the goal, or None."""
        return next((probe for probe in self.probes if probe.size == self.size), None)

    def wants(self) -> list[Request]:
        """The models of the present look."""
        return [] if self.done else self._models(self.search.size, self.looks[self.look])

    def learn(self, found: Retrained) -> None:
        """Judge the present look: decide, or go on to the next one."""
        wanted = self.wants()
        outcome = judge(*found.of(wanted, self.orders.targets.members(self.target)), len(self.looks))
        if outcome.verdict == UNDECIDED and self.look + 1 < len(self.looks):
            self.look += 1
            return
        size = self.search.size
        drop = float(self.drops[size - 1])
        level = -self.search.level + 0.0 if self.orders.repairs else self.search.level
        self.probes.append(Probe(size, level, self.looks[self.look], outcome.verdict, outcome, drop))
        reached = outcome.verdict == (HELD if self.orders.repairs else FLIPPED)
        if reached:
            self.beside = self._beside(found.margins(wanted))
        self.search.learn(reached)
        self.look = 0

    def _beside(self, margins: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The other columns that are wrong now and were right, both beyond doubt, and the other way, by margins (J, T)."""
        right, wrong = beyond_doubt(margins, margins.shape[1] * len(self.looks))
        was_right, was_wrong = self.before
        own = set(self.orders.targets.members(self.target))
        breaks, repairs = (np.flatnonzero(both).tolist() for both in (was_right & wrong, was_wrong & right))
        return tuple(t for t in breaks if t not in own), tuple(t for t in repairs if t not in own)

    def expects(self) -> int:
        """Of the probes that may be left, every other one looked at twice, and of the control."""
        first, second = self.looks[0], self.looks[min(1, len(self.looks) - 1)]
        probes = self.search.probes_left + (self.method == DATAMODEL)
        return 0 if self.done else probes * (first + second) // 2

    def used(self) -> set[Request]:
        """Every model that the search has asked for."""
        return {request for probe in self.probes for request in self.judged(probe)}

    def judged(self, probe: Probe) -> list[Request]:
        """The models by which a probe was judged, those that diverged included."""
        return self._models(probe.size, probe.asked)

    @functools.cached_property
    def drops(self) -> Array:
        """The drop of the margin that the weights predict for the removal of the first 1, 2, … images."""
        found: Array = np.cumsum(self.orders.weights(self.target)[self.search.order])
        return found

    @functools.cached_property
    def control(self) -> Removal:
        """What the search has found, to be compared with a control."""
        requests = None if self.found is None else self.judged(self.found)
        return Removal.of_search(self.orders, self.target, self.search, requests)

    def then(self) -> Sequence[Removal]:
        """The control of what the datamodel's order has found."""
        return [self.control] if self.method == DATAMODEL else []

    def record(self) -> SearchRecord:
        """All that was tried."""
        tried = max((probe.size for probe in self.probes), default=0)
        order = self.search.order[: self.size or tried]
        return SearchRecord(
            target=self.target,
            label=self.orders.label(self.target),
            method=self.method,
            relabelled=self.relabelled if self.relabelled >= 0 else None,
            verdict=CENSORED if self.size is None else REPAIRED if self.orders.repairs else FLIPPED,
            size=self.size,
            tried=tried,
            order=tuple(order.tolist()),
            weights=tuple(self.orders.weights(self.target)[order].tolist()),
            base_margin=self.orders.sign * self.search.base,
            models=len(self.used()),
            probes=tuple(self.probes),
            breaks=self.beside[0] if self.beside else None,
            repairs=self.beside[1] if self.beside else None,
        )

    def _models(self, size: int, number: int) -> list[Request]:
        mask = mask_without(self.orders.n, self.search.order[:size])
        return [Request.of(mask, repetition, self.relabelled) for repetition in range(number)]
