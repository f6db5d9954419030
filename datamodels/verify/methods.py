"""What is asked for in `verify.methods` and `verify.sizes`, and the order of images that each method gives for a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.brittleness import at_random, by_similarity, by_weight, cosine, shrunk_weights
from datamodels.errors import InputError
from datamodels.learners import Attributes, Features, Learner, Relabels, offered
from datamodels.reading import SCORES, Scores, Unreadable, open_npy, read_scores, scores_files, whole_number
from datamodels.regress import Datamodels
from datamodels.regress.prior import GRADIENTS, covariates_named, has_gradients
from datamodels.runs import stage_folder
from datamodels.settings import REPAIR, Settings, VerifySettings
from datamodels.store import Store
from datamodels.subsets import Array, BoolArray, IndexArray
from datamodels.training import LIBRARY_METHODS, require_dattri
from datamodels.verify.kept import OfBaseModels, by_library
from datamodels.verify.known import Examples, Targets
from datamodels.worker.engine import Engine

DATAMODEL, RELABEL, RANDOM, SIMILARITY, EMBEDDING = "datamodel", "relabel", "random", "similarity", "embedding"
METHODS = (DATAMODEL, RELABEL, RANDOM, SIMILARITY, GRADIENTS, *LIBRARY_METHODS, EMBEDDING)
RIVALS = tuple(method for method in METHODS if method not in (DATAMODEL, RELABEL))
"""Those whose sets are removed, by an order that is not the datamodel's."""
NEEDS: dict[str, type[Any]] = {RELABEL: Relabels, SIMILARITY: Features, **dict.fromkeys(LIBRARY_METHODS, Attributes)}
"""What a learner must offer for a method."""
BY_OTHERS = f"{SCORES}FILE"
"""How an order by somebody's scores is asked for; several may be, and each is a method `scores:NAME` (see `reading.scores`)."""
NONE, CLASS = "none", "class"
Derived = Callable[[Sequence[int]], tuple[Datamodels, Store]]
"""Gives the datamodel of the mean margin over some columns, as target 0 of a store of its own."""


def methods_named(settings: VerifySettings, learner: Learner) -> list[str]:
    """The methods in `verify.methods`. Raises InputError for an unknown one, or one that the run's models do not admit."""
    return _named("verify.methods", settings.methods, METHODS, settings, learner)


def rivals_named(settings: VerifySettings, learner: Learner, methods: Sequence[str]) -> list[str]:
    """The methods in `verify.rivals`; none where `methods`, those in `verify.methods`, have no answer that they could beat.

    Raises InputError as `methods_named`.
    """
    found = _named("verify.rivals", settings.rivals, RIVALS, settings, learner)
    return found if DATAMODEL in methods else []


def _named(setting: str, value: str, known: Sequence[str], settings: VerifySettings, learner: Learner) -> list[str]:
    """The methods that the value of a setting names, each once, a file of scores by its method."""
    named = words(value)
    files = _files_in(named)
    for word in named:
        if word not in known and not word.startswith(SCORES):
            raise InputError(f"{setting} takes some of {', '.join(known)}, {BY_OTHERS}, or {NONE}, not {word!r}")
        if word in NEEDS:
            offered(learner, NEEDS[word], f"the method {word}")
    if RELABEL in named and (learner.train_labels < 0).any():
        raise InputError(f"the method {RELABEL} needs the classes of examples, and {learner.name} does not know them")
    if set(LIBRARY_METHODS) & set(named):
        require_dattri()
    if EMBEDDING in named and settings.embedding == NONE:
        raise InputError("the method embedding needs verify.embedding, an .npy file of all images")
    last = int(learner.train_labels.max())
    if RELABEL in named and settings.relabel_to > last:
        raise InputError(f"verify.relabel_to is {settings.relabel_to}, but the classes run from 0 to {last}")
    for method, file in files.items():
        _scores_in(method, file, learner)
    return list(dict.fromkeys(method for word in named for method in (files if word.startswith(SCORES) else (word,))))


