"""First-order attribution: gradients against autograd image by image, scores against linear algebra, and their cost."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import expit, logsumexp
from sklearn.kernel_ridge import KernelRidge
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from datamodels.training import Trainer
from datamodels.training import gradients as module
from datamodels.training.gradients import RIDGES, first_order, gradients, ridge_scores
from datamodels.training.group import loss_of
from datamodels.training.resnet9 import BatchNormStatistics, ResNet9
from datamodels.training.sketch import sketch

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


def some_network(network, seed=0):
    """Parameters and statistics as after training, float64: no gain is 1, no shift or mean 0, no variance 1."""
    rng = np.random.default_rng(seed)
    parameters = torch.from_numpy(network.initial_parameters(rng)).double()
    parameters += 0.1 * torch.from_numpy(rng.normal(size=len(parameters)))
    sizes = {name: conv.out_channels for name, conv in network.convs.items()}
    mean = {name: torch.from_numpy(0.3 * rng.normal(size=size)) for name, size in sizes.items()}
    variance = {name: torch.from_numpy(rng.uniform(0.5, 2, size)) for name, size in sizes.items()}
    return parameters, BatchNormStatistics(mean, variance)


def by_columns(network, vector):
    """A vector (P,) in the order of the parameters, put into that of the gradients' columns."""
    parts = [part[0] for part in network.by_name(vector[None]).values()]
    return torch.cat([(part.permute(0, 2, 3, 1) if part.ndim == 4 else part).flatten() for part in parts])


@pytest.mark.parametrize(("channels", "size", "padding"), [(1, 8, 1), (3, 16, 0), (3, 11, 1), (2, 13, 0)])
@pytest.mark.parametrize("at_once", [3, 128])
def test_gradients_are_autograds_image_by_image(channels, size, padding, at_once, monkeypatch):
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", at_once)
    network = ResNet9(channels, 7, 3, padding)
    parameters, statistics = some_network(network)
    images, labels = torch.randn(8, channels, size, size, dtype=torch.float64), torch.arange(8) % 7
    found = gradients(network, parameters, statistics, images, labels)
    row = parameters.clone().requires_grad_()
    for image, label, vector, value, features in zip(images, labels, *found, strict=True):
        logits = network.forward(row[None], statistics, image[None], training=False)[0, 0]
        others = torch.arange(7) != label
        f = logits[label] - torch.log(torch.exp(logits[others]).sum())
        (oracle,) = torch.autograd.grad(f, row)
        assert value == pytest.approx(float(f.detach()), rel=1e-10)
        torch.testing.assert_close(vector, by_columns(network, oracle), rtol=1e-9, atol=1e-12)
        its = network.features(parameters[None], statistics, image[None], training=False)[0, 0]
        torch.testing.assert_close(features, its)
    # Every layer has its part in that, gains and shifts too.
    per_layer = torch.split(found.vectors, list(network.layer_sizes), dim=1)
    assert len(per_layer) == 9
    assert all(part.abs().max() > 1e-6 for part in per_layer)


def test_gradients_of_a_trained_network_are_slopes(trained):
    trainer, _, (parameters, statistics) = trained
    own, its = parameters[1], statistics.of(slice(1, 2), 2)
    # Not digits: their backgrounds are alike, and the gradient of a maximum of equals is a matter of convention.
    images, labels = torch.randn(5, 1, 8, 8, dtype=torch.float64), trainer.images.test_labels[:5]
    found = gradients(trainer.network, own, its, images, labels)
    np.testing.assert_allclose(found.outputs, output(trainer, own, its, images, labels), rtol=1e-12)
    rng = np.random.default_rng(0)
    for _ in range(5):
        direction = torch.from_numpy(rng.normal(size=len(own)))
        ahead, behind = (output(trainer, own + h * direction, its, images, labels) for h in (1e-6, -1e-6))
        # ReLU and max have kinks; none lies within a millionth here.
        slopes = found.vectors @ by_columns(trainer.network, direction)
        np.testing.assert_allclose(slopes, (ahead - behind) / 2e-6, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("n", "p"), [(9, 14), (14, 9), (8, 8)])
