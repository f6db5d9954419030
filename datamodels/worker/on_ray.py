"""The engine on a Ray cluster: blocks are trained on its nodes by the local code, and their rows written here by one process.

    driver        this process: hands blocks out, weighs what comes back, shows progress; trains nothing, writes nothing
    nodes         a task trains a block; its rows stay in Ray's object store
    writer        an actor beside the driver fetches rows, looks at them, and writes them: see `writing`

What does not depend on Ray is in `dispatch`, what nodes do in `tasks`, how the data reaches them in `sending`, and all that
Ray itself is asked in `cluster`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, TypeVar

from datamodels.cluster import Cluster, Code, Crew
from datamodels.data import Dataset
from datamodels.durable import is_there
from datamodels.errors import GO_ON, InputError, one_line
from datamodels.learners import Learner
from datamodels.learners.sources import PACKAGE, files_of
from datamodels.progress import say
from datamodels.runs import groups_of, stage_folder
from datamodels.settings import BUILT_IN, GroupSettings, Settings
from datamodels.store import read_meta
from datamodels.worker.blocks import Shown, no_show
from datamodels.worker.dispatch import Dispatch
from datamodels.worker.jobs import Job
from datamodels.worker.sending import recipe_of_local, recipe_of_sent, sent
from datamodels.worker.tasks import Here, answer, here
from datamodels.worker.writing import Answer, Lot, Taken, Writing

R = TypeVar("R")
SEND, INIT = "send", "__init__.py"
WORD_AFTER_S = 60.0


class OnRay:
    """See `Engine`. A context: entering connects to the cluster.

    `make` gives the learner here, `there` what makes it on a node, where it is called with `gpu` and `sources`.

    `sources` are the digests of one's own code. Raises InputError where there is no such cluster, or none of this program.
    """

    def __init__(
        self,
        settings: Settings,
        make: Callable[[], Learner],
        there: Callable[[Cluster], Callable[..., Learner]],
        sources: Callable[[], Mapping[str, str]],
    ) -> None:
        self.settings, self.make, self.there, self.sources = settings, make, there, sources
        self.open = ExitStack()
        self.crew: Crew[Here] | None = None

    def __enter__(self) -> OnRay:
        with ExitStack() as open_:
            self.learner  # noqa: B018 (what it is made of is what travels)
            self.cluster = open_.enter_context(Cluster(self.settings.ray, code_of(own_module(self.settings))))
            open_.callback(self.give_back)
            allow_many_files()
            self.made = functools.partial(here, functools.partial(self.there(self.cluster), sources=self.sources()))
            self.pen = OfActor(self.cluster)
            self.dispatch = open_.enter_context(Dispatch(self._crew, self.pen, self.cluster, lambda: self.groups))
            self.open = open_.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None, trace: TracebackType | None = None
    ) -> None:
        self.open.__exit__(kind, error, trace)

    @functools.cached_property
    def learner(self) -> Learner:
        """See `Engine`. It trains on nothing here."""
        return self.make()

    @property
    def room(self) -> int:
        """See `Engine`."""
        return self.dispatch.room

    @property
    def idle(self) -> int:
        """See `Engine`."""
        return self.dispatch.idle

    @property
    def where(self) -> str:
        """See `Engine`: models/s of the nodes."""
        return self.dispatch.speeds.told()

    def start(self, job: Job) -> None:
        """See `Engine`."""
        self.dispatch.start(job)

    def wait(self, show: Shown = no_show) -> None:
        """See `Engine`."""
        self.dispatch.wait(show)

    def train(self, job: Job, show: Shown = no_show) -> None:
        """See `Engine`."""
        self.dispatch.train(job, show)

    def ask(self, question: Callable[[Learner], R]) -> R:
        """See `Engine`. Whichever node is free answers."""
        while True:
            found = self._crew().one(functools.partial(answer, question, self.groups))
            if found.unfit is None:
                return found.value  # type: ignore[return-value]
            self.cluster.refuse(self.cluster.node(found.node), found.unfit)

    def write(self, work: Callable[..., R], *args: Any) -> R:
        """See `Engine`. The writer does it."""
        found: R = self.pen.write(work, *args)
        return found

    def give_back(self) -> None:
        """See `Engine`. The nodes' processes end, or make something else."""
        if self.crew is not None:
            self.crew.__exit__()
            self.crew = None

    @property
    def groups(self) -> GroupSettings | None:
        """How the models of the run's store are grouped; None before there is one."""
        if self._groups is None:
            folder = stage_folder(self.settings, "store")
            self._groups = groups_of(read_meta(folder)) if is_there(folder) else None
        return self._groups

    _groups: GroupSettings | None = None

    def _crew(self) -> Crew[Here]:
        if self.crew is None:
            self.crew = self.cluster.crew(self.made, "cluster").__enter__()
        return self.crew


