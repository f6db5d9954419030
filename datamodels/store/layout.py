"""What a store consists of: its files, its meta.json, and how an empty one comes to be."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodels.durable import InPlace, is_there, new_folder
from datamodels.errors import InputError
from datamodels.reading import Between, Each, Unreadable, open_file, read_json, require, whole_number
from datamodels.seals import read_sealed, unsealed, write_sealed
from datamodels.subsets import Array

FORMAT = "datamodels-store"
FORMAT_VERSION = 1

# The marks in done.npy.
MISSING, DONE, FAILED = 0, 1, 2
FAILURES = "failures.json"
MARGIN_TYPES = ("float16", "float32")
NPY_MAGIC = b"\x93NUMPY\x01\x00"
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
"""Names of arrays: they become names of files."""
RESERVED = ("masks", "checksums", "done")
MOST_MODELS, MOST_EXAMPLES, MOST_DIMENSIONS, MOST_ROW_BYTES = 2**31, 2**31, 16, 2**31
COUNT = Between(1, MOST_EXAMPLES)
META = {
    "num_models": Between(0, MOST_MODELS),
    "num_train": COUNT,
    "num_targets": COUNT,
    "arrays": Each({"dtype": str, "shape": [COUNT]}),
    "provenance": dict,
}
ROW_DIGITS = 20  # a header has room for so large a number of rows, and can be written again when the store grows


@dataclass(frozen=True)
class ArraySpec:
    """Type and shape of one row of an array."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))

    def header(self, rows: int) -> bytes:
        """What an .npy file of so many rows begins with (format 1.0, little-endian); its length is the same for any number.

        Written here, byte for byte, because NumPy pads its own differently from version to version.
        """
        descr = np.lib.format.dtype_to_descr(np.dtype(self.dtype).newbyteorder("<"))
        start = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': "
        room = len(start) + len(repr((10**ROW_DIGITS, *self.shape)))
        total = -(-(len(NPY_MAGIC) + 2 + room + len(", }\n")) // 64) * 64
        text = f"{start}{(rows, *self.shape)!r}, }}".ljust(total - len(NPY_MAGIC) - 3) + "\n"
        return NPY_MAGIC + len(text).to_bytes(2, "little") + text.encode("ascii")


@dataclass(frozen=True)
class Meta:
    """The content of meta.json: M, N, T, the arrays beside the masks, and everything that decided the content."""

    num_models: int
    num_train: int
    num_targets: int
    arrays: Mapping[str, ArraySpec]
    provenance: Mapping[str, Any]

    @property
    def mask_bytes(self) -> int:
        """⌈N/8⌉, the bytes of a packed mask."""
        return -(-self.num_train // 8)

    @property
    def files(self) -> dict[str, ArraySpec]:
        """Every array of the store by name, the masks first and the marks last."""
        marks = {"checksums": ArraySpec("uint32", ()), "done": ArraySpec("uint8", ())}
        return {"masks": ArraySpec("uint8", (self.mask_bytes,)), **self.arrays, **marks}


def create(folder: Path, meta: Meta) -> None:
    """Make an empty store, whole or not at all. Raises InputError when something is there already.

    To be called by the `only_maker` of the folder, where others may be at the same.
    """
    refusal = f"{folder} exists already; a store is never created over something"
    if is_there(folder):
        raise InputError(refusal)
    try:
        with new_folder(folder) as temporary:
            create_in(temporary, meta)
    except OSError as e:
        if e.errno in (errno.EEXIST, errno.ENOTEMPTY):  # another process was faster
            raise InputError(refusal) from e
        raise


def create_once(folder: Path, meta: Meta) -> None:
    """As `create`, but what is there already stays as it is, without a word: for whoever may be called twice."""
    if not is_there(folder):
        create(folder, meta)


def create_in(folder: Path, meta: Meta) -> None:
    """Put the files of an empty store into a folder. The disk's room is taken when rows are written."""
    for name, spec in meta.files.items():
        with InPlace(folder / f"{name}.npy", new=True) as file:
            lay_out(file, spec, meta.num_models)
    for name in ("inbox", "claims"):
        (folder / name).mkdir()
    write_meta(folder, meta)


def lay_out(file: InPlace, spec: ArraySpec, rows: int) -> None:
    """Make an .npy file, new or growing, one of so many rows. Their place comes before the header that tells of them.

    The file is never cut: a growth that was cut off may have left a header that tells of more rows than are wanted now.
    """
    header = spec.header(rows)
    file.lengthen(len(header) + rows * spec.row_bytes)
    file.sync()
    file.write(header, 0)
    file.sync()


def write_meta(folder: Path, meta: Meta) -> None:
    """Write meta.json, whole or not at all."""
    write_sealed(folder / "meta.json", {"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(meta)})


def read_meta(folder: Path) -> Meta:
    """Read meta.json. Raises InputError when this is no store, one of another format version, or damaged."""
    file = folder / "meta.json"
    try:
        content = read_json(file)
        require(content, {"format": str}, file)
    except Unreadable as e:
        raise InputError(f"there is no store in {folder}" + f": {e}" * (not e.missing)) from e
    if content["format"] != FORMAT:
        raise InputError(f"{folder} holds {content['format']!r}, not a store")
    version = content.get("format_version")
    if version != FORMAT_VERSION or version is True:
        raise InputError(f"{folder} has store format {version!r}, this program reads {FORMAT_VERSION}")
    content = unsealed(content, file)
    require(content, META, file)
    for name, spec in content["arrays"].items():
        _check_array(name, spec, content["num_targets"], file)
    arrays = {name: ArraySpec(spec["dtype"], tuple(spec["shape"])) for name, spec in content["arrays"].items()}
    if "margins" not in arrays:
        raise InputError(f"{file} is damaged: the store has no margins")
    return Meta(content["num_models"], content["num_train"], content["num_targets"], arrays, content["provenance"])


def _check_array(name: str, spec: Mapping[str, Any], targets: int, file: Path) -> None:
    """Raise InputError unless a file may be made of that name, for rows of a plain type and a sensible size."""
    if not NAME.fullmatch(name) or name in RESERVED:
        raise InputError(f"{file} is damaged: {name!r} cannot be the name of an array")
    try:
        dtype = np.dtype(spec["dtype"])
    except (TypeError, ValueError, SyntaxError):  # SyntaxError: NumPy parses some of them
        dtype = np.dtype(object)
    if dtype.kind not in "biuf" or dtype.name != spec["dtype"]:
        raise InputError(f"{file} is damaged: {spec['dtype']!r} is not the type of an array's numbers")
    shape = spec["shape"]
    if len(shape) > MOST_DIMENSIONS or math.prod(shape) * dtype.itemsize > MOST_ROW_BYTES:
        raise InputError(f"{file} is damaged: rows of {name} would have shape {tuple(shape[:MOST_DIMENSIONS])}")
    if name == "margins" and (shape != [targets] or spec["dtype"] not in MARGIN_TYPES):
        raise InputError(
            f"{file} is damaged: the margins of {targets} targets cannot be {spec['dtype']} of shape {tuple(shape)}"
        )


def read_failures(folder: Path) -> dict[str, str]:
    """The reasons for which models were given up, by id. Raises InputError when the file is damaged."""
    file = folder / FAILURES
    if not os.path.lexists(file):
        return {}
    found = read_sealed(file)
    require(found, Each(str), file)
    if not all(i == str(whole_number(i)) for i in found):
        raise InputError(f"{file} is damaged: its keys are not all numbers of models")
    return found


def open_array(folder: Path, name: str, meta: Meta) -> Array:
    """One array of the store as a read-only memory map of its M rows.

    Raises InputError when the file is missing, cut short, or of another type or shape than meta.json says.
    """
    path, spec = folder / f"{name}.npy", meta.files[name]
    with open_file(path) as file:
        header = file.read(len(spec.header(0)))
        size = os.fstat(file.fileno()).st_size
    found = re.search(rb"'shape': \((\d{1,18}),", header)
    rows = int(found[1]) if found else 0
    if header != spec.header(rows) or rows < meta.num_models:
        wanted = f"{spec.dtype} of shape ({meta.num_models}, …{spec.shape})"
        raise InputError(f"{path} is damaged, or not the array that meta.json tells of, {wanted}")
    if size < len(header) + rows * spec.row_bytes:
        raise InputError(f"{path} is cut short: it has {size} bytes, and {rows} rows take {rows * spec.row_bytes}")
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    return np.memmap(path, dtype, "r", len(header), (meta.num_models, *spec.shape))


def checksums(masks: Array, arrays: Mapping[str, Array], meta: Meta) -> npt.NDArray[np.uint32]:
    """CRC-32 of each row, uint32 (K,): its packed mask, then its part of each array in the order of meta.json."""
    values = [0] * len(masks)
    for part in (masks, *(arrays[name] for name in meta.arrays)):
        rows = np.ascontiguousarray(part).reshape(len(part), math.prod(part.shape[1:])).view(np.uint8)
        values = [zlib.crc32(row.data, value) for row, value in zip(rows, values, strict=True)]
    return np.array(values, np.uint32)
