"""Questions: what a verification wants to know, each a small class that says which networks it wants for that.

A question goes through `wants`, training, `learn`, again and again until it wants no more; `asking.ask` does so for all at
once. Whoever judges networks of a new kind of set writes a question: the networks it wants next, what it learns from them, and
the record it ends with.

base             the margin on all of S, from which searches follow
random_subsets   predictions against networks on random subsets, LDS, and what noise lets anything reach
searches         the smallest set that flips a prediction, along one order of images
contests         whether the order of a rival needs fewer images than the datamodel's; a control follows from the answer
removals         a set removed, beside a control
counterfactuals  predicted against measured drops
rechecks         whether a verdict holds with networks that it has not seen
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from datamodels.verify.retrain import Request, Retrained


class Question(ABC):
    """Something to find out by retraining."""

    @abstractmethod
    def wants(self) -> list[Request]:
        """The models wanted next; none when the question is answered. The same until `learn` is called."""

    @abstractmethod
    def learn(self, found: Retrained) -> None:
        """Take in the margins of the models that `wants` named."""

    @abstractmethod
    def used(self) -> set[Request]:
        """All models that the answer rests on, so far."""

    def expects(self) -> int:
        """An estimate of the models that will be wanted beyond those of `wants`, for the time left."""
        return 0

    def then(self) -> Sequence[Question]:
        """The questions that follow from the answer."""
        return ()


class Listed(Question):
    """A question whose models are known beforehand."""

    def __init__(self, requests: list[Request]) -> None:
        self.requests, self.answered = requests, False

    def wants(self) -> list[Request]:
        """All of them, once."""
        return [] if self.answered else self.requests

    def learn(self, found: Retrained) -> None:
        """See `judge`."""
        self.judge(found)
        self.answered = True

    @abstractmethod
    def judge(self, found: Retrained) -> None:
        """Take in the margins of all of the models."""

    def used(self) -> set[Request]:
        """All of them."""
        return set(self.requests)
