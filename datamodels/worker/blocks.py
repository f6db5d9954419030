"""Going through the blocks of a store until all its models are there, beside any number of other workers.

Nothing here knows how models are trained, nor PyTorch: a block is given to a function and comes back as rows.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np

from datamodels.progress import Advance, progress, say
from datamodels.store import Store, Writer, claim, deliver, merge_if_free
from datamodels.store.layout import Array
from datamodels.subsets import BoolArray

POLL_S = 1.0
STOPPING = "stopping after the blocks that are being trained; once more drops them"


@dataclass(frozen=True)
class Trained:
    """What the training of a block gave: masks bool (K, N), arrays (K, …) by name, and why models of it failed, by id."""

    masks: BoolArray
    arrays: Mapping[str, Array]
    failures: Mapping[int, str]


Train = Callable[[range], Trained]
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
    start = _there(folder, total)
    with progress("worker", "models", total, start) as advance, _attending(folder, total, advance), _stoppable() as stop:

        def work(block: int) -> None:
            if not stop.is_set():
                _train_block(folder, block, range(block * size, min((block + 1) * size, total)), train)
                advance.to(_there(folder, total))

        while not stop.is_set():
            missing = Store(folder).missing
            blocks = np.unique(missing[missing < total] // size).tolist()
            if not blocks:
                break
            before = _there(folder, total)
            side_by_side(blocks, work)
            with Writer(folder) as writer:
                writer.merge()
            if _there(folder, total) == before:
                stop.wait(POLL_S)
        if stop.is_set():
            raise KeyboardInterrupt


def _train_block(folder: Path, block: int, ids: range, train: Train) -> None:
    """Train one block of models, unless it is done or another worker has claimed it."""
    lock = claim(folder, block)
    if lock is None:
        return
    try:
        missing = np.intersect1d(Store(folder).missing, ids)
        if not len(missing):
            return
        # The whole block, also where a part of it is done: rounding differs with the group, and a row must not depend on
        # what was done before.
        trained = train(ids)
        failures = {i: why for i, why in trained.failures.items() if i in missing}
        rows = np.setdiff1d(missing, list(failures)).astype(np.int64)
        keep = rows - ids.start
        deliver(folder, rows, trained.masks[keep], {name: array[keep] for name, array in trained.arrays.items()}, failures)
    finally:
        lock.release(remove=True)


def _there(folder: Path, total: int) -> int:
    """How many of the first `total` models are done or given up."""
    return total - int((Store(folder).missing < total).sum())


@contextmanager
def _attending(folder: Path, total: int, advance: Advance) -> Iterator[None]:
    """Meanwhile show how far the whole store is, and take its inbox in when the process that should have done so is gone."""
    ended = threading.Event()

    def attend() -> None:
        while not ended.wait(POLL_S):
            # A full disk, say, is for the worker itself to find out and to say.
            with suppress(OSError):
                if any((folder / "inbox").glob("[0-9]*")):
                    merge_if_free(folder)
                advance.to(_there(folder, total))

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
