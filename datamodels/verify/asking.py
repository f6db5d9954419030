"""The loop of a verification: all questions together, until none wants any more models.

What they want is trained together, so that the trainer's groups stay full. A question goes on by what it has learnt as soon as
the last of its models is back, without waiting for the others; questions that follow from an answer join in at once. Where an
engine trains all that it has been given before it gives anything back, this makes rounds: in each all that any question wants.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol

from datamodels.progress import Advance
from datamodels.verify.questions import Question
from datamodels.verify.retrain import Request, Retrained
from datamodels.worker.blocks import Shown

Wants = list[tuple[Question, list[Request]]]


class Models(Protocol):
    """The models that questions want; see `retrain.Retraining`."""

    @property
    def found(self) -> Retrained:
        """Those that are there."""
        ...

    @property
    def room(self) -> bool:
        """Whether more could be handed out than was."""
        ...

    def lacking(self, requests: Iterable[Request]) -> list[Request]:
        """Those of the models that are not there yet."""
        ...

    def want(self, requests: Iterable[Request]) -> None:
        """Let models be trained as well."""
        ...

    def hand_out(self) -> None:
        """Give those that are wanted to who trains, as there is room."""
        ...

    def wait(self, show: Shown) -> None:
        """Until some more are there; `show` is told how many more."""
        ...


def ask(questions: Sequence[Question], models: Models, bar: Advance) -> list[Question]:
    """All questions, and those that follow from them, to their end; these questions.

    The bar's total is what was wanted so far and an estimate of what will be.
    """
    answered: list[Question] = []
    count, left = _Count(models, bar), _wants(questions, answered)
    new = left
    while left:
        wanted = [request for _, requests in new for request in requests]
        models.want(wanted)
        count.add(wanted, sum(question.expects() for question, _ in left))
        models.hand_out()
        if not models.room or all(models.lacking(requests) for _, requests in left):
            count.wait()
        left = [(question, models.lacking(requests)) for question, requests in left]
        ready = [question for question, lacking in left if not lacking]
        for question in ready:
            question.learn(models.found)
        new = _wants(ready, answered)
        left = [(question, lacking) for question, lacking in left if lacking] + new
    bar.to(len(count.known), len(count.known))
    return answered


class _Count:
    """Tells the bar how many of the models that were wanted so far are there."""

    def __init__(self, models: Models, bar: Advance) -> None:
        self.models, self.bar = models, bar
        self.known: set[Request] = set()
        self.lacking: list[Request] = []

    def add(self, wanted: Iterable[Request], expected: int) -> None:
        """These are wanted too, and about so many more will be. Those that are there already count for no speed."""
        new = set(wanted) - self.known
        lacking = self.models.lacking(new)
        self.known |= new
        self.lacking += lacking
        self.bar.to(self.bar.done, len(self.known) + expected)
        self.bar.there(len(new) - len(lacking))

    def wait(self) -> None:
        """Wait for some that are lacking."""
        there = len(self.known) - len(self.lacking)
        self.models.wait(lambda more: self.bar.to(there + more))
        self.lacking = self.models.lacking(self.lacking)
        self.bar.to(len(self.known) - len(self.lacking))


def _wants(questions: Sequence[Question], answered: list[Question]) -> Wants:
    """What each question wants; those that want nothing go to the answered ones, and those that follow take their place."""
    left, wants = deque(questions), []
    while left:
        question = left.popleft()
        wanted = question.wants()
        if wanted:
            wants.append((question, wanted))
        else:
            answered.append(question)
            left.extend(question.then())
    return wants
