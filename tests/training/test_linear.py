"""Softmax regressions that share their batches: each is what PyTorch's own modules and optimiser make of the same rows."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch._subclasses.fake_tensor import FakeTensorMode

from datamodels.bench.one_at_a_time import Loop, resident_batches
from datamodels.bench.train import _one_at_a_time, flops_per_image, group_trial
from datamodels.data import Dataset
from datamodels.errors import InputError
from datamodels.regress import Datamodels
from datamodels.regress.run import regress
from datamodels.runs import read_store, stage_folder
from datamodels.settings import GroupSettings, StoreSettings, TrainingSettings
from datamodels.subsets import draw_masks
from datamodels.training import LIBRARY_METHODS, Trainer, attribute, choose_groups, first_order, tuning
from datamodels.training.draws import ORDERS
from datamodels.training.gradients import RIDGES, gradients
from datamodels.training.group import STEPS_BEFORE_CAPTURE, learning_rates
from datamodels.training.linear import Linear, Stateless, flat
from datamodels.training.shared import SharedGroup
from datamodels.verify import verify_targets
from tests.conftest import built_in, trained
from tests.standins.cuda import pretend
from tests.training.test_fake_device import DEVICE, Transfers, fake
from tests.verify.rule import result_of

CPU = torch.device("cpu")
K = 9
KEYS = [(i % 2, i) for i in range(K)]
RECIPE = TrainingSettings(
    network="linear",
    epochs=4,
    batch_size=8,
    peak_lr=0.05,
    peak_epoch=1.0,
    nesterov=True,
    weight_decay=0.01,
    max_shift=0,
    flip=False,
    cutout=0,
)


@pytest.fixture(scope="module")
def features(digits):
    """The digits as features, 64 numbers each, some of which are always the same."""
    train, test = (dataclasses.replace(s, images=s.images.flatten(1).float() / 16) for s in (digits.train, digits.test))
    return Dataset(train, test, digits.class_names, "digest")


@pytest.fixture(scope="module", params=["features", "images"])
def data(request, features, digits):
    return features if request.param == "features" else digits


@pytest.fixture(scope="module")
def masks(features):
    """Of different sizes, one of them with all of S and one with three rows, that most batches are without."""
    found = draw_masks(0, range(K), 60, 0.5)
    found[2], found[4] = True, np.arange(60) < 3
    return found


def trainer_of(data, dtype=torch.float64, per_kernel=None, **changed):
    recipe = dataclasses.replace(RECIPE, **changed)
    return Trainer(data, recipe, CPU, per_kernel, dtype)


def module_of(trainer, parameters):
    """PyTorch's own layer, on rows as this package flattens them."""
    weights, bias = trainer.network.split(parameters[None])
    layer = torch.nn.Linear(weights.shape[2], weights.shape[1]).double()
    layer.weight.data, layer.bias.data = weights[0].clone(), bias[0].clone()
    return layer


def by_hand(trainer, mask, key, labels):
    """One model by torch.optim.SGD, on the rows of each batch of S that it sees."""
    recipe, (drawn,) = trainer.recipe, trainer.draws(mask[None], [key])
    rows, layer = flat(trainer.images.train), module_of(trainer, torch.zeros(trainer.network.num_parameters).double())
    optimiser = torch.optim.SGD(
        layer.parameters(), 1.0, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
    )
    for lr, image in zip(learning_rates(recipe, [len(drawn.image)])[:, 0, 0].tolist(), drawn.image, strict=True):
        seen = image[mask[image]]
        optimiser.param_groups[0]["lr"] = lr
        optimiser.zero_grad(set_to_none=False)
        loss = F.cross_entropy(layer(rows[seen]), labels[seen], reduction="sum", label_smoothing=recipe.label_smoothing)
        torch.autograd.backward(loss / max(len(seen), 1))
        optimiser.step()
    return torch.cat([layer.weight.detach().flatten(), layer.bias.detach()])


