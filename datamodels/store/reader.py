"""Reading a store."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datamodels.errors import InputError
from datamodels.reading import path_of
from datamodels.store.layout import DONE, FAILED, MISSING, Meta, checksums, open_array, read_failures, read_meta
from datamodels.subsets import Array, BoolArray, ByteArray, IndexArray, unpack


class Store:
    """A store opened for reading: memory maps of its arrays, and which rows are done.

    `done` lists the finished model ids as they were when the store was opened, in ascending order, and `failures` those that
    were given up, with the reason; rows never change once they are done, so everything read through `done` is consistent.
    Raises InputError where the folder holds no such store.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = folder = path_of(folder)
        self.meta: Meta = read_meta(folder)
        self.arrays: dict[str, Array] = {name: open_array(folder, name, self.meta) for name in self.meta.files}
        marks = self.array("done", np.arange(self.meta.num_models))
        self.done: IndexArray = np.flatnonzero(marks == DONE).astype(np.int64)
        self.missing: IndexArray = np.flatnonzero(marks == MISSING).astype(np.int64)
        self.reasons: dict[int, str] = {int(i): why for i, why in read_failures(folder).items()}
        self.failures = {i: self.reasons.get(i, "no reason is on record") for i in np.flatnonzero(marks == FAILED).tolist()}

    def __repr__(self) -> str:
        meta = self.meta
        models = f"{len(self.done)} of {meta.num_models} models" + f", {len(self.failures)} given up" * bool(self.failures)
        return f"<Store: {models}, N = {meta.num_train} images, T = {meta.num_targets} targets, in {self.folder}>"

    def masks(self, ids: npt.ArrayLike) -> BoolArray:
        """Masks of the given models, bool (len(ids), N)."""
        return unpack(self.packed(ids), self.meta.num_train)

    def margins(self, ids: npt.ArrayLike) -> Array:
        """Margins of the given models, (len(ids), T) in the store's own number format, in logits."""
        return self.array("margins", ids)

    def array(self, name: str, ids: npt.ArrayLike) -> Array:
        """Rows of one of the store's arrays, (len(ids), …), in memory.

        Raises InputError for an array, or for models, that the store does not have.
        """
        if name not in self.arrays:
            raise InputError(f"{self.folder} has no array {name!r}; it has {', '.join(self.arrays)}")
        rows = self._rows(ids)
        if len(rows) and rows[0] >= 0 and rows[-1] < self.meta.num_models and (np.diff(rows) == 1).all():
            return self._neighbours(name, int(rows[0]), len(rows))
        return np.array(self.arrays[name][rows])

    def _rows(self, ids: npt.ArrayLike) -> IndexArray:
        """Ids of models as they are given, looked at."""
        given = np.asarray(ids)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise InputError(f"models are named by a list of their numbers, not by {given.dtype} of shape {given.shape}")
        if given.size and not 0 <= int(given.min()) <= int(given.max()) < self.meta.num_models:
            wrong = int(given.min()) if given.min() < 0 else int(given.max())
            raise InputError(f"{self.folder} has models 0 to {self.meta.num_models - 1}, and not {wrong}")
        return given.astype(np.int64)

    def _neighbours(self, name: str, first: int, count: int) -> Array:
        """Rows in one piece, read and not mapped: faster, and a full tmpfs kills whoever maps what was never written."""
        spec = self.meta.files[name]
        dtype = np.dtype(spec.dtype).newbyteorder("<")
        items = math.prod(spec.shape)
        offset = len(spec.header(0)) + first * spec.row_bytes
        flat = np.fromfile(self.folder / f"{name}.npy", dtype, count * items, offset=offset)
        if len(flat) < count * items:
            raise InputError(f"{self.folder / name}.npy has been cut short since it was opened")
        return flat.reshape(count, *spec.shape)

    def packed(self, ids: npt.ArrayLike) -> ByteArray:
        """Masks of the given models as they are stored, uint8 (len(ids), ⌈N/8⌉)."""
        return self.array("masks", ids)

    def damaged(self, ids: npt.ArrayLike) -> list[int]:
        """Those of the given rows whose checksum does not fit what they hold."""
        rows = np.asarray(ids, np.int64)
        sums = checksums(self.packed(rows), {name: self.array(name, rows) for name in self.meta.arrays}, self.meta)
        return [int(i) for i in rows[sums != self.arrays["checksums"][rows]]]

    def digest(self) -> str:
        """SHA-256 of what the store holds: its provenance, which rows are done, and their checksums."""
        sha = hashlib.sha256(json.dumps(self.meta.provenance, sort_keys=True).encode())
        sha.update(self.done.astype("<i8").tobytes())
        sha.update(np.ascontiguousarray(self.arrays["checksums"][self.done]).tobytes())
        return sha.hexdigest()
