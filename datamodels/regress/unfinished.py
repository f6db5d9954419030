"""What a regression has done so far, so that it can go on after a crash: a hidden folder beside the one it will leave.

meta.json          what decides the result; another regression's leavings are thrown away
chosen-0-256.npz   of a block of targets, each λ and the weights there
fitted-0-256.npz   its weights from all models, its metrics
prior.npz          the prior's parameters
about.npz          what is constant, and how all was solved
*.lock             what a process is at, where several are

Blocks need not be of one size: how many targets fit into memory may change from one time to the next, or on the way.
Each of them has the SHA-256 of its arrays under `sha256`; one that does not fit them is made again.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.durable import Lock, read_arrays, read_json, write_arrays, write_json
from datamodels.subsets import Array

Kept = dict[str, Array]
SEAL = "sha256"
POLL_S = 0.05


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
        named = [kept.split("-") for kept in self._names() if kept.count("-") == 2]
        found = [(int(first), int(last)) for name, first, last in named if name == stage]
        return sorted(found, key=lambda block: block[0] - block[1])

    def walk(self, stage: str, first: int, last: int) -> list[tuple[int, int]]:
        """The blocks that a way over targets meets: at each target the largest that begins there, else the next one."""
        met, at, kept = [], first, self.blocks(stage)
        while starts := [block[0] for block in kept if at <= block[0] and block[1] <= last]:
            met.append(next(block for block in kept if block[0] == min(starts) and block[1] <= last))
            at = met[-1][1]
        return met

    def covering(self, stage: str, start: int, stop: int, within: tuple[int, int]) -> list[tuple[int, int]] | None:
        """The blocks that `walk` meets within all targets and that have some of these; None where one of these is in none."""
        met = [block for block in self.walk(stage, *within) if block[0] < stop and start < block[1]]
        return None if self.missing(stage, start, stop, met) else met

    def missing(self, stage: str, first: int, last: int, kept: list[tuple[int, int]] | None = None) -> list[tuple[int, int]]:
        """The targets between the blocks that `walk` meets, or between others."""
        gaps, at = [], first
        for start, stop in self.walk(stage, first, last) if kept is None else kept:
            if at < start:
                gaps.append((at, start))
            at = stop
        return gaps if at >= last else [*gaps, (at, last)]

    @contextmanager
    def claimed(self, stage: str, first: int, last: int) -> Iterator[bool]:
        """Whether some targets are to be done here: they are not kept, and no other process has them while the block runs."""
        lock = Lock(self.begun() / f"{stage}-{first}-{last}.lock")
        if not lock.take():
            yield False
            return
        try:
            yield bool(self.missing(stage, first, last))
        finally:
            lock.release()

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """No other process is in such a block while this one is."""
        if self.folder is None:
            yield
            return
        lock = Lock(self.begun() / f"{name}.lock")
        while not lock.take():
            time.sleep(POLL_S)
        try:
            yield
        finally:
            lock.release()

    def begun(self) -> Path:
        """The folder, made if need be: by one process, before others come."""
        assert self.folder is not None
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            write_json(self.folder / "meta.json", self.meta)
        return self.folder

    def recall(self, name: str) -> Kept | None:
        """What was kept under a name, or None."""
        kept = None if self.folder is None else read_arrays(self._file(name))
        sealed = kept is not None and str(kept.pop(SEAL, None)) == _seal_of(kept)
        return kept if sealed else None

    def keep(self, name: str, arrays: Kept) -> None:
        """Keep arrays under a name, wholly or not at all."""
        if self.folder is None:
            return
        file = self.begun() / f"{name}.npz"
        if file.is_dir():
            shutil.rmtree(file)
        write_arrays(file, {**arrays, SEAL: np.array(_seal_of(arrays))})

    def drop_damaged(self) -> None:
        """Throw away what does not fit its checksum, so that it counts as missing."""
        for name in self._names():
            if self.folder is not None and self.recall(name) is None:
                self._file(name).unlink()

    def forget(self) -> None:
        """Throw everything away."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.npz"

    def _names(self) -> list[str]:
        """The names of all that is kept."""
        return [] if self.folder is None else [path.stem for path in self.folder.glob("*.npz")]

    def _is_ours(self, folder: Path) -> bool:
        try:
            return bool(read_json(folder / "meta.json") == self.meta)
        except (OSError, ValueError):
            return False


class Carried(Unfinished):
    """The same in memory, where no folder is shared: what was `brought` to a process, and what it `found` since."""

    def __init__(self, brought: Mapping[str, Kept]) -> None:
        super().__init__()
        self.brought = dict(brought)
        self.found: dict[str, Kept] = {}

    @contextmanager
    def claimed(self, stage: str, first: int, last: int) -> Iterator[bool]:
        """Whether some targets are not kept: nobody else is given them."""
        yield bool(self.missing(stage, first, last))

    def recall(self, name: str) -> Kept | None:
        """What was brought or found under a name, or None."""
        return self.found.get(name, self.brought.get(name))

    def keep(self, name: str, arrays: Kept) -> None:
        """Have arrays under a name."""
        self.found[name] = arrays

    def _names(self) -> list[str]:
        return [*self.brought, *self.found]