@pytest.mark.parametrize("changed", [{}, {"nesterov": False, "label_smoothing": 0.0}, {"batch_size": 70}])
def test_each_is_what_pytorchs_optimiser_makes_of_the_same_rows(data, masks, changed):
    trainer = trainer_of(data, **changed)
    labels = np.stack([np.where(np.arange(60) % 7 == k, k, data.train.labels) for k in range(K)])
    for told in (None, labels):
        parameters, _ = trainer.train(masks, KEYS, told)
        for k in range(K):
            own = data.train.labels if told is None else torch.from_numpy(told[k])
            oracle = by_hand(trainer, masks[k], KEYS[k], own)
            torch.testing.assert_close(parameters[k], oracle, rtol=0, atol=1e-9)
    assert len({tuple(row) for row in parameters.tolist()}) == K


def test_trained_to_the_end_it_is_scikit_learns_logistic_regression(features):
    mask = draw_masks(0, [0], 60, 0.5)
    long = {"epochs": 4000, "batch_size": 60, "peak_lr": 0.1, "weight_decay": 0.05, "label_smoothing": 0.0}
    trainer = trainer_of(features, **long)
    logits = trainer.outputs(mask, KEYS[:1])["logits"][0]
    x, of_test = (np.hstack([part, np.ones((len(part), 1))]) for part in (trainer.images.train, trainer.images.test))
    seen = mask[0]
    oracle = LogisticRegression(C=1 / (0.05 * seen.sum()), fit_intercept=False, tol=1e-8, max_iter=10**4)
    oracle.fit(x[seen], features.train.labels.numpy()[seen])
    theirs = of_test @ oracle.coef_.T
    of_both = logits[:, oracle.classes_]
    np.testing.assert_allclose(of_both - of_both.mean(1, keepdims=True), theirs - theirs.mean(1, keepdims=True), atol=1e-3)


@pytest.mark.parametrize("per_kernel", [None, 1, 2])
def test_neighbours_change_nothing(data, masks, per_kernel):
    whole = trainer_of(data).outputs(masks, KEYS)
    trainer = trainer_of(data, per_kernel=per_kernel)
    for parts in ([slice(0, 1), slice(1, K)], [slice(k, k + 1) for k in range(K)]):
        for part in parts:
            for name, values in trainer.outputs(masks[part], KEYS[part]).items():
                np.testing.assert_allclose(values, whole[name][part], atol=1e-6)
    reverse = trainer.train(masks[::-1], KEYS[::-1])[0]
    torch.testing.assert_close(reverse.flip(0), trainer.train(masks, KEYS)[0], rtol=0, atol=1e-9)


def test_what_a_model_does_not_see_is_nothing_to_it_to_the_bit(data, masks):
    one, other = (trainer_of(data, torch.float32) for _ in range(2))
    unseen = ~masks[0]
    other.images.pixels.view(60, -1)[unseen] = torch.randn(int(unseen.sum()), other.network.num_features) * 5
    other.images.labels[unseen] = 3
    assert torch.equal(one.train(masks[:1], KEYS[:1])[0], other.train(masks[:1], KEYS[:1])[0])
    assert not torch.equal(one.train(masks[1:2], KEYS[:1])[0], other.train(masks[1:2], KEYS[:1])[0])


def test_orders_are_few_of_a_seed_and_every_row_comes_once_in_each_of_them(features):
    trainer = trainer_of(features)
    drawn = trainer.draws(np.ones((80, 60), bool), [(seed, i) for seed in (0, 1) for i in range(40)])
    assert len({d.image.tobytes() for d in drawn}) == 2 * ORDERS
    for d in drawn:
        assert len(d.image) == 4 * 60 // 8
        assert np.bincount(d.image.ravel()).tolist() == [4] * 60
    sizes = [(60, 30, 8), (30, 15, 16), (24, 12, 20), (8, 4, 60), (3, 4, 60)]
    for size, steps, rows in sizes:
        (again,) = trainer.draws((np.arange(60) < size)[None], [(1, 7)])
        assert again.image.shape == (steps, rows)
        assert trainer.num_steps(size) == steps
        assert np.array_equal(again.image.ravel(), drawn[47].image.ravel())


