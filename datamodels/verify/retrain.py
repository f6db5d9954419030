"""Models retrained on subsets of one's own choice, kept in a store: what was trained once is never trained again.

A retrained model is its subset and a repetition number: its key, and with it everything random about it, follows from
(verify.seed, mask, repetition) alone. Its margins on all targets are kept, so one training answers for every target.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datamodels.durable import Lock
from datamodels.errors import InputError
from datamodels.progress import progress
from datamodels.provenance import refuse_difference
from datamodels.runs import stage_seconds
from datamodels.settings import Settings
from datamodels.store import ArraySpec, Meta, Store, Writer, create, deliver, grow, read_meta
from datamodels.store.layout import Array
from datamodels.subsets import unpack
from datamodels.verify.subject import Request, Subject


def retrain(folder: Path, settings: Settings, subject: Subject, requests: Sequence[Request]) -> Array:
    """Margins (len(requests), T), float32, of the models asked for; those that the folder's store lacks are trained first.

    A model that diverged has NaN for margins. Raises InputError when the store was made under other settings, or another
    process is retraining into it.
    """
    n, targets = len(subject.train_labels), len(subject.test_labels)
    arrays = {"margins": ArraySpec("float32", (targets,)), "repetition": ArraySpec("int32", ())}
    if not folder.exists():
        create(folder, Meta(0, n, targets, arrays, subject.provenance))
    refuse_difference(folder, read_meta(folder).provenance, subject.provenance)
    lock = Lock(folder / "verify.lock")
    if not lock.take():
        raise InputError(f"another process is retraining models into {folder}")
    try:
        with Writer(folder) as writer:
            writer.merge()
        rows = _rows(Store(folder))
        missing = [request for request in dict.fromkeys(requests) if request not in rows]
        if missing:
            with stage_seconds(settings, "verify"):
                _train(folder, subject, missing)
    finally:
        lock.release()
    store = Store(folder)
    rows = _rows(store)
    return store.margins([rows[request] for request in requests])


def _rows(store: Store) -> dict[Request, int]:
    """Where each retrained model lies."""
    masks, repetitions = store.packed(store.done), store.array("repetition", store.done)
    found = zip(masks, repetitions.tolist(), store.done.tolist(), strict=True)
    return {Request(mask.tobytes(), repetition): row for mask, repetition, row in found}


def _train(folder: Path, subject: Subject, missing: list[Request]) -> None:
    store, size = Store(folder), subject.models_at_once
    free = np.setdiff1d(np.arange(store.meta.num_models + len(missing)), store.done)[: len(missing)]
    grow(folder, max(store.meta.num_models, int(free[-1]) + 1))
    # Groups of models with subsets of about one size: a group takes as long as its largest.
    missing = sorted(missing, key=lambda request: -int.from_bytes(request.packed, "little").bit_count())
    with progress("verify", "models", len(missing)) as advance:

        def work(block: int) -> None:
            part = slice(block * size, (block + 1) * size)
            requests = missing[part]
            packed = np.stack([np.frombuffer(request.packed, np.uint8) for request in requests])
            masks = unpack(packed, len(subject.train_labels))
            repetitions = np.array([request.repetition for request in requests], np.int32)
            margins = subject.train(masks, requests)
            deliver(folder, free[part], masks, {"margins": margins, "repetition": repetitions})
            advance(len(requests))

        subject.side_by_side(range(-(-len(missing) // size)), work)
    with Writer(folder) as writer:
        writer.merge()
