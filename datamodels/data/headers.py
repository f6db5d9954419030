"""What stands in the head of an FFCV 1.0.2 file, checked with NumPy before FFCV, which follows every pointer, reads it.

A .beton file is a header, a description of each field, a row for each sample, pages with what does not fit into rows (images,
arrays, texts), and at its end a table of where that lies (`ffcv.types`). FFCV allocates by the shape that the file gives, and
copies as many bytes as the table says; of a JPEG it decodes as much as the row says that it has.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from datamodels.errors import shown
from datamodels.reading import Unreadable, checked_size, open_file

VERSION = 2
LEAST_PAGE, MOST_PAGE = 2**21, 2**31
FLOAT, INT, RGB, BYTES, NDARRAY, JSON, TENSOR = range(7)
ARRAYS = (NDARRAY, TENSOR)
JPEG, RAW = 0, 1
"""Of `mode`, how an image is kept."""
MOST_SIDE, MOST_FIELDS = 2**16, 64
HEADER = np.dtype(
    [("version", "<u2"), ("num_fields", "<u2"), ("page_size", "<u4"), ("num_samples", "<u8"), ("alloc_table_ptr", "<u8")],
    align=True,
)
FIELD = np.dtype([("type_id", "u1"), ("name", "S16"), ("arguments", "u1", (1024,))], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
RGB_SAMPLE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
_POINTER, _BLOB = np.dtype("<u8"), np.dtype([("ptr", "<u8"), ("size", "<u8")])
SAMPLES = dict(enumerate((np.dtype("<f8"), np.dtype("<i8"), RGB_SAMPLE, _BLOB, _POINTER, _BLOB, _POINTER)))
"""What a row has of a field, by the field's kind."""
FIELDS = [b"image", b"label", b"index"]
"""Of the files of a run."""

Records = npt.NDArray[Any]


@dataclass(frozen=True)
class Field:
    """One field of a file: its kind, of arrays their type and shape, and what each row has of it."""

    kind: int
    rows: Records
    dtype: np.dtype[Any] | None = None
    shape: tuple[int, ...] = ()

    @property
    def pointers(self) -> Records:
        """Where in the file the images or arrays of the rows lie."""
        return self.rows["data_ptr"] if self.kind == RGB else self.rows


@dataclass(frozen=True)
class Head:
    """The head of a file: its fields by name, in order, and the table of places, which all lie within the file."""

    path: Path
    fields: dict[str, Field]
    n: int
    page: int
    start: int
    table: int
    allocations: Records

    def sizes(self, field: Field) -> Records:
        """Bytes that the table tells of each row's image or array. Raises Unreadable for a row that points elsewhere."""
        order = np.argsort(self.allocations["ptr"], kind="stable")
        known, sizes = self.allocations["ptr"][order], self.allocations["size"][order]
        where = np.searchsorted(known, field.pointers)
        there = where < len(known)
        if not there.all() or (known[where] != field.pointers).any():
            raise Unreadable(self.path, "has rows that point elsewhere than its table")
        after = np.minimum(where + 1, len(known) - 1)
        if ((known[after] == field.pointers) & (after != where)).any():
            raise Unreadable(
                self.path, "has empty texts where images begin, or two things at one place: FFCV would take either"
            )
        found: Records = sizes[where]
        return found


