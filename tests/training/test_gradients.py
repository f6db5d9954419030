"""First-order attribution: gradients against differences, scores against plain linear algebra and kernel ridge regression."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import expit, logsumexp
from sklearn.kernel_ridge import KernelRidge

from datamodels.training import Trainer
from datamodels.training.gradients import RIDGES, first_order, gradients, project, ridge_scores

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(digits, recipe):
    """Two networks on a half each, in float64."""
    trainer = Trainer(digits, dataclasses.replace(recipe, width=2), CPU, dtype=torch.float64)
    masks = np.random.default_rng(0).random((2, 60)) < 0.5
    return trainer, masks, trainer.train(masks, [(0, 0), (0, 1)])


def output(trainer, parameters, statistics, images, labels):
    """f for each image, in NumPy from the logits."""
    with torch.no_grad():
        logits = trainer.network.forward(parameters[None], statistics, images, training=False)[0].numpy()
    right = np.eye(10, dtype=bool)[labels.numpy()]
    return logits[right] - logsumexp(np.where(right, -np.inf, logits), axis=1)


def test_gradients_are_those_of_the_soft_margin(trained):
    trainer, _, (parameters, statistics) = trained
    own, its = parameters[1], statistics.of(slice(1, 2), 2)
    # Not digits: their backgrounds are alike, and the gradient of a maximum of equals is a matter of convention.
    images, labels = torch.randn(5, 1, 8, 8, dtype=torch.float64), trainer.images.test_labels[:5]
    found, values = gradients(trainer, own, its, images, labels)
    np.testing.assert_allclose(values, output(trainer, own, its, images, labels), rtol=1e-12)
    rng = np.random.default_rng(0)
    for _ in range(5):
        direction = torch.from_numpy(rng.normal(size=len(own)))
        ahead, behind = (output(trainer, own + h * direction, its, images, labels) for h in (1e-6, -1e-6))
        # ReLU and max have kinks; none lies within a millionth here.
        np.testing.assert_allclose(found @ direction, (ahead - behind) / 2e-6, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("n", "p"), [(9, 14), (14, 9), (8, 8)])
def test_ridge_scores_are_the_coefficients_of_kernel_ridge_regression(n, p):
    rng = np.random.default_rng(n)
    train, test = rng.normal(size=(n, p)), rng.normal(size=(4, p))
    kernel = train @ train.T
    for ridge, found in zip((0.3, 2.0), ridge_scores(torch.from_numpy(train), torch.from_numpy(test), (0.3, 2.0)), strict=True):
        # Its prediction at a target from labels y is Σ_j y_j s_jt.
        y = rng.normal(size=n)
        oracle = KernelRidge(alpha=ridge * np.trace(kernel) / n, kernel="precomputed").fit(kernel, y).predict(test @ train.T)
        np.testing.assert_allclose(y @ found.numpy(), oracle, rtol=1e-8)


def test_scores_are_sums_over_networks_of_what_each_says(trained):
    trainer, masks, (parameters, statistics) = trained
    found = first_order(trainer, masks, [(0, 0), (0, 1)], 64)
    scores = np.zeros((len(RIDGES), 60, 20))
    for k in range(2):
        own, its = parameters[k], statistics.of(slice(k, k + 1), 2)
        of_train, f = gradients(trainer, own, its, trainer.images.train, trainer.images.labels)
        of_test, _ = gradients(trainer, own, its, trainer.images.test, trainer.images.test_labels)
        kernel, of_targets = (of_train @ of_train.T).numpy(), (of_train @ of_test.T).numpy()
        for r, ridge in enumerate(RIDGES):
            solved = np.linalg.solve(kernel + ridge * np.trace(kernel) / 60 * np.eye(60), of_targets)
            scores[r] += expit(-f.numpy())[:, None] * solved
        for name, images in (("features_train", trainer.images.train), ("features_test", trainer.images.test)):
            np.testing.assert_allclose(
                found[name][k], trainer.features(own[None], its, images)[0].numpy(), rtol=1e-4, atol=1e-6
            )
            np.testing.assert_allclose(np.linalg.norm(found[name][k], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found["gradients"], scores, rtol=1e-3, atol=1e-5 * np.abs(scores).max())


def test_a_network_that_diverged_does_not_count(digits, recipe):
    trainer = Trainer(digits, dataclasses.replace(recipe, width=2, peak_lr=1e9), CPU)
    found = first_order(trainer, np.ones((1, 60), bool), [(0, 0)], 64)
    assert len(found["features_train"]) == len(found["features_test"]) == 0
    assert not found["gradients"].any()


def test_projections_keep_inner_products_and_know_no_batches(trained):
    rng = torch.Generator().manual_seed(1)
    vectors = torch.randn(6, 40_000, generator=rng, dtype=torch.float64)
    vectors[3:] += vectors[:3]
    found = project(vectors, 2048)
    exact = vectors @ vectors.T
    # The error of an inner product is about |a||b|/√d.
    assert (found @ found.T - exact).abs().max() < 5 * exact.diagonal().max() / 2048**0.5
    torch.testing.assert_close(torch.cat([project(vectors[:2], 2048), project(vectors[2:], 2048)]), found)


def test_projected_gradients_give_about_the_same_scores(trained, monkeypatch):
    trainer, masks, _ = trained
    exact = first_order(trainer, masks, [(0, 0), (0, 1)], 4096)["gradients"]
    monkeypatch.setattr("datamodels.training.gradients.MOST_NUMBERS", 0)
    projected = first_order(trainer, masks, [(0, 0), (0, 1)], 4096)["gradients"]
    assert not np.array_equal(exact, projected)
    assert min(np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(exact, projected, strict=True)) > 0.95
