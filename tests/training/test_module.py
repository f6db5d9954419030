"""Networks of one's own: the same models as PyTorch's own loop trains, in any company, and a sentence where there is none."""

import dataclasses
import inspect
import math
import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datamodels.bench.one_at_a_time import Loop, resident_batches
from datamodels.data import Dataset, Split
from datamodels.errors import InputError
from datamodels.settings import GroupSettings
from datamodels.subsets import draw_masks
from datamodels.training import Trainer, attribute, choose_groups, first_order, for_each_group, tuning
from datamodels.training.draws import INITIALISATION, generator
from datamodels.training.gradients import gradients
from datamodels.training.made import generators
from datamodels.training.margins import margin
from datamodels.training.module import ModuleNetwork
from datamodels.training.resnet9 import ResNet9
from tests.conftest import dataset
from tests.training import own_networks

CPU = torch.device("cpu")


def own(recipe, name, **more):
    return dataclasses.replace(recipe, network=f"tests.training.own_networks:{name}", peak_lr=0.1, **more)


def exact(data, recipe, name, per_kernel=None, **more):
    """A trainer in float64."""
    return Trainer(data, own(recipe, name, **more), CPU, per_kernel, torch.float64)


def logits_of(trainer, ids):
    return trainer.test_logits(*trainer.train(draw_masks(0, ids, trainer.n, 0.5), [(0, i) for i in ids]))


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("k", [1, 8])
def test_resnet9_as_a_module_is_the_built_in_one(digits, recipe, k, monkeypatch):
    built_in = Trainer(digits, recipe, CPU, dtype=torch.float64)
    mine = exact(digits, recipe, "ResNet9")
    network = built_in.network
    assert isinstance(network, ResNet9)
    assert mine.network.num_parameters == network.num_parameters

    def its_own(_, rng):
        row, module = torch.from_numpy(network.initial_parameters(rng)), own_networks.ResNet9(1, 10)
        parts = iter(network.by_name(row[None]).values())
        with torch.no_grad():
            for parameter in module.parameters():
                part = next(parts)[0]
                parameter.copy_(part.T if part.ndim == 2 else part)
        return flat(module).numpy()

    monkeypatch.setattr(ModuleNetwork, "initial_parameters", its_own)
    monkeypatch.setattr(mine, "recipe", dataclasses.replace(mine.recipe, peak_lr=recipe.peak_lr))
    masks, keys = draw_masks(0, range(k), 60, 0.5), [(0, i) for i in range(k)]
    found, oracle = (trainer.test_margins(*trainer.train(masks, keys)) for trainer in (mine, built_in))
    torch.testing.assert_close(found, oracle, rtol=0, atol=1e-6)
    for name, values in built_in.features_of(masks, keys).items():
        np.testing.assert_allclose(mine.features_of(masks, keys)[name], values, atol=1e-5)


