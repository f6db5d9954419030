"""Opening files, and reading bytes and text, in bounded time and memory."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO

from datamodels.errors import InputError, shown

MISSING = "is missing"
BLOCK = 2**20
MOST_TEXT = 2**24
"""Bytes of a text file that a person may have written."""
OTHERS: dict[str, Callable[[int], bool]] = {
    "a folder": stat.S_ISDIR,
    "a pipe": stat.S_ISFIFO,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
    "a socket": stat.S_ISSOCK,
}


class Unreadable(InputError, ValueError):  # noqa: N818 (what it says of the file)
    """A file that cannot be used. `why` goes on from the file's name, as in 'is a folder, not a file'."""

    def __init__(self, path: Path | str, why: str) -> None:
        super().__init__(f"{path} {why}")
        self.why = why

    @property
    def missing(self) -> bool:
        """Whether there is no such file at all."""
        return self.why == MISSING


def path_of(given: object) -> Path:
    """A path that somebody gave, as text or as a path. Raises InputError for anything else."""
    if isinstance(given, (str, os.PathLike)) and str(given):
        return Path(given)
    raise InputError(f"a folder is named by a text or a path, not by {shown(repr(given), 80)}")


def open_file(path: Path) -> IO[bytes]:
    """A regular file, opened for reading. Raises Unreadable for anything else, at once."""
    try:
        # Without O_NONBLOCK to open a pipe is to wait for who writes into it.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as e:
        raise Unreadable(path, MISSING) from e
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        raise Unreadable(path, f"cannot be opened: {getattr(e, 'strerror', None) or e}") from e
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        what = next((name for name, applies in OTHERS.items() if applies(mode)), "something else")
        raise Unreadable(path, f"is {what}, not a file")
    file = os.fdopen(fd, "rb")
    try:
        file.peek(1)
    except OSError as e:
        file.close()
        raise Unreadable(path, f"cannot be read: {e.strerror}") from e
    return file


def checked_size(file: IO[bytes], path: Path, most: int) -> int:
    """The bytes of an open file. Raises Unreadable when they are more than `most`."""
    size = os.fstat(file.fileno()).st_size
    if size > most:
        raise Unreadable(path, f"has {size} bytes, and {most} are the most that such a file may have")
    return size


def read_bytes(path: Path, most: int) -> bytes:
    """All of a file of at most so many bytes. Raises Unreadable."""
    with open_file(path) as file:
        checked_size(file, path, most)
        try:
            content = file.read(most + 1)
        except OSError as e:
            raise Unreadable(path, f"cannot be read: {e.strerror}") from e
    if len(content) > most:  # files of /proc say that they have none
        raise Unreadable(path, f"has more than {most} bytes, the most that such a file may have")
    return content


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """A file of text in UTF-8, with or without the mark (BOM) that some editors put before it. Raises Unreadable."""
    try:
        text = read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise Unreadable(path, f"is not text in UTF-8 (byte {e.start})") from e
    if "\0" in text:
        raise Unreadable(path, "is not text: it has a character 0")
    return text


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises Unreadable."""
    whole = hashlib.sha256()
    with open_file(path) as file:
        try:
            while block := file.read(BLOCK):
                whole.update(block)
        except OSError as e:
            raise Unreadable(path, f"cannot be read: {e.strerror}") from e
    return whole.hexdigest()


def is_there(name: str) -> bool:
    """Whether something of that name exists; no for a name that no file can have."""
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False
