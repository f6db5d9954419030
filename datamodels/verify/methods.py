"""What is asked for in `verify.methods` and `verify.sizes`, and the order of images that each method gives for a target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from datamodels.brittleness import at_random, by_similarity, by_weight, cosine, shrunk_weights
from datamodels.errors import InputError
from datamodels.learners import Attributes, Features, Learner, Relabels, offered
from datamodels.reading import Unreadable, open_npy, whole_number
from datamodels.regress import Datamodels
from datamodels.regress.prior import GRADIENTS, covariates_named
from datamodels.runs import stage_folder
from datamodels.settings import Settings, VerifySettings
from datamodels.store import Store
from datamodels.subsets import Array, IndexArray
from datamodels.training import LIBRARY_METHODS, require_dattri
from datamodels.verify.kept import OfBaseModels, by_library
from datamodels.worker.engine import Engine

DATAMODEL, RELABEL, RANDOM, SIMILARITY, EMBEDDING = "datamodel", "relabel", "random", "similarity", "embedding"
METHODS = (DATAMODEL, RELABEL, RANDOM, SIMILARITY, GRADIENTS, *LIBRARY_METHODS, EMBEDDING)
NEEDS: dict[str, type[Any]] = {RELABEL: Relabels, SIMILARITY: Features, **dict.fromkeys(LIBRARY_METHODS, Attributes)}
"""What a learner must offer for a method."""
NONE, CLASS = "none", "class"


def methods_named(settings: VerifySettings, learner: Learner) -> list[str]:
    """The methods in `verify.methods`. Raises InputError for an unknown one, or one that the run's models do not admit."""
    words = [] if settings.methods == NONE else [word.strip() for word in settings.methods.split(",")]
    for word in words:
        if word not in METHODS:
            raise InputError(f"verify.methods takes some of {', '.join(METHODS)}, or {NONE}, not {word!r}")
        if word in NEEDS:
            offered(learner, NEEDS[word], f"the method {word}")
    if RELABEL in words and (learner.train_labels < 0).any():
        raise InputError(f"the method {RELABEL} needs the classes of examples, and {learner.name} does not know them")
    if set(LIBRARY_METHODS) & set(words):
        require_dattri()
    if EMBEDDING in words and settings.embedding == NONE:
        raise InputError("the method embedding needs verify.embedding, an .npy file of all images")
    last = int(learner.train_labels.max())
    if RELABEL in words and settings.relabel_to > last:
        raise InputError(f"verify.relabel_to is {settings.relabel_to}, but the classes run from 0 to {last}")
    return list(dict.fromkeys(words))


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

    `base` gives mean logits and similarities of the base models, when they are wanted.
    """

    def __init__(
        self,
        settings: VerifySettings,
        learner: Learner,
        models: Datamodels,
        store: Store,
        targets: list[int],
        embedding: Array | None,
        scores: dict[str, Array],
        base: OfBaseModels,
    ) -> None:
        self.settings, self.learner, self.base = settings, learner, base
        self.n = len(learner.train_labels)
        self.most = min(settings.max_size, self.n - 1)
        self.column = {target: k for k, target in enumerate(targets)}
        self.same_class = learner.train_labels[:, None] == learner.test_labels[targets]
        weights = np.stack([models.of(target)[0] for target in targets], 1)
        how = models.meta["regress"]
        # Posterior means are what they should be already; the lasso's weights, with a prior or without, are not.
        lasso = how.get("prior", NONE) == NONE or how.get("sparse", False)
        self.chosen_by = shrunk_weights(store, targets, weights, self.same_class) if lasso else weights.astype(np.float64)
        self.embedding, self.scores = embedding, scores

    def label(self, target: int) -> int:
        """The target's class, -1 where it is not known."""
        return int(self.learner.test_labels[target])

    def of(self, method: str, target: int) -> IndexArray:
        """Images for one target, most important first."""
        same_class = np.flatnonzero(self.same_class[:, self.column[target]])
        if method == RANDOM:
            return at_random(same_class, self.most, self.settings.seed, target)
        if method == SIMILARITY:
            return by_similarity(self.base.similarity[self.column[target]], same_class, self.most)
        if method in self.scores:
            return by_similarity(self.scores[method][:, self.column[target]], same_class, self.most)
        if method == EMBEDDING:
            assert self.embedding is not None
            of = self.n + target
            similarity = cosine(self.embedding[of : of + 1], self.embedding[: self.n])[0]
            return by_similarity(similarity, same_class, self.most)
        if self.settings.candidates == CLASS:
            return same_class[np.argsort(-self.weights(target)[same_class], kind="stable")][: self.most]
        return by_weight(self.weights(target), self.most)

    def weights(self, target: int) -> Array:
        """The weights (N,) by which images are chosen: a prior's as they are, the lasso's debiased and shrunk."""
        found: Array = self.chosen_by[:, self.column[target]]
        return found

    def drops(self, method: str, target: int, order: IndexArray) -> Array | None:
        """The drop of the margin predicted for the first 1, 2, … images; None where it is not made to say."""
        return np.cumsum(self.weights(target)[order]) if method == DATAMODEL else None

    def relabelled(self, method: str, target: int) -> int:
        """The class that R gets: the runner-up of the target, or the one given; -1 where R is removed."""
        if method != RELABEL:
            return -1
        label, given = self.label(target), self.settings.relabel_to
        if given not in (-1, label):
            return given
        logits = self.base.logits[target]
        others = np.setdiff1d(self.learner.train_labels, [label])  # a class without examples is none that R could have
        others = others[others < len(logits)]
        if not len(others):
            raise InputError(f"the method {RELABEL} needs examples of another class than target {target}'s, and there are none")
        return int(others[np.argmax(logits[others])])


def embedding_named(settings: VerifySettings, learner: Learner, methods: list[str]) -> Array | None:
    """The array (N + T, d) in `verify.embedding`, where a method needs it. Raises InputError when it is none such."""
    if EMBEDDING not in methods:
        return None
    try:
        found = open_npy(Path(settings.embedding))
    except Unreadable as e:
        raise InputError(f"cannot read {settings.embedding} as an .npy file: it {e.why}") from e
    rows = len(learner.train_labels) + len(learner.test_labels)
    if found.ndim != 2 or len(found) != rows or found.dtype.kind != "f" or not np.isfinite(found).all():
        raise InputError(f"{settings.embedding} must hold finite floating-point numbers, a row for each of the {rows} images")
    return found


def scores_of(folder: Path, settings: Settings, engine: Engine, methods: list[str], targets: list[int]) -> dict[str, Array]:
    """Scores (N, targets) of the methods that attribute: those of the run's prior, and those of dattri, kept in the folder.

    Raises InputError where the prior is wanted and not there.
    """
    found = {}
    if GRADIENTS in methods:
        n, t = len(engine.learner.train_labels), len(engine.learner.test_labels)
        prior = covariates_named(GRADIENTS, stage_folder(settings, "prior"), n, t)
        assert prior is not None
        found[GRADIENTS] = np.stack([prior.parts(slice(target, target + 1))[-1, :, 0] for target in targets], 1)
    for method in set(methods) & set(LIBRARY_METHODS):
        found[method] = by_library(folder / f"{method}.npz", settings, engine, method, targets)
    return found
