"""What a store consists of: its files, its meta.json, and how an empty one comes to be."""

from __future__ import annotations

import dataclasses
import errno
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodels.durable import new_folder, read_json, write_json
from datamodels.errors import InputError

FORMAT = "datamodels-store"
FORMAT_VERSION = 1

# The marks in done.npy.
MISSING, DONE, FAILED = 0, 1, 2
FAILURES = "failures.json"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ArraySpec:
    """Type and shape of one row of an array."""

    dtype: str
    shape: tuple[int, ...]


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
    """Make an empty store, whole or not at all. Raises InputError when something is there already."""
    refusal = f"{folder} exists already; a store is never created over something"
    if folder.exists():
        raise InputError(refusal)
    try:
        with new_folder(folder) as temporary:
            for name, spec in meta.files.items():
                new_array(temporary / f"{name}.npy", spec, meta.num_models)
            for name in ("inbox", "claims"):
                (temporary / name).mkdir()
            write_meta(temporary, meta)
    except FileExistsError as e:  # another process was faster
        raise InputError(refusal) from e
    except OSError as e:
        if e.errno == errno.ENOTEMPTY:
            raise InputError(refusal) from e
        raise


def new_array(path: Path, spec: ArraySpec, rows: int) -> Array:
    """A new .npy file of zeros, mapped for writing. The disk's room is taken when rows are written."""
    return np.lib.format.open_memmap(path, "w+", np.dtype(spec.dtype), (rows, *spec.shape))


def write_meta(folder: Path, meta: Meta) -> None:
    """Write meta.json, whole or not at all."""
    write_json(folder / "meta.json", {"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(meta)})


def read_meta(folder: Path) -> Meta:
    """Read meta.json. Raises InputError when this is no store, or one of another format version."""
    try:
        content = read_json(folder / "meta.json")
        is_store = content["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"there is no store in {folder}") from e
    if not is_store:
        raise InputError(f"{folder} holds {content['format']!r}, not a store")
    if content["format_version"] != FORMAT_VERSION:
        raise InputError(f"{folder} has store format {content['format_version']}, this program reads {FORMAT_VERSION}")
    try:
        arrays = {name: ArraySpec(spec["dtype"], tuple(spec["shape"])) for name, spec in content["arrays"].items()}
        sizes = (content["num_models"], content["num_train"], content["num_targets"])
        return Meta(*sizes, arrays, content["provenance"])
    except (KeyError, TypeError, AttributeError) as e:
        raise InputError(f"{folder / 'meta.json'} is damaged: {type(e).__name__} {e}") from e


def read_failures(folder: Path) -> dict[str, str]:
    """The reasons for which models were given up, by id."""
    file = folder / FAILURES
    return dict(read_json(file)) if file.exists() else {}


def open_array(folder: Path, name: str, meta: Meta, writable: bool = False) -> Array:
    """One array of the store as a memory map of its M rows.

    Raises InputError when the file is missing, cut short, or of another type or shape than meta.json says.
    """
    path, spec = folder / f"{name}.npy", meta.files[name]
    try:
        array: Array = np.load(path, mmap_mode="r+" if writable else "r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise InputError(f"{path} is missing or damaged: {e}") from e
    if array.dtype != np.dtype(spec.dtype) or array.shape[1:] != spec.shape or len(array) < meta.num_models:
        raise InputError(
            f"{path} has shape {array.shape} and type {array.dtype}, not ({meta.num_models}, …{spec.shape}) {spec.dtype}"
        )
    return array[: meta.num_models]


def checksum(mask: Array, row: Mapping[str, Array], meta: Meta) -> int:
    """CRC-32 of one row: its packed mask, then its part of each array in the order of meta.json."""
    value = zlib.crc32(mask.tobytes())
    for name in meta.arrays:
        value = zlib.crc32(row[name].tobytes(), value)
    return value
