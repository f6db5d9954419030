"""LDS of any scores against the models of a store, on which no weights among them were fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodels.errors import InputError
from datamodels.evaluate.correlations import (
    FEWEST_REPEATED,
    FloatArray,
    Interval,
    ceiling_of,
    drawn_masks,
    mean_of,
    over_targets,
    resampled,
    some_targets,
    spearman,
)
from datamodels.evaluate.result import Difference, Evaluation, Scored
from datamodels.progress import step
from datamodels.reading import Scores, read_scores, scores_files
from datamodels.regress import Datamodels
from datamodels.regress.split import FEWEST_IN_A_PART, Subsets
from datamodels.store import Store
from datamodels.subsets import Array, IndexArray

Given = Datamodels | Path | str | npt.NDArray[Any]
"""Scores: datamodels, a file of them, or an array (N, T)."""

TILE_TARGETS, TILE_ROWS = 256, 256
ROUNDING = 2.0**-46
"""Predictions that differ by less than this part of the sum of all scores' sizes differ by rounding only."""


def evaluate(
    scores: Given | Mapping[str, Given] | Sequence[Path | str],
    store: Store | Path | str,
    weights: Datamodels | None = None,
    *,
    models: npt.ArrayLike | None = None,
    labels: Sequence[str] | npt.NDArray[Any] | None = None,
    tests: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """The linear datamodeling score (LDS) of scores: the mean over targets of Spearman's rank correlation, over models, of the
    sum of the scores of a model's images and its margin (Park et al. 2023).

    `scores` are an array (N, T), a file of them (see `reading.scores`), `Datamodels`, or several by name; `weights`, datamodels
    of one's own, come first, beside which the others are. They are judged by those models of the store that no datamodels among
    them were fitted on, the held-out ones; by all where nothing was fitted on it; or by `models` (m,), ids. Only targets that
    all of them have count. `labels` (T,) are the targets' classes, for LDS per class; `tests` says how many targets are test
    images, where files may have scores for these alone. Intervals are by bootstrap, `resamples` times, a function of `seed`.

    Raises InputError for scores of another size, not finite, or of other targets, when there are fewer than 10 masks, and where
    models may be ones that weights were fitted on.

    >>> from datamodels import Datamodels, evaluate                                        # doctest: +SKIP
    >>> weights = Datamodels.load("runs/digits/regress")                                   # doctest: +SKIP
    >>> print(evaluate({"trak": "trak.npy"}, "runs/digits/store", weights).table())        # doctest: +SKIP
    """
    opened = store if isinstance(store, Store) else Store(Path(store))
    named: dict[str, Given] = {} if weights is None else {"weights": weights}
    for name, given in _named(scores).items():
        if name in named:
            raise InputError(f"two sets of scores are called {name}")
        named[name] = given
    with step("evaluate: looking at the models"):
        ids, on = _models_of(opened, [given for given in named.values() if isinstance(given, Datamodels)], models)
    read = [_scores(name, given, opened, tests) for name, given in named.items()]
    targets = sorted(set(range(opened.meta.num_targets)).intersection(*(one.targets for one in read)))
    if not targets:
        raise InputError(f"there is no target that all of {', '.join(one.name for one in read)} have scores for")
    with step("evaluate: reading the margins"):
        judged = Judged.of(opened, ids, targets)
    classes = None if labels is None else _classes(labels, opened.meta.num_targets)[targets]
    with step("evaluate: judging the scores"):
        return _evaluated(judged, read, on, classes, resamples, seed)


@dataclass(frozen=True)
class Judged:
    """What scores are judged by: models `ids`, one of each mask in `first` (m,), mean margins (m, T') of the masks' models.

    `halves` are means of the first and the second half of each mask's models, of those masks that have several, and `ratio` how
    many times as many models a mask has in the mean as are in a half.
    """

    store: Store
    ids: IndexArray
    first: IndexArray
    targets: list[int]
    margins: FloatArray
    halves: tuple[FloatArray, FloatArray]
    ratio: float
    left_out: int

    @classmethod
    def of(cls, store: Store, ids: IndexArray, targets: list[int]) -> Judged:
        """Read. Raises InputError where there are fewer than 10 masks."""
        first = Subsets.of(store, ids).first
        groups = [ids[first == name] for name in dict.fromkeys(first.tolist())]
        if len(groups) < FEWEST_IN_A_PART:
            raise InputError(f"{len(ids)} models on {len(groups)} masks are too few; {FEWEST_IN_A_PART} masks are the fewest")
        means = list[FloatArray]()
        halves: tuple[list[FloatArray], list[FloatArray]] = ([], [])
        left_out, in_half = 0, list[int]()
        for group in groups:
            rows = store.margins(group)[:, targets].astype(np.float64)
            left_out += int((~np.isfinite(rows)).sum())
            means.append(mean_of(rows))
            half = len(group) // 2
            if half:
                in_half.append(half)
                halves[0].append(mean_of(rows[:half]))
                halves[1].append(mean_of(rows[half : 2 * half]))
        ratio = len(ids) / len(groups) / float(np.mean(in_half)) if in_half else 1.0
        both = tuple(np.array(part).reshape(-1, len(targets)) for part in halves)
        names = np.array([group[0] for group in groups], np.int64)
        return cls(store, ids, names, targets, np.array(means), (both[0], both[1]), ratio, left_out)

    def ceiling(self) -> float | None:
        """The largest LDS that noise admits; None where too few masks have several models."""
        there = np.isfinite(self.halves[0]).all(1) & np.isfinite(self.halves[1]).all(1)
        if there.sum() < FEWEST_REPEATED:
            return None
        return ceiling_of((self.halves[0][there], self.halves[1][there]), self.ratio)

    def predicted(self, scores: Scores) -> tuple[FloatArray, Array]:
        """Sums of scores (m, T') of each mask's images, and which targets' do not vary, bool (T',)."""
        found, flat = np.empty(self.margins.shape), np.zeros(len(self.targets), bool)
        for start in range(0, len(self.targets), TILE_TARGETS):
            tile = slice(start, start + TILE_TARGETS)
            of_tile = scores.of(self.targets[tile])
            for row in range(0, len(self.first), TILE_ROWS):
                rows = slice(row, row + TILE_ROWS)
                found[rows, tile] = self.store.masks(self.first[rows]).astype(np.float64) @ of_tile
            flat[tile] = np.ptp(found[:, tile], axis=0) <= ROUNDING * np.abs(of_tile).sum(0)
        found[:, flat] = 0.0  # what differs is rounding, and has no order
        return found, flat


def _evaluated(judged: Judged, read: Sequence[Scores], on: str, classes: Array | None, resamples: int, seed: int) -> Evaluation:
    counts = drawn_masks(len(judged.first), resamples, seed)
    some = some_targets(len(judged.targets), len(judged.first), resamples)
    found, before = list[Scored](), None
    for scores in read:
        predicted, flat = judged.predicted(scores)
        lds = spearman(predicted, judged.margins)
        drawn = resampled(predicted[:, some], judged.margins[:, some], counts).mean(1) - lds[some].mean()
        apart = None if before is None else _apart(lds - before[0], drawn - before[1], resamples, seed)
        found.append(
            Scored(
                name=scores.name,
                lds=float(lds.mean()),
                over_targets=over_targets(lds, resamples, seed),
                over_models=Interval.of(lds.mean() + drawn),
                per_target=tuple(lds.tolist()),
                by_class=_by_class(lds, classes),
                constant=int(flat.sum()),
                why=_why(judged, scores, flat),
                apart=apart,
            )
        )
        before = before or (lds, drawn)
    return Evaluation(
        store=str(judged.store.folder),
        on=on,
        models=tuple(judged.ids.tolist()),
        masks=len(judged.first),
        targets=tuple(judged.targets),
        scores=tuple(found),
        ceiling=judged.ceiling(),
        left_out=judged.left_out,
        constant_margins=sum(_is_constant(column) for column in judged.margins.T),
        resamples=resamples,
        seed=seed,
    )


def _is_constant(margins: FloatArray) -> bool:
    there = margins[np.isfinite(margins)]
    return not len(there) or bool(np.ptp(there) == 0)


def _apart(lds: FloatArray, drawn: FloatArray, resamples: int, seed: int) -> Difference:
    return Difference(float(lds.mean()), over_targets(lds, resamples, seed), Interval.of(lds.mean() + drawn))


def _by_class(lds: FloatArray, classes: Array | None) -> dict[str, float]:
    if classes is None:
        return {}
    return {str(name): float(lds[classes == name].mean()) for name in np.unique(classes)}


def _why(judged: Judged, scores: Scores, flat: Array) -> str:
    """Why predictions of some targets do not vary, in words."""
    if not flat.any():
        return ""
    of_flat = scores.of([judged.targets[k] for k in np.flatnonzero(flat)[:TILE_TARGETS]])
    if not of_flat.any():
        return "all their scores are 0"
    ids = judged.first
    tiles = (judged.store.masks(ids[row : row + TILE_ROWS]).sum(1) for row in range(0, len(ids), TILE_ROWS))
    sizes = np.unique(np.concatenate(list(tiles)))
    if len(sizes) == 1 and (np.ptp(of_flat, axis=0) == 0).all():
        return f"their scores are all alike, and every mask has equally many images, {sizes[0]}"
    return "on every mask the scores of its images have one sum"


def _named(scores: Given | Mapping[str, Given] | Sequence[Path | str]) -> dict[str, Given]:
    if isinstance(scores, Mapping):
        return dict(scores)
    if isinstance(scores, (Datamodels, np.ndarray)):
        return {"scores": scores}
    words = [str(scores)] if isinstance(scores, (str, Path)) else [str(word) for word in scores]
    return dict(scores_files(words))


def _scores(name: str, given: Given, store: Store, tests: int | None) -> Scores:
    """As `Scores`. Raises InputError for those of another size than the store's."""
    n, t = store.meta.num_train, store.meta.num_targets
    if isinstance(given, Datamodels):
        if len(given.weights) != n or given.targets.stop > t:
            told = f"{name} are of {len(given.weights)} images and targets up to {given.targets.stop}"
            raise InputError(f"{told}; {store.folder} has {n} images and {t} targets")
        return Scores(name, given.weights, tuple(given.targets))
    if isinstance(given, np.ndarray):
        if given.shape != (n, t) or given.dtype.kind not in "fiu":
            raise InputError(f"{name} must be numbers ({n}, {t}), a row for each image, not {given.dtype} {given.shape}")
        return Scores(name, given, tuple(range(t)))
    return read_scores(name, Path(given), n, t, t if tests is None else tests)


def _classes(labels: Sequence[str] | npt.NDArray[Any], t: int) -> Array:
    found = np.asarray(labels)
    if found.shape != (t,):
        raise InputError(f"labels must be the classes of the {t} targets, not of shape {found.shape}")
    return found


def _models_of(store: Store, fitted: Sequence[Datamodels], given: npt.ArrayLike | None) -> tuple[IndexArray, str]:
    """The models that scores are judged by, and which they are in words; none of them was any of the weights fitted on."""
    digests = [of.meta.get("store_digest") for of in fitted]
    own = store.digest() if any(digests) else None
    here = [of for of, digest in zip(fitted, digests, strict=True) if digest is not None and digest == own]
    unsaid = ", though imported weights do not say on which they were fitted" if None in digests else ""
    heldout = store.done
    for of in here:
        heldout = np.intersect1d(heldout, of.heldout)
    if given is not None:
        return _checked(store, np.asarray(given), heldout), f"those that were named{unsaid}"
    if len(here) + digests.count(None) < len(fitted):
        told = f"weights were fitted on another store than {store.folder}, or on an earlier state of it"
        raise InputError(f"{told}; name models that they were not fitted on")
    return heldout, ("those held out from the weights" if here else "all that are finished") + unsaid


def _checked(store: Store, ids: Array, heldout: IndexArray) -> IndexArray:
    """Raise InputError where ids are not of models to judge by."""
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or len(np.unique(ids)) < len(ids):
        raise InputError("models to judge by are ids, whole numbers (m,), each once")
    lacking, known = np.setdiff1d(ids, store.done), np.setdiff1d(ids, heldout)
    if len(lacking):
        raise InputError(f"model {lacking[0]} is not among the finished ones of {store.folder}")
    if len(known):
        raise InputError(f"weights were fitted on model {known[0]}, or chosen by it; {len(heldout)} models were held out")
    return ids.astype(np.int64)
