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
MANY = 4
"""So many numbers of one model do not all come so near to 0 by chance that their format makes them 0."""
NOISE = 64 * np.finfo(np.float64).eps
"""Of the size of margins: a smaller spread is that of float64 itself."""
MARGINS = "margins"


class BeyondError(InputError):
    """A value that a store's number format cannot hold."""


def rounded(values: Array, dtype: str, what: str) -> Array:
    """Values in a store's number format, rounded; what is not finite stays so.

    Raises BeyondError, which names `what`, when a finite value is beyond a format of real numbers, or is none of its whole
    numbers, or when many values are all so small that the format makes 0 of every one.
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
        raise BeyondError(f"{told}: {_remedy(what, dtype, 'smaller')}")
    if values.size >= MANY and vanished(values, found):
        told = f"{what} reach no more than {np.abs(values).max():g}, of which {dtype} makes 0"
        raise BeyondError(f"{told}: {_remedy(what, dtype, 'larger')}")
    return found


def vanished(values: Array, found: Array) -> bool:
    """Whether values that are not all 0 became 0, every one, by rounding."""
    return not found.any() and bool(values.any())


def _remedy(what: str, dtype: str, other: str) -> str:
    if not what.startswith(MARGINS):
        return "declare another type in store.arrays"
    return "set store.margin_dtype float32" if dtype == "float16" else f"no wider format can be kept; make them {other}"


def coarse(store: Store) -> str | None:
    """As `coarse_margins`, by the margins that a store has kept."""
    ids = store.done[:LOOKED_AT]
    margins = store.margins(ids).astype(np.float64)
    return coarse_margins(margins, store.meta.arrays[MARGINS].dtype, kept=True) if len(ids) >= FEWEST else None


def coarse_margins(margins: Array, dtype: str, kept: bool = False) -> str | None:
    """A sentence where a format is too coarse for the margins of some target, beside their spread over models; else None.

    `margins`, float64 (m, T), are finite, and as they were before they were rounded, or as they are `kept`.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what is beyond the format is for others to refuse
        step = np.spacing(np.median(np.abs(margins), 0).astype(dtype)).astype(np.float64)
    spread = _spread(margins)
    # Where all are one value it may be that they are, unless whole numbers themselves are rounded.
    which = np.flatnonzero((step * STEPS_IN_SPREAD > spread) & ((spread > 0) | (kept & (step >= 1))))
    if not len(which):
        return None
    worst = which[np.argmax(step[which] / np.maximum(spread[which], 1e-300))]
    how = f"those of target {worst} in steps of {step[worst]:g}, with a spread of {spread[worst]:.3g} over models"
    of = f"{len(which)} of {len(step)} targets"
    finer = "store.margin_dtype float32, in another run, is finer"
    if dtype != "float16":
        finer = "no finer format can be kept; take a constant from the margins of each target, or make all of them larger"
    return f"{dtype} keeps the margins of {of} coarsely: {how}; {finer}"


def refuse_lost(margins: Array, dtype: str) -> None:
    """Raise BeyondError where margins, float64 (m, T), differ over models, and a format makes one value of each target's."""
    if len(margins) < 2:
        return
    varied = _spread(margins) > 0
    with np.errstate(over="ignore"):
        found = margins.astype(dtype)
    if varied.any() and np.isfinite(found).all() and not (found[:, varied] != found[:1, varied]).any():
        told = coarse_margins(margins, dtype) or f"{dtype} keeps none of the differences of margins"
        raise BeyondError(f"nothing is left of how margins differ from model to model: {told}")


def _spread(margins: Array) -> Array:
    """The standard deviation (T,) over models; 0 where it is no more than rounding of float64."""
    spread: Array = margins.std(0)
    spread[spread <= NOISE * np.abs(margins).max(0)] = 0
    return spread
