"""Writing a store: finished rows are handed over as files, and whoever holds the writer's lock merges them."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from datamodels.durable import Lock, new_file, read_json, sync_folder, write_json
from datamodels.errors import InputError
from datamodels.store.layout import (
    DONE,
    FAILED,
    FAILURES,
    MISSING,
    Array,
    checksum,
    new_array,
    open_array,
    read_failures,
    read_meta,
    write_meta,
)
from datamodels.subsets import BoolArray, pack


def claim(folder: Path, block: int) -> Lock | None:
    """The lock on one block of models, or None where another worker has it."""
    lock = Lock(folder / "claims" / f"block-{block:08d}")
    return lock if lock.take() else None


def hand_over(folder: Path, ids: npt.ArrayLike, masks: BoolArray, arrays: Mapping[str, Array]) -> None:
    """Put finished rows into the store's inbox, durably: ids (K,), masks bool (K, N), each array (K, …).

    Raises ValueError when the shapes do not fit the store.
    """
    meta, rows = read_meta(folder), np.asarray(ids, np.int64)
    if masks.shape != (len(rows), meta.num_train):
        raise ValueError(f"masks have shape {masks.shape}, the store wants ({len(rows)}, {meta.num_train})")
    if arrays.keys() != meta.arrays.keys():
        raise ValueError(f"rows come with {sorted(arrays)}, the store wants {sorted(meta.arrays)}")
    for name, spec in meta.arrays.items():
        if arrays[name].shape != (len(rows), *spec.shape):
            raise ValueError(f"{name} has shape {arrays[name].shape}, the store wants ({len(rows)}, …{spec.shape})")
    if not len(rows):
        return
    cast = {name: np.asarray(arrays[name]).astype(spec.dtype) for name, spec in meta.arrays.items()}
    with new_file(folder / "inbox" / f"{rows[0]:010d}-{uuid.uuid4().hex}.npz") as temporary, temporary.open("wb") as f:
        np.savez(f, ids=rows, masks=pack(masks), **cast)  # type: ignore[arg-type]


def hand_over_failures(folder: Path, reasons: Mapping[int, str]) -> None:
    """Put into the store's inbox, durably, which models were given up, and why: id → reason."""
    if reasons:
        write_json(
            folder / "inbox" / f"{min(reasons):010d}-{uuid.uuid4().hex}.json", {str(i): why for i, why in reasons.items()}
        )


class Writer:
    """The one process that writes the store's arrays, for as long as the block runs.

    Entering waits for the writer's lock.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = Lock(folder / "writer.lock")

    def __enter__(self) -> Writer:
        if not self.lock.held:
            self.lock.take(wait=True)
        self.meta = read_meta(self.folder)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.lock.release()

    def merge(self) -> int:
        """Take every file of the inbox into the arrays; the number of rows taken. Merging a file twice is harmless."""
        taken = 0
        for file in sorted((self.folder / "inbox").glob("[0-9]*")):
            taken += self._merge_failures(file) if file.suffix == ".json" else self._merge_file(file)
            file.unlink()
        if taken:
            sync_folder(self.folder / "inbox")
        return taken

    def _merge_failures(self, file: Path) -> int:
        reasons = read_json(file)
        done = open_array(self.folder, "done", self.meta, writable=True)
        ids = np.array([int(i) for i in reasons], np.int64)
        ids = ids[np.asarray(done)[ids] == MISSING]
        # The reasons first: a row marked as given up has one.
        write_json(self.folder / FAILURES, {**read_failures(self.folder), **{str(i): reasons[str(i)] for i in ids}})
        done[ids] = FAILED
        _flush(done)
        return len(ids)

    def _merge_file(self, file: Path) -> int:
        with np.load(file, allow_pickle=False) as content:
            rows = {name: content[name] for name in ("ids", "masks", *self.meta.arrays)}
        ids = rows.pop("ids")
        arrays = {name: open_array(self.folder, name, self.meta, writable=True) for name in self.meta.files}
        # A row that is done stays as it is: readers may be at it.
        new = np.flatnonzero(np.asarray(arrays["done"])[ids] == MISSING)
        ids, rows = ids[new], {name: part[new] for name, part in rows.items()}
        for name, part in rows.items():
            arrays[name][ids] = part
            _flush(arrays[name])
        sums = [
            checksum(rows["masks"][k], {name: rows[name][k] for name in self.meta.arrays}, self.meta) for k in range(len(ids))
        ]
        for name, marks in (("checksums", np.array(sums, np.uint32)), ("done", np.full(len(ids), DONE, np.uint8))):
            arrays[name][ids] = marks
            _flush(arrays[name])
        return len(ids)


def merge_if_free(folder: Path) -> None:
    """Take the inbox into the store, unless another process is writing: it, or whoever writes next, will."""
    writer = Writer(folder)
    if writer.lock.take():
        with writer:
            writer.merge()


def _flush(array: Array) -> None:
    base = array if isinstance(array, np.memmap) else array.base
    assert isinstance(base, np.memmap)
    base.flush()


def grow(folder: Path, num_models: int) -> None:
    """Make room for more models; what is there stays. Raises InputError when the store has more already."""
    with Writer(folder) as writer:
        meta = writer.meta
        if num_models < meta.num_models:
            raise InputError(f"{folder} has room for {meta.num_models} models already; it cannot shrink to {num_models}")
        if num_models == meta.num_models:
            return
        for name, spec in meta.files.items():
            old = open_array(folder, name, meta)
            with new_file(folder / f"{name}.npy") as temporary:
                array = new_array(temporary, spec, num_models)
                array[: meta.num_models] = old
                _flush(array)
        # Arrays first: with the old meta.json they are a store that merely has rows to spare.
        write_meta(folder, dataclasses.replace(meta, num_models=num_models))
