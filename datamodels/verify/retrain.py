"""Models retrained on subsets of one's own choice, kept in a store: what was trained once is never trained again.

A retrained model is its subset and a repetition number: its key, and with it everything random about it, follows from
(verify.seed, mask, repetition) alone. Its margins on all targets are kept, so one training answers for every target.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from datamodels.data import Dataset
from datamodels.durable import Lock
from datamodels.errors import InputError
from datamodels.progress import Advance, progress
from datamodels.provenance import refuse_difference
from datamodels.runs import groups_of, read_store, stage_seconds
from datamodels.settings import Settings
from datamodels.store import ArraySpec, Meta, Store, Writer, create, deliver, grow, read_meta
from datamodels.store.layout import Array
from datamodels.subsets import BoolArray, pack
from datamodels.training import Trainer, for_each_group


class Request(NamedTuple):
    """One model to be trained: the packed mask of its subset, and its repetition number."""

    packed: bytes
    repetition: int

    @classmethod
    def of(cls, mask: BoolArray, repetition: int) -> Request:
        """The request for a mask, bool (N,)."""
        return cls(pack(mask).tobytes(), repetition)

    def key(self, seed: int) -> tuple[int, ...]:
        """The model's key: the seed, 64 bits of the mask's SHA-256, the repetition."""
        digest = np.frombuffer(hashlib.sha256(self.packed).digest()[:8], "<u4")
        return (seed, *digest.tolist(), self.repetition)


def retrain(folder: Path, settings: Settings, data: Dataset, requests: Sequence[Request], device: torch.device) -> Array:
    """Margins (len(requests), T), float32, of the models asked for; those that the folder's store lacks are trained first.

    A model that diverged, twice, has NaN for margins. Groups are as large as those of the run's own store.

    Raises InputError when the store was made under other settings, or another process is retraining into it.
    """
    n, targets = len(data.train.labels), len(data.test.labels)
    provenance = {"training": dataclasses.asdict(settings.training), "seed": settings.verify.seed, "data_digest": data.digest}
    arrays = {"margins": ArraySpec("float32", (targets,)), "repetition": ArraySpec("int32", ())}
    if not folder.exists():
        create(folder, Meta(0, n, targets, arrays, provenance))
    refuse_difference(folder, read_meta(folder).provenance, provenance)
    lock = Lock(folder / "verify.lock")
    if not lock.take():
        raise InputError(f"another process is retraining models into {folder}")
    try:
        with Writer(folder) as writer:
            writer.merge()
        rows = _rows(Store(folder))
        missing = [request for request in dict.fromkeys(requests) if request not in rows]
        _train(folder, settings, data, missing, device)
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


def _train(folder: Path, settings: Settings, data: Dataset, missing: list[Request], device: torch.device) -> None:
    if not missing:
        return
    store = Store(folder)
    free = np.setdiff1d(np.arange(store.meta.num_models + len(missing)), store.done)[: len(missing)].tolist()
    grow(folder, max(store.meta.num_models, free[-1] + 1))
    # Groups of models with subsets of about one size: a group takes as long as its largest.
    missing = sorted(missing, key=lambda request: -int.from_bytes(request.packed, "little").bit_count())
    together = groups_of(read_store(settings).meta)
    trainer = Trainer(data, settings.training, device, together.models_per_kernel)
    groups = [slice(start, start + together.models_at_once) for start in range(0, len(missing), together.models_at_once)]
    with stage_seconds(settings, "verify"), progress("verify", "models", len(missing)) as advance:
        for_each_group(groups, lambda g: _train_group(folder, settings, trainer, free[g], missing[g], advance), device)
    with Writer(folder) as writer:
        writer.merge()


def _train_group(
    folder: Path, settings: Settings, trainer: Trainer, rows: list[int], requests: list[Request], advance: Advance
) -> None:
    packed = np.stack([np.frombuffer(request.packed, np.uint8) for request in requests])
    masks = np.unpackbits(packed, axis=1, count=trainer.n, bitorder="little").view(bool)
    margins = trainer.margins(masks, [request.key(settings.verify.seed) for request in requests])
    repetitions = np.array([request.repetition for request in requests], np.int32)
    deliver(folder, rows, masks, {"margins": margins, "repetition": repetitions})
    advance(len(requests))
