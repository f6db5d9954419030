"""Engines: who trains a job's models. `Local` does it on the devices of this machine, in this process or in one for each."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from datamodels.errors import InputError
from datamodels.learners import Learner
from datamodels.learners.given import asked_of
from datamodels.processes import Team
from datamodels.progress import say
from datamodels.signals import noted
from datamodels.store import Store
from datamodels.store.precision import FEWEST
from datamodels.worker.blocks import Shown, no_show, train_blocks, train_pass, until_there
from datamodels.worker.coarseness import Look
from datamodels.worker.jobs import Job

if TYPE_CHECKING:
    from datamodels.cluster import Cluster

R = TypeVar("R")
MakeLearner = Callable[[str | None], Learner]
"""The learner on a device, 'cpu' or the number of a GPU, or None for what is there."""
MOST_DEATHS = 3
"""So many times processes may die without a model having come between."""


class Engine(Protocol):
    """Who trains.

    Jobs are started, and waited for: who has more work to give gives it while there is `room`, and what fills no block while
    something would be `idle` else.
    """

    @property
    def learner(self) -> Learner:
        """What is trained, for what is to be known of it; it trains elsewhere."""
        ...

    @property
    def cluster(self) -> Cluster | None:
        """The cluster that it has, for whoever else wants one: a regression, say."""
        ...

    @property
    def where(self) -> str:
        """Where models are trained by now, in a few words for a bar of progress; '' where there is nothing to tell."""
        ...

    @property
    def room(self) -> int:
        """How many more blocks may be started now; one at least where none is under way."""
        ...

    @property
    def idle(self) -> int:
        """How many more blocks would be begun at once; one at least where none is under way."""
        ...

    def start(self, job: Job) -> None:
        """Take on the job's models that are missing, beside those of jobs started before.

        A block that is under way already is not taken on twice.
        """
        ...

    def wait(self, show: Shown = no_show) -> None:
        """Train, until some block that was started is in its store; where nothing is left this returns at once.

        `show` is told how many models of the started jobs are there, of those jobs that were started since nothing was under
        way. Raises KeyboardInterrupt after SIGINT or SIGTERM.
        """
        ...

    def train(self, job: Job, show: Shown = no_show) -> None:
        """Bring the job's models into its store; `show` is told how many of them are there."""
        ...

    def ask(self, question: Callable[[Learner], R]) -> R:
        """What a function gives of the learner, where it trains."""
        ...

    def write(self, work: Callable[..., R], *args: Any) -> R:
        """What a function gives that writes into a store, called where stores are written."""
        ...

    def give_back(self) -> None:
        """Let the learner give its devices back, where it can, to whoever wants them next: a regression, say."""
        ...


class Local:
    """The devices of this machine, as a context: one in this process, or several with a process each.

    `make` gives the learner on a device; with several it goes to other processes, and must be picklable, as must be questions.
    `more` gives what it is called with there beside the device.
    """

    cluster, where = None, ""

    def __init__(
        self, make: MakeLearner, devices: Sequence[str] = (), more: Callable[[Learner], Mapping[str, Any]] = lambda _: {}
    ) -> None:
        self.make, self.devices, self.more = make, list(devices), more
        self.team: Team[Learner] | None = None
        self.started: list[Job] = []

    @functools.cached_property
    def learner(self) -> Learner:
        """See `Engine`. With several devices it trains on none here, and this process chooses none for its own code."""
        return self.make(self.devices[0] if len(self.devices) == 1 else None)

    def __enter__(self) -> Local:
        return self

    def __exit__(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None, trace: TracebackType | None = None
    ) -> None:
        if self.team is not None:
            self.team.__exit__(kind, error, trace)
            self.team = None

    @property
    def room(self) -> int:
        """See `Engine`. What is started is trained together, all of it: so there is room until something is."""
        return 0 if self.started else sys.maxsize

    @property
    def idle(self) -> int:
        """See `room`."""
        return self.room

    def start(self, job: Job) -> None:
        """See `Engine`. It is trained where it is waited for."""
        self.started.append(job)

    def wait(self, show: Shown = no_show) -> None:
        """See `Engine`. Brings all of the started jobs' models."""
        jobs, self.started = self.started, []
        there = 0
        for job in jobs:
            self._train(job, functools.partial(_show_more, show, there))
            there += len(job.wanted(Store(job.folder)))

    def train(self, job: Job, show: Shown = no_show) -> None:
        """See `Engine`."""
        self.start(job)
        self.wait(show)

    def _train(self, job: Job, show: Shown) -> None:
        """Train a job; a process that dies is started again, and what it was at is trained by whoever comes first."""
        if len(self.devices) <= 1:
            train_blocks(job, self.learner, show)
            return
        team, deaths = self._team(), _Deaths(job)
        with noted() as stop:
            until_there(job, functools.partial(_together, team, job, deaths), show, stop)
        if len(job.wanted(Store(job.folder))) < FEWEST * len(self.devices):
            Look(job).last()  # none of the processes may have seen enough to tell

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

    def write(self, work: Callable[..., R], *args: Any) -> R:
        """See `Engine`. It is called here."""
        return work(*args)

    def give_back(self) -> None:
        """See `Engine`."""
        if self.team is not None:
            self.team.all(_give_back)
        elif "learner" in self.__dict__:
            _give_back(self.learner)

    def _team(self) -> Team[Learner]:
        if self.team is None:
            # The learner here first: what it is made of may change while others are started.
            make = functools.partial(self.make, **self.more(self.learner))
            self.team = Team(self.devices, make).__enter__()
        return self.team


def _show_more(show: Shown, before: int, there: int) -> None:
    show(before + there)


def _together(team: Team[Learner], job: Job, deaths: _Deaths, stop: threading.Event) -> None:
    """One pass of all processes. The team has the signals meanwhile, and ends in KeyboardInterrupt by them."""
    del stop
    team.all(functools.partial(train_pass, job))
    died = team.revive()
    if died:
        deaths.take_in(died)


def _give_back(learner: Learner) -> None:
    asked_of(learner, "give_back")


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
