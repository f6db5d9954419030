"""What must not change a model: its neighbours, its place, its group's size, what it has not seen."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from datamodels.data import Dataset
from datamodels.errors import InputError
from datamodels.settings import TrainingSettings
from datamodels.subsets import draw_masks
from datamodels.training import Trainer
from datamodels.training.batches import Batches
from datamodels.training.draws import Augmentation, draw
from datamodels.training.group import Group, learning_rates
from datamodels.training.margins import margin
from tests.conftest import dataset

CPU = torch.device("cpu")


def rows(trainer, ids, seed=0, alpha=0.5):
    return trainer.margins(draw_masks(seed, ids, trainer.n, alpha), [(seed, i) for i in ids])


def exact_margins(trainer, ids):
    parameters, statistics = trainer.train(draw_masks(0, ids, trainer.n, 0.5), [(0, i) for i in ids])
    return trainer.test_margins(parameters, statistics)


def test_a_model_is_the_same_alone_among_seven_others_and_at_another_place(digits, recipe):
    trainer = Trainer(digits, recipe, CPU, dtype=torch.float64)
    alone = torch.cat([exact_margins(trainer, [i]) for i in range(3)])
    together = exact_margins(trainer, range(8))
    elsewhere = exact_margins(trainer, [5, 2, 9, 0, 1])
    torch.testing.assert_close(together[:3], alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(elsewhere[[3, 4, 1]], alone, rtol=0, atol=1e-6)
    assert (together[3] - together[4]).abs().max() > 0.1


def test_one_step_in_float32_has_the_same_gradients_in_any_group(digits, recipe):
    trainer = Trainer(digits, recipe, CPU)

    def gradient(ids):
        group = trainer.group(draw_masks(0, ids, trainer.n, 0.5), [(0, i) for i in ids])
        group._fill_gradient(slice(0, len(ids)))
        return group.gradient

    together = gradient(list(range(8)))
    for i in (0, 3, 7):
        torch.testing.assert_close(together[i], gradient([i])[0], rtol=1e-4, atol=1e-5)


def test_a_block_trained_twice_gives_bitwise_the_same_rows(digits, recipe):
    trainer = Trainer(digits, recipe, CPU)
    assert np.array_equal(rows(trainer, range(4)), rows(Trainer(digits, recipe, CPU), range(4)))


def test_models_with_subsets_of_different_sizes_share_a_group(digits, recipe):
    trainer = Trainer(digits, recipe, CPU, dtype=torch.float64)
    masks = np.zeros((3, 60), bool)
    for mask, size in zip(masks, (60, 21, 33), strict=True):
        mask[:size] = True
    together = trainer.test_margins(*trainer.train(masks, [(1, k) for k in range(3)]))
    for k in range(3):
        alone = trainer.test_margins(*trainer.train(masks[k : k + 1], [(1, k)]))
        torch.testing.assert_close(together[k], alone[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("per_kernel", [1, 3])
def test_models_are_the_same_whatever_shares_a_kernel(digits, recipe, per_kernel):
    masks, keys = draw_masks(0, range(7), 60, 0.5), [(0, i) for i in range(7)]
    apart, together = (Trainer(digits, recipe, CPU, g, torch.float64) for g in (per_kernel, None))
    np.testing.assert_allclose(apart.margins(masks, keys), together.margins(masks, keys), rtol=0, atol=1e-6)


def test_a_step_is_the_same_list_of_operations_every_time_and_never_waits_for_a_number(digits, recipe):
    trainer = Trainer(digits, dataclasses.replace(recipe, precision="bfloat16"), CPU, 2)
    group = trainer.group(draw_masks(0, range(4), 60, 0.5), [(0, i) for i in range(4)])
    steps = []
    for _ in range(2):
        with Operations() as operations:
            group.advance()
        steps.append(operations.names)
    assert steps[0] == steps[1]
    assert any("convolution_backward" in name for name in steps[0])
    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default", "copy_to")
    assert not [name for name in steps[0] if any(word in name for word in waiting)]


class Operations(TorchDispatchMode):
    """Names of the operations that PyTorch runs, those of the backward pass among them."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_bfloat16_keeps_float32_weights_and_finds_nearly_the_same_gradient():
    data = dataset(200, 100)
    recipe = TrainingSettings(
        width=8, last_padding=1, epochs=6, batch_size=20, peak_lr=0.3, peak_epoch=2, max_shift=0, flip=False
    )
    masks, keys = np.ones((4, 200), bool), [(0, i) for i in range(4)]
    whole, half = (Trainer(data, dataclasses.replace(recipe, precision=p), CPU) for p in ("float32", "bfloat16"))
    assert half.images.pixels.dtype == torch.bfloat16
    assert {half.train(masks[:1], keys[:1])[0].dtype, half.group(masks, keys).velocity.dtype} == {torch.float32}
    groups = [trainer.group(masks, keys) for trainer in (whole, half)]
    for group in groups:
        group._fill_gradient(slice(0, 4))
    assert not torch.equal(groups[0].gradient, groups[1].gradient)
    assert (torch.cosine_similarity(groups[0].gradient, groups[1].gradient) > 0.98).all()
    assert np.corrcoef(*(trainer.margins(masks, keys).mean(0) for trainer in (whole, half)))[0, 1] > 0.85


