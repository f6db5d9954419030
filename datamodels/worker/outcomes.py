"""What the training of a block gives, as the store keeps it, wherever it is trained; no file is read or written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from datamodels.errors import InputError
from datamodels.learners import Learner
from datamodels.learners.given import trained_by
from datamodels.subsets import Array, BoolArray
from datamodels.worker.excerpts import Known
from datamodels.worker.jobs import Job, fitted, refuse_misfits


@dataclass(frozen=True)
class Outcome:
    """Rows as the store keeps them: masks bool (K, N), arrays (K, …) by name, and why models are given up, by id."""

    masks: BoolArray
    arrays: Mapping[str, Array]
    failures: Mapping[int, str]


def unseen(margins: Array) -> None:
    """Nobody looks."""
    del margins


def outcome_of(
    job: Job,
    known: Known,
    ids: range,
    learner: Learner,
    any_done: Callable[[], bool],
    look: Callable[[Array], None] = unseen,
) -> Outcome:
    """Train a block. `any_done`, asked afterwards: whether any model of the store is; `look` sees margins before rounding.

    Raises InputError where the learner gives something else than the store keeps.
    """
    models = job.models(known, ids, learner)
    numbers, masks = [model.number for model in models], job.masks(known, ids, models)
    trained = trained_by(learner, models)
    if "margins" not in trained.arrays:
        raise InputError(f"{learner.name} gave {sorted(trained.arrays)} for model {numbers[0]}, and no margins")
    rows = job.rows(known, ids, trained, learner)
    refuse_misfits(rows, known.meta.arrays, numbers, learner.name)
    arrays, by_place = fitted(rows, known.meta.arrays, numbers, trained.failures, any_done())
    look(rows["margins"][[k for k in range(len(ids)) if k not in by_place]])
    return Outcome(masks, arrays, {ids[k]: why for k, why in by_place.items()})
