"""Writing a store: one process at a time holds the writer's lock and writes; the others hand their rows over as files."""

from __future__ import annotations

import dataclasses
import io
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from datamodels.durable import InPlace, Lock, read_json, remove_file, sync_folder, write_file, write_json
from datamodels.errors import GO_ON, InputError
from datamodels.progress import say
from datamodels.reading import Each, Unreadable, read_npz, require, whole_number
from datamodels.seals import write_sealed
from datamodels.store.layout import (
    DONE,
    FAILED,
    FAILURES,
    MISSING,
    ArraySpec,
    Meta,
    checksums,
    lay_out,
    open_array,
    read_failures,
    read_meta,
    write_meta,
)
from datamodels.store.precision import BeyondError, rounded, vanished
from datamodels.subsets import Array, BoolArray, ByteArray, IndexArray, pack

Failures = Mapping[int, str]
T = TypeVar("T")
REFUSED = "refused"
"""Folder of the inbox for files that cannot be taken in."""
# Rows that are merged with one round of syncs.
WRITERS_LOCK = "writer.lock"
MERGE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Rows:
    """Finished rows: ids (K,) ascending, packed masks uint8 (K, ⌈N/8⌉), each array (K, …) in the store's own type."""

    ids: IndexArray
    masks: ByteArray
    arrays: Mapping[str, Array]

    @classmethod
    def of(cls, meta: Meta, ids: npt.ArrayLike, masks: BoolArray, arrays: Mapping[str, Array]) -> Rows:
        """Rows for a store: ids (K,), masks bool (K, N), each array (K, …).

        Raises ValueError when the shapes do not fit it, InputError when a value is beyond its number format.
        """
        rows = np.asarray(ids, np.int64)
        if masks.shape != (len(rows), meta.num_train):
            raise ValueError(f"masks have shape {masks.shape}, the store wants ({len(rows)}, {meta.num_train})")
        if arrays.keys() != meta.arrays.keys():
            raise ValueError(f"rows come with {sorted(arrays)}, the store wants {sorted(meta.arrays)}")
        for name, spec in meta.arrays.items():
            if arrays[name].shape != (len(rows), *spec.shape):
                raise ValueError(f"{name} has shape {arrays[name].shape}, the store wants ({len(rows)}, …{spec.shape})")
        cast = {name: _cast(name, spec, rows, np.asarray(arrays[name])) for name, spec in meta.arrays.items()}
        return cls(rows, pack(masks), cast)._chosen(np.argsort(rows, kind="stable"))

    @classmethod
    def joined(cls, parts: list[Rows]) -> Rows:
        """All rows of several lots, the first where an id comes twice."""
        ids, first = np.unique(np.concatenate([part.ids for part in parts]), return_index=True)
        arrays = {name: np.concatenate([part.arrays[name] for part in parts])[first] for name in parts[0].arrays}
        return cls(ids, np.concatenate([part.masks for part in parts])[first], arrays)

    def to_bytes(self) -> bytes:
        """The rows as the content of an .npz file."""
        buffer = io.BytesIO()
        np.savez(buffer, ids=self.ids, masks=self.masks, **self.arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path, meta: Meta) -> Rows:
        """The rows of an .npz file. Raises Unreadable when they are not such as this store has, for models that it has."""
        content = read_npz(path, ["ids", "masks", *meta.arrays])
        rows = cls(content["ids"], content["masks"], {name: content[name] for name in meta.arrays})
        why = rows.misfit(meta)
        if why is not None:
            raise Unreadable(path, why)
        return rows

    def misfit(self, meta: Meta) -> str | None:
        """Why these are not rows such as a store has, for models that it has, with a verb before it; None where they are."""
        content: dict[str, Array] = {"ids": self.ids, "masks": self.masks, **self.arrays}
        k = len(self.ids) if self.ids.ndim else 0
        specs = {"ids": ArraySpec("int64", ()), "masks": ArraySpec("uint8", (meta.mask_bytes,)), **meta.arrays}
        if content.keys() != specs.keys():
            return f"has {', '.join(sorted(content))}, not {', '.join(sorted(specs))}"
        for name, spec in specs.items():
            found = content[name]
            if found.dtype != _little(spec.dtype) or found.shape != (k, *spec.shape):
                wanted = f"{spec.dtype} of shape {(k, *spec.shape)}"
                return f"has {name} of {found.dtype} and shape {found.shape}, not {wanted}"
        if not k or (np.diff(self.ids) <= 0).any() or self.ids[0] < 0 or self.ids[-1] >= meta.num_models:
            return f"does not hold rows of models from 0 to {meta.num_models - 1} in ascending order"
        if meta.num_train % 8 and (self.masks[:, -1] >> meta.num_train % 8).any():
            return f"has masks with more than {meta.num_train} images"
        return None

    def missing_in(self, marks: Array) -> Rows:
        """Those of the rows that are neither done nor given up."""
        return self._chosen(np.flatnonzero(marks[self.ids] == MISSING))

    def _chosen(self, which: IndexArray) -> Rows:
        if np.array_equal(which, np.arange(len(self.ids))):
            return self
        return Rows(self.ids[which], self.masks[which], {name: part[which] for name, part in self.arrays.items()})