def test_models_see_batch_size_images_a_step_in_the_mean_whatever_their_masks(features):
    trainer = trainer_of(features)
    for alpha in (0.2, 0.5, 0.9):
        (mask,) = draw_masks(0, [0], 60, alpha)
        (drawn,) = trainer.draws(mask[None], [(0, 0)])
        assert mask[drawn.image].sum(1).mean() == pytest.approx(8, rel=0.05)
        assert abs(len(drawn.image) - 4 * mask.sum() / 8) <= 1


def test_models_of_one_mask_differ_by_their_orders_alone(features):
    trainer = trainer_of(features)
    drawn = trainer.draws(np.ones((12, 60), bool), [(0, 1, i) for i in range(12)])
    margins = trainer.margins(np.ones((12, 60), bool), [(0, 1, i) for i in range(12)])
    alike = {d.order: margins[k] for k, d in enumerate(drawn)}
    assert len(alike) == ORDERS
    for k, d in enumerate(drawn):
        np.testing.assert_allclose(margins[k], alike[d.order], atol=1e-6)
    assert margins.std(0).min() > 1e-4


def test_forward_and_evaluation_are_pytorchs(data):
    trainer = trainer_of(data)
    network, images = trainer.network, trainer.images.test[:7]
    parameters = torch.randn(3, network.num_parameters, dtype=torch.float64)
    oracle = torch.stack([module_of(trainer, row)(flat(images)) for row in parameters]).detach()
    torch.testing.assert_close(network.evaluate(parameters, Stateless(), images), oracle)
    torch.testing.assert_close(network.forward(parameters, Stateless(), torch.cat([images] * 3, 1), training=True), oracle)
    several = images if images.ndim == 2 else torch.randn(7, 5, 4, 3, dtype=torch.float64)
    wide = Linear(several[0].numel(), 10)
    rows = torch.randn(2, wide.num_parameters, dtype=torch.float64)
    both = wide.forward(rows, Stateless(), torch.cat([several, several + 1], 1), training=False)
    torch.testing.assert_close(both[1], wide.evaluate(rows, Stateless(), several + 1)[1])
    assert network.as_module()(images.float()).shape == (7, 10)
    assert sum(p.numel() for p in network.as_module().parameters()) == network.num_parameters == sum(network.layer_sizes)


def test_gradients_are_autograds_and_their_products_those_of_inputs_and_residuals(data, masks):
    trainer = trainer_of(data)
    (row,), state = trainer.train(masks[:1], KEYS[:1])
    images, labels = trainer.images.train[:12], trainer.images.labels[:12]
    found = gradients(trainer.network, row, state, images, labels)
    for k in range(12):
        own = row.clone().requires_grad_()
        logits = trainer.network.forward(own[None], state, images[k : k + 1], training=False)[0, 0]
        others = torch.arange(10) != labels[k]
        f = logits[labels[k]] - torch.logsumexp(logits[others], 0)
        torch.testing.assert_close(found.outputs[k], f.detach())
        torch.testing.assert_close(found.vectors[k], torch.autograd.grad(f, own)[0])
    x, residuals = flat(images), found.vectors[:, -10:]
    torch.testing.assert_close(found.vectors @ found.vectors.T, (x @ x.T + 1) * (residuals @ residuals.T))
    torch.testing.assert_close(found.features, x)


def test_the_prior_is_of_these_gradients_and_features_are_the_inputs(features, masks):
    trainer = trainer_of(features, torch.float32)
    found = first_order(trainer, masks, KEYS, 2048)
    assert found["gradients"].shape == (len(RIDGES), 60, 20)
    assert found["features_train"].shape == (K, 60, 64)
    inputs = trainer.features_of(masks, KEYS)
    for name, rows in (("features_train", trainer.images.train), ("features_test", trainer.images.test)):
        for k in range(K):
            np.testing.assert_allclose(inputs[name][k], F.normalize(rows), atol=1e-6)
        assert inputs[name].strides[0] == 0  # of hundreds of models: in memory once
    right = features.train.labels.numpy()[:, None] == features.test.labels.numpy()
    assert found["gradients"][1][right].mean() > 0 > found["gradients"][1][~right].mean()