def own_module(settings: Settings) -> str:
    """The module of one's own code that makes a run's models: of `worker.main`, or of a network; '' where there is none."""
    name = settings.training.network if settings.worker.main == BUILT_IN else settings.worker.main
    return name.partition(":")[0] if ":" in name else ""


def code_of(module: str) -> Code:
    """What travels of a module of one's own: its files, those of the modules beside it that it imports, and their packages.

    This package's own is on every node.
    """
    if not module or module.partition(".")[0] == PACKAGE:
        return Code()
    files = files_of(module)
    for within, file in list(files.items()):
        for folder, there in zip(PurePosixPath(within).parents, file.parents, strict=False):
            if folder.name and (there / INIT).is_file():
                files[(folder / INIT).as_posix()] = there / INIT
    return Code(files)


class OfActor:
    """The writer, an actor beside this process; it starts in the folder in which this one is."""

    def __init__(self, cluster: Cluster) -> None:
        self.ray, self.actor = cluster.ray, cluster.beside(Writing, Path.cwd())
        self.under_way: Any = None
        self.since, self.told = 0.0, False

    @property
    def busy(self) -> bool:
        """See `dispatch.Pen`."""
        return self.under_way is not None

    def begin(self, folder: Path, lots: Sequence[Lot]) -> None:
        """See `dispatch.Pen`."""
        self.under_way, self.since = self.actor.take.remote(folder, list(lots)), time.monotonic()

    def taken(self, timeout: float) -> Taken | None:
        """See `dispatch.Pen`."""
        if not self._answered(self.under_way, timeout):
            return None
        reference, self.under_way = self.under_way, None
        found: Taken = self._got(reference)
        return found

    def write(self, work: Callable[..., Any], *args: Any) -> Any:
        """What a function gives that writes into a store."""
        reference, self.since = self.actor.write.remote(work, *args), time.monotonic()
        while not self._answered(reference, WORD_AFTER_S):
            pass
        return self._got(reference)

    def _answered(self, reference: Any, timeout: float) -> bool:
        """Whether the writer has answered, within so many seconds; that it is long silent is said once."""
        ready, _ = self.ray.wait([reference], timeout=timeout)
        if not ready and not self.told and time.monotonic() - self.since >= WORD_AFTER_S:
            self.told = True
            silent = f"the process that writes, ray::Writing on this machine, is silent for {WORD_AFTER_S:.0f} s"
            say(f"cluster: {silent}; if it is stopped, let it go on, or end it, and it is started again")
        return bool(ready)

    def _got(self, reference: Any) -> Any:
        try:
            answer: Answer = self.ray.get(reference)
        except self.ray.exceptions.RayError as e:
            raise InputError(f"the process that writes the store is gone ({one_line(e, 200)}); {GO_ON}") from e
        if answer.error is None:
            return answer.value
        sentence, trace = answer.error
        raise RuntimeError(f"the writer failed:\n{trace}") if sentence is None else InputError(sentence)


def allow_many_files() -> None:
    """Each block under way has a lock, which is an open file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def recipe_there(cluster: Cluster, settings: Settings, data: Dataset) -> Callable[..., Learner]:
    """What makes the built-in recipe on a node: of images that are sent, or lie there, as `ray.data` says."""
    if settings.ray.data == SEND:
        return functools.partial(recipe_of_sent, settings, cluster.gpus(), cluster.share(sent(data), "the images"))
    run = dataclasses.replace(settings.run, dir=os.path.abspath(settings.run.dir))  # noqa: PTH100 (links as they are)
    return functools.partial(recipe_of_local, dataclasses.replace(settings, run=run), cluster.gpus(), data.digest)
