"""Going through the blocks of a job until all its models are there, beside any number of other processes.

Nothing here knows how models are trained, nor PyTorch: a block is given to a learner and comes back as rows.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from datamodels.durable import sweep
from datamodels.errors import InputError
from datamodels.learners import Learner, Model
from datamodels.learners.given import side_by_side
from datamodels.progress import say
from datamodels.signals import noted
from datamodels.store import Store, Writer, claim, deliver, delivered, forget_claims, merge_if_free
from datamodels.store.layout import DONE, MISSING
from datamodels.worker.coarseness import Look
from datamodels.worker.jobs import Job
from datamodels.worker.outcomes import Outcome, outcome_of

POLL_S = 1.0
WORD_AFTER_S = 10.0
STOPPING = "stopping after the blocks that are being trained; once more drops them"
ENOUGH = 16
"""After so many models, or a block where that is more, of which not one could be trained, none is held to be trainable."""

R = TypeVar("R")
Shown = Callable[[int], None]
"""Is told how many of a job's models are there."""
Pass = Callable[[threading.Event], None]
"""Goes once over the blocks that are missing, until told to stop."""


def no_show(there: int) -> None:
    """Nobody is told."""
    del there


def train_blocks(job: Job, learner: Learner, show: Shown = no_show) -> None:
    """Train the job's models in blocks that no other process has claimed, until all are there.

    A block that another process has is waited for: it comes, or its process ends and it is free. SIGINT and SIGTERM end the
    work after the blocks in training, by KeyboardInterrupt; a second one ends the process at once, and loses those blocks only.
    """
    watch = Watch(Hope(job), Look(job))
    with noted(_stopping) as stop:
        until_there(job, lambda stop: _one_pass(job, learner, watch, stop, show), show, stop)
    watch.look.last()


def train_pass(job: Job, learner: Learner) -> None:
    """As `train_blocks`, but once over the blocks: nothing is awaited. What was seen in one pass is known in the next."""
    with noted() as stop:
        _one_pass(job, learner, _watch_of(job), stop, no_show)
        if stop.is_set():
            raise KeyboardInterrupt


@functools.lru_cache(maxsize=1)
def _watch_of(job: Job) -> Watch:
    return Watch(Hope(job), Look(job))


def until_there(job: Job, one_pass: Pass, show: Shown, stop: threading.Event) -> None:
    """One pass after another until all models of a job are there; waits where a pass brings nothing."""
    forget_the_dead(job.folder)
    store = Store(job.folder)
    with _attending(job, store, show):
        idle_since, told = time.monotonic(), False
        while not stop.is_set() and len(missing := job.missing(store)):
            one_pass(stop)
            _merge(job.folder, stop)
            if len(job.missing(store)) < len(missing):
                idle_since = time.monotonic()
            elif not stop.wait(POLL_S) and not told and time.monotonic() - idle_since > WORD_AFTER_S:
                told = True
                waiting = f"waiting for {len(missing)} models that other workers have claimed"
                say(f"{job.stage}: {waiting}; if one is stopped, end it")
        if stop.is_set():
            raise KeyboardInterrupt
        show(there(job, store))
    forget_the_dead(job.folder)


def there(job: Job, store: Store) -> int:
    """How many of the job's models are done or given up by now."""
    return len(job.wanted(store)) - len(job.missing(store))


def in_parts(models: Sequence[Model], learner: Learner, work: Callable[[Sequence[Model]], R]) -> list[R]:
    """What `work` gives of models, as many at once as the learner likes, part by part in their order."""
    size = learner.models_at_once
    parts = [models[k : k + size] for k in range(0, len(models), size)]
    found: dict[int, R] = {}

    def work_on(k: int) -> None:
        found[k] = work(parts[k])

    side_by_side(learner)(range(len(parts)), work_on)
    return [found[k] for k in range(len(parts))]


def _one_pass(job: Job, learner: Learner, watch: Watch, stop: threading.Event, show: Shown) -> None:
    store = Store(job.folder)
    blocks = job.blocks(store, job.missing(store))

    def work(block: int) -> None:
        if not stop.is_set() and _train_block(job, store, block, blocks[block], learner, watch):
            show(there(job, store))

    side_by_side(learner)(list(blocks), work)