def test_images_are_taken_as_they_are_or_not_at_all(digits, features):
    for changed in ({"max_shift": 1}, {"flip": True}, {"cutout": 2}):
        recipe = dataclasses.replace(RECIPE, **changed)
        with pytest.raises(InputError, match=r"training\.network linear takes images as they are: set training\.max_shift 0"):
            Trainer(digits, recipe, CPU)
        assert Trainer(features, recipe, CPU).network.num_features == 64


def test_groups_of_hundreds_are_tried_as_far_as_there_is_memory(features, monkeypatch):
    monkeypatch.setattr(tuning.Ways, "speed", lambda _, groups: float(groups.models_at_once))
    assert max(groups.models_at_once for groups in choose_groups(features, RECIPE, GroupSettings(), CPU)[1]) == 512
    one = tuning.activation_bytes(Trainer(features, RECIPE, CPU))
    assert one > 3 * 4 * 65 * 10
    monkeypatch.setattr(tuning, "groups_at_once", lambda _: 1)
    monkeypatch.setattr(tuning, "free_memory", lambda _: int(100 * one / tuning.MEMORY_SHARE))
    assert max(groups.models_at_once for groups in choose_groups(features, RECIPE, GroupSettings(), CPU)[1]) == 64


def test_a_group_that_is_measured_goes_its_few_steps(features, monkeypatch):
    monkeypatch.setattr(tuning, "MEASURE_S", 0.01)
    monkeypatch.setattr(tuning, "MOST_SHARING", 4)
    chosen, speeds = choose_groups(features, RECIPE, GroupSettings(), CPU)
    assert chosen in speeds
    assert min(speeds.values()) > 0


def test_the_loop_of_the_bench_trains_the_same_model(data):
    trainer, subset = trainer_of(data), np.flatnonzero(draw_masks(0, [0], 60, 0.5)[0])
    loop = Loop(trainer, subset, resident_batches(trainer, subset))
    loop.network = torch.nn.Sequential(_Flat(), module_of(trainer, torch.zeros(trainer.network.num_parameters).double()))
    recipe = trainer.recipe
    loop.optimiser = torch.optim.SGD(loop.network.parameters(), 1.0, 0.9, weight_decay=recipe.weight_decay, nesterov=True)
    for step in range(loop.num_steps):
        loop.advance(step)
    np.testing.assert_allclose(loop.margins(), trainer.margins(draw_masks(0, [0], 60, 0.5), [(0, 0)])[0], atol=1e-5)


class _Flat(torch.nn.Module):
    def forward(self, x):
        return flat(x)


def test_the_bench_counts_its_products_and_times_its_steps(features):
    trainer = trainer_of(features, torch.float32)
    assert flops_per_image(trainer) == 4 * 64 * 10
    trial = group_trial(StoreSettings(alpha=0.5), trainer, 16, 0)
    assert (trial.models, trial.num_steps) == (16, 15 - STEPS_BEFORE_CAPTURE)
    assert trial.models_per_s > 0


def test_ffcv_is_timed_on_images_alone(settings, features):
    folder = stage_folder(settings(), "data")
    folder.mkdir(parents=True)
    (folder / "train.beton").touch()
    names = [contender.name for contender in _one_at_a_time(settings(), features, trainer_of(features, torch.float32))]
    assert names
    assert not any("FFCV" in name for name in names)


def test_a_model_that_diverges_is_trained_once_more_and_given_up_alone(features, masks):
    trainer = trainer_of(features, torch.float32, peak_lr=1e30)
    assert np.isnan(trainer.margins(masks[:2], KEYS[:2])).all()


