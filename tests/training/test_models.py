"""What must not change a model: its neighbours, its place, its group's size, what it has not seen."""

import dataclasses

import numpy as np
import pytest
import torch

from datamodels.data import Dataset
from datamodels.subsets import draw_masks
from datamodels.training import Trainer
from datamodels.training.models import _Batches, margin
from tests.conftest import dataset

CPU = torch.device("cpu")


def rows(trainer, ids, seed=0, alpha=0.5):
    return trainer.margins(draw_masks(seed, ids, trainer.n, alpha), [(seed, i) for i in ids])


def exact_margins(trainer, ids):
    parameters, statistics = trainer.train(draw_masks(0, ids, trainer.n, 0.5), [(0, i) for i in ids])
    return trainer.test_margins(parameters, statistics)


def test_a_model_is_the_same_alone_among_seven_others_and_at_another_place(digits, recipe):
    trainer = Trainer(digits, recipe, CPU, torch.float64)
    alone = torch.cat([exact_margins(trainer, [i]) for i in range(3)])
    together = exact_margins(trainer, range(8))
    elsewhere = exact_margins(trainer, [5, 2, 9, 0, 1])
    torch.testing.assert_close(together[:3], alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(elsewhere[[3, 4, 1]], alone, rtol=0, atol=1e-6)
    assert (together[3] - together[4]).abs().max() > 0.1


def test_one_step_in_float32_has_the_same_gradients_in_any_group(digits, recipe):
    trainer = Trainer(digits, recipe, CPU)

    def gradient(ids):
        masks = draw_masks(0, ids, trainer.n, 0.5)
        batches = _Batches([trainer._draw((0, i), mask) for i, mask in zip(ids, masks, strict=True)], trainer)
        start = [trainer.network.initial_parameters(np.random.default_rng([0, i, 1])) for i in ids]
        parameters = torch.from_numpy(np.stack(start)).requires_grad_()
        statistics = trainer.network.initial_statistics(len(ids), CPU, torch.float32)
        return trainer.gradient(parameters, statistics, *batches[0])

    together = gradient(list(range(8)))
    for i in (0, 3, 7):
        torch.testing.assert_close(together[i], gradient([i])[0], rtol=1e-4, atol=1e-5)


def test_a_block_trained_twice_gives_bitwise_the_same_rows(digits, recipe):
    trainer = Trainer(digits, recipe, CPU)
    assert np.array_equal(rows(trainer, range(4)), rows(Trainer(digits, recipe, CPU), range(4)))


def test_models_with_subsets_of_different_sizes_share_a_group(digits, recipe):
    trainer = Trainer(digits, recipe, CPU, torch.float64)
    masks = np.zeros((3, 60), bool)
    for mask, size in zip(masks, (60, 21, 33), strict=True):
        mask[:size] = True
    together = trainer.test_margins(*trainer.train(masks, [(1, k) for k in range(3)]))
    for k in range(3):
        alone = trainer.test_margins(*trainer.train(masks[k : k + 1], [(1, k)]))
        torch.testing.assert_close(together[k], alone[0], rtol=0, atol=1e-6)


def test_a_model_learns_nothing_of_images_outside_its_mask(digits, recipe):
    masks = draw_masks(0, range(4), 60, 0.5)
    unseen = np.flatnonzero(~masks[1] & masks[0])
    labels = digits.train.labels.clone()
    labels[unseen] = (labels[unseen] + 1) % 10
    poisoned = dataclasses.replace(digits, train=dataclasses.replace(digits.train, labels=labels))
    clean, changed = (rows(Trainer(d, recipe, CPU), range(4)) for d in (digits, poisoned))
    assert np.array_equal(clean[1], changed[1])
    assert not np.array_equal(clean[0], changed[0])


@pytest.mark.parametrize("flip", [False, True])
def test_batches_are_shifted_mirrored_and_cut_as_drawn(recipe, flip):
    data = dataset(20, 5)
    trainer = Trainer(data, dataclasses.replace(recipe, flip=flip, max_shift=2, cutout=3), CPU, torch.float64)
    draws = [trainer._draw((0, k), np.ones(20, bool)) for k in range(2)]
    batches = _Batches(draws, trainer)
    pixels = data.train.images.numpy().astype(float)
    normalised = np.pad((pixels - pixels.mean()) / pixels.std(), ((0, 0), (2, 2), (2, 2), (0, 0)))
    for step in (0, len(draws[0].image) - 1):
        x, labels = batches[step]
        assert x.shape == (10, 2, 8, 8)
        assert x.is_contiguous(memory_format=torch.channels_last)
        for k, d in enumerate(draws):
            for b in range(10):
                top, left = d.dy[step, b], d.dx[step, b]
                image = normalised[d.image[step, b], top : top + 8, left : left + 8, 0].copy()
                image = image[:, ::-1].copy() if d.flip[step, b] else image
                column, row = d.cut_x[step, b], d.cut_y[step, b]
                shown = x[b, k].numpy().copy()
                image[row : row + 3, column : column + 3] = 0
                np.testing.assert_allclose(shown, image, atol=1e-12)
                assert labels[k, b] == data.train.labels[d.image[step, b]]


def test_evaluation_averages_an_image_and_its_mirror_image_along_the_width(digits, recipe):
    trainer = Trainer(digits, recipe, CPU, torch.float64)
    trained = trainer.train(draw_masks(0, range(2), 60, 0.5), [(0, 0), (0, 1)])
    averaged = trainer.test_logits(*trained)
    one_way = Trainer(digits, dataclasses.replace(recipe, flip=False), CPU, torch.float64).test_logits(*trained)
    mirrored_images = dataclasses.replace(digits.test, images=digits.test.images.flip(2))
    mirrored_data = dataclasses.replace(digits, test=mirrored_images)
    other_way = Trainer(mirrored_data, dataclasses.replace(recipe, flip=False), CPU, torch.float64).test_logits(*trained)
    torch.testing.assert_close(averaged, (one_way + other_way) / 2)
    assert (one_way - other_way).abs().max() > 0.01


def test_learning_rate_rises_to_its_peak_and_falls_to_nothing_after_the_last_step(digits, recipe):
    trainer = Trainer(digits, recipe, CPU, torch.float64)
    lr = trainer._learning_rates(torch.tensor([30, 15]))[..., 0]
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