def claim(folder: Path, block: int) -> Lock | None:
    """The lock on one block of models, or None where another worker has it. To be released with `remove`."""
    claims = folder / "claims"
    lock = Lock(claims / f"block-{block:08d}")
    try:
        taken = lock.take()
    except FileNotFoundError:
        _made_again(claims)
        taken = lock.take()
    return lock if taken else None


def forget_claims(folder: Path) -> int:
    """Remove the claims of workers that are gone; how many others there are."""
    held = 0
    for file in (folder / "claims").glob("block-*"):
        lock = Lock(file)
        if lock.take():
            lock.release(remove=True)
        else:
            held += 1
    return held


def delivered(folder: Path, ids: range) -> IndexArray:
    """Those of a block's models that lie in the inbox, done or given up, and are not to be trained again.

    To be asked before the marks in done.npy: a file leaves the inbox after its rows are marked. Only files that begin within
    the block are looked at, as those of every worker with the same blocks do.
    """
    found: list[int] = []
    for file in _made_again(folder / "inbox").glob("[0-9]*"):
        number = file.name.partition("-")[0]
        if number.isdigit() and int(number) in ids:
            # One that has been taken in meanwhile is in the marks, and a damaged one is nothing.
            with suppress(OSError, ValueError, KeyError, AttributeError, EOFError, BadZipFile):
                found.extend(_ids_in(file))
    return np.array(found, np.int64)


def _ids_in(file: Path) -> list[int]:
    if file.suffix == ".json":
        return [int(i) for i in read_json(file)]
    with np.load(file, allow_pickle=False) as content:
        ids: list[int] = content["ids"].tolist()
        return ids


def _made_again(folder: Path) -> Path:
    """One of the store's own folders, made where it is not there: an empty one is lost by some tools that copy."""
    folder.mkdir(exist_ok=True)
    return folder


def deliver(
    folder: Path, ids: npt.ArrayLike, masks: BoolArray, arrays: Mapping[str, Array], failures: Failures | None = None
) -> None:
    """Bring finished rows into the store, durably: ids (K,), masks bool (K, N), each array (K, …); and why models failed.

    Where another process is writing they go into the inbox, from which it, or whoever writes next, takes them. Raises
    ValueError when the shapes do not fit the store, OSError when there is no room.
    """
    writer = Writer(folder)
    if not writer.lock.take():
        hand_over(folder, ids, masks, arrays, failures)
        return
    with writer:
        writer.append(Rows.of(writer.meta, ids, masks, arrays))
        writer.give_up(failures or {})
        writer.merge()