@pytest.mark.parametrize("name", ["Plain", "Batchwise", "ResNet9", "made", "Viewing"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_a_module_is_trained_as_pytorchs_own_loop_trains_it(digits, recipe, name, nesterov):
    trainer = exact(digits, recipe, name, nesterov=nesterov)
    masks, keys = draw_masks(0, range(3), 60, 0.5), [(0, i) for i in range(3)]
    together = trainer.test_logits(*trainer.train(masks, keys))
    for k in range(3):
        torch.testing.assert_close(together[k], by_hand(trainer, name, masks[k : k + 1], keys[k]), rtol=0, atol=1e-9)


def by_hand(trainer, name, mask, key):
    """Logits of one model of a module by PyTorch's modules and optimiser."""
    recipe, group = trainer.recipe, trainer.group(mask, [key])
    named = {"classes": 10, "in_channels": 1, "channels": 1, "shape": (1, 8, 8)}
    make = getattr(own_networks, name)
    module = make(**{each: named[each] for each in inspect.signature(make).parameters if each in named}).double()
    start = iter(torch.split(torch.from_numpy(trainer.network.initial_parameters(generator(key, INITIALISATION))).double(), 1))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.cat([next(start) for _ in range(parameter.numel())]).view_as(parameter))
    optimiser = torch.optim.SGD(
        module.parameters(), 1.0, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
    )
    for step in range(group.num_steps[0]):
        x, labels = group.batches.at(torch.tensor([step]), slice(0, 1))
        optimiser.param_groups[0]["lr"] = float(group.lr[step, 0, 0])
        optimiser.zero_grad()
        F.cross_entropy(module(x.contiguous()), labels[0], label_smoothing=recipe.label_smoothing).backward()
        optimiser.step()
    module.eval()
    images = trainer.images.test.contiguous()
    with torch.no_grad():
        return (module(images) + module(images.flip(3))) / 2


def test_the_benchs_loop_trains_the_very_model_that_a_group_trains(digits, recipe):
    trainer, mask = exact(digits, recipe, "Plain"), draw_masks(0, [0], 60, 0.5)
    loop = Loop(trainer, np.flatnonzero(mask[0]), resident_batches(trainer, np.flatnonzero(mask[0])))
    start = torch.from_numpy(trainer.network.initial_parameters(generator((0, 0), INITIALISATION)))
    nn.utils.vector_to_parameters(start, loop.network.parameters())
    loop.network.double()
    for step in range(loop.num_steps):
        loop.advance(step)
    # Its losses are float32.
    np.testing.assert_allclose(loop.margins().numpy(), trainer.margins(mask, [(0, 0)])[0], atol=1e-4)


def test_the_example_learns_digits(recipe):
    chosen = dataclasses.replace(
        recipe, network="datamodels.examples.convnet:ConvNet", epochs=12, batch_size=25, flip=False, cutout=0, max_shift=0
    )
    margins = Trainer(dataset(400, 200), chosen, CPU).margins(np.ones((2, 400), bool), [(0, 0), (0, 1)])
    assert (margins > 0).mean() > 0.8


@pytest.mark.parametrize("name", ["Plain", "Batchwise", "Random", "Buffers", "Lazy", "Attention"])
def test_a_model_is_the_same_in_any_company(digits, recipe, name, capsys):
    trainer = exact(digits, recipe, name)
    assert trainer.network.capturable
    assert "one after another" not in capsys.readouterr().err
    together = logits_of(trainer, range(8))
    torch.testing.assert_close(logits_of(trainer, [5, 2, 1]), together[[5, 2, 1]], rtol=0, atol=1e-9)
    torch.testing.assert_close(logits_of(trainer, [3]), together[3:4], rtol=0, atol=1e-9)
    apart = exact(digits, recipe, name, 3)
    torch.testing.assert_close(logits_of(apart, range(8)), together, rtol=0, atol=1e-9)
    assert (together[3] - together[4]).abs().max() > 0.01


def test_randomness_is_of_the_key_and_of_the_step(digits, recipe):
    trainer = exact(digits, recipe, "Random")
    masks = draw_masks(0, [0, 0], 60, 0.5)
    group = trainer.group(masks, [(0, 0), (0, 0)])
    group.parameters[1] = group.parameters[0]
    group.state.seed[1] += 1
    batch = group.batches.at(group.step, slice(0, 2))[0]
    with torch.no_grad():
        first, again = (trainer.network.forward(group.parameters, group.state.clone(), batch, training=True) for _ in range(2))
        trainer.network.forward(group.parameters, group.state, batch, training=True)
        later = trainer.network.forward(group.parameters, group.state, batch, training=True)
    assert torch.equal(first, again)
    assert group.state.step.tolist() == [2, 2]
    assert (first[0] - first[1]).abs().max() > 0.01
    assert (first - later).abs().amax((1, 2)).min() > 0.01


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Asking", ".item()"),
        ("Averaging", ".item()"),
        ("Drawing", "randomness error"),
        ("Skipping", "it draws from Python's random, of which all would get one number"),
        ("Shifting", "it draws from NumPy's random, of which all would get one number"),
    ],
)
def test_where_vmap_cannot_take_a_module_its_models_go_one_after_another(digits, recipe, name, why, capsys, monkeypatch):
    monkeypatch.setattr("datamodels.training.module._say_once", ModuleNetwork.__init__.__globals__["_say_once"].__wrapped__)
    trainer = exact(digits, recipe, name)
    told = capsys.readouterr().err
    assert f"own_networks:{name}: torch.vmap does not take it" in told
    assert why in told
    assert told.count("one after another") == 1
    assert not trainer.network.capturable
    together = logits_of(trainer, range(3))
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.testing.assert_close(logits_of(trainer, [2, 1]), together[[2, 1]], rtol=0, atol=1e-9)
    assert (together[0] - together[1]).abs().max() > 0.01
    scores = first_order(trainer, draw_masks(0, [0, 1], 60, 0.5), [(0, 0), (0, 1)], 64)
    assert np.isfinite(scores["gradients"]).all()


