"""The search for the smallest set that flips one target's prediction, along the order of images that one method gives.

Where `verify.goal` is repair, one that is wrong: the same search on the negated margin, which ends with a set whose networks
are right beyond doubt. What becomes of all other predictions is told by the margins of the same networks.

Which set is tried next, and when one is proved, is the business of `brittleness.search`. Models are kept (see `retrain`): a
search that was cut off goes through what it knew at once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from datamodels.brittleness import Effort, Search
from datamodels.brittleness.curve import Factor, Measured
from datamodels.brittleness.judging import FLIPPED, HELD, UNDECIDED, Outcome, beyond_doubt, judge
from datamodels.brittleness.search import AS_PREDICTED, CERTAIN, Step
from datamodels.brittleness.spread import Spread, is_deterministic, spread_at_the_edge
from datamodels.subsets import Array, BoolArray, IndexArray, mask_without
from datamodels.verify.methods import RELABEL, Orders
from datamodels.verify.questions import Question
from datamodels.verify.record import REPAIRED, Probe, SearchRecord
from datamodels.verify.retrain import Request, Retrained

CENSORED = "censored"
FRESH = 500_000
"""Repetitions of the models that confirm a set count from here: no look of a search has seen them."""
OF_RELABELLING = Factor(2.0, 1.0)
"""A relabelling takes an image away and adds one against it: its drop is taken for twice that of the removal, or so."""


@dataclass(frozen=True)
class Before:
    """What the models trained on all of S tell a search: their margins (J, T), and which columns are right, and which wrong."""

    margins: Array
    right: BoolArray
    wrong: BoolArray

    @classmethod
    def of(cls, margins: Array) -> Before:
        """By margins (J, T)."""
        return cls(margins, *beyond_doubt(margins, margins.shape[1]))

    @functools.cached_property
    def is_certain(self) -> bool:
        """Whether chance has no part in what the learner gives."""
        return is_deterministic(self.margins)

    @functools.cached_property
    def spread(self) -> Spread:
        """What is known of a margin's variance before any set was tried."""
        return CERTAIN if self.is_certain else spread_at_the_edge(self.margins)


