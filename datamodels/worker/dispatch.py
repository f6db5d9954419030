"""Blocks of jobs, given to the nodes of a cluster, and their rows to a writer. Nothing here knows Ray.

A block goes to a node with what it needs to know of the store, and comes back as rows that stay where they are until the
writer fetches them. How many blocks are under way is bounded, those counted that are trained and not written.

What a node says of a block is believed where it trained all of it. Where it gave models up, or failed, or the writer refuses
its rows, a second node is asked, if there is one: what both say is so; who gave up what the other one could train takes no
further part.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from datamodels.cluster import Back, Node
from datamodels.durable import Lock
from datamodels.errors import InputError, shown
from datamodels.progress import say
from datamodels.settings import GroupSettings
from datamodels.signals import noted
from datamodels.store import Store, claim, delivered
from datamodels.store.layout import MISSING
from datamodels.store.precision import FEWEST
from datamodels.store.writer import MERGE_BYTES
from datamodels.subsets import IndexArray
from datamodels.worker.blocks import POLL_S, STOPPING, WORD_AFTER_S, Hope, Shown, forget_the_dead, no_show, refuse_hopeless
from datamodels.worker.coarseness import Look
from datamodels.worker.excerpts import Excerpt
from datamodels.worker.jobs import Job
from datamodels.worker.speeds import Speeds
from datamodels.worker.tasks import train_block
from datamodels.worker.writing import Lot, Taken

CLUSTERS_LOCK = "cluster.lock"
MOMENT_S = 0.05
"""So long tasks are waited for while the writer is at work."""


class Hands(Protocol):
    """Who trains: see `cluster.Crew`."""

    @property
    def idle(self) -> int:
        """How many tasks would begin at once."""
        ...

    @property
    def room(self) -> int:
        """How many tasks may be given."""
        ...

    @property
    def under_way(self) -> Collection[Hashable]:
        """Keys of those given and not back."""
        ...

    def give(self, key: Hashable, task: Callable[..., Any], avoid: Sequence[Node] = ()) -> None:
        """Let a task be done, elsewhere than on some nodes where that can be."""
        ...

    def back(self, timeout: float = ...) -> Sequence[Back]:
        """Those that have come back."""
        ...

    def drop_waiting(self) -> Collection[Hashable]:
        """Cancel what has not begun."""
        ...


class Pen(Protocol):
    """Who writes, one call at a time."""

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        ...

    def begin(self, folder: Path, lots: Sequence[Lot]) -> None:
        """Let lots be taken in."""
        ...

    def taken(self, timeout: float) -> Taken | None:
        """What became of them; None where that is not known after so many seconds."""
        ...


class Nodes(Protocol):
    """Who there is: see `cluster.Cluster`."""

    def nodes(self) -> Sequence[Node]:
        """Those that may take part."""
        ...

    def slots_of(self, node: Node) -> int:
        """How many tasks fit on one."""
        ...

    def refuse(self, node: Node, why: str, stage: str = ...) -> None:
        """Give nothing to a node any more. Raises InputError where none is left."""
        ...


class Opinion(NamedTuple):
    """What a node says of a block: why models could not be trained, or why none; a reference to the rows of the others."""

    node: Node
    failures: Mapping[int, str]
    error: Exception | None
    payload: Any
    size: int


@dataclass(slots=True)
class _Block:
    """A block that was started, and what was said of it."""

    job: Job
    store: Store
    number: int
    ids: range
    claim: Lock | None = None
    opinions: list[Opinion] = field(default_factory=list)


class _Verdict(NamedTuple):
    """What is believed of a block: whose rows are taken, and why models are given up, by id."""

    block: _Block
    taken: Sequence[Opinion]
    failures: Mapping[int, str]


class _Written(NamedTuple):
    """A lot on its way to the writer: of which block, by whom, and of how many bytes."""

    block: _Block
    opinion: Opinion
    lot: Lot
    size: int


class _Shelf:
    """A store that is filled: the job's store, what is wanted of it, hope and look; locked, so that one command is at it."""

    def __init__(self, job: Job) -> None:
        self.folder, self.look, self.stage = job.folder, Look(job), job.stage
        self.hope: Hope[_Verdict] = Hope(job, 0)
        self.store, self.wanted = Store(job.folder), np.empty(0, np.int64)
        self.lock = Lock(job.folder / CLUSTERS_LOCK)
        if not self.lock.take():
            told = f"another command trains into {job.folder} on a cluster"
            raise InputError(f"{told}; wait for it, or end it: the cluster's nodes can be as many as you like")
        forget_the_dead(job.folder)

    def want(self, job: Job, store: Store) -> IndexArray:
        """Take in what a job wants; what of it is missing."""
        missing = job.missing(store)
        self.store, self.wanted = store, np.union1d(self.wanted, job.wanted(store))
        self.hope.want(len(self.wanted) - self.there())
        return missing

    def there(self) -> int:
        """How many of the wanted models are done or given up."""
        return int((self.store.array("done", self.wanted) != MISSING).sum())

    def has_mail(self) -> bool:
        """Whether other workers have handed rows over."""
        return any((self.folder / "inbox").glob("[0-9]*"))


