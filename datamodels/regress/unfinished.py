"""What a regression has done so far, so that it can go on after a crash: a hidden folder beside the one it will leave.

meta.json          what decides the result; another regression's leavings are thrown away
chosen-0-256.npz   of a block of targets, each λ and the weights there
fitted-0-256.npz   its weights from all models, its metrics

Blocks need not be of one size: how many targets fit into memory may change from one time to the next, or on the way.
Each of them has the SHA-256 of its arrays under `sha256`; one that does not fit them is made again.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.durable import read_arrays, read_json, write_arrays, write_json
from datamodels.store.layout import Array

Kept = dict[str, Array]
SEAL = "sha256"


def _seal_of(arrays: Kept) -> str:
    """SHA-256 of arrays with their names, types and shapes."""
    whole = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        whole.update(repr((name, array.dtype.str, array.shape)).encode())
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


class Unfinished:
    """Named groups of arrays, kept in a folder, or without one not at all."""

    def __init__(self, folder: Path | None = None, meta: Any = None) -> None:
        self.folder, self.meta = folder, meta
        if folder is not None and folder.exists() and not self._is_ours(folder):
            self.forget()

    def blocks(self, stage: str) -> list[tuple[int, int]]:
        """The blocks of a stage that something is kept of, first target and one past the last, the largest first."""
        if self.folder is None:
            return []
        named = [path.stem.split("-") for path in self.folder.glob(f"{stage}-*-*.npz")]
        found = [(int(first), int(last)) for name, first, last in named if name == stage]
        return sorted(found, key=lambda block: block[0] - block[1])

    def recall(self, name: str) -> Kept | None:
        """What was kept under a name, or None."""
        kept = None if self.folder is None else read_arrays(self.folder / f"{name}.npz")
        sealed = kept is not None and str(kept.pop(SEAL, None)) == _seal_of(kept)
        return kept if sealed else None

    def keep(self, name: str, arrays: Kept) -> None:
        """Keep arrays under a name, wholly or not at all."""
        if self.folder is None:
            return
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            write_json(self.folder / "meta.json", self.meta)
        file = self.folder / f"{name}.npz"
        if file.is_dir():
            shutil.rmtree(file)
        write_arrays(file, {**arrays, SEAL: np.array(_seal_of(arrays))})

    def forget(self) -> None:
        """Throw everything away."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _is_ours(self, folder: Path) -> bool:
        try:
            return bool(read_json(folder / "meta.json") == self.meta)
        except (OSError, ValueError):
            return False
