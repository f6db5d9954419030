"""Going through the blocks of a store until all its models are there, beside any number of other workers.

Nothing here knows how models are trained, nor PyTorch: a block is given to a function and comes back as rows.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np

from datamodels.durable import sweep
from datamodels.errors import InputError
from datamodels.progress import Advance, progress, say
from datamodels.store import Store, Writer, claim, deliver, delivered, forget_claims, merge_if_free
from datamodels.store.layout import MISSING, Array
from datamodels.subsets import BoolArray

POLL_S = 1.0
WORD_AFTER_S = 10.0
STOPPING = "stopping after the blocks that are being trained; once more drops them"


@dataclass(frozen=True)
class Trained:
    """What the training of a block gave: masks bool (K, N), arrays (K, …) by name, and why models of it failed, by id."""

    masks: BoolArray
    arrays: Mapping[str, Array]
    failures: Mapping[int, str]


Train = Callable[[range], Trained | None]
"""Trains a block; None where its models are to be left as they are for now."""
SideBySide = Callable[[Sequence[int], Callable[[int], None]], None]


def in_turn(blocks: Sequence[int], work: Callable[[int], None]) -> None:
    """Work on one block after another."""
    for block in blocks:
        work(block)


def train_blocks(folder: Path, total: int, size: int, train: Train, side_by_side: SideBySide = in_turn) -> None:
    """Train the first `total` models of the store in blocks of `size` that no other worker has claimed, until all are there.

    A block that another worker has is waited for: it comes, or its worker ends and it is free. SIGINT and SIGTERM end the work
    after the blocks in training, by KeyboardInterrupt; a second one ends the process at once, and loses those blocks only.
    """
    _forget_the_dead(folder)
    store = Store(folder)
    start = _there(store, total)
    with progress("worker", "models", total, start) as advance, _attending(store, total, advance), _stoppable() as stop:

        def work(block: int) -> None:
            if not stop.is_set() and _train_block(store, block, range(block * size, min((block + 1) * size, total)), train):
                advance.to(_there(store, total))

        idle_since, told = time.monotonic(), False
        while not stop.is_set():
            missing = np.flatnonzero(store.array("done", np.arange(total)) == MISSING)
            blocks = np.unique(missing // size).tolist()
            if not blocks:
                break
            before = _there(store, total)
            side_by_side(blocks, work)
            _merge(folder, stop)
            if _there(store, total) > before:
                idle_since = time.monotonic()
            elif not stop.wait(POLL_S) and not told and time.monotonic() - idle_since > WORD_AFTER_S:
                told = True
                say(f"worker: waiting for {len(missing)} models that other workers have claimed; if one is stopped, end it")
        if stop.is_set():
            raise KeyboardInterrupt
    _forget_the_dead(folder)


def _train_block(store: Store, block: int, ids: range, train: Train) -> bool:
    """Train one block of models, unless it is done, or delivered, or another worker has claimed it; whether it was trained."""
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
        trained = train(ids)
        if trained is None:
            return False
        failures = {i: why for i, why in trained.failures.items() if i in missing}
        rows = np.setdiff1d(missing, list(failures)).astype(np.int64)
        keep = rows - ids.start
        arrays = {name: array[keep] for name, array in trained.arrays.items()}
        deliver(store.folder, rows, trained.masks[keep], arrays, failures)
        return True
    finally:
        lock.release(remove=True)


def _merge(folder: Path, stop: threading.Event) -> None:
    """Take the inbox in, after whoever is writing."""
    writer = Writer(folder)
    if writer.lock.take(wait=True, stop=stop.is_set):
        with writer:
            writer.merge()


def _there(store: Store, total: int) -> int:
    """How many of the first `total` models are done or given up by now."""
    return int((store.array("done", np.arange(total)) != MISSING).sum())


def _forget_the_dead(folder: Path) -> None:
    """Remove what workers that were killed have left: claims, and files half written."""
    for each in (folder, folder / "inbox"):
        sweep(each)
    forget_claims(folder)


@contextmanager
def _attending(store: Store, total: int, advance: Advance) -> Iterator[None]:
    """Meanwhile show how far the whole store is, and take its inbox in when the process that should have done so is gone."""
    ended = threading.Event()

    def attend() -> None:
        while not ended.wait(POLL_S):
            # A full disk, say, is for the worker itself to find out and to say.
            with suppress(OSError, InputError):
                if any((store.folder / "inbox").glob("[0-9]*")):
                    merge_if_free(store.folder)
                advance.to(_there(store, total))

    thread = threading.Thread(target=attend, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the next one does what it always does."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        for each in signals:
            signal.signal(each, signal.SIG_DFL)
        say(STOPPING)

    for number in signals:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number in signals:
            signal.signal(number, before[number])