def test_ridge_scores_are_the_coefficients_of_kernel_ridge_regression(n, p):
    rng = np.random.default_rng(n)
    train, test = rng.normal(size=(n, p)), rng.normal(size=(4, p))
    kernel = train @ train.T
    scores = assembled(torch.from_numpy(train), torch.from_numpy(test), (0.3, 2.0))
    for ridge, found in zip((0.3, 2.0), scores, strict=True):
        # Its prediction at a target from labels y is Σ_j y_j s_jt.
        y = rng.normal(size=n)
        oracle = KernelRidge(alpha=ridge * np.trace(kernel) / n, kernel="precomputed").fit(kernel, y).predict(test @ train.T)
        np.testing.assert_allclose(y @ found.numpy(), oracle, rtol=1e-8)


def assembled(of_train, of_test, ridges):
    """Scores (2, N, T) from their blocks, each of which must come once."""
    scores = torch.full((len(ridges), len(of_train), len(of_test)), torch.nan, dtype=of_train.dtype)
    for ridge, targets, found in ridge_scores(of_train, of_test, ridges):
        assert scores[ridge, :, targets].isnan().all()
        scores[ridge, :, targets] = found
    assert scores.isfinite().all()
    return scores


@pytest.mark.parametrize(("n", "p"), [(40, 70), (70, 40)])
def test_blocks_of_targets_and_rows_change_nothing(n, p, monkeypatch):
    rng = np.random.default_rng(0)
    pair = [torch.from_numpy(rng.normal(size=(rows, p))) for rows in (n, 23)]
    whole = assembled(pair[0], pair[1], RIDGES)
    monkeypatch.setattr(module, "TARGETS_AT_ONCE", 10)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 7)
    torch.testing.assert_close(assembled(pair[0], pair[1], RIDGES), whole, rtol=1e-10, atol=1e-12)


def test_scores_are_sums_over_networks_of_what_each_says(trained):
    trainer, masks, (parameters, statistics) = trained
    found = first_order(trainer, masks, [(0, 0), (0, 1)], 64)
    scores = np.zeros((len(RIDGES), 60, 20))
    for k in range(2):
        own, its = parameters[k], statistics.of(slice(k, k + 1), 2)
        of_train, f, _ = gradients(trainer.network, own, its, trainer.images.train, trainer.images.labels)
        of_test, _, _ = gradients(trainer.network, own, its, trainer.images.test, trainer.images.test_labels)
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