def test_one_after_another_is_what_goes_at_once(digits, recipe):
    asking, random = exact(digits, recipe, "Asking"), exact(digits, recipe, "Random")
    torch.testing.assert_close(logits_of(asking, range(3)), logits_of(random, range(3)), rtol=0, atol=1e-9)
    masks, keys = draw_masks(0, [0, 1], 60, 0.5), [(0, 0), (0, 1)]
    for name, values in first_order(random, masks, keys, 64).items():
        np.testing.assert_allclose(first_order(asking, masks, keys, 64)[name], values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["Drawing", "Skipping", "Shifting"])
def test_drawing_from_a_generator_that_all_share_leaves_it_as_it_was(digits, recipe, name):
    trainer = exact(digits, recipe, name)
    before = generators(CPU)
    logits_of(trainer, [0])
    assert generators(CPU) == before


def test_buffers_are_each_models_own_and_what_is_frozen_stays(digits, recipe):
    trainer = exact(digits, recipe, "Buffers")
    masks, keys = np.ones((3, 60), bool), [(0, i) for i in range(3)]
    masks[1, :30] = False
    start = trainer.network.initial_state(keys, CPU, torch.float64)
    _, state = trainer.train(masks, keys)
    assert torch.equal(state.tensors["frozen"], start.tensors["frozen"])
    assert torch.equal(state.tensors["table"], start.tensors["table"])
    assert (start.tensors["table"][0] - start.tensors["table"][1]).abs().max() > 0.1
    # Each at its own last step, though the group went on.
    assert state.tensors["steps"].tolist() == [18, 9, 18]
    assert state.tensors["steps"].dtype == torch.int64
    assert state.tensors["seen"].unique().numel() == 3
    # The tied matrix counts once: 8 × 8 and the last layer.
    assert trainer.network.num_parameters == 64 + 8 * 10 + 10


def test_running_statistics_are_those_of_pytorchs_own_layer(digits, recipe):
    trainer = exact(digits, recipe, "Plain")
    group = trainer.group(draw_masks(0, range(2), 60, 0.5), [(0, 0), (0, 1)])
    batches = [group.batches.at(torch.tensor([step]), slice(0, 2))[0] for step in range(3)]
    for x in batches:
        trainer.network.forward(group.parameters, group.state, x, training=True)
    for k in range(2):
        convolution, layer = nn.Conv2d(1, 6, 3, padding=1).double(), nn.BatchNorm2d(6).double()
        size = convolution.weight.numel()
        with torch.no_grad():
            convolution.weight.copy_(group.parameters[k, :size].view_as(convolution.weight))
            convolution.bias.copy_(group.parameters[k, size : size + 6])  # type: ignore[union-attr]
            for x in batches:
                layer(convolution(x[:, k : k + 1]))
        for name, value in layer.named_buffers():
            torch.testing.assert_close(group.state.tensors[f"norm1.{name}"][k], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["Plain", "Buffers", "Averaging", "no_linear"])
