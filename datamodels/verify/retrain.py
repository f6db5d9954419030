"""Models retrained on subsets of one's own choice, kept in a store: what was trained once is never trained again.

A retrained model is its subset and a repetition number: its key, and with it everything random about it, follows from
(verify.seed, mask, repetition) alone, and the label that R gets where it is relabelled. Its margins on all targets are kept, so
one training answers for every target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodels.durable import is_there, only_maker, sweep, tidy
from datamodels.errors import InputError
from datamodels.progress import no_advance
from datamodels.provenance import refuse_difference
from datamodels.runs import stage_folder, stage_seconds
from datamodels.settings import Settings
from datamodels.store import ArraySpec, Meta, Store, Writer, create, deliver, grow, read_meta
from datamodels.store.check import refuse_damaged
from datamodels.store.layout import Array
from datamodels.subsets import unpack
from datamodels.verify.subject import Request, Subject


@dataclass(frozen=True)
class Retrained:
    """Retrained models: their store, and in which row each lies."""

    store: Store
    rows: dict[Request, int]

    def of(self, requests: Sequence[Request], target: int) -> tuple[Array, Array]:
        """Margins and confidences on one target, float (len(requests),) each; NaN for a model that diverged."""
        rows = [self.rows[request] for request in requests]
        margins, confidences = (self.store.arrays[name][rows, target] for name in ("margins", "confidence"))
        return margins.astype(np.float64), confidences.astype(np.float64)


@contextmanager
def alone(settings: Settings) -> Iterator[Path]:
    """The run's folder of verification, for one process at a time, from its first model to its verdicts.

    Raises InputError where another one is at work on it.
    """
    folder = stage_folder(settings, "verify")
    with only_maker(folder) as mine:
        if not mine:
            raise InputError(f"another verification is at work on {folder}; wait for it, or use another run.dir")
        folder.mkdir(exist_ok=True)
        for each in (folder, folder / "store", folder / "store" / "inbox"):
            sweep(each)
        yield folder


def retrain(
    folder: Path, settings: Settings, subject: Subject, requests: Sequence[Request], advance: Callable[..., None] = no_advance
) -> Retrained:
    """The models asked for; those that the folder's store lacks are trained first, each told to `advance`.

    A model that diverged has NaN for margins. To be called within `alone`. Raises InputError when the store was made under
    other settings.
    """
    n, targets = len(subject.train_labels), len(subject.test_labels)
    arrays = {"margins": ("float32", (targets,)), "confidence": ("float16", (targets,))}
    numbers = {name: ArraySpec("int32", ()) for name in ("repetition", "relabelled")}
    tidy(folder)
    if not is_there(folder):
        specs = {name: ArraySpec(*spec) for name, spec in arrays.items()}
        create(folder, Meta(0, n, targets, {**specs, **numbers}, subject.provenance))
    refuse_difference(folder, read_meta(folder).provenance, subject.provenance)
    with Writer(folder) as writer:
        writer.merge()
    refuse_damaged(Store(folder))
    rows = _rows(Store(folder))
    missing = [request for request in dict.fromkeys(requests) if request not in rows]
    if missing:
        with stage_seconds(settings, "verify"):
            _train(folder, subject, missing, advance)
    store = Store(folder)
    return Retrained(store, _rows(store))


def _rows(store: Store) -> dict[Request, int]:
    """Where each retrained model lies."""
    packed = store.packed(store.done)
    numbers = (store.array(name, store.done).tolist() for name in ("repetition", "relabelled"))
    found = zip(packed, *numbers, store.done.tolist(), strict=True)
    return {Request(mask.tobytes(), repetition, relabelled): row for mask, repetition, relabelled, row in found}


def _train(folder: Path, subject: Subject, missing: list[Request], told: Callable[..., None]) -> None:
    store, size = Store(folder), subject.models_at_once
    free = np.setdiff1d(np.arange(store.meta.num_models + len(missing)), store.done)[: len(missing)]
    grow(folder, max(store.meta.num_models, int(free[-1]) + 1))
    # Groups of models with subsets of about one size: a group takes as long as its largest.
    missing = sorted(missing, key=lambda request: -int.from_bytes(request.packed, "little").bit_count())
    with nullcontext(told) as advance:

        def work(block: int) -> None:
            part = slice(block * size, (block + 1) * size)
            requests = missing[part]
            packed = np.stack([np.frombuffer(request.packed, np.uint8) for request in requests])
            masks = unpack(packed, len(subject.train_labels))
            numbers = {name: np.array([getattr(r, name) for r in requests], np.int32) for name in ("repetition", "relabelled")}
            deliver(folder, free[part], masks, {**subject.train(masks, requests), **numbers})
            advance(len(requests))

        subject.side_by_side(range(-(-len(missing) // size)), work)
    with Writer(folder) as writer:
        writer.merge()
