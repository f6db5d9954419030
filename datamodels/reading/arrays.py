"""NumPy's .npy and .npz files, their headers read and checked here and not by NumPy.

Only plain numbers and text: no objects (pickles), no structured types. An .npz file's members must be stored, not compressed,
as `np.savez` writes them, so that nothing can unpack to more than the file has; or, where who reads says how much they may, can
unpack to no more than that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
import numpy.typing as npt

from datamodels.errors import shown
from datamodels.reading.files import BLOCK, Unreadable, checked_size, open_file

Array = npt.NDArray[Any]
Shape = Sequence["int | None"]

MAGIC = b"\x93NUMPY"
OTHER_FORMATS = {
    b"PK": "a zip archive, as an .npz or one of PyTorch's files is,",
    b"\x1f\x8b": "a gzip file",
    b"\x89HDF": "an HDF5 file",
    b"\x80": "a pickle",
}
MOST_HEADER = 2**16
MOST_DIMENSIONS = 32
MOST_ITEMS = 2**60
MOST_MEMBERS = 1000
MOST_DIRECTORY = 2**20
LARGEST = 2**63 - 1
END, LOCATOR = b"PK\x05\x06", b"PK\x06\x07"
_QUOTE = r"""['"]"""
_ENTRY = (
    rf"{_QUOTE}(?:descr{_QUOTE}\s*:\s*{_QUOTE}(?P<descr>[<>|=]?[?biufcUS]\d{{0,9}}){_QUOTE}"
    rf"|fortran_order{_QUOTE}\s*:\s*(?P<order>True|False)"
    rf"|shape{_QUOTE}\s*:\s*\((?P<shape>[\d, L]*)\))"
)
_ENTRIES = (re.sub(r"\?P<(\w+)>", rf"?P<\g<1>{k}>", _ENTRY) for k in range(3))
_HEADER = re.compile(r"\{\s*" + r"\s*,\s*".join(_ENTRIES) + r"\s*,?\s*\}\s*", re.ASCII)
"""The three entries in any order."""


@dataclass(frozen=True)
class Header:
    """What an .npy file says of itself: type, shape, memory order, and at which byte its numbers begin."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    start: int

    @property
    def data_bytes(self) -> int:
        """Bytes of the numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


def open_npy(path: Path, shape: Shape | None = None) -> Array:
    """The array of an .npy file as a read-only memory map, or in memory where it has no items.

    `shape` is what it must have, None standing for any size. Raises Unreadable when the file is not such an array, whole.
    """
    with open_file(path) as file:
        header = _header(file, path, checked_size(file, path, LARGEST))
        if shape is not None:
            _check_shape(path, header.shape, shape)
        order: Any = "F" if header.fortran else "C"
        if not header.data_bytes:
            return np.empty(header.shape, header.dtype, order)
        return np.memmap(file, header.dtype, "r", header.start, header.shape, order)


def read_npy(path: Path, dtype: npt.DTypeLike, shape: Shape) -> Array:
    """The array of an .npy file, in memory, of this type (in either byte order) and shape. Raises Unreadable."""
    found = open_npy(path, shape)
    if found.dtype.newbyteorder("=") != np.dtype(dtype):
        raise Unreadable(path, f"holds {found.dtype}, not {np.dtype(dtype)}")
    return np.array(found, np.dtype(dtype), order="C")


def read_npz(
    path: Path, names: Sequence[str] | None = None, only: Sequence[str] | None = None, most: int | None = None
) -> dict[str, Array]:
    """The arrays of an .npz file, in memory; `names` are those that it must hold, these and no others.

    `only` these of them are read. With `most`, members may be compressed that unpack to at most so many bytes together. Raises
    Unreadable.
    """
    with open_file(path) as file:
        size = checked_size(file, path, LARGEST)
        with _archive(file, path, size, most) as members:
            if names is not None and members.keys() != set(names):
                raise Unreadable(path, f"holds {shown(', '.join(sorted(members)), 200)}, and should hold {', '.join(names)}")
            wanted = members if only is None else {name: members[name] for name in only}
            return {name: _member(archive, info, path) for name, (archive, info) in wanted.items()}


def npz_members(path: Path) -> list[str]:
    """The names of the arrays of an .npz file, compressed or not. Raises Unreadable."""
    with open_file(path) as file, _archive(file, path, checked_size(file, path, LARGEST), LARGEST) as members:
        return sorted(members)


@contextmanager
def _archive(file: IO[bytes], path: Path, size: int, most: int | None = None) -> Iterator[dict[str, tuple[ZipFile, ZipInfo]]]:
    members = _check_directory(file, path, size)
    try:
        with ZipFile(file) as archive:
            infos = archive.infolist()
            if len(infos) != members:
                raise Unreadable(path, "does not have as many members as it says")
            _check_members(infos, path, size, most)
            yield {info.filename.removesuffix(".npy"): (archive, info) for info in infos}
    except Unreadable:
        raise
    except Exception as e:  # damaged archives raise whatever their bytes lead to
        raise Unreadable(path, f"is no such archive, or damaged: {shown(str(e), 200)}") from e


def check_zip(path: Path) -> None:
    """Raise Unreadable unless a file is a zip archive of stored members that have room in it, and their checksums."""
    with open_file(path) as file, _archive(file, path, checked_size(file, path, LARGEST)) as members:
        for archive, info in members.values():
            with archive.open(info) as member:
                while member.read(BLOCK):  # compares the checksum when it comes to the end
                    pass


def _check_directory(file: IO[bytes], path: Path, size: int) -> int:
    """How many members there are. The list of them is read whole: it must be small. Nothing may stand behind it."""
    file.seek(max(0, size - 98))
    tail = file.read(98)
    record = tail[-22:]
    if len(record) < 22 or record[:4] != END:
        raise Unreadable(path, "is no such archive, or cut short")
    directory = int.from_bytes(record[12:16], "little")
    if tail[-42:-38] == LOCATOR:
        directory = max(directory % (2**32 - 1), int.from_bytes(tail[-98 + 40 : -98 + 48], "little"))
    if directory > MOST_DIRECTORY:
        raise Unreadable(path, f"has a list of members of {directory} bytes, which is too long")
    file.seek(0)
    return int.from_bytes(record[10:12], "little")


def _check_members(infos: list[ZipInfo], path: Path, size: int, most: int | None) -> None:
    names = [info.filename for info in infos]
    if len(names) > MOST_MEMBERS or len(set(names)) < len(names):
        raise Unreadable(path, "has members of one name, or too many of them")
    for info in infos:
        packed = most is not None and info.compress_type == ZIP_DEFLATED
        if info.flag_bits & 1 or not (packed or (info.compress_type == ZIP_STORED and info.compress_size == info.file_size)):
            raise Unreadable(
                path, f"has {shown(info.filename, 80)} compressed or encrypted; members must be stored as they are"
            )
    if sum(info.compress_size for info in infos) > size:
        raise Unreadable(path, "has members that are larger than itself")
    unpacked = sum(info.file_size for info in infos)
    if most is not None and unpacked > max(most, size):
        raise Unreadable(path, f"unpacks to {unpacked} bytes, for which memory does not suffice")


def _member(archive: ZipFile, info: ZipInfo, path: Path) -> Array:
    where = Path(f"{path}:{info.filename}")
    with archive.open(info) as file:
        header = _header(file, where, info.file_size)
        content, filled = bytearray(header.data_bytes), 0
        while filled < len(content) and (part := file.read(min(BLOCK, len(content) - filled))):
            content[filled : filled + len(part)] = part
            filled += len(part)
        # Up to the end: there the archive compares the checksum.
        if filled < len(content) or file.read(1):
            raise Unreadable(where, "is not as long as its header says")
    found: Array = np.frombuffer(content, header.dtype)
    return found.reshape(header.shape, order="F" if header.fortran else "C")


def _header(file: IO[bytes], path: Path, size: int) -> Header:
    """Read and check the header of an .npy file of `size` bytes."""
    start = file.read(8)
    if start[:6] != MAGIC or len(start) < 8:
        what = next((f"is {name} and not an .npy file" for mark, name in OTHER_FORMATS.items() if start.startswith(mark)), None)
        raise Unreadable(path, "is empty" if not start else what or "is no .npy file")
    version = tuple(start[6:])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise Unreadable(path, f"is of .npy version {version[0]}.{version[1]}, which this program does not know")
    count = 2 if version == (1, 0) else 4
    length = int.from_bytes(file.read(count), "little")
    text = file.read(length) if length <= MOST_HEADER else b""
    found = _HEADER.fullmatch(text.decode("latin-1"))
    if len(text) != length or not found:
        raise Unreadable(path, "has a header that is damaged, or of another type than plain numbers")
    header = _described(
        {name[:-1]: value for name, value in found.groupdict().items() if value is not None}, 8 + count + length
    )
    if header is None:
        raise Unreadable(path, f"has a header that makes no sense: {shown(' '.join(found[0].split()), 200)}")
    if header.start + header.data_bytes > size:
        raise Unreadable(path, f"is cut short: its header tells of {header.data_bytes} bytes, {size - header.start} are there")
    return header


def _described(entries: dict[str, str], start: int) -> Header | None:
    if entries.keys() != {"descr", "order", "shape"}:
        return None
    words = [word.strip().removesuffix("L") for word in entries["shape"].split(",")]
    if len(words) == 1 and words[0]:  # (3) is a number, and (3,) a shape
        return None
    words = words[:-1] if words[-1] == "" else words
    if len(words) > MOST_DIMENSIONS or not all(word.isdigit() and len(word) <= 18 for word in words):
        return None
    shape = tuple(map(int, words))
    try:
        dtype = np.dtype(entries["descr"])
    except TypeError:
        return None
    # Also where another dimension is 0, so that no product of them can overflow.
    fits = math.prod(max(items, 1) for items in shape) * dtype.itemsize <= MOST_ITEMS
    return Header(dtype, shape, entries["order"] == "True", start) if dtype.itemsize and fits else None


def _check_shape(path: Path, found: tuple[int, ...], wanted: Shape) -> None:
    if len(found) != len(wanted) or any(size not in (None, have) for have, size in zip(found, wanted, strict=True)):
        told = ", ".join("any" if size is None else str(size) for size in wanted)
        raise Unreadable(path, f"has shape {found}, not ({told})")