def test_gradients_of_single_images_are_autograds(digits, recipe, name):
    trainer = exact(digits, recipe, name)
    network, images = trainer.network, trainer.images
    parameters, state = trainer.train(np.ones((2, 60), bool), [(0, 0), (0, 1)])
    its = state.of(slice(1, 2), 2)
    found = gradients(network, parameters[1], its, images.test[:5], images.test_labels[:5])
    for b in range(5):
        row = parameters[1:2].detach().requires_grad_()
        logits = network.evaluate(row, its, images.test[b : b + 1])[0, 0]
        others = torch.arange(10) != images.test_labels[b]
        f = logits[images.test_labels[b]] - torch.logsumexp(logits[others], 0)
        (oracle,) = torch.autograd.grad(f, row)
        torch.testing.assert_close(found.vectors[b], oracle[0], rtol=1e-8, atol=1e-10)
        assert float(found.outputs[b]) == pytest.approx(float(f.detach()), rel=1e-9)
    its_features = network.features_of(parameters[1:2], its, images.test[:5])[0]
    torch.testing.assert_close(found.features, its_features, rtol=1e-9, atol=1e-12)
    if name == "no_linear":
        torch.testing.assert_close(its_features, network.evaluate(parameters[1:2], its, images.test[:5])[0])
    assert sum(network.layer_sizes) == network.num_parameters


def test_features_are_what_the_last_linear_layer_sees(digits, recipe):
    trainer = exact(digits, recipe, "Plain")
    parameters, state = trainer.train(np.ones((2, 60), bool), [(0, 0), (0, 1)])
    with torch.no_grad():
        features = trainer.network.features_of(parameters, state, trainer.images.test)
        logits = trainer.network.evaluate(parameters, state, trainer.images.test)
    weight, bias = parameters[:, -330:-10].view(2, 10, 32), parameters[:, -10:]
    torch.testing.assert_close(torch.bmm(features, weight.mT) + bias[:, None], logits, rtol=1e-9, atol=1e-12)


def test_models_on_threads_side_by_side_are_those_that_are_trained_in_turn(digits, recipe, monkeypatch):
    trainer = Trainer(digits, own(recipe, "Random"), CPU)
    monkeypatch.setattr("datamodels.training.devices.cores", lambda: 4)
    found, together = dict[int, np.ndarray](), threading.Barrier(4, timeout=60)

    def work(i):
        together.wait()
        found[i] = trainer.margins(draw_masks(0, [i], 60, 0.5), [(0, i)])

    for_each_group(range(4), work, CPU)
    for i in range(4):
        assert np.array_equal(found[i], trainer.margins(draw_masks(0, [i], 60, 0.5), [(0, i)]))


def test_a_backbone_that_is_there_once_serves_several_threads(digits, recipe, monkeypatch):
    trainer = exact(digits, recipe, "OnOneBackbone")
    monkeypatch.setattr("datamodels.training.devices.cores", lambda: 4)
    before = [t.clone() for t in own_networks.BACKBONE.state_dict().values()]
    found = dict[int, torch.Tensor]()

    def work(i):
        found[i] = logits_of(trainer, [2 * i, 2 * i + 1])

    for_each_group(range(8), work, CPU)
    torch.testing.assert_close(torch.cat([found[i] for i in range(8)]), logits_of(trainer, range(16)), rtol=0, atol=1e-9)
    assert all(map(torch.equal, before, own_networks.BACKBONE.state_dict().values()))


