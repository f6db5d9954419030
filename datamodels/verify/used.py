"""Which models the verdicts in a folder rest on, as digests of 64 bits: different targets share many, and each counts once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datamodels.durable import new_file, save_array
from datamodels.errors import InputError
from datamodels.reading import Unreadable, open_npy
from datamodels.verify.retrain import Request

FILE = "models_used.npy"

Digests = npt.NDArray[np.uint64]


def digests(requests: Iterable[Request]) -> Digests:
    """The models' digests, uint64, in ascending order."""
    found = {_digest(request) for request in requests}
    return np.array(sorted(found), np.uint64)


def read_used(folder: Path, number: int, surely: Digests) -> Digests:
    """The digests that were kept of the models of so many verdicts, `surely` these among them.

    Raises InputError where they are not there whole, or are those of others.
    """
    file = folder / FILE
    try:
        found = open_npy(file, (None,))
    except Unreadable as e:
        raise InputError(f"cannot count the models of the verdicts in {folder}: {e}; give --verify.name") from e
    if found.dtype != np.uint64 or len(found) < number or not np.isin(surely, found[:number]).all():
        raise InputError(f"{file} is damaged: it does not tell of the {number} models of {folder}; give --verify.name")
    # What stands after these was written by a verification that was cut off before its verdicts were.
    return np.array(found[:number])


def write_used(folder: Path, found: Digests) -> None:
    """Keep digests, whole or not at all."""
    with new_file(folder / FILE) as temporary:
        save_array(temporary, found)


def _digest(request: Request) -> int:
    return int.from_bytes(hashlib.sha256(np.array(request.key(0), "<u8").tobytes()).digest()[:8], "little")
