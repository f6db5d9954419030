"""The search for the smallest set that flips one target's prediction, along the order of images that one method gives.

A probe is judged in looks of more and more models (see `brittleness.judging`) until one decides. Models are kept (see
`retrain`): a search that was cut off goes through what it knew at once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from datamodels.brittleness import Search
from datamodels.brittleness.judging import FLIPPED, UNDECIDED, Outcome, judge
from datamodels.subsets import mask_without
from datamodels.verify.methods import DATAMODEL, Orders
from datamodels.verify.questions import Question
from datamodels.verify.questions.removals import Removal
from datamodels.verify.record import Probe, SearchRecord
from datamodels.verify.retrain import Request, Retrained

CENSORED = "censored"


@dataclass(eq=False)
class SearchQuestion(Question):
    """One target, one method: its search, and what the probes so far have found.

    `relabelled` is the class that the images of R get where they are not removed, else -1; `looks` are numbers of models.
    """

    orders: Orders
    target: int
    method: str
    search: Search
    relabelled: int
    looks: list[int]
    look: int = 0
    probes: list[Probe] = field(default_factory=list)

    @classmethod
    def of(cls, orders: Orders, method: str, target: int, base: Outcome, steps: list[int]) -> SearchQuestion:
        """The search along a method's order for a target whose margin on all of S is known."""
        order = orders.of(method, target)
        search = Search(order, orders.drops(method, target, order), base.mean_margin, orders.settings.ratio)
        return cls(orders, target, method, search, orders.relabelled(method, target), steps)

    @property
    def done(self) -> bool:
        """Whether the search is at its end; one without any image to try is."""
        return not len(self.search.order) or self.search.done

    @property
    def size(self) -> int | None:
        """The smallest number of images that flips the prediction, as far as it is verified, or None."""
        return self.search.high

    @property
    def found(self) -> Probe | None:
        """The probe of the smallest set that flips the prediction, or None."""
        return next((probe for probe in self.probes if probe.size == self.size), None)

    def wants(self) -> list[Request]:
        """The models of the present look."""
        return [] if self.done else self._models(self.search.size, self.looks[self.look])

    def learn(self, found: Retrained) -> None:
        """Judge the present look: decide, or go on to the next one."""
        outcome = judge(*found.of(self.wants(), self.target), len(self.looks))
        if outcome.verdict == UNDECIDED and self.look + 1 < len(self.looks):
            self.look += 1
            return
        size = self.search.size
        drop = float(self.drops[size - 1])
        self.probes.append(Probe(size, self.search.level, self.looks[self.look], outcome.verdict, outcome, drop))
        self.search.learn(outcome.verdict == FLIPPED)
        self.look = 0

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
    def drops(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """The drop of the margin that the weights predict for the removal of the first 1, 2, … images."""
        return np.cumsum(self.orders.weights(self.target)[self.search.order])

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
            verdict=FLIPPED if self.size is not None else CENSORED,
            size=self.size,
            tried=tried,
            order=tuple(order.tolist()),
            weights=tuple(self.orders.weights(self.target)[order].tolist()),
            base_margin=self.search.base,
            models=len(self.used()),
            probes=tuple(self.probes),
        )

    def _models(self, size: int, number: int) -> list[Request]:
        mask = mask_without(self.orders.n, self.search.order[:size])
        return [Request.of(mask, repetition, self.relabelled) for repetition in range(number)]
