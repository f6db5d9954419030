"""Is a store what it was when it was written? Every file and every row, against checksums, marks and the seed."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodels.errors import InputError
from datamodels.progress import progress
from datamodels.reading import Between, require
from datamodels.store.layout import DONE, FAILED, MISSING, checksums, read_failures
from datamodels.store.reader import Store
from datamodels.store.writer import WRITERS_LOCK, Writer
from datamodels.subsets import Array, BoolArray, IndexArray, draw_masks, pack

CHUNK_BYTES = 64 * 2**20
LOOKS, BETWEEN_LOOKS_S = 50, 0.1
WHOLE = "it is whole, but not marked as done"
GIVEN_UP = "there is a reason for giving it up, but it is not marked so"
# What repair makes of a fault: the next worker trains the row again, unless only the mark was missing.
REPAIRED = {WHOLE: DONE, GIVEN_UP: FAILED}


@dataclass(frozen=True)
class Fault:
    """What is wrong with one row."""

    row: int
    what: str


def check(folder: Path, alone: bool = False) -> list[Fault]:
    """The bad rows of a store, in ascending order. `alone`: the caller holds the writer's lock.

    Raises InputError when the folder holds no store, or one whose files themselves are damaged.
    """
    store = Store(folder)
    faults: list[Fault] = []
    with progress("check", "rows", store.meta.num_models) as advance:
        for ids in chunks(store):
            found = _faults(store, ids)
            faults.extend(found if alone else _lasting(store, found))
            advance(len(ids))
    return faults


def refuse_damaged(store: Store) -> None:
    """Raise InputError when a finished row does not have its checksum, or a row is given up for no reason.

    Nothing is to be learnt from it, nor from those that are left.
    """
    marks = store.array("done", np.arange(store.meta.num_models))
    unknown = np.flatnonzero((marks > FAILED) | ((marks == FAILED) & ~np.isin(np.arange(len(marks)), _with_reason(store))))
    if len(unknown):
        told = f"row {unknown[0]} of {store.folder} is damaged: its mark is {marks[unknown[0]]}, with no reason on record"
        raise InputError(f"{told}; python -m datamodels.store check --repair {store.folder} has such rows trained again")
    for ids in chunks(store):
        bad = store.damaged(np.intersect1d(ids, store.done, assume_unique=True))
        if bad:
            told = f"row {bad[0]} of {store.folder} is damaged: it does not have its checksum"
            raise InputError(f"{told}; python -m datamodels.store check --repair {store.folder} has such rows trained again")


def repair(folder: Path) -> list[Fault]:
    """Unmark bad rows, so that they are trained again, and set marks where only they are missing; what was found.

    Holds the writer's lock all the while: nobody writes between the look and the repair.
    """
    with Writer(folder) as writer:
        faults = check(folder, alone=True)
        for mark in (MISSING, DONE, FAILED):
            rows = {fault.row for fault in faults if REPAIRED.get(fault.what, MISSING) == mark}
            writer.mark(np.array(sorted(rows), np.int64), mark)
    return faults


def chunks(store: Store) -> Iterator[IndexArray]:
    """All rows of a store, so many at a time that memory stays small."""
    unpacked = store.meta.num_train + sum(spec.row_bytes for spec in store.meta.files.values())
    size = max(1, CHUNK_BYTES // unpacked)
    for first in range(0, store.meta.num_models, size):
        yield np.arange(first, min(first + size, store.meta.num_models))


def _lasting(store: Store, faults: list[Fault]) -> list[Fault]:
    """Those that are there once nobody writes: a row, or a reason, is written a moment before it is marked."""
    for _ in range(LOOKS):
        if not faults:
            break
        written = _is_being_written(store.folder)
        faults = _faults(store, np.array([fault.row for fault in faults], np.int64))
        if not written:
            break
        time.sleep(BETWEEN_LOOKS_S)
    return faults


def _is_being_written(folder: Path) -> bool:
    """Whether a process holds the writer's lock. Looking at a store makes no file in it."""
    try:
        with (folder / WRITERS_LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or it may not be read
        return False
    return False


def _with_reason(store: Store) -> list[int]:
    """The models that have a reason for being given up by now: it is written before they are marked."""
    return [int(i) for i in read_failures(store.folder)]


def _faults(store: Store, ids: IndexArray) -> list[Fault]:
    marks, masks = store.array("done", ids), store.packed(ids)
    sums = checksums(masks, {name: store.array(name, ids) for name in store.meta.arrays}, store.meta)
    stored = store.array("checksums", ids)
    done, fits = marks == DONE, sums == stored
    with_reason = np.isin(ids, _with_reason(store))
    unmarked = ~np.isin(marks, (DONE, FAILED))
    # A sum of 0 is that of a row that was never written.
    whole = unmarked & fits & (stored != 0)
    given_up = unmarked & ~whole & with_reason
    found = {
        "it does not have its checksum": done & ~fits,
        "its mask is not that of the seed": done & fits & ~_as_drawn(store, ids, masks, done & fits),
        "it is marked as given up, without a reason": (marks == FAILED) & ~with_reason,
        WHOLE: whole,
        GIVEN_UP: given_up,
        "its mark in done.npy is none that there is": unmarked & (marks != MISSING) & ~whole & ~given_up,
    }
    faults = [Fault(int(i), what) for what, rows in found.items() for i in ids[rows]]
    return sorted(faults, key=lambda fault: fault.row)


def _as_drawn(store: Store, ids: IndexArray, masks: Array, which: BoolArray) -> BoolArray:
    """Where the mask is that of the store's seed; True where the store was not drawn from one."""
    result = np.ones(len(ids), bool)
    drawn = store.meta.provenance.get("store")
    if drawn is not None:
        require(drawn, {}, store.folder / "meta.json")
    if which.any() and drawn and {"seed", "alpha"} <= drawn.keys():
        require(drawn, {"seed": Between(0, 2**63 - 1), "alpha": float}, store.folder / "meta.json")
        expected = draw_masks(drawn["seed"], ids[which].tolist(), store.meta.num_train, drawn["alpha"])
        result[which] = (pack(expected) == masks[which]).all(1)
    return result