def is_method(name: str) -> bool:
    """Whether a record may name it as its method: one of `METHODS`, or a file of scores."""
    return name in METHODS or (name.startswith(SCORES) and len(name) > len(SCORES))


def scores_named(settings: VerifySettings) -> dict[str, Path]:
    """The files of scores in `verify.methods`, and in `verify.rivals` where these have something to beat, each by its method,
    `scores:NAME`.

    Raises InputError as `scores_files`.
    """
    methods = words(settings.methods)
    return _files_in([*methods, *(words(settings.rivals) if DATAMODEL in methods else [])])


def _files_in(named: Sequence[str]) -> dict[str, Path]:
    files = list(dict.fromkeys(word.removeprefix(SCORES) for word in named if word.startswith(SCORES)))
    return {f"{SCORES}{name}": file for name, file in scores_files(files).items()}


def words(value: str) -> list[str]:
    """The words of a setting that names several with commas between, each once; none of 'none'."""
    return [] if value == NONE else list(dict.fromkeys(word.strip() for word in value.split(",")))


def check_scores(settings: VerifySettings, learner: Learner, columns: Sequence[int]) -> None:
    """Raise InputError where a file of scores has none for one of the columns, or one that is not finite."""
    for method, file in scores_named(settings).items():
        _scores_in(method, file, learner).of(columns)


def _scores_in(method: str, file: Path, learner: Learner) -> Scores:
    examples = Examples(learner)
    return read_scores(method, file, examples.n, examples.t, examples.tests)


def check_gradients(folder: Path) -> None:
    """Raise InputError where the run's prior, in a folder RUN/prior, tells of no gradients."""
    if not has_gradients(folder):
        what = f"the method {GRADIENTS} goes by the gradients of the run's prior, and there are none in {folder}"
        raise InputError(f"{what}; run the worker with --regress.prior {GRADIENTS}")


def check_subsets(settings: VerifySettings) -> None:
    """Raise InputError where models on a random subset cannot be halved."""
    if settings.subset_models % 2:
        raise InputError(f"verify.subset_models must be even, so that there are two halves, not {settings.subset_models}")


def sizes_named(setting: str, sizes: str, n: int) -> list[int]:
    """The sizes in a setting of that name. Raises InputError for a word that is no size from 1 to N-1."""
    words = [] if sizes == NONE else [word.strip() for word in sizes.split(",")]
    for word in words:
        if not 0 < (whole_number(word) or 0) < n:
            raise InputError(f"{setting} takes sizes from 1 to {n - 1} with commas between, or {NONE}, not {word!r}")
    return list(dict.fromkeys(map(int, words)))


