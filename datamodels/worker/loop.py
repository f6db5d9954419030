"""One worker's work on a run's store. Any number of them, on any devices, may work on the same store at once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from datamodels.data import Dataset
from datamodels.durable import is_there, only_maker, tidy
from datamodels.errors import InputError
from datamodels.machine import refuse_tight_limits
from datamodels.progress import say
from datamodels.provenance import refuse_difference
from datamodels.runs import deciding_settings, groups_of, stage_folder, stage_seconds
from datamodels.settings import MEASURED, GroupSettings, Settings
from datamodels.store import ArraySpec, Meta, Store, create, grow, read_meta
from datamodels.store.layout import FAILURES
from datamodels.subsets import draw_masks
from datamodels.training import Trainer, choose_groups, describe_groups, for_each_group, give_back
from datamodels.worker.arrays import declared_arrays
from datamodels.worker.blocks import Train, Trained, train_blocks
from datamodels.worker.prior import make_prior

DIVERGED = "diverged: its margins were not finite, or beyond 65,504, in two trainings from different keys"


def train_missing(settings: Settings, data: Dataset, device: torch.device) -> str:
    """Train every model of the run's store that is not there, with the other workers, if any; say what is there then."""
    refuse_tight_limits()
    folder = open_store(settings, data, device)
    make_prior(settings, data, device)
    if (Store(folder).missing < settings.store.num_models).any():
        with stage_seconds(settings, "worker"):
            _train_all(settings, data, device, read_meta(folder), folder)
    # Another worker may have been at it, and may have ended since.
    make_prior(settings, data, device, wait=True)
    give_back(device)  # the regression, in this process or in another, is the next to want it
    return state(Store(folder), settings.store.num_models)


def _train_all(settings: Settings, data: Dataset, device: torch.device, meta: Meta, folder: Path) -> None:
    groups = groups_of(meta)
    trainer = Trainer(data, settings.training, device, groups.models_per_kernel, program=groups.program)
    train = built_in(settings, trainer, meta)
    side_by_side = functools.partial(for_each_group, device=device)
    train_blocks(folder, settings.store.num_models, groups.models_at_once, train, side_by_side)


def open_store(settings: Settings, data: Dataset, device: torch.device) -> Path:
    """The folder of the run's store, made when it is not there, grown when the settings ask for more models than before.

    Groups whose size the settings leave open are measured when the store is made, and stay. Raises InputError when it was made
    under other settings, and says which.
    """
    arrays = declared_arrays(settings.store.arrays)
    logits = (len(data.test.labels), len(data.class_names))
    for name, spec in arrays.items():
        if name != "logits" or spec.shape != logits:
            wanted = "x".join(map(str, logits))
            raise InputError(f"store.arrays: of the built-in models only logits of shape {wanted} can be kept, not {name}")

    def meta(groups: GroupSettings) -> Meta:
        provenance = {**deciding_settings(settings), "groups": dataclasses.asdict(groups), "data_digest": data.digest}
        margins = ArraySpec(settings.store.margin_dtype, logits[:1])
        return Meta(settings.store.num_models, len(data.train.labels), logits[0], {"margins": margins, **arrays}, provenance)

    return open_or_create(settings, meta, lambda: _choose_groups(settings, data, device))


def open_or_create(
    settings: Settings, meta: Callable[[GroupSettings], Meta], choose_groups: Callable[[], GroupSettings]
) -> Path:
    """As `open_store`, for the meta.json that belongs to the groups that are there already, or else to those chosen now."""
    folder = stage_folder(settings, "store")
    if is_there(folder):
        tidy(folder)
    else:
        with only_maker(folder, f"worker: waiting for another worker that is making {folder}"):
            if not is_there(folder):
                create(folder, meta(choose_groups()))
    found = read_meta(folder)
    groups = groups_of(found)
    wanted = meta(_given_groups(settings.groups, groups))
    refuse_difference(folder, {**found.provenance, "groups": dataclasses.asdict(groups)}, wanted.provenance)
    if wanted.num_models > found.num_models:
        try:
            grow(folder, wanted.num_models)
        except InputError:
            if read_meta(folder).num_models < wanted.num_models:  # else another worker has let it grow further meanwhile
                raise
    return folder


def built_in(settings: Settings, trainer: Trainer, meta: Meta) -> Train:
    """How this package trains a block."""
    seed, alpha = settings.store.seed, settings.store.alpha

    def train(ids: range) -> Trained:
        masks = draw_masks(seed, ids, trainer.n, alpha)
        outputs = trainer.outputs(masks, [(seed, i) for i in ids])
        failed = np.isnan(outputs["margins"]).any(1)
        return Trained(masks, {name: outputs[name] for name in meta.arrays}, {ids[k]: DIVERGED for k in np.flatnonzero(failed)})

    return train


def state(store: Store, total: int) -> str:
    """What is there, in one line."""
    done, failed = int((store.done < total).sum()), [i for i in store.failures if i < total]
    line = f"worker: {done} of {total} models are done in {store.folder}"
    if failed:
        first = store.failures[failed[0]]
        others = sum(store.failures[i] != first for i in failed)
        more = f"; {others} of them for other reasons, see {store.folder / FAILURES}" if others else ""
        line += f"; given up: {', '.join(map(str, failed[:10]))}{', …' * (len(failed) > 10)} ({first}{more})"
    return line


def _choose_groups(settings: Settings, data: Dataset, device: torch.device) -> GroupSettings:
    groups, speeds = choose_groups(data, settings.training, settings.groups, device)
    for tried, speed in speeds.items():
        found = f"{speed:.0f} steps/s{' (chosen)' * (tried == groups)}" if speed else "did not work"
        say(f"worker: {describe_groups(tried, device)}: {found}")
    return groups


def _given_groups(wanted: GroupSettings, found: GroupSettings) -> GroupSettings:
    """What the settings give, and where they leave it open what the store has."""
    return GroupSettings(
        wanted.models_at_once or found.models_at_once,
        min(wanted.models_per_kernel, found.models_at_once) or found.models_per_kernel,
        found.program if wanted.program == MEASURED else wanted.program,
    )
