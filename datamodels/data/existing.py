"""FFCV files of one's own, train.beton and test.beton (or val.beton, valid.beton), read by FFCV's Loader, their heads checked.

Images are an RGBImageField, raw, JPEG or both, of one size or brought to `data.size` (the centre cut to a square, then
resized), or arrays of any field of arrays, uint8, float32 or float64 (H, W) or (H, W, C), or floats (d,), features. Labels are
an IntField, or arrays of one whole number. Other fields are left alone.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodels.data import beton
from datamodels.data.arrays import check_images, refuse_not_finite
from datamodels.data.headers import ARRAYS, INT, JPEG, RAW, RGB, Field, Head, read_head
from datamodels.data.labels import numbered
from datamodels.data.pictures import room
from datamodels.data.raw import TEST, TRAIN, Found, Images, Labels, Rows
from datamodels.errors import InputError, of_memory, one_line
from datamodels.reading import Unreadable
from datamodels.settings import DataSettings

MOST_BATCH, BATCH_BYTES = 2_000, 2**26
FRAMES = (0xC0, 0xC1, 0xC2)
"""Markers of a JPEG's frame: baseline, extended, progressive; what FFCV's decoder takes for granted."""
ALONE = (0x01, *range(0xD0, 0xD8))
"""Markers without a length."""


def read_beton(settings: DataSettings) -> Found:
    """All rows of both files; images are read when they are taken. Raises InputError for files that cannot be read so."""
    if not beton.available():
        raise InputError("data.dataset beton is read by FFCV, which is not installed here")
    heads = [read_head(path) for path in _files(settings.source)]
    images = [_images(head, settings) for head in heads]
    labels = [_labels(head, settings) for head in heads]
    first, second, names = numbered(labels[0], labels[1], settings.source)
    train, test = (
        Rows(known, _taker(head, field, settings)) for known, head, field in zip((first, second), heads, images, strict=True)
    )
    return Found(train, test, names)


def _files(source: str) -> tuple[Path, Path]:
    folder, parts = Path(source), [Path(part.strip()) for part in source.split(",")]
    if not folder.is_dir():
        if len(parts) != 2:
            what = "is no folder" if folder.exists() else "is missing"
            raise InputError(f"{source} {what}; data.source names a folder with train.beton and test.beton, or two files")
        return parts[0], parts[1]
    found = []
    for names in (TRAIN, TEST):
        there = [folder / f"{name}.beton" for name in names if (folder / f"{name}.beton").exists()]
        if not there:
            raise InputError(f"{folder} has no {' or '.join(f'{name}.beton' for name in names)}")
        found.append(there[0])
    return found[0], found[1]


def _field(head: Head, name: str, setting: str) -> Field:
    if name not in head.fields:
        raise Unreadable(head.path, f"has no field {name}; it has {', '.join(head.fields)}: set data.{setting}")
    return head.fields[name]


def _labels(head: Head, settings: DataSettings) -> npt.NDArray[Any]:
    field = _field(head, settings.label_field, "label_field")
    if field.kind == INT:
        return field.rows
    whole = field.dtype is not None and field.dtype.kind in "iu" and math.prod(field.shape) == 1
    if field.dtype is None or not whole:
        raise Unreadable(head.path, f"has a field {settings.label_field} that is no whole number: set data.label_field")
    _check_lengths(head, field, field.dtype.itemsize)
    content = np.memmap(head.path, np.uint8, "r")
    places = field.pointers.astype(np.int64)[:, None] + np.arange(field.dtype.itemsize)
    return np.ascontiguousarray(content[places]).view(field.dtype)[:, 0]


def _images(head: Head, settings: DataSettings) -> Field:
    """The field of images, after all that FFCV would believe has been looked at."""
    name = settings.image_field
    field = _field(head, name, "image_field")
    if field.kind == RGB:
        _check_pictures(head, field, settings)
    elif field.kind in ARRAYS and field.dtype is not None:
        if settings.size:
            raise InputError(f"data.size is for pictures, and the field {name} of {head.path} has arrays")
        check_images(np.broadcast_to(np.zeros((), field.dtype), (head.n, *field.shape)), f"the field {name} of {head.path}")
        if field.dtype == np.float16:
            raise Unreadable(head.path, f"has a field {name} of float16, which FFCV's Loader cannot read; write it as float32")
        _check_lengths(head, field, math.prod(field.shape) * field.dtype.itemsize)
    else:
        raise Unreadable(head.path, f"has a field {name} that holds neither images nor arrays: set data.image_field")
    return field


def _check_lengths(head: Head, field: Field, length: int) -> None:
    if (head.sizes(field) != length).any():
        raise Unreadable(head.path, "has arrays of another length than their shape")


def _check_pictures(head: Head, field: Field, settings: DataSettings) -> None:
    rows, sizes = field.rows, head.sizes(field)
    height, width, mode = rows["height"].astype(np.int64), rows["width"].astype(np.int64), rows["mode"]
    if (height * width == 0).any() or not np.isin(mode, (JPEG, RAW)).all():
        raise Unreadable(head.path, "has rows of images that make no sense")
    if (sizes[mode == RAW] != (3 * height * width)[mode == RAW]).any():
        raise Unreadable(head.path, "has images of another length than their size")
    content = np.memmap(head.path, np.uint8, "r")
    for row in np.flatnonzero(mode == JPEG).tolist():
        start = int(rows["data_ptr"][row])
        found = _jpeg_size(content[start : start + int(sizes[row])])
        if found != (height[row], width[row]):
            what = "no whole JPEG" if found is None else f"a JPEG of {found[1]} × {found[0]} pixels"
            raise Unreadable(head.path, f"has {what} in row {row}, where {width[row]} × {height[row]} are told")
    if not settings.size and (len(np.unique(height)) > 1 or len(np.unique(width)) > 1):
        raise Unreadable(
            head.path,
            f"has images from {width.min()} × {height.min()} to {width.max()} × {height.max()} pixels: "
            "set data.size, to which all are brought then",
        )


def _jpeg_size(data: npt.NDArray[np.uint8]) -> tuple[int, int] | None:
    """Height and width of a JPEG of 8 bits, grey or of three colours, that begins and ends as one does; else None."""
    if len(data) < 4 or bytes(data[:2]) != b"\xff\xd8" or bytes(data[-2:]) != b"\xff\xd9":
        return None
    at = 2
    while at + 10 <= len(data):
        marker = int(data[at + 1])
        if data[at] != 0xFF:
            return None
        if marker == 0xFF or marker in ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in FRAMES:
            bits, height, width, colours = (int.from_bytes(data[at + a : at + b].tobytes(), "big") for a, b in PARTS)
            return (height, width) if bits == 8 and colours in (1, 3) else None
        length = int.from_bytes(data[at + 2 : at + 4].tobytes(), "big")
        if length < 2 or marker in (0xD9, 0xDA):
            return None
        at += 2 + length
    return None


PARTS = ((4, 5), (5, 7), (7, 9), (9, 10))
"""Where behind a frame's marker its bits, height, width and number of colours stand."""


