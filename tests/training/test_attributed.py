"""dattri's methods on this package's networks: TracIn against gradients by hand, and that help is help."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datamodels.errors import InputError
from datamodels.training import LIBRARY_METHODS, Trainer, attribute, attributed, first_order
from datamodels.training.attributed import CHECKPOINTS, checkpoints

CPU = torch.device("cpu")
TARGETS = [3, 8, 11]


@pytest.fixture(scope="module")
def trainer(digits, recipe):
    return Trainer(digits, dataclasses.replace(recipe, epochs=10, flip=False, cutout=0, max_shift=0), CPU)


def test_checkpoints_are_of_the_training_and_the_last_is_its_end(trainer):
    masks, keys = np.ones((2, 60), bool), [(0, 0), (0, 1)]
    found = checkpoints(trainer, masks, keys, CHECKPOINTS)
    assert len(found) == 2 * CHECKPOINTS
    parameters, statistics = trainer.train(masks, keys)
    for k in range(2):
        assert torch.equal(found[-2 + k].parameters, parameters[k])
        its: Any = found[-2 + k].state
        for name, values in its.mean.items():
            assert torch.equal(values, statistics.of(slice(k, k + 1), 2).mean[name])
    rates = [at.lr for at in found[::2]]
    assert rates == sorted(rates, reverse=True)
    assert not torch.equal(found[0].parameters, found[2].parameters)


def test_tracin_is_the_sum_over_checkpoints_of_products_of_gradients(trainer):
    found = attribute(trainer, "tracin", np.ones((1, 60), bool), [(0, 0)], TARGETS)
    oracle = np.zeros((60, 3))
    images = trainer.images
    for at in checkpoints(trainer, np.ones((1, 60), bool), [(0, 0)], CHECKPOINTS):

        def gradient(image, label, at, margin):
            row = at.parameters.clone().requires_grad_()
            logits = trainer.network.forward(row[None], at.state, image[None], training=False)[0]
            others = torch.arange(10) != label
            value = torch.logsumexp(logits[0, others], 0) - logits[0, label] if margin else F.cross_entropy(logits, label[None])
            return torch.autograd.grad(value, row)[0]

        losses = torch.stack([gradient(images.train[j], images.labels[j], at, False) for j in range(60)])
        margins = torch.stack([gradient(images.test[t], images.test_labels[t], at, True) for t in TARGETS])
        oracle += at.lr * (losses @ margins.T).numpy()
    np.testing.assert_allclose(found, oracle, rtol=1e-3, atol=1e-3 * np.abs(oracle).max())


@pytest.mark.parametrize("method", LIBRARY_METHODS)
def test_scores_are_high_where_an_image_helps(trainer, digits, method, monkeypatch):
    monkeypatch.setattr(attributed, "PROJECTED", 512)
    masks, keys = np.ones((2, 60), bool), [(0, 0), (0, 1)]
    found = attribute(trainer, method, masks, keys, TARGETS)
    assert found.shape == (60, 3)
    assert np.isfinite(found).all()
    ours = first_order(trainer, masks, keys, 64)["gradients"][-1][:, TARGETS]
    assert np.corrcoef(found.ravel(), ours.ravel())[0, 1] > 0.15
    same = digits.train.labels.numpy()[:, None] == digits.test.labels.numpy()[TARGETS]
    assert found[same].mean() > found[~same].mean()


@pytest.mark.parametrize("method", LIBRARY_METHODS)
def test_in_bfloat16_scores_are_about_those_of_float32(digits, recipe, method, monkeypatch):
    monkeypatch.setattr(attributed, "PROJECTED", 512)
    its = Trainer(digits, dataclasses.replace(recipe, precision="bfloat16"), CPU)
    masks, keys = np.ones((2, 60), bool), [(0, 0), (0, 1)]
    # Of the same networks: training amplifies the rounding until they are others.
    trained = checkpoints(its, masks, keys, CHECKPOINTS if method == "tracin" else 1)
    monkeypatch.setattr(attributed, "checkpoints", lambda *_: trained)
    mine = attribute(its, method, masks, keys, TARGETS)
    oracle = attribute(Trainer(digits, recipe, CPU), method, masks, keys, TARGETS)
    assert not np.array_equal(mine, oracle)
    assert np.corrcoef(mine.ravel(), oracle.ravel())[0, 1] > 0.98


def test_without_dattri_it_is_said(trainer, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install dattri"):
        attribute(trainer, "trak", np.ones((1, 60), bool), [(0, 0)], TARGETS)