@dataclass(eq=False)
class SearchQuestion(Question):
    """One target, one method: its search, and what the models so far have said.

    `relabelled` is the class that the images of R get where they are not removed, else -1. `heard` are the margins and
    confidences of the models of each step, `expected` what was expected of each size when it was first tried. `beside` are the
    other columns that the set found breaks, and those that it repairs. `follows` gives the questions that follow once it is
    done, which take about `then_about` networks.
    """

    orders: Orders
    target: int
    method: str
    order: IndexArray
    search: Search
    relabelled: int
    before: Before
    heard: dict[Step, tuple[Array, Array]] = field(default_factory=dict)
    expected: dict[int, float] = field(default_factory=dict)
    outcome: Outcome | None = None
    beside: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    follows: Callable[[], Sequence[Question]] = tuple
    then_about: int = 0

    @classmethod
    def of(cls, orders: Orders, method: str, target: int, base: Measured, before: Before) -> SearchQuestion:
        """The search along a method's order for a target whose margin on all of S is known, as is what all columns are."""
        order, chosen = orders.of(method, target), orders.settings
        effort = Effort.of(chosen.models, chosen.most_models, chosen.ratio)
        if before.is_certain:
            effort = Effort.without_chance(effort)
        # Of a mean over several columns the spread of single ones says nothing.
        known = before.is_certain or not orders.targets.is_behaviour(target)
        search = Search(
            np.cumsum(orders.towards(target)[order]),
            Measured(orders.sign * base.mean, base.variance),
            before.spread if known else Spread(),
            effort,
            OF_RELABELLING if method == RELABEL else AS_PREDICTED,
            orders.repairs,
        )
        return cls(orders, target, method, order, search, orders.relabelled(method, target), before)

    @property
    def done(self) -> bool:
        """Whether the search is at its end; one without any image to try is."""
        return self.search.done

    @property
    def size(self) -> int | None:
        """The smallest number of images that is proved to reach the goal, or None."""
        return self.search.high

    def wants(self) -> list[Request]:
        """The models of the present step."""
        return [] if self.search.step is None else self._models(self.search.step)

    def learn(self, found: Retrained) -> None:
        """Take in what they say."""
        step = self.search.step
        assert step is not None
        wanted = self._models(step)
        self.heard[step] = margins, confidences = found.of(wanted, self.orders.targets.members(self.target))
        self.expected.setdefault(step.size, self.orders.sign * self.search.expected)
        level = self.search.level if step.fresh else None
        self.search.learn(self.orders.sign * margins)
        if level is not None and self.size is not None:
            self.outcome = judge(margins, confidences, level, self.search.spread)
            self.beside = self._beside(found.margins(wanted))

    def _beside(self, margins: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The other columns that are wrong now and were right, both beyond doubt, and the other way, by margins (J, T)."""
        if self.search.is_certain:
            margins = np.concatenate([margins, margins])  # one speaks for all
        right, wrong = beyond_doubt(margins, margins.shape[1] * len(self.search.effort.looks))
        own = set(self.orders.targets.members(self.target))
        turned = (self.before.right & wrong, self.before.wrong & right)
        breaks, repairs = (np.flatnonzero(both).tolist() for both in turned)
        return tuple(t for t in breaks if t not in own), tuple(t for t in repairs if t not in own)

    def expects(self) -> int:
        """Of the probes that may be left, of the confirmation, and of what follows."""
        return 0 if self.done else self.search.networks_left + self.then_about

    def used(self) -> set[Request]:
        """Every model that the search has asked for."""
        return {request for step in self.heard for request in self._models(step)}

    def after(self, attempts: int) -> SearchQuestion:
        """The same, its proof judged as that of a search after so many attempts along other orders."""
        margins, confidences = self.heard[max(step for step in self.heard if step.fresh and step.size == self.size)]
        level = self.search.level_after(attempts)
        return dataclasses.replace(self, outcome=judge(margins, confidences, level, self.search.spread))

    def judged(self) -> list[Request] | None:
        """The models by which the set that was found is proved, those that diverged included; None without one."""
        return (
            None
            if self.size is None
            else self._models(max(step for step in self.heard if step.fresh and step.size == self.size))
        )

    @functools.cached_property
    def drops(self) -> Array:
        """The drop of the margin that the weights predict for the removal of the first 1, 2, … images."""
        found: Array = np.cumsum(self.orders.weights(self.target)[self.order])
        return found

    def then(self) -> Sequence[Question]:
        """Those that follow."""
        return self.follows()

    @property
    def tried(self) -> int:
        """The largest set tried."""
        return max((step.size for step in self.heard), default=0)

    def record(self) -> SearchRecord:
        """All that was tried."""
        order = self.order[: self.size or self.tried]
        return SearchRecord(
            target=self.target,
            label=self.orders.label(self.target),
            method=self.method,
            relabelled=self.relabelled if self.relabelled >= 0 else None,
            verdict=CENSORED if self.size is None else REPAIRED if self.orders.repairs else FLIPPED,
            size=self.size,
            tried=self.tried,
            order=tuple(order.tolist()),
            weights=tuple(self.orders.weights(self.target)[order].tolist()),
            base_margin=self.orders.sign * self.search.base.mean,
            models=len(self.used()),
            probes=tuple(self._probes()),
            breaks=self.beside[0] if self.beside else None,
            repairs=self.beside[1] if self.beside else None,
            two_modes=self.search.mode is not None,
            along=self.method,
        )

    def _probes(self) -> list[Probe]:
        """Each size that was tried, as it was first: what all of its models say, or of the set found those that prove it."""
        return [probe for size in self.expected if (probe := self._probe(size)) is not None]

    def _probe(self, size: int) -> Probe | None:
        """None where so many of its models diverged that they say nothing."""
        steps = [max((s for s in self.heard if s.size == size and s.fresh == fresh), default=None) for fresh in (False, True)]
        asked, fresh = (step.networks if step else 0 for step in steps)
        if size == self.size and self.outcome is not None:
            outcome, verdict = self.outcome, HELD if self.orders.repairs else FLIPPED
        else:
            margins, confidences = (np.concatenate([self.heard[step][k] for step in steps if step]) for k in (0, 1))
            spread = self.search.spread_beside(size)
            if np.isfinite(margins).sum() < 2 - bool(spread.degrees):
                return None
            outcome = judge(margins, confidences, spread=spread)
            as_before = FLIPPED if self.orders.repairs else HELD
            verdict = as_before if outcome.verdict == as_before else UNDECIDED  # nothing more is claimed of it
        drop = float(self.drops[size - 1])
        return Probe(size, self.expected[size], asked, verdict, outcome, drop, fresh)

    def _models(self, step: Step) -> list[Request]:
        mask, first = mask_without(self.orders.n, self.order[: step.size]), FRESH if step.fresh else 0
        return [Request.of(mask, first + k, self.relabelled) for k in range(step.networks)]
