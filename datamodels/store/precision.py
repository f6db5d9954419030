"""Numbers as a store keeps them: none is lost without a word, and what is too coarse is said."""

from __future__ import annotations

import numpy as np

from datamodels.errors import InputError
from datamodels.store.reader import Store
from datamodels.subsets import Array

STEPS_IN_SPREAD = 20
"""Margins whose standard deviation over models is fewer steps of the number format are coarse."""
LOOKED_AT, FEWEST = 256, 32
"""How many models tell the spread, and how many at least."""
MARGINS = "margins"


class BeyondError(InputError):
    """A value that a store's number format cannot hold."""


def rounded(values: Array, dtype: str, what: str) -> Array:
    """Values in a store's number format, rounded; what is not finite stays so.

    Raises BeyondError, which names `what`, when a finite value is beyond a format of real numbers, or is none of its whole
    numbers.
    """
    wanted = np.dtype(dtype).newbyteorder("<")
    if values.dtype == wanted:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        found: Array = values.astype(wanted)
    whole = wanted.kind != "f"
    lost = ~np.isfinite(values) | (found != values) if whole else np.isfinite(values) & ~np.isfinite(found)
    if lost.any():
        worst = values[lost].ravel()[np.abs(values[lost]).argmax()]
        told = f"{what} has {worst:g}, which is none of {dtype}" if whole else f"{what} reach {worst:g}, beyond {dtype}"
        raise BeyondError(f"{told}: {_remedy(what, dtype)}")
    return found


def _remedy(what: str, dtype: str) -> str:
    if not what.startswith(MARGINS):
        return "declare another type in store.arrays"
    return "set store.margin_dtype float32" if dtype == "float16" else "no wider format can be kept; make them smaller"


def coarse(store: Store) -> str | None:
    """A sentence where float16 is too coarse for the margins of some target, beside their spread over models; else None."""
    spec, ids = store.meta.arrays[MARGINS], store.done[:LOOKED_AT]
    if spec.dtype != "float16" or len(ids) < FEWEST:
        return None
    margins = store.margins(ids).astype(np.float64)
    spread, step = margins.std(0), np.spacing(np.median(np.abs(margins), 0).astype(np.float16)).astype(np.float64)
    # Where all are one value it may be that they are, unless whole numbers themselves are rounded.
    which = np.flatnonzero((step * STEPS_IN_SPREAD > spread) & ((spread > 0) | (step >= 1)))
    if not len(which):
        return None
    worst = which[np.argmax(step[which] / np.maximum(spread[which], 1e-300))]
    how = f"those of target {worst} in steps of {step[worst]:g}, with a spread of {spread[worst]:.3g} over models"
    of = f"{len(which)} of {len(step)} targets"
    return f"float16 keeps the margins of {of} coarsely: {how}; store.margin_dtype float32, in another run, is finer"
