"""The margin on all of S, of every target: the margin before. Where that is beyond doubt, searches follow."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from datamodels.brittleness.judging import FLIPPED, HELD, Outcome, beyond_doubt, judge, looks
from datamodels.verify.kept import base_requests
from datamodels.verify.methods import DATAMODEL, Orders
from datamodels.verify.questions import Listed
from datamodels.verify.questions.searches import SearchQuestion
from datamodels.verify.record import OnAll
from datamodels.verify.retrain import Retrained


class BaseMargin(Listed):
    """What networks trained on all of S say of each target, and a search by each method for those that they have right beyond
    doubt, or where sets are to repair wrong.
    """

    def __init__(self, orders: Orders, targets: Sequence[int], methods: Sequence[str]) -> None:
        super().__init__(base_requests(orders.settings.base_models, orders.n))
        self.orders, self.targets, self.methods = orders, targets, methods
        self.outcomes: dict[int, Outcome] = {}

    def judge(self, found: Retrained) -> None:
        """The margin before, of each target, and what all columns are, beyond doubt."""
        members = self.orders.targets.members
        self.outcomes = {target: judge(*found.of(self.requests, members(target))) for target in self.targets}
        margins = found.margins(self.requests)
        self.before = beyond_doubt(margins, margins.shape[1])

    def expects(self) -> int:
        """Of the searches to come, were all targets right, and their controls."""
        first = self.orders.settings.models
        controls = len(self.targets) * first * (DATAMODEL in self.methods)
        return len(self.targets) * len(self.methods) * first * _probes(self.orders.settings.ratio) + controls

    @functools.cached_property
    def searches(self) -> list[SearchQuestion]:
        """Of each target that there is something to do about beyond doubt, by each method."""
        steps = looks(self.orders.settings.models, self.orders.settings.most_models)
        wanted = FLIPPED if self.orders.repairs else HELD
        return [
            SearchQuestion.of(self.orders, method, target, self.outcomes[target], self.before, steps)
            for target in self.targets
            if self.outcomes[target].verdict == wanted
            for method in self.methods
        ]

    def then(self) -> Sequence[SearchQuestion]:
        """The searches."""
        return self.searches

    def records(self) -> dict[int, OnAll]:
        """For each target."""
        return {target: OnAll(outcome, self.orders.label(target)) for target, outcome in self.outcomes.items()}


def _probes(ratio: float) -> int:
    """About how many sets a search tries: two, and the bisections from a quarter of the larger on."""
    return 2 + math.ceil(math.log2(max(1.0, math.log(4) / math.log(max(ratio, 1.05)))))
