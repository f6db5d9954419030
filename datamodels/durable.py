"""Files that exist whole or not at all: written under a temporary name, synced, renamed. Writing in place, and locks.

Everything the store writes goes through `os` here and nowhere else, so that a test can record and break each operation.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from datamodels import reading

Data = bytes | memoryview


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (new files, renames) durable."""
    _sync_path(folder)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; when the block ends without an error it is synced and becomes `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync_path(temporary)
        os.replace(temporary, path)  # noqa: PTH105 (every operation through `os`, see above)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_file(path: Path, data: Data) -> None:
    """Write a file, whole or not at all."""
    with new_file(path) as temporary, InPlace(temporary, new=True) as file:
        file.write(data, 0)


def remove_file(path: Path) -> None:
    """Remove a file; durable once its folder is synced."""
    os.unlink(path)  # noqa: PTH108


class InPlace:
    """A file that is written at given places; closed when the block ends. Raises OSError that names the file."""

    def __init__(self, path: Path, new: bool = False) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_TRUNC if new else 0), 0o666)

    def __enter__(self) -> InPlace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: Data, offset: int) -> None:
        """Write all of `data` from byte `offset` on. It is durable after the next `sync`."""
        left = memoryview(data).cast("B")
        with self._named():
            while len(left):
                written = os.pwrite(self.fd, left, offset)
                left, offset = left[written:], offset + written

    def lengthen(self, size: int) -> None:
        """Let the file grow to at least `size` bytes, by zeros that take no room."""
        with self._named():
            if os.fstat(self.fd).st_size < size:
                os.ftruncate(self.fd, size)

    def sync(self) -> None:
        """Make everything written so far durable."""
        with self._named():
            # What is needed to read the data back, and not the time of the change, which would cost a second journal entry.
            os.fdatasync(self.fd) if hasattr(os, "fdatasync") else os.fsync(self.fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(self.path)) from e


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
                _sync_path(file)
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
    write_file(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises Unreadable."""
    return reading.read_json(path)


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write named arrays as an .npz file, whole or not at all."""
    with new_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]] | None:
    """The arrays of an .npz file, or None where there is none that is whole."""
    try:
        return reading.read_npz(path)
    except reading.Unreadable:
        return None


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
        while True:
            file = self.path.open("ab")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                file.close()
                return False
            if self._is_current(file):
                self.file = file
                return True
            file.close()  # its last holder has removed it meanwhile

    def release(self, remove: bool = False) -> None:
        """Give the lock back, if it is held; with `remove` its file goes as well."""
        if self.file is not None:
            if remove:
                self.path.unlink()
            self.file.close()
            self.file = None

    def _is_current(self, file: IO[bytes]) -> bool:
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        return False


def _sync_path(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
