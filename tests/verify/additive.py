"""A learner whose margins are a sum over the training images, and noise: what a set does is known, the smallest by trying all.

An image that is told another label than its own takes its weight away twice. Targets 0 to 5 are wrong on all of S, the others
right; the last two are training images, each of which carries itself more than anything else does.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from datamodels.learners import Trained

N, TESTS, CLASSES, NOISE = 40, 16, 4, 0.15
WRONG, RIGHT = range(6), range(6, 16)
TRAIN_TARGETS = (7, 38)
T = TESTS + len(TRAIN_TARGETS)
ENEMIES = (0.62, 0.56, 0.51, 0.45)
"""How far each of four images of another class lowers the margin of a target that is wrong."""


class Additive:
    """The rule."""

    name, models_at_once, classes, class_names = "the rule", 16, CLASSES, ("ant", "bee", "cow", "dog")
    provenance: Mapping[str, Any] = {"learner": "additive"}
    train_targets = TRAIN_TARGETS

    def __init__(self):
        rng = np.random.default_rng(3)
        self.train_labels = np.arange(N) % CLASSES
        self.test_labels = np.concatenate([np.arange(TESTS) % CLASSES, self.train_labels[list(TRAIN_TARGETS)]])
        self.weights = rng.normal(0, 0.01, (N, T)) + 0.3 * (self.train_labels[:, None] == self.test_labels)
        for target in WRONG:
            self.weights[enemies(target), target] = -np.array(ENEMIES)
        # What makes 0 wrong carries 9, and makes 4, of the same class, wrong as well.
        self.weights[enemies(0), 9] = 1.5
        self.weights[enemies(0), 4] = -1.5
        self.weights[list(TRAIN_TARGETS), [TESTS, TESTS + 1]] = 3.0
        self.on_all = np.where(np.isin(np.arange(T), WRONG), -1.0, 1.0)
        self.bias = self.on_all - self.weights.sum(0)

    def mean(self, mask, labels=None):
        """The margins (T,) without noise."""
        told = np.ones(N) if labels is None else np.where(labels == self.train_labels, 1.0, -1.0)
        return (mask * told) @ self.weights + self.bias

    def train_relabelled(self, models):
        """The same: `mean` goes by the labels."""
        return self.train(models)

    def train(self, models):
        """Margins with noise, and logits: 0 for the class after the target's own, less for others."""
        noise = np.stack([np.random.default_rng(list(model.key)).normal(0, NOISE, T) for model in models])
        margins = np.stack([self.mean(model.mask, model.labels) for model in models]) + noise
        logits = np.full((len(models), T, CLASSES), -9.0)
        logits[:, np.arange(T), (self.test_labels + 1) % CLASSES] = 0
        logits[:, np.arange(T), self.test_labels] = margins
        return Trained({"margins": margins, "logits": logits})

    def features(self, models):
        """A class is a direction; a training image that is a target is the same example on both sides."""
        rng = np.random.default_rng(1)
        train = np.eye(CLASSES)[self.train_labels] + 0.1 * rng.normal(size=(N, CLASSES))
        test = np.eye(CLASSES)[self.test_labels] + 0.1 * rng.normal(size=(T, CLASSES))
        test[TESTS:] = train[list(TRAIN_TARGETS)]
        return {"features_train": np.stack([train] * len(models)), "features_test": np.stack([test] * len(models))}


def enemies(target):
    """The images that lower the margin of a target that is wrong, the worst first: of the class after its own."""
    return np.flatnonzero(np.arange(N) % CLASSES == (target + 1) % CLASSES)[target : target + len(ENEMIES)]


def smallest(goes, wanted, without=()):
    """How many images the smallest set has that goes as far as is wanted, by trying all sets of at most 4; `goes` is (N,)."""
    images = [i for i in range(N) if i not in without]
    tried = (size for size in range(1, 5) for of in combinations(images, size) if goes[list(of)].sum() >= wanted)
    return next(tried, None)
