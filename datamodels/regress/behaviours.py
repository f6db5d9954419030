"""The datamodel of a behaviour: of the mean margin over several targets, regressed as it is, not put together of their weights.

Models, split, prior, choice of λ and metrics are those of the run's own regression; y is the mean margin, model by model. A
prior's covariates are the means of those of the targets. Each behaviour is regressed by itself, so that its weights follow from
its targets alone, whatever else is asked about; and on this machine, also where the run's is done on a cluster: it is of one
target only. They lie in RUN/regress-behaviours, in a folder for each set of targets.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodels.errors import InputError
from datamodels.progress import progress, say
from datamodels.regress.path import fit_datamodels
from datamodels.regress.prior import covariates_named
from datamodels.regress.results import About, Datamodels, provenance, save
from datamodels.regress.run import is_made
from datamodels.regress.unfinished import Unfinished
from datamodels.runs import read_store, stage_folder, stage_seconds
from datamodels.settings import RegressSettings, Settings
from datamodels.store import ArraySpec, Store
from datamodels.store.check import refuse_damaged
from datamodels.subsets import Array

FOLDER = "regress-behaviours"
TILE_ROWS = 256
"""Models whose margins on all targets are in memory at once."""


class MeanMargins(Store):
    """A store as it is, but for its targets: one, whose margin is the mean over some of the store's, in float32."""

    def __init__(self, store: Store, targets: Sequence[int]) -> None:
        super().__init__(store.folder)
        self.of, self.targets, self.done = store, list(targets), store.done
        arrays = {**self.meta.arrays, "margins": ArraySpec("float32", (1,))}
        self.meta = dataclasses.replace(self.meta, num_targets=1, arrays=arrays)

    def margins(self, ids: npt.ArrayLike) -> Array:
        """Mean margins of the given models, float32 (len(ids), 1), in logits."""
        rows = np.asarray(ids, np.int64)
        found = np.empty((len(rows), 1), np.float32)
        for first in range(0, len(rows), TILE_ROWS):
            tile = slice(first, first + TILE_ROWS)
            found[tile, 0] = self.of.margins(rows[tile])[:, self.targets].mean(1, dtype=np.float64)
        return found


def behaviour(
    settings: Settings, models: Datamodels, targets: Sequence[int], before: Callable[[], None] = lambda: None
) -> tuple[Datamodels, Store]:
    """The datamodel of the mean margin over some targets, as target 0 of the store that comes with it.

    It is made where it is not there. `models` are the run's own, which say how; `before` is called before it is. Raises
    InputError where the run's prior is no longer that of `models`, and as a regression does.
    """
    store, how, which = read_store(settings), _as_made(models, settings.regress), sorted(targets)
    mean = MeanMargins(store, which)  # in one order: sums round alike, in whatever order they were asked about
    prior = covariates_named(how.prior, stage_folder(settings, "prior"), store.meta.num_train, store.meta.num_targets)
    meta: About = {**provenance(mean, how), "behaviour": which}
    if prior is not None:
        if models.meta.get("prior_digest", prior.digest) != prior.digest:
            raise InputError(f"the prior that regress.prior {how.prior} names is not that of the weights; regress again")
        meta["prior_digest"] = prior.digest
    folder = _folder(settings, which)
    if not is_made(folder, meta):
        before()
        say(f"regress: the mean margin over {len(which)} targets")
        folder.parent.mkdir(exist_ok=True)
        with stage_seconds(settings, "regress"):
            refuse_damaged(store)
            unfinished = Unfinished(folder.with_name(f".{folder.name}.unfinished"), meta)
            covariates = None if prior is None else prior.mean_over(np.array(which))
            save(folder, fit_datamodels(mean, how, _bar, unfinished, covariates), meta)
            unfinished.forget()
    return Datamodels.load(folder), mean


def _bar(unit: str, total: int) -> AbstractContextManager[Any]:
    return progress("regress", unit, total)


def _as_made(models: Datamodels, settings: RegressSettings) -> RegressSettings:
    """The settings by which the run's weights were made, of all targets there are; imported weights have none."""
    names = {field.name for field in dataclasses.fields(RegressSettings)}
    made = {name: value for name, value in models.meta["regress"].items() if name in names}
    return dataclasses.replace(settings, **{**made, "targets": "all"})


def _folder(settings: Settings, targets: Sequence[int]) -> Path:
    name = hashlib.sha256(",".join(map(str, targets)).encode()).hexdigest()[:16]
    return stage_folder(settings, FOLDER) / name
