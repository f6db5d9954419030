"""One worker's work on a run's store. Any number of them, on any devices, may work on the same store at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from datamodels.data import Dataset
from datamodels.errors import InputError
from datamodels.progress import Advance, progress, say
from datamodels.provenance import refuse_difference
from datamodels.runs import deciding_settings, groups_of, stage_folder, stage_seconds
from datamodels.settings import GroupSettings, Settings
from datamodels.store import (
    ArraySpec,
    Meta,
    Store,
    Writer,
    claim,
    create,
    grow,
    hand_over,
    hand_over_failures,
    merge_if_free,
    read_meta,
)
from datamodels.subsets import draw_masks
from datamodels.training import Trainer, choose_groups, for_each_group

DIVERGED = "diverged: its margins were not finite, in two trainings from different keys"


def store_meta(settings: Settings, data: Dataset, groups: GroupSettings) -> Meta:
    """The meta.json of the store that these settings ask for."""
    targets = len(data.test.labels)
    provenance = {**deciding_settings(settings), "groups": dataclasses.asdict(groups), "data_digest": data.digest}
    margins = ArraySpec(settings.store.margin_dtype, (targets,))
    return Meta(settings.store.num_models, len(data.train.labels), targets, {"margins": margins}, provenance)


def open_store(settings: Settings, data: Dataset, device: torch.device) -> Path:
    """The folder of the run's store, made when it is not there, grown when the settings ask for more models than before.

    Groups whose size the settings leave open are measured when the store is made, and stay. Raises InputError when it was made
    under other settings, and says which.
    """
    folder = stage_folder(settings, "store")
    if not folder.exists():
        groups = _choose_groups(settings, data, device)
        try:
            create(folder, store_meta(settings, data, groups))
        except InputError:
            if not folder.exists():  # another worker may have been first, and then all is well
                raise
    found = read_meta(folder)
    wanted = store_meta(settings, data, _given_groups(settings.groups, groups_of(found)))
    refuse_difference(folder, found.provenance, wanted.provenance)
    if wanted.num_models > found.num_models:
        grow(folder, wanted.num_models)
    return folder


def train_missing(settings: Settings, data: Dataset, device: torch.device) -> str:
    """Train every model of the run's store that is not done and that no other worker has claimed; say what is there then."""
    folder = open_store(settings, data, device)
    merge_if_free(folder)
    store, total = Store(folder), settings.store.num_models
    groups, missing = groups_of(store.meta), store.missing[store.missing < total]
    if len(missing):
        trainer = Trainer(data, settings.training, device, groups.models_per_kernel)
        with stage_seconds(settings, "worker"), progress("worker", "models", total, total - len(missing)) as advance:

            def work(block: int) -> None:
                ids = range(block * groups.models_at_once, min((block + 1) * groups.models_at_once, total))
                _train_block(folder, settings, trainer, block, ids, advance)

            for_each_group(np.unique(missing // groups.models_at_once).tolist(), work, device)
        with Writer(folder) as writer:
            writer.merge()
    return _state(Store(folder), total)


def _choose_groups(settings: Settings, data: Dataset, device: torch.device) -> GroupSettings:
    groups, speeds = choose_groups(data, settings.training, settings.groups, device)
    for tried, speed in speeds.items():
        shared = f", {tried.models_per_kernel} a kernel" if device.type == "cuda" else ""
        say(f"worker: {tried.models_at_once} models at once{shared}: {speed:.0f} steps/s{' (chosen)' * (tried == groups)}")
    return groups


def _given_groups(wanted: GroupSettings, found: GroupSettings) -> GroupSettings:
    """What the settings give, and where they leave it open what the store has."""
    return GroupSettings(
        wanted.models_at_once or found.models_at_once,
        min(wanted.models_per_kernel, found.models_at_once) or found.models_per_kernel,
    )


def _train_block(folder: Path, settings: Settings, trainer: Trainer, block: int, ids: range, advance: Advance) -> None:
    """Train one block of models, unless it is done or another worker has claimed it."""
    lock = claim(folder, block)
    if lock is None:
        return
    try:
        missing = np.intersect1d(Store(folder).missing, ids)
        if not len(missing):
            return
        # The whole block, also where a part of it is done: rounding differs with the group, and a row must not depend on
        # what was done before.
        seed = settings.store.seed
        masks = draw_masks(seed, ids, trainer.n, settings.store.alpha)
        margins = trainer.margins(masks, [(seed, i) for i in ids])
        failed = np.isnan(margins[missing - ids.start]).any(1)
        rows = missing[~failed]
        hand_over(folder, rows, masks[rows - ids.start], {"margins": margins[rows - ids.start]})
        hand_over_failures(folder, dict.fromkeys(missing[failed].tolist(), DIVERGED))
        merge_if_free(folder)
        advance(len(missing))
    finally:
        lock.release()


def _state(store: Store, total: int) -> str:
    """What is there, in one line."""
    done, failed = (store.done < total).sum(), [i for i in store.failures if i < total]
    line = f"worker: {done} of {total} models are done in {store.folder}"
    if failed:
        line += f"; given up: {', '.join(map(str, failed[:10]))}{', …' * (len(failed) > 10)} ({store.failures[failed[0]]})"
    rest = total - done - len(failed)
    return line + (f"; the other {rest} are with other workers" if rest else "")
