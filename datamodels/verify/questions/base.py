"""The margin on all of S, of every target: the margin before. Where that is beyond doubt, searches follow."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from datamodels.brittleness.curve import Measured
from datamodels.brittleness.judging import FLIPPED, HELD, Outcome, judge
from datamodels.verify.expected import of_searches
from datamodels.verify.kept import base_requests
from datamodels.verify.methods import DATAMODEL, Orders
from datamodels.verify.questions import Listed
from datamodels.verify.questions.contests import Contest
from datamodels.verify.questions.searches import Before, SearchQuestion
from datamodels.verify.record import OnAll, SearchRecord
from datamodels.verify.retrain import Retrained


class BaseMargin(Listed):
    """What networks trained on all of S say of each target, and a search by each method for those that they have right beyond
    doubt, or where sets are to repair wrong.
    """

    def __init__(self, orders: Orders, targets: Sequence[int], methods: Sequence[str], rivals: Sequence[str] = ()) -> None:
        super().__init__(base_requests(orders.settings.base_models, orders.n))
        self.orders, self.targets, self.methods, self.rivals = orders, targets, methods, rivals
        self.outcomes: dict[int, Outcome] = {}

    def judge(self, found: Retrained) -> None:
        """The margin before, of each target, and what all columns are, beyond doubt."""
        members = self.orders.targets.members
        self.outcomes = {target: judge(*found.of(self.requests, members(target))) for target in self.targets}
        self.margins = {target: found.of(self.requests, members(target))[0] for target in self.targets}
        self.before = Before.of(found.margins(self.requests))

    def expects(self) -> int:
        """Of the searches to come, were all targets right, of rivals that have none of their own, and of their controls."""
        alone = set(self.rivals) - set(self.methods)
        return len(self.targets) * of_searches(self.orders.settings, self.methods, len(alone))[1]

    @property
    def searches(self) -> list[SearchQuestion]:
        """Of each target that there is something to do about beyond doubt, by each method."""
        return self._begun[0]

    @property
    def contests(self) -> dict[int, Contest]:
        """Of the targets that the datamodel's order is searched for, its search and those of its rivals."""
        return self._begun[1]

    @functools.cached_property
    def _begun(self) -> tuple[list[SearchQuestion], dict[int, Contest]]:
        searches, contests = list[SearchQuestion](), dict[int, Contest]()
        wanted = FLIPPED if self.orders.repairs else HELD
        for target in self.targets:
            if self.outcomes[target].verdict == wanted:
                of_target = {method: self._search(method, target) for method in self.methods}
                searches += of_target.values()
                if DATAMODEL in of_target:
                    contests[target] = Contest(of_target[DATAMODEL], self.rivals, of_target)
        return searches, contests

    def _search(self, method: str, target: int) -> SearchQuestion:
        return SearchQuestion.of(self.orders, method, target, Measured.of(self.margins[target]), self.before)

    def then(self) -> Sequence[SearchQuestion]:
        """The searches; what follows from these the contests say."""
        return self.searches

    def found(self) -> tuple[SearchRecord, ...]:
        """What the searches have found, once they have ended: by the datamodel, what its rivals have found beside it."""
        answers = (self.contests[s.target] if s.method == DATAMODEL else s for s in self.searches)
        return tuple(answer.record() for answer in answers)

    def records(self) -> dict[int, OnAll]:
        """For each target."""
        return {target: OnAll(outcome, self.orders.label(target)) for target, outcome in self.outcomes.items()}