def _train_block(job: Job, store: Store, block: int, ids: range, learner: Learner, watch: Watch) -> bool:
    """Train one block, unless it is done, or delivered, or another process has claimed it; whether it was trained."""
    if not (store.array("done", ids) == MISSING).any():
        return False
    lock = claim(store.folder, block)
    if lock is None:
        return False
    try:
        # The inbox first: what is neither there nor marked afterwards was never delivered, for a claim ends after delivery.
        there = delivered(store.folder, ids)
        missing = np.setdiff1d(ids.start + np.flatnonzero(store.array("done", ids) == MISSING), there)
        if not len(missing):
            return False
        # The whole block, also where a part of it is done: rounding differs with the group, and a row must not depend on
        # what was done before.
        trained = watch.hope.of(ids, lambda: _trained(job, store, ids, learner, watch.look))
        if trained is None:
            return False
        failures = {i: why for i, why in trained.failures.items() if i in missing}
        rows = np.setdiff1d(missing, list(failures)).astype(np.int64)
        keep = rows - ids.start
        deliver(store.folder, rows, trained.masks[keep], {name: a[keep] for name, a in trained.arrays.items()}, failures)
        return True
    finally:
        lock.release(remove=True)


def _trained(job: Job, store: Store, ids: range, learner: Learner, look: Look) -> Outcome:
    trained = outcome_of(job, store, ids, learner, lambda: any_done(store), look.see)
    refuse_hopeless(job, store, ids, trained.failures)
    return trained


def refuse_hopeless(job: Job, store: Store, ids: range, failures: Mapping[int, str]) -> None:
    """Raise InputError where it follows from the failures of some rows, by id, that nothing will come of the job."""
    why = job.hopeless(store, ids, failures)
    if why is not None:
        raise InputError(f"{why}; none was given up, so mend what trains them and run the same command again")


def any_done(store: Store) -> bool:
    """Whether any model of a store is there."""
    return bool((store.array("done", range(store.meta.num_models)) == DONE).any())


class Watch(NamedTuple):
    """What a process has its eye on while it trains."""

    hope: Hope[Outcome]
    look: Look


class Failing(Protocol):
    """What is known of a block that was trained."""

    @property
    def failures(self) -> Mapping[int, str]:
        """Why models of it are given up, by id."""
        ...


F = TypeVar("F", bound=Failing)


class Hope(Generic[F]):
    """Models of which none could be trained are not given up until one of the store, or of this process, could be.

    Such blocks are held back. When the first ENOUGH models have failed, or a block where that is more, or all that are missing,
    it is not their subsets: then none is given up.
    """

    def __init__(self, job: Job, missing: int | None = None) -> None:
        """So many models are missing, if that is not all of the job's: see `want`."""
        self.store = Store(job.folder)
        self.wanted = min(ENOUGH, len(job.missing(self.store)) if missing is None else missing)
        self.held: dict[int, F] = {}
        self.hopeful, self.lock = False, threading.Lock()

    def want(self, missing: int) -> None:
        """So many models are missing now, if those are more than before."""
        self.wanted = min(ENOUGH, max(self.wanted, missing))

    def of(self, ids: range, train: Callable[[], F]) -> F | None:
        """What the training of a block gave, now or before; None where it is held back.

        Raises InputError where there is no hope.
        """
        with self.lock:
            held = self.held.pop(ids.start, None)
        block = held or train()
        with self.lock:
            self.hopeful = self.hopeful or len(block.failures) < len(ids) or any_done(self.store)
            if self.hopeful:
                return block
            self.held[ids.start] = block
            failures = {i: why for each in self.held.values() for i, why in each.failures.items()}
            if len(failures) >= self.wanted:
                first = min(failures)
                told = f"{len(failures)} models were tried, and not one could be trained; model {first}: {failures[first]}"
                raise InputError(f"{told}; none was given up, so mend what trains them and run the same command again")
            return None

    def let_go(self) -> list[F]:
        """The blocks that were held back, once there is hope."""
        with self.lock:
            if not self.held or not (self.hopeful or any_done(self.store)):
                return []
            held = list(self.held.values())
            self.held.clear()
            return held


def _stopping() -> None:
    say(STOPPING)


def _merge(folder: Path, stop: threading.Event) -> None:
    """Take the inbox in, after whoever is writing."""
    writer = Writer(folder)
    if writer.lock.take(wait=True, stop=stop.is_set):
        with writer:
            writer.merge()


def forget_the_dead(folder: Path) -> None:
    """Remove what workers that were killed have left: claims, and files half written."""
    for each in (folder, folder / "inbox"):
        sweep(each)
    forget_claims(folder)


@contextmanager
def _attending(job: Job, store: Store, show: Shown) -> Iterator[None]:
    """Meanwhile show how far the whole job is, and take the inbox in when the process that should have done so is gone."""
    ended = threading.Event()

    def attend() -> None:
        while not ended.wait(POLL_S):
            # A full disk, say, is for the worker itself to find out and to say.
            with suppress(OSError, InputError):
                if any((store.folder / "inbox").glob("[0-9]*")):
                    merge_if_free(store.folder)
                show(there(job, store))

    thread = threading.Thread(target=attend, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
