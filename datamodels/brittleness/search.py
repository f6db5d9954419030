"""The smallest set that flips one target's prediction: a search along an order of the training images, proved by retraining.

min |R| s.t. the mean margin of networks trained on S∖R is at most 0, over the sets R that are the first images of an order. It
goes in two parts, again and again until the second succeeds.

*Search.* A few networks are trained for one size at a time. All sizes tried so far, and what the weights predict, make a curve
of margin against size (see `curve`). The next size is where it is even whether a set is small enough, until the sets that would
be confirmed begin within `ratio` of those that would not.

*Confirmation.* That set is trained again, by networks that nothing has seen, and they alone decide. They are looked at at most
three times. The a-th attempt of a search has the level 0.025 · ¾ · ¼^(a−1), and of this each look a share (see `Effort`),
so that over all attempts and looks together a search ends with a set whose true mean margin is above 0 at most 2.5 % of the
time (Bonferroni), whatever the curve was: Student's t, with what is known of the spread (see `spread`). An attempt that fails
belongs to the search then, and a larger set is wanted. Where the search's own networks vary by far more than was known, or vary
though those on all of S did not, what was known is forgotten, and they alone tell of the spread. Where several orders are
searched for one answer, attempts are counted on from one order to the next.

That is so of margins that are about normal, or skewed as real ones are. Where a few networks of a hundred lie far above all
others, a confirmation may well meet none of them: then it is about 5 % (see `modes`, and `bench.court`).

What comes out is an upper bound on the true minimum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.special import fdtrc, ndtr, stdtrit

from datamodels.brittleness.curve import Curve, Factor, Measured
from datamodels.brittleness.judging import NOTHING_KNOWN, Outcome, judge
from datamodels.brittleness.modes import HighMode, below, high_mode
from datamodels.brittleness.spread import MOST_DEGREES, Spread
from datamodels.subsets import Array

WRONG = 0.025
"""How often a search may end with a set whose mean margin is above 0."""
FIRST_ATTEMPT = 0.75
"""Of that, the share of the first attempt at a confirmation; of what is left the next one has as much again."""
MOST_ATTEMPTS = 8
LIKELY, UNLIKELY = 0.6, 0.4
"""The chance to be confirmed from which a set is tried, and up to which it is thought too small."""
HOPELESS = 0.1
"""The chance below which nothing more is spent on a set."""
MOST_PROBES = 20
AS_PREDICTED = Factor(1.0, 0.5)
"""What is thought of predicted drops before a search has tried them."""
CERTAIN = Spread(0.0, 1e9)
"""Of a learner without chance."""
ROUNDING = 1e-3
"""Of the base margin: two networks of one set that differ by more have chance in them."""
TOO_WIDE = 0.05
"""How rarely networks vary by so much more than was known that it is forgotten, where they vary alike."""


@dataclass(frozen=True)
class Effort:
    """How many networks a search spends: `first` on a size at a time, `looks` in all when a confirmation is looked at.

    `otherwise` is what it spends once networks of one set differ, where it was thought that they do not.
    """

    first: int
    looks: tuple[int, ...]
    ratio: float
    otherwise: Effort | None = None

    @classmethod
    def of(cls, first: int, most: int, ratio: float) -> Effort:
        """Confirmations of up to `most` networks, looked at at a quarter, at half, and at the end."""
        return cls(first, tuple(sorted({max(2, -(-most // 4)), max(2, -(-most // 2)), most})), ratio)

    @classmethod
    def without_chance(cls, otherwise: Effort) -> Effort:
        """Of a learner whose networks all say the same on all of S: one decides, as long as they do without R."""
        return cls(1, (1,), otherwise.ratio, otherwise)

    def tail(self, attempt: int, look: int) -> float:
        """How often one look of an attempt may take a margin of 0 for less: more networks have more of it, as their square."""
        of_attempt = WRONG * FIRST_ATTEMPT * (1 - FIRST_ATTEMPT) ** attempt
        squares = [number**2 for number in self.looks]
        return of_attempt * squares[look] / sum(squares)


class Step(NamedTuple):
    """What a search wants next: of the first `size` images so many networks in all, of those that search or of fresh ones."""

    size: int
    networks: int
    fresh: bool


class Proof(NamedTuple):
    """The margins of fresh networks that confirm a set, and at which look they do."""

    fresh: Array
    look: int


@dataclass
class Search:
    """The search for one target along one order.

    `drops` (K,) are the drops of the margin that the weights predict for the removal of the first 1, 2, …, K images of the
    order, `base` the mean margin on all of S, > 0, `spread` what is known of a margin's variance, `factor` by how much the
    drops are thought to be off; where `strict`, a margin of just 0 is not enough. `confirmed` is the outcome of fresh networks,
    `proof`, for the smallest set that flips, `high`; None where there is none. `attempt` counts the confirmations that
    failed, and where searches along other orders came before it all of theirs (see `along`).
    """

    drops: Array
    base: Measured
    spread: Spread
    effort: Effort
    factor: Factor = AS_PREDICTED
    strict: bool = False
    attempt: int = 0
    seen: dict[int, Array] = field(default_factory=dict, init=False)
    high: int | None = field(default=None, init=False)
    proof: Proof | None = field(default=None, init=False)
    confirmed: Outcome | None = field(default=None, init=False)
    step: Step | None = field(default=None, init=False)
    """What is wanted next; None where the search is done."""
    expected: float = field(default=0.0, init=False)
    """The margin that the curve expects of that set."""

    def __post_init__(self) -> None:
        self.curve = Curve(self.drops, self.base, self.factor)
        self.asked: dict[int, int] = {}
        self.failed: dict[int, Array] = {}
        self._choose()

    @property
    def done(self) -> bool:
        """Whether there is nothing more to try."""
        return self.step is None

    @property
    def is_certain(self) -> bool:
        """Whether chance has no part in it."""
        return self.spread == CERTAIN

    @property
    def attempts(self) -> int:
        """At a confirmation, so far, those before the search included."""
        return self.attempt + (self.high is not None)

    def along(self, drops: Array, attempts: int) -> Search:
        """A search along another order, as long as `drops`, after so many attempts at confirmations along this one and others.

        It knows what this one has learnt of the spread. Its attempts count on: of all together no more is claimed wrongly than
        of one.
        """
        return Search(drops, self.base, self._spread_learnt(), self.effort, AS_PREDICTED, self.strict, attempts)

    def proves_after(self, attempts: int) -> bool:
        """Whether what was found is proved also where the attempts of this search come after so many along other orders."""
        return self.proof is not None and self._proved(self.proof, self.seen, attempts) is not None

    def level_after(self, attempts: int) -> float:
        """Of the interval by which its proof is judged then."""
        assert self.proof is not None
        return self._level(self.proof.look, attempts)

    @property
    def networks_left(self) -> int:
        """About how many networks more than those of the present step."""
        if self.step is None:
            return 0
        return 0 if self.step.fresh else max(0, 3 - len(self.asked)) * self.effort.first + self.effort.looks[0]

    @property
    def level(self) -> float:
        """Of the interval by which the present step is judged, where it is a look at a confirmation."""
        assert self.step is not None
        return self._level(self.effort.looks.index(self.step.networks))

    @property
    def mode(self) -> HighMode | None:
        """Networks far above the others, of all that the search has seen."""
        return high_mode(list(self.seen.values()))

    def learn(self, margins: Array) -> None:
        """Take in the margins of all networks of the step; those that diverged, with NaN, do not count."""
        assert self.step is not None
        finite = margins[np.isfinite(margins)].astype(np.float64)
        size = self.step.size
        self._forget(finite)
        if self.effort.otherwise is not None and not self.is_certain:
            self.effort = self.effort.otherwise
            if self.step.fresh:
                self._fail(self._together(finite), finite)
                return
        if self.step.fresh:
            self._confirm(finite)
            return
        self.seen[size] = finite
        self.asked[size] = self.step.networks
        self._choose()

    def _forget(self, new: Array) -> None:
        """Forget what was known of the spread where these networks, and all before, say that it is wider."""
        assert self.step is not None
        size, _, fresh = self.step
        if self.is_certain:
            of_set = np.append(self.seen.get(size, new[:0]), new)
            if len(of_set) and np.ptp(of_set) > ROUNDING * self.base.mean:
                self.spread = NOTHING_KNOWN
            return
        squares, degrees = _within([*(margins for of, margins in self.seen.items() if fresh or of != size), new])
        known = self.spread.degrees and self.spread.variance and degrees
        if known and fdtrc(degrees, self.spread.degrees, squares / degrees / self.spread.variance) < TOO_WIDE:
            self.spread = NOTHING_KNOWN

    def _confirm(self, fresh: Array) -> None:
        assert self.step is not None
        size, asked, _ = self.step
        look, together = self.effort.looks.index(asked), self._together(fresh)
        proof = Proof(fresh, look)
        outcome, last = self._proved(proof, together), look + 1 == len(self.effort.looks)
        if outcome is not None:
            self.seen, self.high, self.proof, self.confirmed, self.step = together, size, proof, outcome, None
        elif not last and self._may_still_pass(fresh, size):
            self.step = Step(size, self.effort.looks[look + 1], True)
        else:
            self._fail(together, fresh)

    def _together(self, fresh: Array) -> dict[int, Array]:
        """All that was seen, with the networks of the present step."""
        assert self.step is not None
        size = self.step.size
        return {**self.seen, size: np.concatenate([self.seen.get(size, fresh[:0]), fresh])}

    def _fail(self, together: dict[int, Array], fresh: Array) -> None:
        assert self.step is not None
        self.seen, self.failed[self.step.size] = together, fresh
        self.attempt += 1
        self._choose()

    def _is_enough(self, margin: float) -> bool:
        return margin < 0 if self.strict else margin <= 0

    def _proved(self, proof: Proof, together: dict[int, Array], before: int = 0) -> Outcome | None:
        """What fresh networks say of a set, at the level of their look and attempt, where it is proved by that; else None."""
        outcome = self._judged(proof, before)
        proved = outcome is not None and self._is_enough(outcome.high) and self._in_spite_of_modes(together, proof, before)
        return outcome if proved else None

    def _judged(self, proof: Proof, before: int) -> Outcome | None:
        """The outcome of fresh networks at the level of their look; None of too few."""
        if len(proof.fresh) < min(2, self.effort.looks[0]):
            return None
        return judge(proof.fresh, level=self._level(proof.look, before), spread=self.spread)

    def _level(self, look: int, before: int = 0) -> float:
        return 1 - 2 * self.effort.tail(self.attempt + before, look)

    def _in_spite_of_modes(self, together: dict[int, Array], proof: Proof, before: int) -> bool:
        """Whether the margin is low enough also with as many networks far above the others as there may well be.

        Where the search has shown some, only the last look may say so, by the others.
        """
        mode = high_mode(list(together.values()))
        if mode is None or self.is_certain:
            return True
        low = self._judged(Proof(below(proof.fresh, mode), proof.look), before)
        last = proof.look + 1 == len(self.effort.looks)
        return last and low is not None and self._is_enough(low.high + mode.lift)

    def _may_still_pass(self, fresh: Array, size: int) -> bool:
        """Whether the last look has a chance to be below, by the curve and what of the fresh networks is there."""
        n, most = len(fresh), self.effort.looks[-1]
        if not n:
            return True
        variance, _ = self.variance
        mean, of_curve = (values[size - 1] for values in self._given())
        sure = 1 / of_curve + n / variance
        mean, of_curve = (mean / of_curve + fresh.sum() / variance) / sure, 1 / sure
        needed = (-self._depth(variance) * most - fresh.sum()) / (most - n)
        return bool(ndtr((needed - mean) / np.sqrt(of_curve + variance / (most - n))) >= HOPELESS)

    def _choose(self) -> None:
        """The next step: another size, a confirmation, or none."""
        self.step = self._next() if len(self.drops) and self.attempt < MOST_ATTEMPTS else None

    def _next(self) -> Step | None:
        last, floor = len(self.drops), max(self.failed, default=0)
        mean, deep, passes = self._chances()
        # Without chance there is no need to believe what was not seen.
        told = np.isin(np.arange(1, last + 1), list(self.seen)) if self.is_certain else np.ones(last, bool)
        likely = np.flatnonzero(told[floor:] & (passes[floor:] >= LIKELY))
        high = floor + int(likely[0]) + 1 if len(likely) else None
        unlikely = np.flatnonzero((told & (deep <= UNLIKELY))[: high or last])
        low = max(int(unlikely[-1]) + 1 if len(unlikely) else 0, floor)
        enough = self._probes >= MOST_PROBES
        if high is not None and (enough or high <= max(low + 1, self.effort.ratio * low)):
            return self._to_confirm(high, mean)
        if high is None and (enough or low >= last):
            hopeless = floor == last or (last in self.seen and (deep[-1] <= HOPELESS or enough))
            return None if hopeless else self._to_probe(last, mean)
        between = np.arange(low, high or last)
        return self._to_probe(int(between[np.argmin(np.abs(deep[between] - 0.5))]) + 1, mean)

    def _chances(self) -> tuple[Array, Array, Array]:
        """For each set its expected margin, the chance that the true one is low enough, and that fresh networks show it."""
        mean, variance = self._given()
        of_one, _ = self.variance
        depth = self._depth(of_one)
        deep = ndtr((-depth - mean) / np.sqrt(variance))
        passes = ndtr((-depth - mean) / np.sqrt(variance + of_one / self.effort.looks[-1]))
        if self.is_certain:  # without chance what was seen once is known
            for size, margins in self.seen.items():
                deep[size - 1] = passes[size - 1] = len(margins) > 0 and all(map(self._is_enough, margins))
        return mean, deep, passes

    @property
    def _probes(self) -> int:
        return sum(asked // self.effort.first for asked in self.asked.values())

    def _to_probe(self, size: int, mean: Array) -> Step:
        self.expected = float(mean[size - 1])
        return Step(size, self.asked.get(size, 0) + self.effort.first, False)

    def _to_confirm(self, size: int, mean: Array) -> Step:
        self.expected = float(mean[size - 1])
        return Step(size, self.effort.looks[0], True)

    def _given(self) -> tuple[Array, Array]:
        sizes = [size for size in sorted(self.seen) if len(self.seen[size])]
        variance, _ = self.variance
        means = np.array([self.seen[size].mean() for size in sizes], np.float64)
        return self.curve.given(np.array(sizes, int), means, np.array([variance / len(self.seen[size]) for size in sizes]))

    def spread_beside(self, size: int) -> Spread:
        """What is known of one set's spread without its own networks: before the search, and from its other sets."""
        variance, degrees = self.spread.moderated(*_within(margins for of, margins in self.seen.items() if of != size))
        return Spread(variance, degrees) if degrees else NOTHING_KNOWN

    def _spread_learnt(self) -> Spread:
        if self.is_certain:
            return self.spread
        variance, degrees = self.spread.moderated(*_within(self.seen.values()))
        # Of networks that agreed by chance nothing is learnt.
        return Spread(variance, min(degrees, MOST_DEGREES)) if degrees and variance else self.spread

    @property
    def variance(self) -> tuple[float, float]:
        """Of one network's margin, from all sets seen, and its degrees of freedom."""
        variance, degrees = self.spread.moderated(*_within(self.seen.values()))
        if self.is_certain:
            return variance, degrees
        # Where nothing at all is known, one probe has to be taken first: half of the base margin is a guess. And networks of
        # few possible margins may agree by chance.
        return (max(variance, (ROUNDING * self.base.mean) ** 2), degrees) if degrees else ((self.base.mean / 2) ** 2, 1.0)

    def _depth(self, variance: float) -> float:
        """How far below 0 the mean of the last look must be, for the whole of its interval to be."""
        look, most = len(self.effort.looks) - 1, self.effort.looks[-1]
        tail = self.effort.tail(self.attempt, look)
        return float(-stdtrit(self.spread.degrees + max(most - 1, 1), tail) * np.sqrt(variance / most))


def _within(of_sets: Iterable[Array]) -> tuple[float, int]:
    """The sum of squares of margins about the mean of their own set, and its degrees of freedom."""
    sets = [margins for margins in of_sets if len(margins) > 1]
    return sum(float(((margins - margins.mean()) ** 2).sum()) for margins in sets), sum(len(margins) - 1 for margins in sets)
