"""Models whose margins follow a rule that the tests know, in the place of trained ones."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from datamodels.learners import Trained
from datamodels.regress import Datamodels
from datamodels.regress.results import About
from datamodels.runs import verdicts_folder
from datamodels.seals import read_sealed
from datamodels.settings import Settings
from datamodels.subsets import pack
from datamodels.worker import Local

N, T, NOISE = 60, 20, 0.25


def planted(store, bias_of_one=1.0):
    """Datamodels with weights of one's own choice, as if a regression had made them from the store."""
    rng = np.random.default_rng(0)
    weights = (rng.exponential(size=(N, T)) * np.where(rng.random((N, T)) < 0.7, 0.1, -0.05)).astype(np.float32)
    meta: About = {"store_digest": store.digest(), "regress": {}, "targets": [0, T]}
    return Datamodels(weights, bias_of_one - weights.sum(0), np.ones(T), np.arange(2), {}, meta)


class Seen(NamedTuple):
    """A model that was trained: its packed mask, its repetition, and its key, by which all of them differ."""

    packed: bytes
    repetition: int
    key: tuple[int, ...]


class Rule:
    """Margins are what the datamodels say, and noise; an image of another label than its own takes twice its weight away."""

    # No provenance: it stands in for the learner of the run's own store.
    name, models_at_once, classes = "the rule", 8, 10
    provenance: Mapping[str, Any] = {}

    def __init__(self, data, models, trained=None):
        self.models, self.trained = models, [] if trained is None else trained
        self.train_labels, self.test_labels = data.train.labels.numpy(), data.test.labels.numpy()
        self.logits = np.random.default_rng(6).normal(size=(T, 10))

    def train(self, models):
        """Rows of the rule."""
        for model in models:
            seen = Seen(pack(model.mask).tobytes(), model.key[3], model.key)
            # The base models are trained a second time where their logits are wanted.
            if not (model.mask.all() and seen in self.trained):
                self.trained.append(seen)
        margins = np.stack([self.margins(model) for model in models]).astype(np.float32)
        return Trained({"margins": margins, "logits": np.stack([self.logits] * len(models))})

    train_relabelled = train

    def margins(self, model):
        """Of one model."""
        wrong = np.zeros(N) if model.labels is None else model.labels != self.train_labels
        drop = (~model.mask + 2.0 * wrong) @ self.models.weights
        noise = NOISE * np.random.default_rng(list(model.key)).normal(size=T)
        return self.models.weights.sum(0) + self.models.bias - drop + noise

    def features(self, models):
        """The same for all of them."""
        rng = np.random.default_rng(5)
        sides = {"features_train": rng.normal(size=(N, 8)), "features_test": rng.normal(size=(T, 8))}
        return {name: np.stack([values] * len(models)) for name, values in sides.items()}


def by_the_rule(data, models, trained=None):
    """An engine of models that follow the rule; those that it trains are added to `trained`."""
    rule = Rule(data, models, trained)
    return Local(lambda _: rule)


def changed(settings: Settings, **verify: Any) -> Settings:
    """The settings with other ones of verification."""
    return dataclasses.replace(settings, verify=dataclasses.replace(settings.verify, **verify))


def result_of(settings: Settings) -> dict[str, Any]:
    """What verify.json holds, by no reader but JSON's."""
    return read_sealed(verdicts_folder(settings) / "verify.json")
