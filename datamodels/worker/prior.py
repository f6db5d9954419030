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
import functools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodels import __version__
from datamodels.durable import new_folder, only_maker, save_array, tidy
from datamodels.errors import InputError
from datamodels.learners import Features, Gradients, Learner, Model, offered
from datamodels.learners.contract import FIRST_LISTED
from datamodels.learners.given import features_of, first_order_of, of_this_package, side_by_side
from datamodels.progress import progress, say, step
from datamodels.runs import OF_NETWORKS, SIMILARITY, stage_folder, stage_seconds
from datamodels.seals import read_sealed_folder, seal_folder
from datamodels.settings import Settings
from datamodels.subsets import Array, draw_mask
from datamodels.vectors import of_length_1
from datamodels.worker.decided import provenance_of
from datamodels.worker.engine import Engine

GRADIENTS, FEATURES = "gradients", ("features_train", "features_test")
FIRST_MODEL = FIRST_LISTED
"""Numbers from here on are no model of a store."""
AT_ONCE = 4
FORMAT_VERSION = 3


def make_prior(settings: Settings, engine: Engine, wait: bool = False) -> None:
    """Write the folder, where `regress.prior` asks for it and it is not there, or of other settings.

    Another worker that is at it is left to it, or with `wait` waited for. Where the learner does not give what the prior
    is made of, that is said. Raises InputError when all of its networks diverged.
    """
    kind = settings.regress.prior
    if kind not in OF_NETWORKS:
        return
    learner = engine.learner
    try:
        offered(
            learner,
            Features if kind == SIMILARITY and not isinstance(learner, Gradients) else Gradients,
            f"regress.prior {kind}",
        )
    except InputError as e:
        # The models are of use all the same.
        if not wait:
            say(f"prior: {e}; take none, flat, or an .npy file of yours")
        return
    folder, decided = stage_folder(settings, "prior"), _provenance(settings, learner)
    with step("prior: looking at what is there"):
        made = _is_made(folder, decided)
    if made:
        tidy(folder)
        return
    with only_maker(folder, f"prior: waiting for another worker that is making {folder}" if wait else "") as mine:
        if not mine:
            say(f"prior: another worker is making {folder}")
        elif not _is_made(folder, decided):
            with stage_seconds(settings, "prior"):
                found = engine.ask(functools.partial(_found, settings))
                with step("prior: writing what was found"):
                    _write(folder, found, learner, decided)


def _provenance(settings: Settings, learner: Learner) -> dict[str, Any]:
    store = settings.store
    about = {
        **provenance_of(settings, learner),
        "seed": store.seed,
        "alpha": store.alpha,
        "prior": dataclasses.asdict(settings.prior),
    }
    return {"format_version": FORMAT_VERSION, "version": __version__, **about}


def _is_made(folder: Path, decided: dict[str, Any]) -> bool:
    try:
        return read_sealed_folder(folder) == decided
    except InputError:
        return False


def _found(settings: Settings, learner: Learner) -> dict[str, Array]:
    """The mean over the networks of the scores, where the learner gives any, and the features of each."""
    total, seed, n = settings.prior.models, settings.store.seed, len(learner.train_labels)
    groups = [range(first, min(first + AT_ONCE, total)) for first in range(0, total, AT_ONCE)]
    sums, lock = _InOrder(), threading.Lock()
    with progress("prior", "networks", total) as advance:

        def work(number: int) -> None:
            ids = [FIRST_MODEL + k for k in groups[number]]
            models = [Model((seed, i), draw_mask(seed, i, n, settings.store.alpha)) for i in ids]
            found = _of_models(learner, models, settings.prior.dimensions)
            with lock:
                sums.add(number, found)
            advance(len(ids))

        side_by_side(learner)(range(len(groups)), work)
    features = {name: np.concatenate([part[name] for part in sums.features]) for name in FEATURES}
    models = len(features[FEATURES[0]])
    if not models:
        raise InputError(f"all {total} networks of the prior diverged; lower training.peak_lr in a new run")
    return {**features, **({} if sums.scores is None else {GRADIENTS: sums.scores / models})}


def _of_models(learner: Learner, models: Sequence[Model], dimensions: int) -> dict[str, Array]:
    if not isinstance(learner, Gradients):
        found = features_of(learner, models, "regress.prior similarity")
    else:
        found = first_order_of(learner, models, dimensions, "regress.prior gradients")
        if of_this_package(learner):  # the features are of length 1 already
            return found
    return {**found, **{name: of_length_1(found[name]).astype(np.float16) for name in FEATURES}}


class _InOrder:
    """The groups' scores in one sum, added in the order of the groups whichever is done first: sums of floats depend on it."""

    def __init__(self) -> None:
        self.scores: Array | None = None
        self.features: list[dict[str, Array]] = []
        self.waiting: dict[int, Mapping[str, Array]] = {}

    def add(self, number: int, found: Mapping[str, Array]) -> None:
        """Take in what one group gave. What has to wait is copied: its learner may fill the same arrays meanwhile."""
        waits = number != len(self.features)
        self.waiting[number] = {name: np.array(array) for name, array in found.items()} if waits else found
        while (part := self.waiting.pop(len(self.features), None)) is not None:
            if GRADIENTS in part:
                self.scores = np.zeros_like(part[GRADIENTS]) if self.scores is None else self.scores
                with np.errstate(over="ignore"):  # which is told when they are scaled
                    self.scores += part[GRADIENTS]
            self.features.append({name: part[name] for name in FEATURES})


def _write(folder: Path, found: dict[str, Array], learner: Learner, decided: dict[str, Any]) -> None:
    arrays = {
        **({GRADIENTS: _scaled(found[GRADIENTS], learner.name)} if GRADIENTS in found else {}),
        **{name: found[name].astype(np.float16) for name in FEATURES},
        "train_labels": learner.train_labels,
        "test_labels": learner.test_labels,
    }
    with new_folder(folder, replace=True) as temporary:
        for name, array in arrays.items():
            save_array(temporary / f"{name}.npy", array)
        seal_folder(temporary, decided)


def _scaled(scores: Array, name: str) -> Array:
    """Scores (2, N, T) as float16 with a mean square of 1 for each ridge, a row at a time: they may be gigabytes.

    Raises InputError where their sum over the networks was too large for its type.
    """
    result = np.empty(scores.shape, np.float16)
    for its, scaled in zip(scores, result, strict=True):
        if not all(np.isfinite(row).all() for row in its):
            raise InputError(f"{name} gave gradients whose sum over the networks is beyond {its.dtype}")
        power = int(np.frexp(max(float(np.abs(row).max()) for row in its))[1])  # so that no square overflows or vanishes
        square = sum(float(np.square(np.ldexp(row.astype(np.float64), -power)).sum()) for row in its) / its.size
        root = float(np.ldexp(square**0.5, power))
        for row, out in zip(its, scaled, strict=True):
            out[:] = row / (root or 1.0)
    return result
