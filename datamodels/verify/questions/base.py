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
from datamodels.verify.questions.searches import Before, SearchQuestion
from datamodels.verify.record import OnAll
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
        """Of the searches to come, were all targets right, and their controls."""
        chosen = self.orders.settings
        return len(self.targets) * of_searches(chosen, self.methods, len(self.rivals))[1]

    @functools.cached_property
    def searches(self) -> list[SearchQuestion]:
        """Of each target that there is something to do about beyond doubt, by each method."""
        wanted = FLIPPED if self.orders.repairs else HELD
        return [
            self._search(method, target)
            for target in self.targets
            if self.outcomes[target].verdict == wanted
            for method in self.methods
        ]

    def _search(self, method: str, target: int) -> SearchQuestion:
        base, rivals = Measured.of(self.margins[target]), self.rivals if method == DATAMODEL else ()
        return SearchQuestion.of(self.orders, method, target, base, self.before, rivals)

    def then(self) -> Sequence[SearchQuestion]:
        """The searches."""
        return self.searches

    def records(self) -> dict[int, OnAll]:
        """For each target."""
        return {target: OnAll(outcome, self.orders.label(target)) for target, outcome in self.outcomes.items()}