def test_bfloat16_is_near_float32(features, masks):
    fine, coarse = (trainer_of(features, torch.float32, precision=p).margins(masks, KEYS) for p in ("float32", "bfloat16"))
    assert 0 < np.abs(fine - coarse).max() < 0.1 * np.abs(fine).max()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("per_kernel", [1, None])
def test_a_captured_step_replayed_trains_the_same_models(features, masks, monkeypatch, per_kernel, precision):
    trainers = [trainer_of(features, torch.float32, per_kernel, precision=precision) for _ in range(2)]
    plain = trainers[0].margins(masks, KEYS)
    gpu = pretend(monkeypatch)
    captured = trainers[1].margins(masks, KEYS)
    # In one pass on a processor, operation by operation on a GPU: they round otherwise.
    np.testing.assert_allclose(captured, plain, atol=1e-4 if precision == "float32" else 0.02 * np.abs(plain).max())
    assert gpu.replays == 30 - STEPS_BEFORE_CAPTURE


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("per_kernel", [None, 2])
@pytest.mark.parametrize("relabelled", [False, True])
def test_a_step_and_the_evaluation_stay_on_the_device(features, masks, precision, per_kernel, relabelled):
    labels = features.train.labels.numpy()[None].repeat(K, 0) if relabelled else None
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        recipe = dataclasses.replace(RECIPE, precision=precision)
        trainer = Trainer(fake(features, mode), recipe, DEVICE, per_kernel)
        group = trainer.group(masks, KEYS, labels)
        assert isinstance(group, SharedGroup)
        for holder in (group, *group.shares):
            held = [value for value in vars(holder).values() if isinstance(value, torch.Tensor)]
            assert {value.device.type for value in held} == {DEVICE.type}
        with Transfers() as step:
            group.advance()
        with Transfers() as evaluation:
            logits = trainer.test_logits(group.parameters, group.state)
    assert step.operations > 15
    assert step.mixed == evaluation.mixed == []
    assert (logits.device.type, logits.dtype, logits.shape) == (DEVICE.type, torch.float32, (K, 20, 10))


def test_a_tensor_that_was_left_on_the_processor_is_found_out(features, masks):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        trainer = Trainer(fake(features, mode), RECIPE, DEVICE)
        group = trainer.group(masks, KEYS)
        assert isinstance(group, SharedGroup)
        group.shares[0].velocity = torch.zeros(group.shares[0].velocity.shape)
        with Transfers() as step, contextlib.suppress(RuntimeError):
            group.advance()
            assert step.mixed


def test_the_road_on_features(settings, features):
    chosen = settings(
        training__network="linear",
        training__batch_size=6,
        training__peak_lr=0.05,
        training__epochs=6,
        store__num_models=60,
        regress__prior="gradients",
        verify__methods="datamodel,relabel,similarity",
        verify__base_models=8,
        verify__sizes="none",
        groups__models_at_once=16,
    )
    trained(chosen, features)
    meta = read_store(chosen).meta
    assert meta.provenance["training"]["network"] == "linear"
    assert "LDS" in regress(chosen)
    models = Datamodels.load(stage_folder(chosen, "regress"))
    right = features.train.labels.numpy()[:, None] == features.test.labels.numpy()
    assert models.weights[right].mean() > 10 * abs(models.weights[~right].mean())
    verify_targets(chosen, built_in(chosen, features), models, list(range(6)))
    searches = result_of(chosen)["searches"]
    assert {search["method"] for search in searches} == {"datamodel", "relabel", "similarity"}
    assert any(search["verdict"] == "flipped" for search in searches)


@pytest.mark.parametrize("method", LIBRARY_METHODS)
def test_dattri_takes_them_apart(data, masks, method):
    pytest.importorskip("dattri")
    trainer = trainer_of(data, torch.float32)
    scores = attribute(trainer, method, masks[2:3], KEYS[2:3], [0, 5])
    right = data.train.labels.numpy()[:, None] == data.test.labels.numpy()[[0, 5]]
    assert scores.shape == (60, 2)
    assert scores[right].mean() > scores[~right].mean()