@pytest.mark.parametrize("at_once", [1, 7])
def test_projections_know_no_batches_and_keep_inner_products(trained, at_once, monkeypatch):
    trainer, _, (parameters, statistics) = trained
    own, its, images = parameters[0], statistics.of(slice(0, 1), 2), trainer.images
    to = sketch(trainer.network.layer_sizes, 1024, CPU, torch.float64)
    pair = images.train[:30], images.labels[:30]
    whole = gradients(trainer.network, own, its, *pair, to)
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", at_once)
    for mine, theirs in zip(gradients(trainer.network, own, its, *pair, to), whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    exact = gradients(trainer.network, own, its, *pair).vectors
    products, theirs = exact @ exact.T, whole.vectors @ whole.vectors.T
    # The error of an inner product is about |a||b|/√D.
    lengths = exact.norm(dim=1)
    error = (theirs - products) / (lengths[:, None] * lengths)
    assert error.square().mean().sqrt() < 2 / 1024**0.5
    assert np.corrcoef(products.ravel(), theirs.ravel())[0, 1] > 0.99


def test_projected_gradients_give_about_the_same_scores(trained, monkeypatch):
    trainer, masks, _ = trained
    exact = first_order(trainer, masks, [(0, 0), (0, 1)], 1024)["gradients"]
    monkeypatch.setattr(module, "MOST_PRODUCTS", 0)
    projected = first_order(trainer, masks, [(0, 0), (0, 1)], 1024)["gradients"]
    assert not np.array_equal(exact, projected)
    assert min(np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(exact, projected, strict=True)) > 0.95


def test_gradients_are_projected_where_their_products_would_cost_too_much(trained, monkeypatch):
    trainer, _, _ = trained
    p = trainer.network.num_parameters
    products = (60 + 20) * p * 128
    for most, dimensions, projected in [(products, 64, False), (products - 1, 64, True), (0, p, False), (0, p - 1, True)]:
        monkeypatch.setattr(module, "MOST_PRODUCTS", most)
        to = module._projection(trainer, dimensions)
        assert (to is not None) == projected
        assert to is None or to.dimensions == dimensions


def test_in_bfloat16_scores_are_about_those_of_float32(digits, recipe, monkeypatch):
    masks, keys, found, trained = np.ones((2, 60), bool), [(0, 0), (0, 1)], {}, None
    for projected in (False, True):
        monkeypatch.setattr(module, "MOST_PRODUCTS", 0 if projected else 2**36)
        for precision in ("float32", "bfloat16"):
            trainer = Trainer(digits, dataclasses.replace(recipe, precision=precision), CPU)
            # Of the same networks: training amplifies the rounding until they are others.
            trained = trained or trainer.train(masks, keys)
            monkeypatch.setattr(trainer, "train", lambda *_, trained=trained: trained)
            found[precision] = first_order(trainer, masks, keys, 512)
        assert len(found["bfloat16"]["features_train"]) == 2
        for name, theirs in found["float32"].items():
            mine = found["bfloat16"][name]
            assert mine.dtype == np.float32
            assert not np.array_equal(mine, theirs)
            assert np.corrcoef(mine.ravel(), theirs.ravel())[0, 1] > 0.98


def cifar_like(batch):
    """A network of width 8 for 16×16 pixels of 3 channels, and a batch, in float32."""
    network = ResNet9(3, 10, 8, 0)
    parameters, statistics = some_network(network)
    images = torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    theirs = ({name: t.float() for name, t in part.items()} for part in (statistics.mean, statistics.variance))
    return network, parameters.float(), BatchNormStatistics(*theirs), images, torch.arange(batch) % 10


def test_projected_gradients_cost_what_a_step_of_training_does():
    network, parameters, statistics, images, labels = cifar_like(16)
    to = sketch(network.layer_sizes, 2048, CPU, torch.float32)
    with FlopCounterMode(display=False) as ours:
        gradients(network, parameters, statistics, images, labels, to)
    row = parameters[None].clone().requires_grad_()
    with FlopCounterMode(display=False) as training:
        torch.autograd.grad(loss_of(network, row, statistics, images, labels[None], 0.0), row)
    # Forward, by outputs, by weights: as there, where the first layer's input is asked for no gradient either.
    assert ours.get_total_flops() <= 1.02 * training.get_total_flops()


@pytest.mark.parametrize(("n", "p"), [(300, 256), (256, 300)])
def test_half_of_a_gram_matrix_is_computed(n, p, monkeypatch):
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 32)
    of_train, of_test = torch.randn(n, p), torch.randn(1, p)
    with FlopCounterMode(display=False) as counted:
        list(ridge_scores(of_train, of_test, RIDGES))
    assert counted.get_total_flops() < 0.6 * 2 * 256**2 * 300


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes, in numbers."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor) and not t._is_view()]
        self.numbers = max([self.numbers, *(t.numel() for t in made)])
        return result


def test_no_gradients_of_all_images_and_no_scores_of_all_targets_are_ever_whole(monkeypatch):
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", 8)
    monkeypatch.setattr(module, "TARGETS_AT_ONCE", 16)
    network, parameters, statistics, images, labels = cifar_like(200)
    to = sketch(network.layer_sizes, 128, CPU, torch.float32)
    with Largest() as largest:
        found = gradients(network, parameters, statistics, images, labels, to)
    # The patches of eight images: 256 positions of 27 numbers in the first layer, 64 of 200 in the next.
    assert largest.numbers <= 8 * 64 * 200 < 200 * network.num_parameters / 50
    with Largest() as largest:
        list(ridge_scores(found.vectors, found.vectors, RIDGES))
    assert largest.numbers <= 200 * 128 < 200 * 200
