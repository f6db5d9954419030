"""An engine that gives models back block by block, in any order; and its opposite, a loop of rounds that keeps no store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from datamodels.learners import Learner
from datamodels.store import Store, enlist
from datamodels.subsets import Array
from datamodels.verify.questions import Question
from datamodels.verify.retrain import Request, Retrained, Retraining
from datamodels.worker.blocks import Shown, no_show, there, train_blocks
from datamodels.worker.jobs import BLOCK, Job, ListedModels

ROOM, SLOTS = 3, 2
R = TypeVar("R")


def retrained(models: Retraining, requests: Sequence[Request]) -> Retrained:
    """Models trained, in whatever blocks."""
    models.want(requests)
    while models.lacking(requests):
        models.hand_out()
        models.wait()
    return models.found


class Streaming:
    """Has room for three blocks, two at work; each wait trains one of them, that which `choose` takes of their numbers.

    `choose` may raise. A new block that is not full is refused unless something is idle. `blocks` are those that were trained.
    """

    def __init__(self, learner: Learner, choose: Callable[[list[int]], int] = max) -> None:
        self.learner: Any = learner
        self.cluster, self.where = None, ""
        self.choose = choose
        self.under_way: dict[int, ListedModels] = {}
        self.jobs: list[Job] = []
        self.new: set[int] = set()
        self.blocks: list[range] = []
        self.written: list[str] = []

    @property
    def room(self) -> int:
        """See `Engine`."""
        return ROOM - len(self.under_way)

    @property
    def idle(self) -> int:
        """See `Engine`."""
        return max(0, SLOTS - len(self.under_way))

    def start(self, job: Job) -> None:
        """See `Engine`."""
        assert isinstance(job, ListedModels)
        store = Store(job.folder)
        for block, ids in job.blocks(store, job.missing(store)).items():
            assert self.idle or len(ids) == self.learner.models_at_once or block not in self.new
            wanted = {i for i in ids if i in job.ids}
            assert wanted
            before = self.under_way.get(block)
            rows = tuple(sorted(wanted.union(before.ids if before else ())))
            self.under_way[block] = ListedModels(job.folder, job.seed, rows)
        assert self.room >= 0
        self.jobs.append(job)

    def wait(self, show: Shown = no_show) -> None:
        """See `Engine`."""
        if self.under_way:
            job = self.under_way[self.choose(sorted(self.under_way))]
            store = Store(job.folder)
            ((block, ids),) = job.blocks(store, job.wanted(store)).items()
            train_blocks(job, self.learner)
            del self.under_way[block]
            self.blocks.append(ids)
            show(sum(there(each, store) for each in self.jobs))
        if not self.under_way:
            self.jobs.clear()

    def train(self, job: Job, show: Shown = no_show) -> None:
        """See `Engine`."""
        raise NotImplementedError

    def ask(self, question: Callable[[Learner], R]) -> R:
        """See `Engine`."""
        return question(self.learner)

    def write(self, work: Callable[..., R], *args: Any) -> R:
        """See `Engine`."""
        self.written.append(work.__name__)
        if work is enlist:
            self.new.update(args[2][BLOCK].tolist())
        return work(*args)

    def give_back(self) -> None:
        """See `Engine`."""


class Rounds:
    """All that any question wants is trained together, in blocks of subsets by their size, before any question goes on.

    Requests lie in `rows` in the order in which they were trained, `blocks` are the numbers of their blocks.
    """

    def __init__(self, learner: Learner, seed: int) -> None:
        self.learner, self.seed = learner, seed
        self.rows: dict[Request, int] = {}
        self.blocks: list[int] = []
        self.margins_of, self.confidences_of = list[Array](), list[Array]()

    def ask(self, questions: Sequence[Question]) -> list[Question]:
        """The questions, and those that follow, to their end."""
        answered, left = list[Question](), list(questions)
        while left:
            asking = []
            for question in left:
                if question.wants():
                    asking.append(question)
                else:
                    answered.append(question)
                    left.extend(question.then())  # which this loop comes to as well
            self.train([request for question in asking for request in question.wants()])
            for question in asking:
                question.learn(self)  # type: ignore[arg-type]
            left = asking
        return answered

    def train(self, wanted: list[Request]) -> None:
        """One round."""
        new = sorted({request: 0 for request in wanted if request not in self.rows}, key=left_out)
        size = self.learner.models_at_once
        for part in (new[k : k + size] for k in range(0, len(new), size)):
            arrays = self.learner.train([request.model(self.seed, self.learner) for request in part]).arrays
            chances = np.exp(arrays["logits"]) / np.exp(arrays["logits"]).sum(2, keepdims=True)
            self.margins_of += list(arrays["margins"].astype(np.float32))
            self.confidences_of += [each[range(len(each)), self.learner.test_labels].astype(np.float16) for each in chances]
            first = len(self.rows)
            self.blocks += [first] * len(part)
            self.rows.update((request, first + k) for k, request in enumerate(part))

    def margins(self, requests: Sequence[Request]) -> Array:
        """See `Retrained`."""
        return np.stack([self.margins_of[self.rows[request]] for request in requests]).astype(float)

    def of(self, requests: Sequence[Request], columns: Sequence[int]) -> tuple[Array, Array]:
        """See `Retrained`."""
        confidences = np.stack([self.confidences_of[self.rows[request]] for request in requests]).astype(float)
        return self.margins(requests)[:, columns].mean(1), confidences[:, columns].mean(1)


def left_out(request: Request) -> int:
    """How many images a model does not see, but for the mask's bits beyond N."""
    return int((np.unpackbits(np.frombuffer(request.packed, np.uint8)) == 0).sum())
