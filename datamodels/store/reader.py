"""Reading a store."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datamodels.store.layout import DONE, FAILED, MISSING, Array, Meta, checksums, open_array, read_failures, read_meta
from datamodels.subsets import BoolArray, ByteArray, IndexArray, unpack


class Store:
    """A store opened for reading: memory maps of its arrays, and which rows are done.

    `done` lists the finished model ids as they were when the store was opened, in ascending order, and `failures` those that
    were given up, with the reason; rows never change once they are done, so everything read through `done` is consistent.
    Raises InputError where the folder holds no such store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: Meta = read_meta(folder)
        self.arrays: dict[str, Array] = {name: open_array(folder, name, self.meta) for name in self.meta.files}
        marks = np.array(self.arrays["done"])
        self.done: IndexArray = np.flatnonzero(marks == DONE).astype(np.int64)
        self.missing: IndexArray = np.flatnonzero(marks == MISSING).astype(np.int64)
        self.reasons: dict[int, str] = {int(i): why for i, why in read_failures(folder).items()}
        self.failures = {i: self.reasons.get(i, "no reason is on record") for i in np.flatnonzero(marks == FAILED).tolist()}

    def masks(self, ids: npt.ArrayLike) -> BoolArray:
        """Masks of the given models, bool (len(ids), N)."""
        return unpack(self.packed(ids), self.meta.num_train)

    def margins(self, ids: npt.ArrayLike) -> Array:
        """Margins of the given models, (len(ids), T) in the store's own number format, in logits."""
        return self.array("margins", ids)

    def array(self, name: str, ids: npt.ArrayLike) -> Array:
        """Rows of one of the store's arrays, copied out of the memory map."""
        rows = np.asarray(ids, np.int64)
        if len(rows) and (np.diff(rows) == 1).all():
            return np.array(self.arrays[name][rows[0] : rows[-1] + 1])
        return np.array(self.arrays[name][rows])

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
