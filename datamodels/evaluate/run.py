"""The evaluation of scores by a run: on its held-out models, and on the random subsets of its verification."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datamodels.evaluate.evaluation import Given, evaluate
from datamodels.evaluate.result import Evaluation
from datamodels.learners import Learner
from datamodels.reading import scores_files
from datamodels.regress import Datamodels
from datamodels.regress.split import FEWEST_IN_A_PART
from datamodels.runs import read_store, stage_folder
from datamodels.settings import Settings
from datamodels.store import Store
from datamodels.subsets import IndexArray, pack
from datamodels.verify.known import Examples
from datamodels.verify.questions.random_subsets import masks_of
from datamodels.verify.run import retrained_folder
from datamodels.worker.jobs import RELABELLED, REPETITION


def evaluate_run(settings: Settings, learner: Learner, scores: Sequence[str]) -> list[Evaluation]:
    """Scores in files beside the run's weights, on the models held out from these, and on random subsets where those are there.

    Weights are those of the folder regress, where there is one. Raises InputError as `evaluate`.
    """
    folder = stage_folder(settings, "regress")
    weights = Datamodels.load(folder) if folder.exists() else None
    examples = Examples(learner)
    labels = [examples.class_name(label) for label in examples.labels.tolist()]
    given: dict[str, Given] = dict(scores_files(scores))
    found = [evaluate(given, read_store(settings), weights, labels=labels, tests=examples.tests)]
    subsets = of_random_subsets(settings, examples.n)
    if subsets is not None:
        store, ids = subsets
        on_subsets = evaluate(given, store, weights, models=ids, labels=labels, tests=examples.tests)
        found.append(dataclasses.replace(on_subsets, on="those on the verification's random subsets"))
    return found


def evaluate_store(scores: Sequence[str], store: Path, weights: Path | None, models: IndexArray | None) -> list[Evaluation]:
    """Scores in files by a store of any origin, beside the weights in a folder. Raises InputError as `evaluate`."""
    given: dict[str, Given] = dict(scores_files(scores))
    return [evaluate(given, store, None if weights is None else Datamodels.load(weights), models=models)]


def of_random_subsets(settings: Settings, n: int) -> tuple[Store, IndexArray] | None:
    """The store of retrained models, and those (m,) on the random subsets of `verify.subsets`, one repetition after another.

    None where there are too few. No weights were fitted on them: subsets are numbered apart from those of the run's store.
    """
    folder = retrained_folder(settings)
    if not settings.verify.subsets or not folder.exists():
        return None
    store = Store(folder)
    wanted = {row.tobytes() for row in pack(masks_of(settings, n))}
    repetitions, relabelled = (store.array(name, store.done) for name in (REPETITION, RELABELLED))
    there = np.array([row.tobytes() in wanted for row in store.packed(store.done)], bool)
    there &= (relabelled == -1) & (repetitions < settings.verify.subset_models)
    ids = store.done[there][np.argsort(repetitions[there], kind="stable")]
    return (store, ids) if len(np.unique(store.packed(ids), axis=0)) >= FEWEST_IN_A_PART else None
