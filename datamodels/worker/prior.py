"""What a few networks say of training images and targets before the many are trained: the folder RUN/prior.

gradients.npy    (2, N, T) float16  first-order attribution by gradients, see training/gradients.py, one for each ridge
features_train.npy, features_test.npy   (K, N, d) and (K, T, d) float16  each network's last features, of length 1
train_labels.npy, test_labels.npy       classes (N,) and (T,)
meta.json        what decided them, and the SHA-256 of each file

The networks are trained as those of the store are, on masks of their own: they are none of its models, so that what is held
out there has no part in them. Gradients' scores are means over the networks, scaled to a mean square of 1.
"""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodels import __version__
from datamodels.data import Dataset
from datamodels.durable import new_folder, only_maker, save_array, tidy
from datamodels.errors import InputError
from datamodels.progress import progress, say
from datamodels.runs import OF_NETWORKS, stage_folder, stage_seconds
from datamodels.seals import read_sealed_folder, seal_folder
from datamodels.settings import Settings
from datamodels.store.layout import Array
from datamodels.subsets import draw_masks
from datamodels.training import Trainer, first_order, for_each_group
from datamodels.training.devices import on_gpu

GRADIENTS, FEATURES = "gradients", ("features_train", "features_test")
FIRST_MODEL = 2**31
"""Numbers from here on are no model of a store."""
AT_ONCE = 4
FORMAT_VERSION = 3


def make_prior(settings: Settings, data: Dataset, device: torch.device, wait: bool = False) -> None:
    """Write the folder, where `regress.prior` asks for it and it is not there, or of other settings.

    Another worker that is at it is left to it, or with `wait` waited for. Raises InputError when all networks diverged.
    """
    if settings.regress.prior not in OF_NETWORKS:
        return
    folder, decided = stage_folder(settings, "prior"), _provenance(settings, data)
    if _is_made(folder, decided):
        tidy(folder)
        return
    with only_maker(folder, f"prior: waiting for another worker that is making {folder}" if wait else "") as mine:
        if not mine:
            say(f"prior: another worker is making {folder}")
        elif not _is_made(folder, decided):
            with stage_seconds(settings, "prior"):
                _write(folder, _found(settings, data, device), data, decided)


def _provenance(settings: Settings, data: Dataset) -> dict[str, Any]:
    training, store = dataclasses.asdict(settings.training), settings.store
    about = {"training": training, "seed": store.seed, "alpha": store.alpha, "prior": dataclasses.asdict(settings.prior)}
    return {"format_version": FORMAT_VERSION, "version": __version__, **about, "data_digest": data.digest}


def _is_made(folder: Path, decided: dict[str, Any]) -> bool:
    try:
        return read_sealed_folder(folder) == decided
    except InputError:
        return False


def _found(settings: Settings, data: Dataset, device: torch.device) -> dict[str, Array]:
    """The mean over the networks of the scores, and the features of each."""
    # On a GPU one dense program for each network: grouped convolutions are slower there, and this is not measured anew.
    trainer, total = Trainer(data, settings.training, device, 1 if on_gpu(device) else None), settings.prior.models
    groups = [range(first, min(first + AT_ONCE, total)) for first in range(0, total, AT_ONCE)]
    sums, lock = _InOrder(), threading.Lock()
    with progress("prior", "networks", total) as advance:

        def work(number: int) -> None:
            ids = [FIRST_MODEL + k for k in groups[number]]
            masks = draw_masks(settings.store.seed, ids, trainer.n, settings.store.alpha)
            found = first_order(trainer, masks, [(settings.store.seed, i) for i in ids], settings.prior.dimensions)
            with lock:
                sums.add(number, found)
            advance(len(ids))

        for_each_group(range(len(groups)), work, device)
    features = {name: np.concatenate([part[name] for part in sums.features]) for name in FEATURES}
    models = len(features[FEATURES[0]])
    if not models:
        raise InputError(f"all {total} networks of the prior diverged; lower training.peak_lr in a new run")
    sums.scores /= models
    return {GRADIENTS: sums.scores, **features}


class _InOrder:
    """The groups' scores in one sum, added in the order of the groups whichever is done first: sums of floats depend on it."""

    def __init__(self) -> None:
        self.scores: Array = np.zeros((), np.float32)
        self.features: list[dict[str, Array]] = []
        self.waiting: dict[int, dict[str, Array]] = {}

    def add(self, number: int, found: dict[str, Array]) -> None:
        """Take in what one group gave."""
        self.waiting[number] = found
        while (part := self.waiting.pop(len(self.features), None)) is not None:
            if not self.features:
                self.scores = np.zeros_like(part[GRADIENTS])
            self.scores += part[GRADIENTS]
            self.features.append({name: part[name] for name in FEATURES})


def _write(folder: Path, found: dict[str, Array], data: Dataset, decided: dict[str, Any]) -> None:
    arrays = {
        GRADIENTS: _scaled(found[GRADIENTS]),
        **{name: found[name].astype(np.float16) for name in FEATURES},
        "train_labels": data.train.labels.numpy(),
        "test_labels": data.test.labels.numpy(),
    }
    with new_folder(folder, replace=True) as temporary:
        for name, array in arrays.items():
            save_array(temporary / f"{name}.npy", array)
        seal_folder(temporary, decided)


def _scaled(scores: Array) -> Array:
    """Scores (2, N, T) as float16 with a mean square of 1 for each ridge, a row at a time: they may be gigabytes."""
    result = np.empty(scores.shape, np.float16)
    for its, scaled in zip(scores, result, strict=True):
        square = sum(float(np.square(row, dtype=np.float64).sum()) for row in its) / its.size
        for row, out in zip(its, scaled, strict=True):
            out[:] = row / max(square**0.5, 1e-30)
    return result
