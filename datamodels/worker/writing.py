"""The writer of stores whose rows come from a cluster: the one process that opens them for writing, on the machine they lie on.

It may be called a second time with what it has done already, where whoever called has not heard of it: rows that are there
stay as they are.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodels.errors import in_a_sentence
from datamodels.store import Meta, Rows, Writer, read_meta


class Lot(NamedTuple):
    """Rows of one block: which they are said to be, a reference to them, and why others of the block are given up, by id."""

    ids: tuple[int, ...]
    payload: Any
    failures: Mapping[int, str]


class Taken(NamedTuple):
    """What became of lots: why some were refused, and which did not come, by place; rows and failures written, and seconds."""

    refused: Mapping[int, str]
    lost: Sequence[int]
    rows: int
    seconds: float


class Answer(NamedTuple):
    """What a call gives, or its error: a sentence, where the cause lies outside, and the trace."""

    value: Any
    error: tuple[str | None, str] | None = None


def take(folder: Path, lots: Sequence[Lot], found: Sequence[Rows | Exception | None]) -> Taken:
    """Bring lots into a store with one round of syncs, and its inbox too; `found` is what their references gave.

    A lot that is not as it was said to be, or as the store wants it, is refused, and its failures are not given up.
    """
    start, meta = time.perf_counter(), read_meta(folder)
    lost = [k for k, rows in enumerate(found) if isinstance(rows, Exception)]
    checked = {k: refusal(found[k], lot, meta) for k, lot in enumerate(lots) if k not in lost}
    refused = {k: why for k, why in checked.items() if why is not None}
    good = [k for k in checked if k not in refused]
    rows = [each for k in good if isinstance(each := found[k], Rows)]
    with Writer(folder) as writer:
        written = writer.append(Rows.joined(rows)) if rows else 0
        written += writer.give_up({i: why for k in good for i, why in lots[k].failures.items()})
        written += writer.merge()
    return Taken(refused, lost, written, time.perf_counter() - start)


def refusal(rows: object, lot: Lot, meta: Meta) -> str | None:
    """Why a lot's rows cannot be taken, with a verb before it; None where they can."""
    if not lot.ids:
        return None
    if not isinstance(rows, Rows):
        return f"is {type(rows).__name__}, and no rows"
    why = rows.misfit(meta)
    if why is None and not np.array_equal(rows.ids, lot.ids):
        why = f"has rows of {len(rows.ids)} models, not of the {len(lot.ids)} that were wanted of it"
    if why is None and not np.isfinite(rows.arrays["margins"]).all():
        why = "has margins that are not finite"
    return why


class Writing:
    """The writer as an actor, in the folder in which the command was started."""

    def __init__(self, folder: Path) -> None:
        os.chdir(folder)

    def write(self, work: Callable[..., Any], *args: Any) -> Answer:
        """What a function gives that writes into a store."""
        return _answer(work, *args)

    def take(self, folder: Path, lots: Sequence[Lot]) -> Answer:
        """See `take`; the lots' payloads are references into the object store."""
        return _answer(lambda: take(folder, lots, _fetched([lot.payload for lot in lots])))


def _answer(work: Callable[..., Any], *args: Any) -> Answer:
    try:
        return Answer(work(*args))
    except Exception as e:
        return Answer(None, (in_a_sentence(e), traceback.format_exc()))


def _fetched(references: Sequence[Any]) -> list[Any]:
    """What references refer to, None where there is none, an error where it is lost. All are on their way at once."""
    import ray

    there = [reference for reference in references if reference is not None]
    if there:
        ray.wait(there, num_returns=len(there))
    return [None if reference is None else _got(ray, reference) for reference in references]


def _got(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as e:
        return e
