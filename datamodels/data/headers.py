"""What stands in the head of an FFCV 1.0.2 file, checked with NumPy before FFCV, which follows every pointer, reads it.

A .beton file is a header, a description of each field, a row for each sample, pages with the images, and at its end a table
of where they lie (`ffcv.types`). FFCV allocates by the shape that the file gives, and copies as many bytes as the table says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from datamodels.reading import Unreadable, checked_size, open_file

VERSION = 2
LEAST_PAGE, MOST_PAGE = 2**21, 2**31
RGB, NDARRAY, INT = 2, 4, 1
RAW = 1
"""Of `mode`, for images that are not JPEGs."""
MOST_SIDE = 2**16
HEADER = np.dtype(
    [("version", "<u2"), ("num_fields", "<u2"), ("page_size", "<u4"), ("num_samples", "<u8"), ("alloc_table_ptr", "<u8")],
    align=True,
)
FIELD = np.dtype([("type_id", "u1"), ("name", "S16"), ("arguments", "u1", (1024,))], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
RGB_SAMPLE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
FIELDS = [b"image", b"label", b"index"]

Records = npt.NDArray[Any]


def check_header(path: Path, n: int) -> None:
    """Raise Unreadable unless a file holds n images of one shape, each whole and within the file, with labels and indices."""
    with open_file(path) as file:
        size = checked_size(file, path, 2**62)
        header = _take(file, HEADER, 1, size, path)[0]
        if header["version"] != VERSION or header["num_fields"] != len(FIELDS) or header["num_samples"] != n:
            raise Unreadable(path, f"is no FFCV file of version {VERSION} with {n} rows of {len(FIELDS)} fields")
        page = int(header["page_size"])
        if not LEAST_PAGE <= page <= MOST_PAGE or page & (page - 1):
            raise Unreadable(path, f"has pages of {page} bytes, which FFCV does not write")
        fields = _take(file, FIELD, len(FIELDS), size, path)
        kinds = fields["type_id"].tolist()
        if fields["name"].tolist() != FIELDS or kinds[0] not in (RGB, NDARRAY) or kinds[1:] != [INT, INT]:
            raise Unreadable(path, "does not have the fields image, label and index")
        image = RGB_SAMPLE if kinds[0] == RGB else np.dtype("<u8")
        samples = _take(file, np.dtype([("image", image), ("label", "<i8"), ("index", "<i8")], align=True), n, size, path)
        start, table = file.tell(), int(header["alloc_table_ptr"])
        if not start <= table <= size or size - table != n * ALLOCATION.itemsize:
            raise Unreadable(path, f"does not end with a table of {n} images")
        file.seek(table)
        allocations = _take(file, ALLOCATION, n, size, path)
    images = samples["image"]
    length = _rgb_bytes(images, path) if kinds[0] == RGB else _array_bytes(fields["arguments"][0], page, path)
    _check_places(images["data_ptr"] if kinds[0] == RGB else images, allocations, length, start, table, path)


def _take(file: IO[bytes], dtype: np.dtype[Any], count: int, size: int, path: Path) -> Records:
    """The next so many records of a file. Raises Unreadable where it has not so many."""
    if file.tell() + count * dtype.itemsize > size:
        raise Unreadable(path, "is cut short")
    return np.frombuffer(file.read(count * dtype.itemsize), dtype)


def _rgb_bytes(images: Records, path: Path) -> int:
    """Bytes of each image. FFCV makes room for the first one's shape."""
    height, width = int(images["height"][0]), int(images["width"][0])
    one_shape = (images["height"] == height).all() and (images["width"] == width).all() and height * width
    if not one_shape or (images["mode"] != RAW).any():
        raise Unreadable(path, "does not hold raw images of one shape")
    return 3 * height * width


def _array_bytes(arguments: Records, page: int, path: Path) -> int:
    """Bytes of each array, by the field's arguments: 32 sizes, the length of the text of the type, that text."""
    numbers, length = arguments[:256].view("<u8").tolist(), int(arguments[256:264].view("<u8")[0])
    shape = numbers[: max((k + 1 for k, size in enumerate(numbers) if size), default=0)]
    try:
        told = json.loads(arguments[264 : 264 + min(length, 64)].tobytes())
    except ValueError:
        told = None
    plain = told == [["", np.dtype(np.uint8).descr[0][1]]] and length <= 64
    if not plain or len(shape) != 3 or not all(0 < size <= MOST_SIDE for size in shape) or int(np.prod(shape)) > page:
        raise Unreadable(path, "does not hold arrays uint8 (H, W, C)")
    return int(np.prod(shape))


def _check_places(pointers: Records, allocations: Records, length: int, start: int, table: int, path: Path) -> None:
    """Each image has a place of its own, as long as it is, between the rows and the table."""
    places = allocations[np.argsort(allocations["ptr"], kind="stable")]
    first, sizes = places["ptr"], places["size"]
    inside = len(first) and int(first[0]) >= start and int(first[-1]) <= table - length
    # Compared, not subtracted from below 0: the numbers are unsigned.
    if (sizes != length).any() or not inside or (np.diff(first) < length).any():
        raise Unreadable(path, "has a table that points outside of the file, or to one place twice")
    if not np.array_equal(np.sort(allocations["sample_id"]), np.arange(len(first), dtype=np.uint64)):
        raise Unreadable(path, "has a table with other rows than it holds")
    by_sample = allocations["ptr"][np.argsort(allocations["sample_id"], kind="stable")]
    if not np.array_equal(by_sample, pointers):
        raise Unreadable(path, "has rows that point elsewhere than its table")