@pytest.mark.parametrize("name", ["InPlace", "InPlaceAsking"])
def test_images_stay_as_they_are_where_a_module_changes_them(digits, recipe, name):
    trainer = Trainer(digits, own(recipe, name), CPU)
    before = [trainer.images.train.clone(), trainer.images.test.clone()]
    first = trainer.margins(draw_masks(0, [0, 1], 60, 0.5), [(0, 0), (0, 1)])
    trainer.features_of(np.ones((1, 60), bool), [(0, 0)])
    first_order(trainer, np.ones((1, 60), bool), [(0, 0)], 64)
    assert np.array_equal(first, trainer.margins(draw_masks(0, [0, 1], 60, 0.5), [(0, 0), (0, 1)]))
    assert torch.equal(trainer.images.train, before[0])
    assert torch.equal(trainer.images.test, before[1])


def test_pythons_and_numpys_random_numbers_are_of_the_key(digits, recipe):
    trainer = exact(digits, recipe, "OfPython")
    together = logits_of(trainer, range(3))
    random.seed(1)
    torch.testing.assert_close(logits_of(trainer, [2, 1]), together[[2, 1]], rtol=0, atol=1e-9)


def test_images_of_several_channels_are_seen_as_they_would_be_alone(digits, recipe):
    generator_ = torch.Generator().manual_seed(0)
    splits = [
        dataclasses.replace(s, images=torch.randint(256, (len(s.labels), 8, 8, 3), dtype=torch.uint8, generator=generator_))
        for s in (digits.train, digits.test)
    ]
    data = dataclasses.replace(digits, train=splits[0], test=splits[1])
    for name in ("Viewing", "Plain"):
        trainer = exact(data, recipe, name)
        assert trainer.network.capturable
        torch.testing.assert_close(logits_of(trainer, [2]), logits_of(trainer, range(3))[2:], rtol=0, atol=1e-9)


def test_a_network_of_features(recipe):
    rng = np.random.default_rng(0)
    values, labels = torch.from_numpy(rng.normal(size=(60, 6)).astype(np.float32)), torch.arange(60) % 3
    values[:, 0] += 4.0 * labels
    data = Dataset(Split(values[:40], labels[:40]), Split(values[40:], labels[40:]), tuple("abc"), "digest")
    trainer = exact(data, recipe, "made", epochs=30, flip=True, cutout=2, max_shift=1)
    parameters, state = trainer.train(np.ones((2, 40), bool), [(0, 0), (0, 1)])
    margins = trainer.test_margins(parameters, state)
    assert (margins > 0).double().mean() > 0.6
    oracle = trainer.network.evaluate(parameters, state, trainer.images.test)
    torch.testing.assert_close(margins, margin(oracle, trainer.images.test_labels))
    assert first_order(trainer, np.ones((2, 40), bool), [(0, 0), (0, 1)], 64)["gradients"].shape == (2, 40, 20)


@pytest.mark.parametrize("method", ["tracin", "influence", "trak"])
def test_dattri_takes_own_networks_apart(digits, recipe, method, monkeypatch):
    monkeypatch.setattr("datamodels.training.attributed.PROJECTED", 512)
    trainer = Trainer(digits, own(recipe, "Plain", epochs=8), CPU)
    masks, keys = np.ones((2, 60), bool), [(0, 0), (0, 1)]
    targets = [3, 8, 11]
    found = attribute(trainer, method, masks, keys, targets)
    ours = first_order(trainer, masks, keys, 64)["gradients"][-1][:, targets]
    assert np.corrcoef(found.ravel(), ours.ravel())[0, 1] > 0.15


def test_models_learn_the_labels_that_they_are_given(digits, recipe):
    trainer = Trainer(digits, own(recipe, "Plain", epochs=20), CPU)
    labels = np.tile(digits.train.labels.numpy(), (2, 1))
    labels[1] = 7
    found = trainer.outputs(np.ones((2, 60), bool), [(0, 0), (0, 1)], labels)
    assert (found["logits"][1].argmax(1) == 7).mean() > 0.9
    assert (found["logits"][0].argmax(1) == 7).mean() < 0.5