class Dispatch:
    """Jobs that are started, block by block on a cluster; a context, which gives back its locks."""

    def __init__(
        self,
        hands: Callable[[], Hands],
        pen: Pen,
        cluster: Nodes,
        groups: Callable[[], GroupSettings | None] = lambda: None,
    ) -> None:
        """`hands` gives the crew, `groups` how the models of the run's store are grouped, once there is one."""
        self.hands, self.pen, self.cluster, self.groups = hands, pen, cluster, groups
        self.blocks: dict[tuple[Path, int], _Block] = {}
        self.queue: deque[tuple[Path, int]] = deque()
        self.elsewhere: deque[tuple[Path, int]] = deque()
        self.shelves: dict[Path, _Shelf] = {}
        self.finished: list[_Written] = []
        self.writing: list[_Written] = []
        self.settled, self.merged, self.shown = 0, 0.0, 0.0
        self.idle_since, self.told = time.monotonic(), False
        self.speeds = Speeds()

    def __enter__(self) -> Dispatch:
        return self

    def __exit__(self, *_: object) -> None:
        for block in self.blocks.values():
            _let_go(block)
        self._close_shelves()

    @property
    def room(self) -> int:
        """How many more blocks may be started."""
        return self._left(self.hands().room - len(self.finished) - len(self.writing))

    @property
    def idle(self) -> int:
        """How many more blocks would be begun at once."""
        return self._left(self.hands().idle)

    def _left(self, places: int) -> int:
        return max(places - len(self.queue), 0 if self.blocks else 1)

    def start(self, job: Job) -> set[tuple[Path, int]]:
        """Take on the blocks of a job's missing models, those left out that are under way already; all of them."""
        if not self.blocks:
            self.idle_since, self.told = time.monotonic(), False
            self.speeds.begin()
        store = Store(job.folder)
        shelf = self.shelves.get(job.folder) or _Shelf(job)
        self.shelves[job.folder] = shelf
        found = {(job.folder, number): ids for number, ids in job.blocks(store, shelf.want(job, store)).items()}
        for key, ids in found.items():
            if key not in self.blocks:
                self.blocks[key] = _Block(job, store, key[1], ids)
                self.queue.append(key)
        return set(found)

    def wait(self, show: Shown = no_show) -> None:
        """Until some block is in its store; returns at once where none is left."""
        settled = self.settled
        self._until(lambda: self.settled > settled, show)

    def train(self, job: Job, show: Shown = no_show) -> None:
        """Until all models of a job are in its store."""
        keys = self.start(job)
        self._until(lambda: keys.isdisjoint(self.blocks), show)

    def _until(self, reached: Callable[[], bool], show: Shown) -> None:
        if not self.blocks:
            self._close_shelves()
            return
        with noted(lambda: say(STOPPING)) as stop:
            try:
                while self.blocks and not reached() and not stop.is_set():
                    self._turn(show)
                while self.pen.busy and not stop.is_set():
                    self._hear_writer(POLL_S)  # so that what the store says is there is settled
                if stop.is_set():
                    self._stop(show)
            except Exception:
                self._write_all()
                raise
            if stop.is_set():
                raise KeyboardInterrupt
        self._show(show)
        if not self.blocks:
            for shelf in self.shelves.values():
                shelf.look.last()
            self._close_shelves()

    def _turn(self, show: Shown) -> None:
        """Give what there is room for, take what has come, and write it."""
        self._give()
        hands = self.hands()
        if hands.under_way:
            busy = self.pen.busy or self.finished
            for came in hands.back(MOMENT_S if busy else POLL_S):
                self._hear(came)
        self._write(MOMENT_S if hands.under_way else POLL_S)
        if not hands.under_way and not self.pen.busy and not self.finished:
            self._wait_for_others()
        if time.monotonic() - self.shown > POLL_S:
            self._show(show)

    def _stop(self, show: Shown) -> None:
        """Wait for what has begun, and write it."""
        hands = self.hands()
        hands.drop_waiting()
        while hands.under_way:
            for came in hands.back(POLL_S):
                self._hear(came, last=True)
            self._write(0.0)
        self._write_all()
        self._show(show)

    def _show(self, show: Shown) -> None:
        self.shown = time.monotonic()
        show(sum(shelf.there() for shelf in self.shelves.values()))

    # Giving.

    def _give(self) -> None:
        hands = self.hands()
        if not self.queue and not hands.under_way and self.elsewhere:
            self.queue, self.elsewhere = self.elsewhere, self.queue
        while self.queue and hands.room - len(self.finished) - len(self.writing) > 0:
            key = self.queue.popleft()
            block = self.blocks[key]
            if block.claim is None and not self._claimed(key, block):
                continue
            excerpt = Excerpt.of(block.store, block.ids, block.job.listed)
            task = functools.partial(train_block, block.job, excerpt, block.ids, self.groups())
            hands.give(key, task, [opinion.node for opinion in block.opinions])

    def _claimed(self, key: tuple[Path, int], block: _Block) -> bool:
        """Whether a block is this command's to train: not one that is there, nor one that another worker has."""
        block.claim = claim(block.store.folder, block.number)
        if block.claim is None:
            self.elsewhere.append(key)
            return False
        # The inbox first, as in `blocks`.
        there = delivered(block.store.folder, block.ids)
        missing = block.ids.start + np.flatnonzero(block.store.array("done", block.ids) == MISSING)
        if len(np.setdiff1d(missing, there)):
            return True
        _let_go(block)
        if len(missing):
            self.elsewhere.append(key)  # until the writer has taken the inbox in
        else:
            self._settle(block)
        return False

    def _wait_for_others(self) -> None:
        """Nothing is left but what other workers have, or what is held back."""
        if self.queue or not self.blocks:
            return
        self._let_held_go()
        time.sleep(POLL_S)
        if self.elsewhere and not self.told and time.monotonic() - self.idle_since > WORD_AFTER_S:
            self.told = True
            stage = next(iter(self.shelves.values())).stage
            say(f"{stage}: waiting for {len(self.elsewhere)} blocks that other workers have claimed; if one is stopped, end it")

    # Hearing.

    def _hear(self, came: Back, last: bool = False) -> None:
        block = self.blocks.get(came.key)
        if block is None:
            return
        self.idle_since = time.monotonic()
        if came.error is not None:
            self._take_in(block, Opinion(came.node, dict.fromkeys(block.ids, str(came.error)), came.error, None, 0), last)
        elif came.value.unfit is not None:
            self.cluster.refuse(came.node, came.value.unfit, block.job.stage)
            self._again(block)
        else:
            failures, size = came.value.failures, came.value.size
            self.speeds.add(came.node.name, len(block.ids))
            self._take_in(block, Opinion(came.node, failures, None, came.payload, size), last)

    def _take_in(self, block: _Block, opinion: Opinion, last: bool = False) -> None:
        """Believe what was said of a block, or ask for a second opinion; the last ones are of no use without."""
        block.opinions.append(opinion)
        doubtful = opinion.error is not None or opinion.failures
        if doubtful and len(block.opinions) == 1 and self._others(opinion.node):
            if not last:
                self._again(block)
            return
        verdict = self._verdict(block)
        shelf = self.shelves[block.job.folder]
        refuse_hopeless(block.job, block.store, block.ids, verdict.failures)
        believed = shelf.hope.of(block.ids, lambda: verdict)
        if believed is not None:
            self._hand_on(believed)
            self._let_held_go()

    def _let_held_go(self) -> None:
        for shelf in self.shelves.values():
            for held in shelf.hope.let_go():
                self._hand_on(held)

    def _again(self, block: _Block) -> None:
        self.queue.appendleft((block.job.folder, block.number))

    def _others(self, node: Node) -> bool:
        return any(each.id != node.id and self.cluster.slots_of(each) for each in self.cluster.nodes())

    def _verdict(self, block: _Block) -> _Verdict:
        """What is believed of a block, and who takes no further part. Raises the error of a block that nobody could train."""
        fine = sorted((each for each in block.opinions if each.error is None), key=lambda each: len(each.failures))
        if not fine:
            error = block.opinions[0].error
            assert error is not None
            raise error
        best = fine[0]
        failures = {i: why for i, why in best.failures.items() if all(i in each.failures for each in block.opinions)}
        for each in block.opinions:
            wrong = next((i for i in each.failures if i not in failures), None)
            if wrong is not None and each.node.id != best.node.id:
                why = shown(each.failures[wrong].strip().splitlines()[-1], 300)
                told = f"could not train model {wrong} ({why}), and {best.node.name} could"
                self.cluster.refuse(each.node, told, block.job.stage)
        # A second one's rows only where the first lacks some of them.
        taken = fine if set(best.failures) - set(failures) else fine[:1]
        return _Verdict(block, taken, failures)

    # Writing.

    def _hand_on(self, verdict: _Verdict) -> None:
        """Let the rows of a block be written, and its failures."""
        block, failures = verdict.block, verdict.failures
        for k, opinion in enumerate(verdict.taken):
            ids = tuple(i for i in block.ids if i not in opinion.failures)
            lot = Lot(ids, opinion.payload if ids else None, failures if k == 0 else {})
            self.finished.append(_Written(block, opinion, lot, opinion.size))

    def _write(self, timeout: float) -> None:
        """Take in what the writer has done, and let it go on."""
        if self.pen.busy:
            self._hear_writer(timeout)
        if self.pen.busy:
            return
        if self.finished:
            self.writing, self.finished = _first_lots(self.finished)
            self.pen.begin(self.writing[0].block.job.folder, [each.lot for each in self.writing])
        elif time.monotonic() - self.merged > POLL_S:
            self.merged = time.monotonic()
            folder = next((shelf.folder for shelf in self.shelves.values() if shelf.has_mail()), None)
            if folder is not None:
                self.pen.begin(folder, [])

    def _hear_writer(self, timeout: float) -> None:
        taken = self.pen.taken(timeout)
        if taken is not None:
            writing, self.writing = self.writing, []
            self._note(writing, taken)

    def _note(self, writing: Sequence[_Written], taken: Taken) -> None:
        """What became of lots: their blocks are done, or trained again."""
        bad = {id(writing[k].block) for k in (*taken.refused, *taken.lost)}
        for block in {id(each.block): each.block for each in writing if id(each.block) not in bad}.values():
            self._settle(block)
        lost = {id(writing[k].block): writing[k].block for k in taken.lost}
        for block in lost.values():
            block.opinions.clear()
            self._again(block)
        for k, why in taken.refused.items():
            block, opinion = writing[k].block, writing[k].opinion
            if id(block) in lost:
                continue
            block.opinions.remove(opinion)
            error = InputError(f"what {opinion.node.name} gave of models {block.ids.start} to {block.ids[-1]} {why}")
            self._take_in(block, Opinion(opinion.node, dict.fromkeys(block.ids, str(error)), error, None, 0))

    def _settle(self, block: _Block) -> None:
        _let_go(block)
        self.settled += 1
        key = (block.job.folder, block.number)
        if self.blocks.pop(key, None) is None:
            return
        shelf = self.shelves[block.job.folder]
        if not shelf.look.done and shelf.there() >= FEWEST:
            shelf.look.last()

    def _write_all(self) -> None:
        """Write what is trained, whatever else is to be said."""
        while self.pen.busy or self.finished:
            self._write(POLL_S)

    def _close_shelves(self) -> None:
        for shelf in self.shelves.values():
            shelf.lock.release(remove=True)
        self.shelves.clear()


def _let_go(block: _Block) -> None:
    if block.claim is not None:
        block.claim.release(remove=True)
        block.claim = None


def _first_lots(finished: Sequence[_Written]) -> tuple[list[_Written], list[_Written]]:
    """Lots of one store that are written together, whole blocks of them, and the rest."""
    folder, size, now, later = finished[0].block.job.folder, 0, list[_Written](), list[_Written]()
    for each in finished:
        same = bool(now) and each.block is now[-1].block
        if each.block.job.folder == folder and (same or size < MERGE_BYTES):
            now.append(each)
            size += each.size
        else:
            later.append(each)
    return now, later
