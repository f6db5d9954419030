"""Files that exist whole or not at all: written under a temporary name, synced, renamed. And locks."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (new files, renames) durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; when the block ends without an error it is synced and becomes `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as f:
            os.fsync(f.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path`; when the block ends without an error its files are synced and it becomes `path`.

    With `replace` a folder that stands at `path` gives way to it, and stays as it was when the block fails. Without, what
    stands there stays, and OSError is raised.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{suffix}") for suffix in ("tmp", "old"))
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            if file.is_file():
                with file.open("rb") as f:
                    os.fsync(f.fileno())
        sync_folder(temporary)
        if replace and path.exists():
            path.rename(old)
        temporary.rename(path)
        sync_folder(path.parent)
    finally:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as readable JSON, whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as .npy, whole or not at all."""
    with new_file(path) as temporary, temporary.open("wb") as f:
        np.save(f, array)


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises OSError or ValueError."""
    return json.loads(path.read_text(encoding="utf-8"))


class Lock:
    """An exclusive lock on a file, the operating system's (flock): it ends with its holder, however that ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[bytes] | None = None

    @property
    def held(self) -> bool:
        """Whether the lock is held by this object."""
        return self.file is not None

    def take(self, wait: bool = False) -> bool:
        """Whether the lock is now held; it is taken at once or not at all, unless `wait` is set."""
        file = self.path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return False
        self.file = file
        return True

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self.file is not None:
            self.file.close()
            self.file = None