def read_head(path: Path) -> Head:
    """The head of a file of any fields. Raises Unreadable unless all that it tells of lies within the file."""
    with open_file(path) as file:
        size = checked_size(file, path, 2**62)
        if size < HEADER.itemsize:
            raise Unreadable(path, "is cut short" if size else "is empty")
        header = _take(file, HEADER, 1, size, path)[0]
        if header["version"] != VERSION or not 1 <= header["num_fields"] <= MOST_FIELDS:
            raise Unreadable(path, f"is no FFCV file of version {VERSION}")
        page, n = int(header["page_size"]), int(header["num_samples"])
        if not LEAST_PAGE <= page <= MOST_PAGE or page & (page - 1):
            raise Unreadable(path, f"has pages of {page} bytes, which FFCV does not write")
        told = _take(file, FIELD, int(header["num_fields"]), size, path)
        if not n or n * 8 > size:
            raise Unreadable(path, "has no rows" if not n else "is cut short")
        unknown = [int(kind) for kind in told["type_id"] if int(kind) not in SAMPLES]
        if unknown:
            raise Unreadable(path, f"has a field of a kind of its own, {unknown[0]}, which FFCV cannot read by itself")
        row = np.dtype([(f"f{k}", SAMPLES[int(kind)]) for k, kind in enumerate(told["type_id"])], align=True)
        samples = _take(file, row, n, size, path)
        start, table = file.tell(), int(header["alloc_table_ptr"])
        if not start <= table <= size or (size - table) % ALLOCATION.itemsize:
            raise Unreadable(path, "does not end with a table of what it holds: it is cut short, or damaged")
        file.seek(table)
        allocations = _take(file, ALLOCATION, (size - table) // ALLOCATION.itemsize, size, path)
    _refuse_outside(allocations, start, table, path)
    names = [shown(name.decode("latin-1"), 40) for name in told["name"].tolist()]
    if len(set(names)) < len(names):
        raise Unreadable(path, "has two fields of one name")
    fields = {name: _field(one, samples[f"f{k}"], path) for k, (name, one) in enumerate(zip(names, told, strict=True))}
    return Head(path, fields, n, page, start, table, allocations)


def check_header(path: Path, n: int) -> None:
    """Raise Unreadable unless a run's file holds n images of one shape, each whole and within the file, with labels and
    indices.
    """
    head = read_head(path)
    kinds = [field.kind for field in head.fields.values()]
    if head.n != n or len(kinds) != len(FIELDS):
        raise Unreadable(path, f"is no FFCV file of version {VERSION} with {n} rows of {len(FIELDS)} fields")
    if [name.encode() for name in head.fields] != FIELDS or kinds[0] not in (RGB, NDARRAY) or kinds[1:] != [INT, INT]:
        raise Unreadable(path, "does not have the fields image, label and index")
    if len(head.allocations) != n:
        raise Unreadable(path, f"does not end with a table of {n} images")
    image = head.fields["image"]
    length = _rgb_bytes(image.rows, path) if image.kind == RGB else _array_bytes(image, head)
    _check_places(image.pointers, head.allocations, length, path)


def _take(file: IO[bytes], dtype: np.dtype[Any], count: int, size: int, path: Path) -> Records:
    """The next so many records of a file. Raises Unreadable where it has not so many."""
    if file.tell() + count * dtype.itemsize > size:
        raise Unreadable(path, "is cut short")
    return np.frombuffer(file.read(count * dtype.itemsize), dtype)


def _refuse_outside(allocations: Records, start: int, table: int, path: Path) -> None:
    first, sizes = allocations["ptr"], allocations["size"]
    # Compared, not added: the numbers are unsigned, and any.
    if len(first) and ((first < start) | (first > table) | (sizes > table - np.minimum(first, table))).any():
        raise Unreadable(path, "has a table that points outside of the file")


def _field(told: Records, rows: Records, path: Path) -> Field:
    kind = int(told["type_id"])
    return Field(kind, rows, *_array(told["arguments"], path)) if kind in ARRAYS else Field(kind, rows)


def _array(arguments: Records, path: Path) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape of arrays, by the field's arguments: 32 sizes, the length of the text of the type, that text."""
    numbers, length = arguments[:256].view("<u8").tolist(), int(arguments[256:264].view("<u8")[0])
    shape = tuple(numbers[: max((k + 1 for k, size in enumerate(numbers) if size), default=0)])
    try:
        told = json.loads(arguments[264 : 264 + min(length, 64)].tobytes())
    except (ValueError, RecursionError):
        told = None
    plain = isinstance(told, list) and len(told) == 1 and isinstance(told[0], list) and len(told[0]) == 2
    if not plain or told[0][0] != "" or not re.fullmatch(r"[<|][biuf][1248]", str(told[0][1])) or length > 64:
        raise Unreadable(path, "has arrays of another type than plain numbers")
    try:
        dtype = np.dtype(told[0][1])
    except TypeError:
        raise Unreadable(path, "has arrays of another type than plain numbers") from None
    if not shape or not all(0 < size <= MOST_PAGE for size in shape):
        raise Unreadable(path, "has arrays of a shape that makes no sense")
    return dtype, shape


def _rgb_bytes(images: Records, path: Path) -> int:
    """Bytes of each image. FFCV makes room for the first one's shape."""
    height, width = int(images["height"][0]), int(images["width"][0])
    one_shape = (images["height"] == height).all() and (images["width"] == width).all() and height * width
    if not one_shape or (images["mode"] != RAW).any():
        raise Unreadable(path, "does not hold raw images of one shape")
    return 3 * height * width


def _array_bytes(image: Field, head: Head) -> int:
    """Bytes of each array, which are images of bytes or floats, or features."""
    shape, dtype = image.shape, image.dtype
    of_bytes, of_floats = dtype == np.uint8 and len(shape) == 3, dtype == np.float32 and len(shape) in (1, 3)
    bytes_ = int(np.prod(shape, dtype=object)) * (dtype.itemsize if dtype is not None else 1)
    sides = shape if len(shape) == 3 else ()
    if not (of_bytes or of_floats) or any(size > MOST_SIDE for size in sides) or bytes_ > head.page:
        raise Unreadable(head.path, "does not hold arrays uint8 (H, W, C), float32 (H, W, C) or float32 (d,)")
    return bytes_


def _check_places(pointers: Records, allocations: Records, length: int, path: Path) -> None:
    """Each image has a place of its own, as long as it is."""
    places = allocations[np.argsort(allocations["ptr"], kind="stable")]
    if (places["size"] != length).any() or (np.diff(places["ptr"]) < length).any():
        raise Unreadable(path, "has a table that points outside of the file, or to one place twice")
    if not np.array_equal(np.sort(allocations["sample_id"]), np.arange(len(places), dtype=np.uint64)):
        raise Unreadable(path, "has a table with other rows than it holds")
    by_sample = allocations["ptr"][np.argsort(allocations["sample_id"], kind="stable")]
    if not np.array_equal(by_sample, pointers):
        raise Unreadable(path, "has rows that point elsewhere than its table")