def _taker(head: Head, field: Field, settings: DataSettings) -> Any:
    def take(rows: Labels) -> Images:
        try:
            with beton.torch_threads_kept():
                return _taken(head, field, settings, rows)
        except InputError:
            raise
        except Exception as e:
            if of_memory(e):
                raise
            raise InputError(f"{head.path} cannot be read by FFCV: {one_line(e)}") from e

    return take


def _taken(head: Head, field: Field, settings: DataSettings, rows: Labels) -> Images:
    """The images of some rows, by FFCV's Loader."""
    from ffcv.fields.decoders import CenterCropRGBImageDecoder, NDArrayDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    if field.kind == RGB:
        shape: tuple[int, ...] = (int(field.rows["height"].max()), int(field.rows["width"].max()), 3)
        item, size = math.prod(shape), settings.size
        decoder = CenterCropRGBImageDecoder((size, size), 1) if size else SimpleRGBImageDecoder()
        shape, dtype = ((size, size, 3) if size else shape), np.dtype(np.uint8)
    else:
        assert field.dtype is not None
        shape, dtype, decoder = field.shape, field.dtype, NDArrayDecoder()
        item = math.prod(shape) * dtype.itemsize
    out = room(len(rows), (*shape, *(1,) * (len(shape) == 2)), np.uint8 if dtype == np.uint8 else np.float32)
    pipelines = {name: [decoder, ToTensor()] if one is field else None for name, one in head.fields.items()}
    # A batch larger than there are rows would yield nothing, silently.
    batch = max(1, min(len(rows), MOST_BATCH, BATCH_BYTES // item))
    options = {"order": OrderOption.SEQUENTIAL, "drop_last": False, "os_cache": True, "num_workers": 1}
    at = 0
    loader = Loader(str(head.path), batch_size=batch, indices=rows.astype(np.uint64), pipelines=pipelines, **options)
    for (images,) in beton.batches_of(loader):
        with np.errstate(over="ignore"):
            out[at : at + len(images)] = images.numpy().reshape(len(images), *out.shape[1:])
        at += len(images)
    if at != len(rows):
        raise Unreadable(head.path, f"gave {at} of {len(rows)} rows")
    if out.dtype == np.float32:
        refuse_not_finite(out, rows, str(head.path))
    return out