def test_out_of_memory_halves_the_group_and_says_so(digits, recipe, monkeypatch, capsys):
    masks, keys = draw_masks(0, range(7), 60, 0.5), [(0, i) for i in range(7)]
    trainer = Trainer(digits, recipe, CPU, dtype=torch.float64)
    whole, train, sizes = trainer.margins(masks, keys), Group.train, []

    def little_memory(self):
        sizes.append(len(self.num_steps))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(self)

    monkeypatch.setattr(Group, "train", little_memory)
    np.testing.assert_allclose(trainer.margins(masks, keys), whole, rtol=0, atol=1e-6)
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert "out of memory on cpu with 7 models at once: going on with 3" in capsys.readouterr().err


def test_too_little_memory_for_one_model_is_said_in_a_sentence(digits, recipe, monkeypatch):
    def no_memory(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Group, "train", no_memory)
    with pytest.raises(InputError, match="too little memory for one ResNet-9 of width 4"):
        rows(Trainer(digits, recipe, CPU), range(3))


def test_a_model_that_diverges_is_trained_once_more_from_another_key_and_then_given_up(digits, recipe, monkeypatch):
    group_of, seen = Trainer.group_of, []

    def fragile(self, draws, keys, labels=None):
        seen.append(list(keys))
        group = group_of(self, draws, keys, labels)
        trained = group.train()
        monkeypatch.setattr(group, "train", lambda: spoilt(*trained, keys))
        return group

    def spoilt(parameters, statistics, keys):
        for k, key in enumerate(keys):
            if key[:2] == (0, 1) or key == (0, 2):
                parameters[k] = float("inf")
        return parameters, statistics

    trainer = Trainer(digits, recipe, CPU)
    healthy = rows(trainer, range(4))
    monkeypatch.setattr(Trainer, "group_of", fragile)
    margins = rows(trainer, range(4))
    assert seen == [[(0, 0), (0, 1), (0, 2), (0, 3)], [(0, 1, 4), (0, 2, 4)]]
    assert np.array_equal(margins[[0, 3]], healthy[[0, 3]])
    assert np.isnan(margins[1]).all()
    assert np.isfinite(margins[2]).all()
    assert not np.array_equal(margins[2], healthy[2])


def test_a_recipe_that_explodes_gives_no_margin_at_all(digits, recipe):
    margins = rows(Trainer(digits, dataclasses.replace(recipe, peak_lr=1e30), CPU), range(3))
    assert np.isnan(margins).all()


def test_a_model_learns_nothing_of_images_outside_its_mask(digits, recipe):
    masks = draw_masks(0, range(4), 60, 0.5)
    unseen = np.flatnonzero(~masks[1] & masks[0])
    labels = digits.train.labels.clone()
    labels[unseen] = (labels[unseen] + 1) % 10
    poisoned = dataclasses.replace(digits, train=dataclasses.replace(digits.train, labels=labels))
    clean, changed = (rows(Trainer(d, recipe, CPU), range(4)) for d in (digits, poisoned))
    assert np.array_equal(clean[1], changed[1])
    assert not np.array_equal(clean[0], changed[0])


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("flip", [False, True])
def test_batches_are_shifted_mirrored_and_cut_as_drawn(recipe, flip, size):
    data = dataset(20, 5)
    images = torch.randint(256, (20, size, size, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, images=images))
    trainer = Trainer(data, dataclasses.replace(recipe, flip=flip, max_shift=2, cutout=3), CPU, dtype=torch.float64)
    augmentation = Augmentation(2, flip, 3)
    draws = [draw((0, k), np.ones(20, bool), recipe.batch_size, recipe.epochs, augmentation, size, size) for k in range(2)]
    batches = Batches(draws, trainer.images, augmentation)
    pixels = data.train.images.numpy().astype(float)
    normalised = np.pad((pixels - pixels.mean()) / pixels.std(), ((0, 0), (2, 2), (2, 2), (0, 0)))
    for step in (0, len(draws[0].image) - 1):
        x, labels = batches.at(torch.tensor([step]), slice(0, 2))
        assert x.shape == (10, 2, size, size)
        assert x.is_contiguous(memory_format=torch.channels_last)
        for k, d in enumerate(draws):
            for b in range(10):
                top, left = d.dy[step, b], d.dx[step, b]
                image = normalised[d.image[step, b], top : top + size, left : left + size, 0].copy()
                image = image[:, ::-1].copy() if d.flip[step, b] else image
                column, row = d.cut_x[step, b], d.cut_y[step, b]
                shown = x[b, k].numpy().copy()
                image[row : row + 3, column : column + 3] = 0
                np.testing.assert_allclose(shown, image, atol=1e-12)
                assert labels[k, b] == data.train.labels[d.image[step, b]]


