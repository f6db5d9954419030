"""Files and folders that exist whole or not at all: made under a temporary name, synced, renamed. Writing in place, and locks.

Everything the store writes goes through `os` here and nowhere else, so that a test can record and break each operation.

Temporary names, `.NAME.xxxxxxxx.tmp` and `.old`, are drawn at random: process numbers are the same in two containers. What a
dead process has left under them is removed by the next one: files by `sweep`, folders by `only_maker` and `tidy`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from datamodels import reading
from datamodels.errors import InputError
from datamodels.progress import say

Data = bytes | memoryview

NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EISDIR}
"""What file systems answer that know no fsync of a folder: their entries are as durable as they can be."""
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ENOTTY, errno.EBADF}
"""What file systems answer that know no locks."""
NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV}
WORD_AFTER_S = 3.0
"""So long a wait for a lock passes without a word."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (new files, renames) durable, where the file system can."""
    try:
        _sync_path(folder)
    except OSError as e:
        if e.errno not in NO_FOLDER_SYNC:
            raise


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; when the block ends without an error it is synced and becomes `path`.

    Raises OSError that names the file.
    """
    with named(path):
        temporary, fd = _temporary_file(path)
        try:
            yield temporary
            os.fsync(fd)
            os.replace(temporary, path)  # noqa: PTH105 (every operation through `os`, see above)
            sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
            raise
        finally:
            os.close(fd)


def sweep(folder: Path) -> None:
    """Remove unfinished files that dead processes have left in a folder; a living one holds a lock on its own. Never fails."""
    with suppress(OSError):
        for file in [file for file in folder.iterdir() if re.fullmatch(r"\..+\.[0-9a-f]{8}\.tmp", file.name)]:
            with suppress(OSError), file.open("r+b") as opened:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink()


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an OSError from within name a file, `path` where it names none; NumPy's of a write cut short gets its number, too."""
    try:
        yield
    except OSError as e:
        number = errno.ENOSPC if e.errno is None and re.search(r"\d+ requested and \d+ written", str(e)) else e.errno
        if number is None or (e.filename is not None and e.errno is not None):
            raise
        raise OSError(number, os.strerror(number), str(path)) from e


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
        with named(self.path):
            while len(left):
                written = os.pwrite(self.fd, left, offset)
                left, offset = left[written:], offset + written

    def lengthen(self, size: int) -> None:
        """Let the file grow to at least `size` bytes, by zeros that take no room."""
        with named(self.path):
            if os.fstat(self.fd).st_size < size:
                os.ftruncate(self.fd, size)

    def sync(self) -> None:
        """Make everything written so far durable."""
        with named(self.path):
            # What is needed to read the data back, and not the time of the change, which would cost a second journal entry.
            os.fdatasync(self.fd) if hasattr(os, "fdatasync") else os.fsync(self.fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


@contextmanager
def new_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path`; when the block ends without an error its files are synced and it becomes `path`.

    With `replace` a folder that stands at `path` gives way to it in one step where the system can exchange two names, and stays
    as it was when the block fails. Without, only an empty folder gives way, and else OSError is raised. Links are followed. To
    be used within `only_maker`, which also mends what a process leaves that ends in the middle. Raises InputError as that does.
    """
    place = real_place(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (_beside(place, suffix) for suffix in ("tmp", "old"))
    with named(path):
        try:
            temporary.mkdir()
            yield temporary
            for file in temporary.iterdir():
                if file.is_file():
                    _sync_path(file)
            sync_folder(temporary)
            if not (replace and place.exists() and _exchange(temporary, place)):
                _move_in(temporary, place, old if replace else None)
            sync_folder(place.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if place.exists():  # else the old folder is all that there is
                shutil.rmtree(old, ignore_errors=True)


@contextmanager
def only_maker(path: Path, wait: str = "") -> Iterator[bool]:
    """Whether this process is, while the block runs, the only one that may make the folder at `path`, or replace it.

    Another one that is at it is waited for, with `wait` as a word about it, or without one not: the value is False then. What a
    dead process has left is settled first. Raises InputError when a file or a link that leads nowhere is in the way.
    """
    place = real_place(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock(place.with_name(f".{place.name}.lock"))
    if not lock.take():
        if not wait:
            yield False
            return
        say(wait)
        lock.take(wait=True)
    try:
        _settle(place)
        yield True
    finally:
        lock.release(remove=True)


def tidy(path: Path) -> None:
    """Settle what dead processes have left beside a folder, unless somebody is at work on it. Never fails."""
    with suppress(OSError, InputError):
        place = real_place(path)
        if _leftovers(place) or place.with_name(f".{place.name}.lock").exists():
            with only_maker(place):
                pass


def is_there(folder: Path) -> bool:
    """Whether something stands at the path of a folder that is to be made. One that is there but empty is as good as none.

    Raises InputError when a file or a link that leads nowhere is in the way.
    """
    place = real_place(folder)
    return place.exists() and any(place.iterdir())


def real_place(path: Path) -> Path:
    """Where a folder lies, or will lie, links followed.

    Raises InputError where a file or a link that leads nowhere is in the way.
    """
    for part in (*reversed(path.parents), path):
        if part.is_symlink() and not part.exists():
            raise InputError(f"{part} is a link to {part.readlink()}, which is not there; make that folder, or remove the link")
        if part.exists() and not part.is_dir():
            raise InputError(f"{part} is a file, where a folder is needed; remove it, or name another folder")
    return Path(os.path.realpath(path))


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{suffix}")


def _temporary_file(path: Path) -> tuple[Path, int]:
    """A new file beside `path`, open, and locked where that can be, so that `sweep` knows that its writer lives."""
    while True:
        temporary = _beside(path, "tmp")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # swept away in this moment
            os.close(fd)
            continue
        except OSError:
            pass
        if os.fstat(fd).st_nlink:
            return temporary, fd
        os.close(fd)


def _leftovers(place: Path) -> list[Path]:
    pattern = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{8}}\.(tmp|old)")
    return [path for path in place.parent.iterdir() if pattern.fullmatch(path.name) and path.is_dir()]


def _settle(place: Path) -> None:
    """Put back the old folder where its place is empty, and remove what else is left of unfinished work."""
    leftovers = _leftovers(place)
    old = [path for path in leftovers if path.suffix == ".old"]
    if old and not place.exists():
        max(old, key=lambda path: path.stat().st_ctime_ns).rename(place)
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)


def _move_in(temporary: Path, place: Path, old: Path | None) -> None:
    """Rename a folder to its place; one that stands there is renamed to `old` first, and back when the second rename fails."""
    moved = old is not None and place.exists()
    if old is not None and moved:
        place.rename(old)
    try:
        temporary.rename(place)
    except BaseException:
        if old is not None and moved:
            old.rename(place)
        raise


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names in one step, as Linux can on most file systems; False where it cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(b))


def write_json(path: Path, content: Any) -> None:
    """Write `content` as readable JSON, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # Names of files that are not UTF-8 come as lone surrogates, which JSON has an escape for: the one that Python writes.
    write_file(path, text.encode("utf-8", "backslashreplace"))


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises Unreadable."""
    return reading.read_json(path)


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write named arrays as an .npz file, whole or not at all."""
    with new_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as an .npy file, as np.save does but for its silence where the disk is full: that loses an array's end."""
    with named(path), path.open("wb") as file:
        np.lib.format.write_array(_PlainFile(file), np.asanyarray(array), allow_pickle=False)


class _PlainFile:
    """A file of which NumPy knows no more than `write`, and so does not write past Python, and its errors."""

    def __init__(self, file: IO[bytes]) -> None:
        self.write = file.write


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]] | None:
    """The arrays of an .npz file, or None where there is none that is whole."""
    try:
        return reading.read_npz(path)
    except reading.Unreadable:
        return None


class Lock:
    """An exclusive lock on a file, the operating system's (flock): it ends with its holder, however that ends.

    The first lock that a process takes on a file system is asked for a second time, which must be refused. Every method raises
    InputError where the file system has no locks, or grants them to everyone.
    """

    _proved: set[int] = set()  # noqa: RUF012 (of the process: file systems, by number, whose locks exclude)

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[bytes] | None = None

    @property
    def held(self) -> bool:
        """Whether the lock is held by this object."""
        return self.file is not None

    def take(self, wait: bool = False, stop: Callable[[], bool] = lambda: False) -> bool:
        """Whether the lock is now held; it is taken at once or not at all, unless `wait` is set.

        A long wait is told, ends by Ctrl-C, and when `stop` says so.
        """
        start, pause, told = time.monotonic(), 0.001, False
        while not self._take_now():
            if not wait or stop():
                return False
            if not told and time.monotonic() - start > WORD_AFTER_S:
                told = True
                say(f"waiting for another process that holds {self.path}; if that one is stopped, let it go on, or end it")
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return True

    def release(self, remove: bool = False) -> None:
        """Give the lock back, if it is held; with `remove` its file goes as well."""
        if self.file is not None:
            # Not a file that someone else has put there since the lock's own was removed.
            if remove and self._is_current(self.file):
                with suppress(OSError):  # one that stays is harmless
                    self.path.unlink()
            self.file.close()
            self.file = None

    def _take_now(self) -> bool:
        while True:
            file = self.path.open("ab")
            try:
                if not self._flock(file):
                    return False
                if self._is_current(file):
                    self._prove(file)
                    self.file = file
                    return True
            finally:  # where it is not current its last holder has removed it meanwhile: once more
                if self.file is not file:
                    file.close()

    def _flock(self, file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as e:
            if e.errno not in NO_LOCKS:
                raise OSError(e.errno, e.strerror, str(self.path)) from e
            self._refuse(f"refuses locks ({e.strerror})", e)
        return True

    def _prove(self, file: IO[bytes]) -> None:
        device = os.fstat(file.fileno()).st_dev
        if device not in self._proved:
            with self.path.open("ab") as second:
                if self._flock(second):
                    self._refuse("grants a lock to everyone")
            self._proved.add(device)

    def _refuse(self, why: str, cause: OSError | None = None) -> None:
        raise InputError(
            f"the file system of {self.path.parent} {why}, and several processes could write over each other there; "
            "use a run.dir where flock works"
        ) from cause

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
