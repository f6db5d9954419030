"""What a certificate asks: networks of a list, and what a set does, looked at until it is certain."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

from datamodels.brittleness.judging import UNDECIDED, Outcome
from datamodels.progress import progress
from datamodels.subsets import Array, BoolArray
from datamodels.verify.asking import ask
from datamodels.verify.certificate import judged_margins, numbers
from datamodels.verify.questions import Listed, Question
from datamodels.verify.retrain import Request, Retrained, Retraining
from datamodels.worker.engine import Engine


class MarginsOf(Listed):
    """The margins of networks of a list on a target, the mean over some columns; None where one diverged."""

    def __init__(self, requests: Sequence[Request], columns: Sequence[int]) -> None:
        super().__init__(list(requests))
        self.columns = list(columns)
        self.margins: tuple[float | None, ...] = ()

    def judge(self, found: Retrained) -> None:
        """Their margins."""
        self.margins = numbers(found.of(self.requests, self.columns)[0])


class Looked(Question):
    """A set on which networks of repetitions from `first` on are trained, looked at in `looks`, until one of them decides.

    The mask, bool (N,), is that of S∖R, `relabelled` the class that R gets where it stays in, else -1.
    """

    def __init__(self, mask: BoolArray, relabelled: int, first: int, looks: Sequence[int], columns: Sequence[int]) -> None:
        self.first, self.looks, self.columns = first, list(looks), list(columns)
        self.requests = [Request.of(mask, repetition, relabelled) for repetition in range(first, first + self.looks[-1])]
        self.look, self.done = 0, False
        self.margins: tuple[float | None, ...] = ()
        self.outcome: Outcome | None = None

    def wants(self) -> list[Request]:
        """The networks of the present look."""
        return [] if self.done else self.requests[: self.looks[self.look]]

    def learn(self, found: Retrained) -> None:
        """Decide, or go on to the next look."""
        margins: Array = found.of(self.wants(), self.columns)[0]
        self.margins = numbers(margins)
        self.outcome = judged_margins(self.margins, len(self.looks))
        self.done = self.outcome.verdict != UNDECIDED or self.look + 1 == len(self.looks)
        self.look += not self.done

    def used(self) -> set[Request]:
        """The networks that it was judged by."""
        return set(self.requests[: len(self.margins)])

    def expects(self) -> int:
        """Every other set is looked at twice."""
        return 0 if self.done or self.look else self.looks[min(1, len(self.looks) - 1)] // 4


def in_lists(
    lists: Iterable[MarginsOf], seed: int, open_store: Callable[[str], Retraining], engine: Engine, stage: str
) -> None:
    """Train the networks of each list in a store of its own, which `open_store` gives by the name of what it holds.

    Rounding differs with a network's place in its group. So the networks that a certificate tells of are trained in groups of
    nothing but their list, in its order: whoever does so again, on a machine of the same kind, gets the same numbers.
    """
    for each in lists:
        asked([each], open_store(_name_of(each.requests, seed)), engine, stage)


def asked(questions: Sequence[Question], models: Retraining, engine: Engine, stage: str) -> None:
    """All questions to their end, with a bar."""
    with progress(stage, "models", 0) as bar:
        bar.look = lambda: engine.where
        ask(questions, models, bar)


def _name_of(requests: Sequence[Request], seed: int) -> str:
    """16 digits for a list of networks."""
    return hashlib.sha256(repr([request.key(seed) for request in requests]).encode()).hexdigest()[:16]
