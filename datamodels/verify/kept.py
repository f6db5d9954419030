"""What is found out for each target once and kept in a file: targets that are new are added, the others not asked for again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from datamodels.durable import read_arrays, write_arrays
from datamodels.progress import say
from datamodels.runs import stage_seconds
from datamodels.settings import Settings
from datamodels.store.layout import Array
from datamodels.subsets import mask_without
from datamodels.verify.subject import Request, Subject

LIBRARY_MODELS = 4
"""Of the base models, dattri is given so many; it takes seconds for each."""

Shape = tuple[int | None, ...]


def base_requests(base_models: int, n: int) -> list[Request]:
    """The models trained on all of S."""
    return [Request.of(mask_without(n, []), repetition) for repetition in range(base_models)]


def describe(file: Path, settings: Settings, subject: Subject, targets: list[int]) -> dict[str, Array]:
    """Mean logits (T, classes) and similarities (targets, N) of the base models."""
    assert subject.describe is not None
    make, n = subject.describe, len(subject.train_labels)
    requests = base_requests(settings.verify.base_models, n)
    shapes: dict[str, Shape] = {"logits": (len(subject.test_labels), None), "similarity": (None, n)}

    def made(missing: list[int]) -> dict[str, Array]:
        with stage_seconds(settings, "verify"):
            return make(requests, missing)

    return _with_rows(file, _of(subject, requests), "similarity", shapes, targets, made)


def by_library(file: Path, settings: Settings, subject: Subject, method: str, targets: list[int]) -> Array:
    """Scores (N, targets) by one of dattri's methods."""
    assert subject.attribute is not None
    make, n = subject.attribute, len(subject.train_labels)
    requests = base_requests(settings.verify.base_models, n)[:LIBRARY_MODELS]

    def made(missing: list[int]) -> dict[str, Array]:
        say(f"verify: {method}, by dattri, from {len(requests)} models")
        with stage_seconds(settings, "verify"):
            return {"scores": make(method, requests, missing).T}

    found = _with_rows(file, _of(subject, requests), "scores", {"scores": (None, n)}, targets, made)
    scores: Array = found["scores"].T
    return scores


def _of(subject: Subject, requests: list[Request]) -> str:
    """What decides such a file's content, beside its targets."""
    return json.dumps([subject.provenance, len(requests)], sort_keys=True)


def _with_rows(
    file: Path,
    of: str,
    rows: str,
    shapes: Mapping[str, Shape],
    targets: list[int],
    make: Callable[[list[int]], dict[str, Array]],
) -> dict[str, Array]:
    """The arrays in a file; the one named by `rows` has a row for each target, here for those wanted, in their order."""
    kept = _kept(file, of, rows, shapes)
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


def _kept(file: Path, of: str, rows: str, shapes: Mapping[str, Shape]) -> dict[str, Array] | None:
    """The arrays of a file that was made of just this, finite and of these shapes; None where there is no such file."""
    found = read_arrays(file) or {}
    if str(found.pop("of", None)) != of or found.keys() != {*shapes, "targets"}:
        return None
    targets = found["targets"]
    whole = targets.ndim == 1 and targets.dtype == np.int64 and len(set(targets.tolist())) == len(targets) == len(found[rows])
    return found if whole and all(_fits(found[name], shape) for name, shape in shapes.items()) else None


def _fits(array: Array, shape: Shape) -> bool:
    sizes = array.ndim == len(shape) and all(want in (None, have) for have, want in zip(array.shape, shape, strict=True))
    return sizes and array.dtype.kind == "f" and bool(np.isfinite(array).all())
