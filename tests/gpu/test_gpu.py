"""What only a GPU can show: kernels against their NumPy references, and the same mathematics on either device."""

import dataclasses

import numpy as np
import pytest
import torch

from datamodels.settings import GroupSettings
from datamodels.subsets import draw_masks
from datamodels.training import Trainer, choose_groups, device_named, first_order
from datamodels.training.group import Group

needs_torch = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU here")


@needs_torch
def test_first_order_attribution_is_the_same_on_either_device_in_float64(digits, recipe):
    masks = draw_masks(0, range(2), 60, 0.5)
    on = [
        first_order(Trainer(digits, recipe, device, dtype=torch.float64), masks, [(0, 0), (0, 1)], 64)
        for device in (torch.device("cpu"), device_named("0"))
    ]
    for name in ("gradients", "similarity"):
        np.testing.assert_allclose(on[1][name], on[0][name], rtol=1e-3, atol=1e-4 * np.abs(on[0][name]).max())


@needs_torch
def test_a_model_is_the_same_on_either_device_in_float64(digits, recipe):
    masks, keys = draw_masks(0, range(4), 60, 0.5), [(0, i) for i in range(4)]
    margins = []
    for device in ("cpu", "0"):
        trainer = Trainer(digits, recipe, device_named(device), dtype=torch.float64)
        margins.append(trainer.margins(masks, keys))
    np.testing.assert_allclose(margins[1], margins[0], atol=1e-5)


@needs_torch
@pytest.mark.parametrize("per_kernel", [1, 3, 7])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_block_trained_twice_on_one_gpu_gives_bitwise_the_same_rows(digits, recipe, precision, per_kernel):
    masks, keys = draw_masks(0, range(7), 60, 0.5), [(0, i) for i in range(7)]
    recipe = dataclasses.replace(recipe, precision=precision)
    first, second = (Trainer(digits, recipe, device_named("0"), per_kernel).margins(masks, keys) for _ in range(2))
    assert np.isfinite(first).all()
    assert np.array_equal(first, second)


@needs_torch
@pytest.mark.parametrize("per_kernel", [1, 3])
def test_programs_on_streams_train_the_models_that_one_program_trains(digits, recipe, per_kernel):
    masks, keys = draw_masks(0, range(7), 60, 0.5), [(0, i) for i in range(7)]
    apart, together = (Trainer(digits, recipe, device_named("0"), g, torch.float64) for g in (per_kernel, None))
    np.testing.assert_allclose(apart.margins(masks, keys), together.margins(masks, keys), rtol=0, atol=1e-5)


@needs_torch
def test_a_replayed_graph_takes_the_steps_that_plain_calls_take(digits, recipe, monkeypatch):
    masks, keys = draw_masks(0, range(4), 60, 0.5), [(0, i) for i in range(4)]
    trainer = Trainer(digits, recipe, device_named("0"), 2, torch.float64)
    replayed = trainer.margins(masks, keys)
    monkeypatch.setattr(Group, "captured", lambda group: group.advance)
    np.testing.assert_allclose(trainer.margins(masks, keys), replayed, rtol=0, atol=1e-9)


@needs_torch
def test_groups_are_chosen_by_measuring_both_ways_of_sharing_a_gpu(digits, recipe):
    chosen, speeds = choose_groups(digits, recipe, GroupSettings(), device_named("0"))
    assert speeds[chosen] > 0
    assert {(2, 1), (2, 2)} <= {(g.models_at_once, g.models_per_kernel) for g in speeds}
