"""Engines: who trains a job's models. `Local` does it on the devices of this machine, in this process or in one for each."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, TypeVar

from datamodels.errors import InputError
from datamodels.learners import Learner
from datamodels.processes import Team
from datamodels.progress import say
from datamodels.signals import noted
from datamodels.store import Store
from datamodels.worker.blocks import Shown, no_show, train_blocks, train_pass, until_there
from datamodels.worker.jobs import Job

R = TypeVar("R")
MakeLearner = Callable[[str | None], Learner]
"""The learner on a device, 'cpu' or the number of a GPU, or None for what is there."""
MOST_DEATHS = 3
"""So many times processes may die without a model having come between."""


class Engine(Protocol):
    """Who trains."""

    @property
    def learner(self) -> Learner:
        """What is trained, for what is to be known of it; it trains elsewhere."""
        ...

    def train(self, job: Job, show: Shown = no_show) -> None:
        """Bring the job's models into its store; `show` is told how many of them are there."""
        ...

    def ask(self, question: Callable[[Learner], R]) -> R:
        """What a function gives of the learner, where it trains."""
        ...


class Local:
    """The devices of this machine, as a context: one in this process, or several with a process each.

    `make` gives the learner on a device; with several it goes to other processes, and must be picklable, as must be questions.
    """

    def __init__(self, make: MakeLearner, devices: Sequence[str] = ()) -> None:
        self.make, self.devices = make, list(devices)
        self.team: Team[Learner] | None = None

    @functools.cached_property
    def learner(self) -> Learner:
        """See `Engine`. Of several devices it is on none."""
        several = len(self.devices) > 1
        return self.make("cpu" if several else next(iter(self.devices), None))

    def __enter__(self) -> Local:
        return self

    def __exit__(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None, trace: TracebackType | None = None
    ) -> None:
        if self.team is not None:
            self.team.__exit__(kind, error, trace)
            self.team = None

    def train(self, job: Job, show: Shown = no_show) -> None:
        """See `Engine`. A process that dies is started again, and what it was at is trained by whoever comes first."""
        if len(self.devices) <= 1:
            train_blocks(job, self.learner, show)
            return
        team, deaths = self._team(), _Deaths(job)
        with noted() as stop:
            until_there(job, functools.partial(_together, team, job, deaths), show, stop)

    def ask(self, question: Callable[[Learner], R]) -> R:
        """See `Engine`. With several devices the first of them is asked."""
        if len(self.devices) <= 1:
            return question(self.learner)
        for _ in range(MOST_DEATHS):
            team = self._team()
            found = team.one(question)
            if not team.revive():
                return found  # type: ignore[return-value]
        raise InputError(f"the process on {self.devices[0]} died {MOST_DEATHS} times")

    def _team(self) -> Team[Learner]:
        if self.team is None:
            self.team = Team(self.devices, self.make).__enter__()
        return self.team


def _together(team: Team[Learner], job: Job, deaths: _Deaths, stop: threading.Event) -> None:
    """One pass of all processes. The team has the signals meanwhile, and ends in KeyboardInterrupt by them."""
    del stop
    team.all(functools.partial(train_pass, job))
    died = team.revive()
    if died:
        deaths.take_in(died)


class _Deaths:
    """Counts the processes that die while nothing comes of their work."""

    def __init__(self, job: Job) -> None:
        self.job, self.store = job, Store(job.folder)
        self.left, self.number = len(job.missing(self.store)), 0

    def take_in(self, died: Sequence[str]) -> None:
        """Say which have died. Raises InputError where that leads nowhere."""
        left = len(self.job.missing(self.store))
        self.number = 1 if left < self.left else self.number + 1
        self.left = left
        told = ", ".join(died)
        if self.number >= MOST_DEATHS:
            raise InputError(f"the processes on {told} died, {self.number} times over, and no model came of their work")
        say(f"{self.job.stage}: the process on {told} has died; it is started again")
