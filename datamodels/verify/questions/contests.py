"""What the datamodel's order has found for one target, and whether the order of a rival needs fewer images.

Weights say of each image what it does on average beside random others. Of the images of one set together they are only about
right, so that another order may need fewer. Whether it does no weights can say, but networks can: `verify.rivals` are other
methods whose orders are asked, one after the other, for a set smaller than the datamodel's. The smallest that is proved is the
answer.

A rival that is in `verify.methods` too is searched in its own right, and what that has found counts. Any other is asked for a
plainly smaller set alone, which most often takes a few networks; or for any set, where the orders before it have none.

What is claimed is claimed of all orders together: the attempts of a rival count as those of one search, after those of the
orders before it (see `brittleness.search`). So a set that a rival's own search has proved, by its own measure, may be no
answer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from datamodels.verify.expected import PROBES_OF_A_RIVAL
from datamodels.verify.questions import Question
from datamodels.verify.questions.removals import Removal
from datamodels.verify.questions.searches import SearchQuestion
from datamodels.verify.record import OrderRecord, SearchRecord

PLAINLY = 1.1
"""A rival's set is to be so many times smaller: what is nearer depends on which networks were asked, and takes many of them."""


class Contest:
    """The datamodel's search for one target, then its `rivals`, of which those in `beside` are searched in their own right.

    `asked` are the searches so far, in their order, the datamodel's first; `answer` is the one of the smallest set that is
    proved, or the datamodel's where none is.
    """

    def __init__(self, own: SearchQuestion, rivals: Sequence[str], beside: Mapping[str, SearchQuestion]) -> None:
        self.own, self.rivals = own, deque(rivals)
        self.beside = {method: beside[method] for method in rivals if method in beside}
        # Made before any network of the searches is wanted: what an order lacks is said at once.
        self._orders = {method: own.orders.of(method, own.target) for method in rivals if method not in beside}
        self.asked, self.answer = [own], own
        self._heard, self._attempts, self._is_over = 0, 0, False
        for search in (own, *self.beside.values()):
            search.follows = self.next
        effort = own.search.effort
        own.then_about = effort.looks[0] + PROBES_OF_A_RIVAL * effort.first * len(self._orders)

    def next(self) -> Sequence[Question]:
        """What follows now that a search has ended: a rival's, at last the control; nothing while one is still at it."""
        while True:
            if self._heard < len(self.asked):
                if not self.asked[self._heard].done:
                    return []
                self._hear(self.asked[self._heard])
            elif self.rivals:
                method = self.rivals.popleft()
                self.asked.append(self.beside.get(method) or self._rival(method))
                if method not in self.beside:
                    return self.asked[-1:]
            else:
                control = [] if self._is_over else [self.control]
                self._is_over = True
                return control

    def _hear(self, search: SearchQuestion) -> None:
        """Take in what a search has found that has ended."""
        self._heard += 1
        before, best = self._attempts, np.inf if self.answer.size is None else self.answer.size
        if search.method in self.beside:
            self._attempts += search.search.attempts
            if not search.search.proves_after(before):
                return
            search = search.after(before)
        else:  # it began after those before it
            self._attempts = search.search.attempts
        if search.size is not None and search.size < best:
            self.answer = search

    def _rival(self, method: str) -> SearchQuestion:
        """The search along a rival's order, of sets plainly smaller than the smallest so far, by what is known since."""
        own, best = self.own, self.answer.size
        order = self._orders[method][: None if best is None else int(best / PLAINLY)]
        search = own.search.along(np.cumsum(own.orders.towards(own.target)[order]), self._attempts)
        return SearchQuestion(own.orders, own.target, method, order, search, -1, own.before, follows=self.next)

    @functools.cached_property
    def control(self) -> Removal:
        """What has been found, to be compared with a control."""
        best = self.answer
        found = None if best.size is None else best.order[: best.size]
        base, spread = self.own.search.base.mean, best.search.spread
        return Removal.of_search(self.own.orders, self.own.target, base, spread, found, best.judged() or [])

    def record(self) -> SearchRecord:
        """All that was tried along the order of the answer, and how far each order came where several were asked.

        The networks of a rival's search in its own right are counted there, not here.
        """
        searches = [search for search in self.asked if search.method not in self.beside]
        orders = tuple(OrderRecord(s.method, s.size, s.tried, len(s.used())) for s in self.asked)
        return dataclasses.replace(
            self.answer.record(),
            method=self.own.method,
            models=len(set().union(*(search.used() for search in searches))),
            two_modes=any(search.search.mode is not None for search in self.asked),
            orders=orders if len(orders) > 1 else (),
        )