class Orders:
    """The orders of the training images for a run's targets, and the labels that images get where they are relabelled.

    `weights` (N, targets) are those by which images are chosen, in the order of `targets`, `scores` of each method that
    attributes (N, columns), in the order of `columns`, the targets' own columns of the margins. `base` gives mean logits and
    similarities of the base models, when they are wanted. With `verify.goal` repair everything is turned round: first come the
    images whose removal should raise the margin. Scores by others are taken as the datamodel's weights are: of all images those
    with a positive score, or with `verify.candidates` class all of the class.
    """

    def __init__(
        self,
        settings: VerifySettings,
        learner: Learner,
        targets: Targets,
        numbers: Sequence[int],
        weights: Array,
        embedding: Array | None,
        scores: Mapping[str, Array],
        base: OfBaseModels,
    ) -> None:
        self.settings, self.learner, self.targets, self.base = settings, learner, targets, base
        self.n = len(learner.train_labels)
        self.most = min(settings.max_size, self.n - 1)
        self.place = {number: k for k, number in enumerate(numbers)}
        self.column = {column: k for k, column in enumerate(columns_of(targets, numbers))}
        self.chosen_by, self.embedding, self.scores = weights, embedding, scores

    @property
    def repairs(self) -> bool:
        """Whether sets are to raise the margin, and not to lower it."""
        return self.settings.goal == REPAIR

    @property
    def sign(self) -> int:
        """What a margin, or a weight, is multiplied by, for a set to lower it: -1 where sets are to repair."""
        return -1 if self.repairs else 1

    def label(self, target: int) -> int:
        """The target's class, -1 where it is not known, or its targets are of several."""
        return self.targets.label(target)

    def of(self, method: str, target: int) -> IndexArray:
        """Images for one target, most important first; the target itself is none of them."""
        order = self._order(method, target)
        if self.repairs and method == RELABEL:  # what has the label already would not change
            order = order[self.learner.train_labels[order] != self.relabelled(method, target)]
        return order[~np.isin(order, self.targets.itself(target))][: self.most]

    def _order(self, method: str, target: int) -> IndexArray:
        if method == RANDOM:
            return at_random(self.of_class(target), self.n, self.settings.seed, target)
        if method == SIMILARITY:
            return by_similarity(self.base.similarity[self._columns(target)].mean(0), self.of_class(target), self.n)
        if method in self.scores:
            scores = self.sign * self.scores[method][:, self._columns(target)].mean(1)
            if method.startswith(SCORES) and self.settings.candidates != CLASS:
                return by_weight(self._apart(scores, target), self.n)
            return by_similarity(scores, self.of_class(target), self.n)
        if method == EMBEDDING:
            return by_similarity(self._near(target), self.of_class(target), self.n)
        if self.settings.candidates == CLASS:
            return by_similarity(self.towards(target), self.of_class(target), self.n)
        return by_weight(self.towards(target), self.n)

    def _columns(self, target: int) -> list[int]:
        return [self.column[column] for column in self.targets.members(target)]

    def _near(self, target: int) -> Array:
        """Mean cosines (N,) with a target's images, by `verify.embedding`: a training image's row is its own."""
        assert self.embedding is not None
        examples = self.targets.examples
        tests = [self.n + column for column in self.targets.members(target) if column < examples.tests]
        near: Array = cosine(self.embedding[[*tests, *self.targets.itself(target)]], self.embedding[: self.n]).mean(0)
        return near

    def of_class(self, target: int) -> IndexArray:
        """The images of the target's class, or to repair of the class that networks take it for."""
        if self.repairs:
            return np.flatnonzero(self.learner.train_labels == self.runner_up(target))
        return np.flatnonzero(self.targets.same_class(target))

    def weights(self, target: int) -> Array:
        """The weights (N,) by which images are chosen: a prior's as they are, the lasso's debiased and shrunk."""
        found: Array = self.chosen_by[:, self.place[target]]
        return found

    def towards(self, target: int) -> Array:
        """How far the removal of each image (N,) goes towards the goal, as the weights say; the target itself not at all."""
        return self._apart(self.sign * self.weights(target), target)

    def _apart(self, towards: Array, target: int) -> Array:
        """The same but for the target itself, which no set has."""
        itself = self.targets.itself(target)
        if len(itself):
            towards = towards.copy()
            towards[itself] = -np.inf
        return towards

    def drops(self, method: str, target: int, order: IndexArray) -> Array | None:
        """How far the first 1, 2, … images go towards the goal, as predicted; None where it is not made to say."""
        return np.cumsum(self.towards(target)[order]) if method == DATAMODEL else None

    def relabelled(self, method: str, target: int) -> int:
        """The class that R gets, the one given, or the target's runner-up, or to repair its own; -1 where R is removed."""
        if method != RELABEL:
            return -1
        label, given = self.label(target), self.settings.relabel_to
        if self.repairs:
            return label if given == -1 else given
        return given if given not in (-1, label) else self.runner_up(target)

    def runner_up(self, target: int) -> int:
        """The class of the largest mean logit but for the target's own, or those of its targets.

        Raises InputError where the training examples are of no other.
        """
        logits = self.base.logits[list(self.targets.members(target))].mean(0)
        others = np.setdiff1d(self.learner.train_labels, self.targets.classes(target))
        others = others[others < len(logits)]  # a class without examples is none that R could have
        if not len(others):
            what = "a repair" if self.repairs else f"the method {RELABEL}"
            of = f"target {self.targets.called(target)}'s"
            raise InputError(f"{what} needs training examples of another class than {of}, and there are none")
        return int(others[np.argmax(logits[others])])


