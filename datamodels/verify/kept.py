"""What is found out for each target once and kept in a file: targets that are new are added, the others not asked for again."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from datamodels.brittleness import cosine
from datamodels.durable import read_arrays, write_arrays
from datamodels.errors import InputError
from datamodels.learners import Learner, Model
from datamodels.learners.given import attributed_by, features_of, logits_of, trained_by
from datamodels.progress import say
from datamodels.runs import stage_seconds
from datamodels.settings import Settings
from datamodels.subsets import Array, mask_without
from datamodels.verify.retrain import Request
from datamodels.worker.blocks import in_parts
from datamodels.worker.decided import provenance_of
from datamodels.worker.engine import Engine

LIBRARY_MODELS = 4
"""Of the base models, dattri is given so many; it takes seconds for each."""

Shape = tuple[int | None, ...]


def base_requests(base_models: int, n: int) -> list[Request]:
    """The models trained on all of S."""
    return [Request.of(mask_without(n, []), repetition) for repetition in range(base_models)]


class OfBaseModels:
    """What the base models, those trained on all of S, say and see: means over models, each made when it is first wanted."""

    def __init__(self, folder: Path, settings: Settings, engine: Engine, targets: Sequence[int] = ()) -> None:
        self.folder, self.settings, self.engine, self.targets = folder, settings, engine, list(targets)
        self.models = base_models(settings, engine.learner, settings.verify.base_models)
        self.of = _of(settings, engine.learner, len(self.models))

    @functools.cached_property
    def logits(self) -> Array:
        """Mean logits (T, classes). Raises InputError where the learner gives none."""
        file, t = self.folder / "logits.npz", len(self.engine.learner.test_labels)
        kept = _kept(file, self.of, {"logits": (t, None)})
        if kept is None:
            with stage_seconds(self.settings, "verify"):
                kept = self.engine.ask(functools.partial(mean_logits, self.models))
            write_arrays(file, {**kept, "of": np.array(self.of)})
        return kept["logits"]

    @functools.cached_property
    def similarity(self) -> Array:
        """Mean cosines (targets, N) of the features of some columns of the margins, `targets`, and training images."""

        def made(missing: list[int]) -> dict[str, Array]:
            with stage_seconds(self.settings, "verify"):
                found = self.engine.ask(functools.partial(mean_similarity, self.models, missing))
            return {"similarity": found}

        shapes: dict[str, Shape] = {"similarity": (None, len(self.engine.learner.train_labels))}
        return _with_rows(self.folder / "similarity.npz", self.of, "similarity", shapes, self.targets, made)["similarity"]


def base_models(settings: Settings, learner: Learner, number: int) -> list[Model]:
    """The first models trained on all of S."""
    requests = base_requests(number, len(learner.train_labels))
    return [request.model(settings.verify.seed, learner) for request in requests]


def mean_logits(models: Sequence[Model], learner: Learner) -> dict[str, Array]:
    """Means over models, (T, classes). Raises InputError where the learner gives none, or no model could be trained."""

    def of_part(part: Sequence[Model]) -> Array:
        trained = trained_by(learner, part)
        logits = logits_of(trained, learner)
        if logits is None:
            told = f"which class networks take a target for, or nearly, is told by logits, and {learner.name} gives none"
            raise InputError(f"{told}; to relabel without, set verify.relabel_to, to another class than the target's own")
        fine: Array = logits[[k for k in range(len(part)) if k not in trained.failures]]
        return fine

    logits = np.concatenate(in_parts(models, learner, of_part))
    if not len(logits):
        raise InputError("of the models trained on all of S not one could be trained")
    return {"logits": logits.mean(0, dtype=np.float64)}


def mean_similarity(models: Sequence[Model], targets: list[int], learner: Learner) -> Array:
    """Cosines (targets, N) of features, means over models."""

    def of_part(part: Sequence[Model]) -> Array:
        found = features_of(learner, part, "the method similarity")
        pairs = zip(found["features_train"], found["features_test"], strict=True)
        total: Array = np.sum([cosine(test[targets], train) for train, test in pairs], 0)
        return total

    mean: Array = np.sum(in_parts(models, learner, of_part), 0) / len(models)
    return mean


def by_library(file: Path, settings: Settings, engine: Engine, method: str, targets: list[int]) -> Array:
    """Scores (N, targets) by one of dattri's methods."""
    models = base_models(settings, engine.learner, min(LIBRARY_MODELS, settings.verify.base_models))

    def made(missing: list[int]) -> dict[str, Array]:
        say(f"verify: {method}, by dattri, from {len(models)} models")
        with stage_seconds(settings, "verify"):
            return {"scores": engine.ask(functools.partial(_attributed, method, models, missing)).T}

    shapes: dict[str, Shape] = {"scores": (None, len(engine.learner.train_labels))}
    found = _with_rows(file, _of(settings, engine.learner, len(models)), "scores", shapes, targets, made)
    scores: Array = found["scores"].T
    return scores


def _attributed(method: str, models: Sequence[Model], targets: list[int], learner: Learner) -> Array:
    return attributed_by(learner, method, models, targets)


def _of(settings: Settings, learner: Learner, models: int) -> str:
    """What decides such a file's content, beside its targets."""
    return json.dumps([provenance_of(settings, learner), settings.verify.seed, models], sort_keys=True)


def _with_rows(
    file: Path,
    of: str,
    rows: str,
    shapes: Mapping[str, Shape],
    targets: list[int],
    make: Callable[[list[int]], dict[str, Array]],
) -> dict[str, Array]:
    """The arrays in a file; the one named by `rows` has a row for each target, here for those wanted, in their order."""
    kept = _kept(file, of, {**shapes, "targets": (None,)})
    if kept is not None and not _are_targets(kept["targets"], len(kept[rows])):
        kept = None
    there = [] if kept is None else kept["targets"].tolist()
    missing = [target for target in targets if target not in there]
    if missing:
        made = {**make(missing), "targets": np.array(missing, np.int64)}
        more = {name: np.concatenate([kept[name], made[name]]) for name in (rows, "targets")} if kept is not None else {}
        kept = {**made, **(kept or {}), **more}
        write_arrays(file, {**kept, "of": np.array(of)})
    assert kept is not None
    place = {target: k for k, target in enumerate(kept["targets"].tolist())}
    return {**{name: kept[name] for name in shapes}, rows: kept[rows][[place[target] for target in targets]]}


def _are_targets(found: Array, rows: int) -> bool:
    return found.dtype == np.int64 and len(set(found.tolist())) == len(found) == rows


def _kept(file: Path, of: str, shapes: Mapping[str, Shape]) -> dict[str, Array] | None:
    """The arrays of a file that was made of just this, finite and of these shapes; None where there is no such file."""
    found = read_arrays(file) or {}
    whole = str(found.pop("of", None)) == of and found.keys() == shapes.keys()
    return found if whole and all(_fits(found[name], shape) for name, shape in shapes.items()) else None


def _fits(array: Array, shape: Shape) -> bool:
    sizes = array.ndim == len(shape) and all(want in (None, have) for have, want in zip(array.shape, shape, strict=True))
    return sizes and array.dtype.kind in "fi" and bool(np.isfinite(array).all())
