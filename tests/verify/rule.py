"""Models whose margins follow a rule that the tests know, in the place of trained ones."""

import dataclasses
from typing import Any

import numpy as np
from datamodels.verify.subject import Subject

from datamodels.regress import Datamodels
from datamodels.runs import verdicts_folder
from datamodels.seals import read_sealed
from datamodels.settings import Settings
from datamodels.worker.blocks import in_turn

N, T, NOISE = 60, 20, 0.25


def planted(store, bias_of_one=1.0):
    """Datamodels with weights of one's own choice, as if a regression had made them from the store."""
    rng = np.random.default_rng(0)
    weights = (rng.exponential(size=(N, T)) * np.where(rng.random((N, T)) < 0.7, 0.1, -0.05)).astype(np.float32)
    meta = {"store_digest": store.digest(), "regress": {}, "targets": [0, T]}
    return Datamodels(weights, bias_of_one - weights.sum(0), np.ones(T), np.arange(2), {}, meta)


def by_the_rule(data, models, trained=None):
    """Models whose margins are what the datamodels say, and noise; a wrong label takes twice its image's weight away."""
    similarity = np.random.default_rng(5).random((T, N))

    def train(masks, requests):
        rows = []
        for mask, request in zip(masks, requests, strict=True):
            weights = models.weights * (2 if request.relabelled >= 0 else 1)
            drop = (~mask).astype(float) @ weights
            noise = NOISE * np.random.default_rng(list(request.key(1))).normal(size=T)
            rows.append(models.weights.sum(0) + models.bias - drop + noise)
            if trained is not None:
                trained.append(request)
        margins = np.stack(rows).astype(np.float32)
        return {"margins": margins, "confidence": (1 / (1 + np.exp(-margins))).astype(np.float16)}

    def describe(requests, targets):
        logits = np.random.default_rng(6).normal(size=(T, 10))
        return {"logits": logits, "similarity": similarity[list(targets)]}

    labels = data.train.labels.numpy(), data.test.labels.numpy()
    return Subject(*labels, {"rule": "linear"}, 8, train, in_turn, describe)


def changed(settings: Settings, **verify: Any) -> Settings:
    """The settings with other ones of verification."""
    return dataclasses.replace(settings, verify=dataclasses.replace(settings.verify, **verify))


def result_of(settings: Settings) -> dict[str, Any]:
    """What verify.json holds, by no reader but JSON's."""
    return read_sealed(verdicts_folder(settings) / "verify.json")