def columns_of(targets: Targets, numbers: Sequence[int]) -> list[int]:
    """The columns of the margins that some targets are made of, each once."""
    return list(dict.fromkeys(column for number in numbers for column in targets.members(number)))


def chosen_weights(models: Datamodels, store: Store, targets: Targets, numbers: Sequence[int], derived: Derived) -> Array:
    """The weights (N, targets) by which images are chosen: a prior's as they are, the lasso's debiased and shrunk.

    `derived` gives the datamodel of a behaviour, and the store of its margins.
    """
    how = models.meta["regress"]
    # Posterior means are what they should be already; the lasso's weights, with a prior or without, are not.
    lasso = how.get("prior", NONE) == NONE or how.get("sparse", False)

    def of(models: Datamodels, store: Store, columns: list[int], numbers: list[int]) -> Array:
        weights = np.stack([models.of(column)[0] for column in columns], 1)
        if not lasso:
            return weights.astype(np.float64)
        same_class = np.stack([targets.same_class(number) for number in numbers], 1)
        return shrunk_weights(store, columns, weights, same_class, _themselves(targets, numbers))

    plain = [number for number in numbers if not targets.is_behaviour(number)]
    found = dict(zip(plain, of(models, store, plain, plain).T, strict=True)) if plain else {}
    for number in numbers:
        if number not in found:
            found[number] = of(*derived(targets.members(number)), [0], [number])[:, 0]
    return np.stack([found[number] for number in numbers], 1)


def _themselves(targets: Targets, numbers: Sequence[int]) -> BoolArray | None:
    """Which training images some targets are, bool (N, targets); None where none of the run's is one."""
    if not targets.examples.train_targets:
        return None
    return np.stack([np.isin(np.arange(targets.examples.n), targets.itself(number)) for number in numbers], 1)


def embedding_named(settings: VerifySettings, learner: Learner, methods: list[str]) -> Array | None:
    """The array in `verify.embedding` where a method needs it, a row for each training and each test image.

    Raises InputError when it is none such.
    """
    if EMBEDDING not in methods:
        return None
    try:
        found = open_npy(Path(settings.embedding))
    except Unreadable as e:
        raise InputError(f"cannot read {settings.embedding} as an .npy file: it {e.why}") from e
    examples = Examples(learner)
    rows = examples.n + examples.tests
    if found.ndim != 2 or len(found) != rows or found.dtype.kind != "f" or not np.isfinite(found).all():
        raise InputError(f"{settings.embedding} must hold finite floating-point numbers, a row for each of the {rows} images")
    return found


def scores_of(folder: Path, settings: Settings, engine: Engine, methods: list[str], columns: list[int]) -> dict[str, Array]:
    """Scores (N, columns) of the methods that attribute: by files of scores, the run's prior, and dattri, kept in the folder.

    Raises InputError where the prior is wanted and not there, and where a file has none for a column.
    """
    files = scores_named(settings.verify)
    found: dict[str, Array] = {method: _scores_in(method, file, engine.learner).of(columns) for method, file in files.items()}
    if GRADIENTS in methods:
        n, t = len(engine.learner.train_labels), len(engine.learner.test_labels)
        prior = covariates_named(GRADIENTS, stage_folder(settings, "prior"), n, t)
        assert prior is not None
        found[GRADIENTS] = np.stack([prior.parts(slice(target, target + 1))[-1, :, 0] for target in columns], 1)
    for method in set(methods) & set(LIBRARY_METHODS):
        found[method] = by_library(folder / f"{method}.npz", settings, engine, method, columns)
    return found