def test_evaluation_averages_an_image_and_its_mirror_image_along_the_width(digits, recipe):
    trainer = Trainer(digits, recipe, CPU, dtype=torch.float64)
    trained = trainer.train(draw_masks(0, range(2), 60, 0.5), [(0, 0), (0, 1)])
    averaged = trainer.test_logits(*trained)
    one_way = Trainer(digits, dataclasses.replace(recipe, flip=False), CPU, dtype=torch.float64).test_logits(*trained)
    mirrored_images = dataclasses.replace(digits.test, images=digits.test.images.flip(2))
    mirrored_data = dataclasses.replace(digits, test=mirrored_images)
    other_way = Trainer(mirrored_data, dataclasses.replace(recipe, flip=False), CPU, dtype=torch.float64).test_logits(*trained)
    torch.testing.assert_close(averaged, (one_way + other_way) / 2)
    assert (one_way - other_way).abs().max() > 0.01


def test_learning_rate_rises_to_its_peak_and_falls_to_nothing_after_the_last_step(recipe):
    lr = learning_rates(recipe, [30, 15])[..., 0]
    expected = [min(s / 10, (31 - s) / 21) * 0.3 for s in range(1, 31)]
    torch.testing.assert_close(lr[:, 0], torch.tensor(expected, dtype=torch.float64))
    assert lr[4, 1] == pytest.approx(0.3)
    assert (lr[:15, 1] > 0).all()
    assert not lr[15:, 1].any()


def test_margin_is_the_right_logit_less_the_largest_other():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 7, 5)), rng.integers(0, 5, 7)
    expected = [[row[y] - max(np.delete(row, y)) for row, y in zip(model, labels, strict=True)] for model in logits]
    np.testing.assert_allclose(margin(torch.from_numpy(logits), torch.from_numpy(labels)).numpy(), expected)


def test_the_recipe_of_the_demo_learns_digits():
    from datamodels.resources import CONFIGS
    from datamodels.settings import parse

    demo = parse(["-C", str(CONFIGS / "digits.yaml")])[0].training
    data: Dataset = dataset(500, 300)
    margins = Trainer(data, demo, CPU).margins(np.ones((2, 500), bool), [(0, 0), (0, 1)])
    assert (margins > 0).mean() > 0.9


def test_models_learn_the_labels_that_they_are_given(digits, recipe):
    masks, keys = draw_masks(0, range(4), 60, 0.7), [(0, i) for i in range(4)]
    trainer, own = Trainer(digits, recipe, CPU, dtype=torch.float64), digits.train.labels.numpy()
    plain = trainer.outputs(masks, keys)
    told = trainer.outputs(masks, keys, np.tile(own, (4, 1)))
    np.testing.assert_allclose(told["margins"], plain["margins"], rtol=0, atol=1e-9)
    labels = np.tile(own, (4, 1))
    labels[2] = 7
    mixed = trainer.outputs(masks, keys, labels)
    # Model 2 knows one class only; the others are what they were, in its company too.
    assert (mixed["logits"][2].argmax(1) == 7).all()
    np.testing.assert_allclose(mixed["margins"][[0, 1, 3]], plain["margins"][[0, 1, 3]], rtol=0, atol=1e-6)


def test_features_are_what_the_last_layer_sees(digits, recipe):
    trainer = Trainer(digits, recipe, CPU, dtype=torch.float64)
    masks, keys = np.ones((2, 60), bool), [(0, 0), (0, 1)]
    found = trainer.features_of(masks, keys)
    assert found["features_train"].shape == (2, 60, 2 * recipe.width)
    parameters, statistics = trainer.train(masks, keys)
    network: Any = trainer.network
    linear = network.by_name(parameters)["linear.weight"]
    with torch.no_grad():
        views = torch.cat([trainer.images.test[[3, 8]], trainer.images.train])
        stacked = torch.cat([views, views], 1)  # both models see the same images
        features = network.features(parameters, statistics, stacked, training=False)
        logits = network.forward(parameters, statistics, stacked, training=False)
    unit = features / torch.linalg.vector_norm(features, dim=2, keepdim=True)
    np.testing.assert_allclose(found["features_test"][:, [3, 8]], unit[:, :2], atol=1e-6)
    np.testing.assert_allclose(found["features_train"], unit[:, 2:], atol=1e-6)
    np.testing.assert_allclose(torch.bmm(features, linear) * (logits / torch.bmm(features, linear)).mean(), logits, atol=1e-6)


def test_a_square_that_is_larger_than_the_image_cannot_be_cut_out(digits, recipe):
    Trainer(digits, dataclasses.replace(recipe, cutout=8), CPU)
    with pytest.raises(InputError, match=r"training\.cutout is 9, and images of 8 pixels"):
        Trainer(digits, dataclasses.replace(recipe, cutout=9), CPU)
