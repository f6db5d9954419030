"""One worker's work on a run's store. Any number of them, on any devices, may work on the same store at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from datamodels.data import Dataset
from datamodels.errors import InputError
from datamodels.progress import Advance, progress
from datamodels.provenance import refuse_difference
from datamodels.runs import deciding_settings, stage_folder, stage_seconds
from datamodels.settings import Settings
from datamodels.store import ArraySpec, Meta, Store, Writer, claim, create, grow, hand_over, merge_if_free, read_meta
from datamodels.subsets import IndexArray, draw_masks
from datamodels.training import Trainer, for_each_group


def store_meta(settings: Settings, data: Dataset) -> Meta:
    """The meta.json of the store that these settings ask for."""
    targets = len(data.test.labels)
    provenance = {**deciding_settings(settings), "data_digest": data.digest}
    margins = ArraySpec(settings.store.margin_dtype, (targets,))
    return Meta(settings.store.num_models, len(data.train.labels), targets, {"margins": margins}, provenance)


def open_store(settings: Settings, data: Dataset) -> Path:
    """The folder of the run's store, made when it is not there, grown when the settings ask for more models than before.

    Raises InputError when it was made under other settings, and says which.
    """
    folder, meta = stage_folder(settings, "store"), store_meta(settings, data)
    if not folder.exists():
        try:
            create(folder, meta)
        except InputError:
            if not folder.exists():  # another worker may have been first, and then all is well
                raise
    found = read_meta(folder)
    refuse_difference(folder, found.provenance, meta.provenance)
    if meta.num_models > found.num_models:
        grow(folder, meta.num_models)
    return folder


def train_missing(settings: Settings, data: Dataset, device: torch.device) -> str:
    """Train every model of the run's store that is not done and that no other worker has claimed; say what is there then."""
    folder = open_store(settings, data)
    merge_if_free(folder)
    total, size = settings.store.num_models, settings.training.models_at_once
    missing = _missing(folder, range(total))
    if len(missing):
        trainer = Trainer(data, settings.training, device)
        with stage_seconds(settings, "worker"), progress("worker", "models", total, total - len(missing)) as advance:

            def work(block: int) -> None:
                _train_block(folder, settings, trainer, block, advance)

            for_each_group(np.unique(missing // size).tolist(), work, device)
        with Writer(folder) as writer:
            writer.merge()
        missing = _missing(folder, range(total))
    rest = f"; the other {len(missing)} are with other workers" if len(missing) else ""
    return f"worker: {total - len(missing)} of {total} models are done in {folder}{rest}"


def _missing(folder: Path, ids: range) -> IndexArray:
    """Those of the given models that are not done, in ascending order."""
    done = np.asarray(Store(folder).arrays["done"][ids.start : ids.stop])
    return np.flatnonzero(done == 0) + ids.start


def _train_block(folder: Path, settings: Settings, trainer: Trainer, block: int, advance: Advance) -> None:
    """Train one block of models, unless it is done or another worker has claimed it."""
    size, seed = settings.training.models_at_once, settings.store.seed
    ids = range(block * size, min((block + 1) * size, settings.store.num_models))
    lock = claim(folder, block)
    if lock is None:
        return
    try:
        missing = _missing(folder, ids)
        if not len(missing):
            return
        # The whole block, also where a part of it is done: rounding differs with the group, and a row must not depend on
        # what was done before.
        masks = draw_masks(seed, ids, trainer.n, settings.store.alpha)
        margins = trainer.margins(masks, [(seed, i) for i in ids])
        keep = missing - ids.start
        hand_over(folder, missing, masks[keep], {"margins": margins[keep]})
        merge_if_free(folder)
        advance(len(missing))
    finally:
        lock.release()