def test_groups_are_chosen_by_measuring(digits, recipe, monkeypatch):
    monkeypatch.setattr(tuning, "MEASURE_S", 0.02)
    monkeypatch.setattr(tuning, "MOST_AT_ONCE", 8)
    chosen, speeds = choose_groups(digits, own(recipe, "Plain"), GroupSettings(), CPU)
    assert chosen.models_at_once > 1
    assert {groups.program for groups in speeds} == {"plain"}


def test_the_largest_activation_is_measured(digits, recipe):
    # The first convolution's: 6 channels of 8 × 8 pixels.
    assert Trainer(digits, own(recipe, "Plain"), CPU).network.largest_map(8, 8) == 6 * 64


def test_bfloat16_is_refused(digits, recipe):
    with pytest.raises(InputError, match=r"bfloat16 is not for tests\.training\.own_networks:Plain; set --training\.precision"):
        Trainer(digits, own(recipe, "Plain", precision="bfloat16"), CPU)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Missing", "own_networks has no Missing"),
        ("NOT_A_MODULE", "is neither a class nor a function"),
        ("A_MODULE", "is a module already; name its class, or a function that makes one"),
        ("nothing", "gives no torch.nn.Module but NoneType"),
        ("no_parameters", "has no parameters that could be trained"),
        ("all_frozen", "has no parameters that could be trained"),
        ("of_doubles", "the parameter 1.weight is torch.float64, not torch.float32"),
        ("too_many_logits", "gives logits of shape (3, 11) for 3 images, not (3, 10)"),
        (
            "no_such_argument",
            "asks for depth, and there are classes, num_classes, channels, in_channels, shape, size",
        ),
        ("raising", "raised ValueError: no luck today (own_networks.py, line "),
        ("ending", "raised SystemExit: 3 (own_networks.py, line "),
        ("FailingForward", "raised RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        ("Pairs", "gives tuple of images, not a tensor of logits"),
        ("Integers", "gives a tensor of torch.int64 of images, not a tensor of logits"),
        ("Detached", "gives logits that do not depend on its parameters, by a gradient"),
        ("Counting", "gives other logits of the same images when it is called again: what it remembers must be a buffer"),
        ("OfItsOwn", "gives other logits of the same images when it is called again"),
        ("Alternating", "makes modules of different parameters, and K models have the same"),
    ],
)
def test_what_cannot_be_trained_is_a_sentence(digits, recipe, name, told):
    with pytest.raises(InputError) as error:
        Trainer(digits, own(recipe, name), CPU)
    text = str(error.value)
    assert text.startswith("training.network ")
    assert f"tests.training.own_networks:{name}" in text
    assert told in text
    assert "\n" not in text


def test_a_module_that_is_not_there_or_fails_is_a_sentence(digits, recipe, tmp_path, monkeypatch):
    (tmp_path / "net_that_fails.py").write_text("import torch\n\n1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, told in (
        ("no_such_module_anywhere:Net", "there is no module no_such_module_anywhere here"),
        ("net_that_fails:Net", "raised ZeroDivisionError: division by zero (net_that_fails.py, line 3)"),
    ):
        with pytest.raises(InputError) as error:
            Trainer(digits, dataclasses.replace(recipe, network=name), CPU)
        assert told in str(error.value)


def test_initialisation_follows_from_the_key_alone(digits, recipe):
    networks = [Trainer(digits, own(recipe, "Lazy"), CPU).network for _ in range(2)]
    torch.manual_seed(7)
    first, again, other = (
        network.initial_parameters(generator(key, INITIALISATION))
        for network, key in zip([*networks, networks[0]], [(0, 3), (0, 3), (0, 4)], strict=True)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(first) == networks[0].num_parameters == 64 * 7 + 7 + 14 + 7 * 10 + 10
    assert math.isclose(np.abs(first[: 64 * 7]).max(), 1 / 8, rel_tol=0.05)