def hand_over(
    folder: Path, ids: npt.ArrayLike, masks: BoolArray, arrays: Mapping[str, Array], failures: Failures | None = None
) -> None:
    """Put finished rows into the store's inbox, as `deliver` does where another process is writing."""
    rows = Rows.of(read_meta(folder), ids, masks, arrays)
    inbox = _made_again(folder / "inbox")
    if len(rows.ids):
        write_file(inbox / f"{rows.ids[0]:010d}-{uuid.uuid4().hex}.npz", rows.to_bytes())
    if failures:
        name = f"{min(failures):010d}-{uuid.uuid4().hex}.json"
        write_json(inbox / name, {str(i): why for i, why in failures.items()})


class Writer:
    """The one process that writes the store's arrays, for as long as the block runs.

    Entering waits for the writer's lock.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = Lock(folder / WRITERS_LOCK)

    def __enter__(self) -> Writer:
        if not self.lock.held:
            self.lock.take(wait=True)
        try:
            self.meta = read_meta(self.folder)
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.lock.release()

    def append(self, rows: Rows) -> int:
        """Write rows, durably, and mark them done; how many. A row that is done stays as it is, for readers may be at it."""
        rows = rows.missing_in(open_array(self.folder, "done", self.meta))
        if not len(rows.ids):
            return 0
        parts = {"masks": rows.masks, **rows.arrays}
        # Each file in a thread of its own, for the disk, while this one reckons the checksums.
        with ThreadPoolExecutor(len(parts)) as pool:
            written = [pool.submit(self._write, name, part, rows.ids) for name, part in parts.items()]
            self._write("checksums", checksums(rows.masks, rows.arrays, self.meta), rows.ids)
            for file in written:
                file.result()
        self.mark(rows.ids, DONE)
        return len(rows.ids)

    def give_up(self, failures: Failures) -> int:
        """Record why models were given up, and mark them; how many. One that is done stays done."""
        marks = open_array(self.folder, "done", self.meta)
        ids = np.array(sorted(i for i in failures if marks[i] == MISSING), np.int64)
        if len(ids):
            # The reasons first: a row marked as given up has one.
            new = {str(i): failures[i] for i in ids.tolist()}
            write_sealed(self.folder / FAILURES, {**read_failures(self.folder), **new})
            self.mark(ids, FAILED)
        return len(ids)

    def mark(self, ids: IndexArray, mark: int) -> None:
        """Set the marks of rows, ids ascending: MISSING, DONE or FAILED."""
        self._write("done", np.full(len(ids), mark, np.uint8), ids)

    def merge(self) -> int:
        """Take every file of the inbox into the arrays; the number of rows taken. Merging a file twice is harmless."""
        taken, lot, size = 0, list[Path](), 0
        inbox = _made_again(self.folder / "inbox")
        for file in sorted(inbox.glob("[0-9]*.npz")):
            lot.append(file)
            size += file.lstat().st_size
            if size >= MERGE_BYTES:
                taken += self._merge_lot(lot)
                lot, size = [], 0
        taken += self._merge_lot(lot)
        for file in sorted(inbox.glob("[0-9]*.json")):
            failures = self._readable(file, self._failures_in)
            if failures is not None:
                taken += self.give_up(failures)
                remove_file(file)
        return taken

    def _merge_lot(self, files: list[Path]) -> int:
        found = {file: self._readable(file, lambda file: Rows.read(file, self.meta)) for file in files}
        lots = {file: rows for file, rows in found.items() if rows is not None}
        if not lots:
            return 0
        taken = self.append(Rows.joined(list(lots.values())))
        for file in lots:
            remove_file(file)
        sync_folder(self.folder / "inbox")
        return taken

    def _readable(self, file: Path, read: Callable[[Path], T]) -> T | None:
        """What a file of the inbox holds; None for one that cannot be used, which is set aside, and said so."""
        try:
            return read(file)
        except Unreadable as e:
            refused = file.parent / REFUSED
            refused.mkdir(exist_ok=True)
            file.rename(refused / file.name)
            say(f"store: {e}; it is set aside in {refused}, and its models are trained again")
            return None

    def _failures_in(self, file: Path) -> Failures:
        """Why models were given up, by id. Raises Unreadable when the file does not say so of models of this store."""
        content = read_json(file)
        require(content, Each(str), file)
        failures = {whole_number(i): why for i, why in content.items()}
        ids = [i for i in failures if i is not None and i < self.meta.num_models]
        if len(ids) < len(content):
            raise Unreadable(file, f"gives reasons for other models than 0 to {self.meta.num_models - 1}")
        return {i: failures[i] for i in ids}

    def _write(self, name: str, rows: Array, ids: IndexArray) -> None:
        """Write rows of one of the store's arrays, ids ascending, and sync it."""
        with InPlace(self.folder / f"{name}.npy") as file:
            write_rows(file, self.meta.files[name], ids, rows)
            file.sync()


