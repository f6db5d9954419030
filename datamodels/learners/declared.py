"""The further arrays of a store, as the settings declare them."""

from __future__ import annotations

import math
import re

import numpy as np

from datamodels.errors import InputError, shown
from datamodels.settings import NO_ARRAYS
from datamodels.store import ArraySpec
from datamodels.store.layout import MOST_ROW_BYTES, RESERVED

_DECLARATION = re.compile(r"([a-z][a-z0-9_]{0,63}):([a-z]+[0-9]{1,3}):([1-9][0-9]{0,9}(?:x[1-9][0-9]{0,9}){0,15})", re.ASCII)
_TAKEN = ("margins", *RESERVED)


def declared_arrays(text: str) -> dict[str, ArraySpec]:
    """Type and shape of one row of each array in 'logits:float16:500x10, …'; none for 'none'.

    Raises InputError for anything else, and for a name that the store uses itself.
    """
    if text == NO_ARRAYS:
        return {}
    arrays: dict[str, ArraySpec] = {}
    for part in text.split(","):
        found = _DECLARATION.fullmatch(part.strip())
        if not found or not _is_number(found[2]):
            raise InputError(
                f"store.arrays takes name:dtype:shape, such as logits:float16:500x10, not {shown(part.strip(), 80)!r}"
            )
        name = found[1]
        if name in _TAKEN or name in arrays:
            raise InputError(f"store.arrays: the store has an array {name!r} already")
        arrays[name] = ArraySpec(found[2], tuple(int(size) for size in found[3].split("x")))
        if math.prod(arrays[name].shape) > MOST_ROW_BYTES // np.dtype(found[2]).itemsize:
            raise InputError(f"store.arrays: a row of {name} would have more than {MOST_ROW_BYTES} bytes")
    return arrays


def _is_number(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "biuf"
    except TypeError:
        return False