def merge_if_free(folder: Path) -> None:
    """Take the inbox into the store, unless another process is writing: it, or whoever writes next, will."""
    writer = Writer(folder)
    if writer.lock.take():
        with writer:
            writer.merge()


def grow(folder: Path, num_models: int) -> None:
    """Make room for more models; what is there stays, and open readers with it.

    Raises InputError when the store has more already.
    """
    with Writer(folder) as writer:
        meta = writer.meta
        if num_models < meta.num_models:
            raise InputError(f"{folder} has room for {meta.num_models} models already; it cannot shrink to {num_models}")
        if num_models > meta.num_models:
            _make_room(writer, num_models, {})


def enlist(folder: Path, masks: BoolArray, known: Mapping[str, Array], first: int | None = None) -> IndexArray:
    """Make rows for K more models, still to be trained, of which the masks, bool (K, N), and some arrays are known: their ids.

    All of them are there then, or none. Who trains them reads in the store what they are. Where it is said that they begin at
    row `first` this may be called again with what it has done already. Raises InputError where others lie there.
    """
    rows = {"masks": pack(masks), **known}
    with Writer(folder) as writer:
        end = writer.meta.num_models
        ids = np.arange(len(masks)) + (end if first is None else first)
        if len(ids) and ids[0] != end:
            there = ids[-1] < end and all(
                np.array_equal(open_array(folder, name, writer.meta)[ids], values) for name, values in rows.items()
            )
            if not there:
                raise InputError(f"another process has listed models in {folder} meanwhile; {GO_ON}")
        elif len(ids):
            _make_room(writer, end + len(ids), rows)
    return ids


def _make_room(writer: Writer, num_models: int, known: Mapping[str, Array]) -> None:
    """Let the arrays have so many rows, the new ones with what is known of them, and then meta.json tell of them."""
    before = writer.meta.num_models
    for name, spec in writer.meta.files.items():
        with InPlace(writer.folder / f"{name}.npy") as file:
            lay_out(file, spec, num_models)
            if name in known:
                write_rows(file, spec, np.arange(before, num_models), known[name])
                file.sync()
    # Arrays first: with the old meta.json they are a store that merely has rows to spare.
    writer.meta = dataclasses.replace(writer.meta, num_models=num_models)
    write_meta(writer.folder, writer.meta)


def write_rows(file: InPlace, spec: ArraySpec, ids: IndexArray, rows: Array) -> None:
    """Write rows, ids ascending, each run of neighbours at once. Positions follow from the header's length, which is fixed."""
    start, data = len(spec.header(0)), np.ascontiguousarray(rows, dtype=_little(spec.dtype))
    runs = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(ids) != 1) + 1) if len(ids) else []
    for run in runs:
        part: ByteArray = data[run[0] : run[-1] + 1].reshape(-1).view(np.uint8)
        file.write(part.data, start + int(ids[run[0]]) * spec.row_bytes)


def _cast(name: str, spec: ArraySpec, ids: IndexArray, values: Array) -> Array:
    try:
        found = rounded(values, spec.dtype, name)
    except BeyondError:
        found = None
    if found is None or (found is not values and any(vanished(*both) for both in zip(values, found, strict=True))):
        for i, row in zip(ids.tolist(), values, strict=True):
            rounded(row, spec.dtype, f"{name} of model {i}")
    return rounded(values, spec.dtype, name) if found is None else found


def _little(dtype: str) -> np.dtype[Any]:
    little: np.dtype[Any] = np.dtype(dtype).newbyteorder("<")
    return little
