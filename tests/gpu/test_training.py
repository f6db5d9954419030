"""Training on a GPU: against the processor, against itself, and each of its ways against another.

Every test also runs on the processor, where it holds of itself: so the tests run everywhere, and on a GPU for the first time
they do not fail by their own faults.
"""

import dataclasses

import numpy as np
import pytest
import torch

from datamodels.settings import COMPILED, COMPILED_PADDED, PADDED, PLAIN, GroupSettings
from datamodels.subsets import draw_masks
from datamodels.training import LIBRARY_METHODS, Trainer, attribute, choose_groups, first_order, tuning
from datamodels.training.devices import on_gpu
from datamodels.training.group import Group
from datamodels.training.memory import free_memory, give_back

CPU = torch.device("cpu")
MASKS, KEYS = draw_masks(0, range(7), 60, 0.5), [(0, i) for i in range(7)]


def test_a_model_is_the_same_as_on_the_processor_in_float64(digits, recipe, device):
    margins = [Trainer(digits, recipe, on, dtype=torch.float64).margins(MASKS[:4], KEYS[:4]) for on in (CPU, device)]
    np.testing.assert_allclose(margins[1], margins[0], atol=1e-5)


@pytest.mark.parametrize("per_kernel", [1, 3, 7])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_block_trained_twice_gives_bitwise_the_same_rows(digits, recipe, device, precision, per_kernel):
    recipe = dataclasses.replace(recipe, precision=precision)
    first, second = (Trainer(digits, recipe, device, per_kernel).margins(MASKS, KEYS) for _ in range(2))
    assert np.isfinite(first).all()
    assert np.array_equal(first, second)


@pytest.mark.parametrize("per_kernel", [1, 3])
def test_programs_on_streams_train_the_models_that_one_program_trains(digits, recipe, device, per_kernel):
    apart, together = (Trainer(digits, recipe, device, g, torch.float64) for g in (per_kernel, None))
    np.testing.assert_allclose(apart.margins(MASKS, KEYS), together.margins(MASKS, KEYS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("per_kernel", [1, 2])
def test_a_replayed_graph_takes_the_steps_that_plain_calls_take(digits, recipe, device, per_kernel, monkeypatch):
    trainer = Trainer(digits, recipe, device, per_kernel, torch.float64)
    replayed = trainer.margins(MASKS[:4], KEYS[:4])
    monkeypatch.setattr(Group, "captured", lambda group: group.advance)
    np.testing.assert_allclose(trainer.margins(MASKS[:4], KEYS[:4]), replayed, rtol=0, atol=1e-9)


def test_padded_images_train_the_same_models(digits, recipe, device):
    plain, padded = (Trainer(digits, recipe, device, 1, torch.float64, program) for program in (PLAIN, PADDED))
    np.testing.assert_allclose(padded.margins(MASKS[:2], KEYS[:2]), plain.margins(MASKS[:2], KEYS[:2]), atol=1e-5)


@pytest.mark.parametrize("program", [COMPILED, pytest.param(COMPILED_PADDED, marks=pytest.mark.slow)])
def test_a_compiled_program_trains_the_models_of_a_plain_one(digits, recipe, device, program):
    if program == COMPILED and not on_gpu(device):
        pytest.skip("one of the two is enough where compiling takes half a minute")
    plain, compiled = (Trainer(digits, recipe, device, 1, program=way) for way in (PLAIN, program))
    np.testing.assert_allclose(compiled.margins(MASKS[:2], KEYS[:2]), plain.margins(MASKS[:2], KEYS[:2]), atol=2e-3)


def test_bfloat16_finds_nearly_the_margins_of_float32(digits, recipe, device):
    recipe = dataclasses.replace(recipe, epochs=6)
    masks = np.ones((4, 60), bool)
    found = [
        Trainer(digits, dataclasses.replace(recipe, precision=p), device).margins(masks, KEYS[:4])
        for p in ("float32", "bfloat16")
    ]
    assert np.corrcoef(*(margins.mean(0) for margins in found))[0, 1] > 0.85


def test_groups_are_chosen_by_measuring(digits, recipe, device, monkeypatch):
    monkeypatch.setattr(tuning, "MEASURE_S", 0.05)
    monkeypatch.setattr(tuning, "MOST_AT_ONCE", 2)
    wanted = GroupSettings() if on_gpu(device) else GroupSettings(program=PLAIN)
    chosen, speeds = choose_groups(digits, recipe, wanted, device)
    assert speeds[chosen] > 0
    assert {1, 2} == {groups.models_at_once for groups in speeds}


def test_memory_that_runs_out_halves_the_group_and_all_models_are_trained(digits, recipe, device, monkeypatch):
    whole, train = Trainer(digits, recipe, device, 1).margins(MASKS, KEYS), Group.train

    def little_memory(group):
        if len(group.num_steps) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(group)

    monkeypatch.setattr(Group, "train", little_memory)
    trainer = Trainer(digits, recipe, device, 1)
    np.testing.assert_allclose(trainer.margins(MASKS, KEYS), whole, atol=1e-3)
    assert trainer.at_once == 1


def test_what_a_trainer_held_is_given_back(digits, recipe, device):
    if not on_gpu(device):
        pytest.skip("the processor's memory is shared with others")
    give_back(device)
    before = free_memory(device)
    trainer = Trainer(digits, recipe, device)
    trainer.margins(MASKS, KEYS)
    del trainer
    give_back(device)
    assert torch.cuda.mem_get_info(device)[0] >= before - 2**28


def test_first_order_attribution_is_the_same_as_on_the_processor_in_float64(digits, recipe, device):
    on = [first_order(Trainer(digits, recipe, d, dtype=torch.float64), MASKS[:2], KEYS[:2], 64) for d in (CPU, device)]
    for name in ("gradients", "features_train", "features_test"):
        np.testing.assert_allclose(on[1][name], on[0][name], rtol=1e-3, atol=1e-4 * np.abs(on[0][name]).max())


@pytest.mark.parametrize("method", LIBRARY_METHODS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_librarys_methods_give_scores(digits, recipe, device, method, precision):
    trainer = Trainer(digits, dataclasses.replace(recipe, precision=precision), device)
    scores = attribute(trainer, method, MASKS[:1], KEYS[:1], [0, 1, 2])
    assert scores.shape == (60, 3)
    assert np.isfinite(scores).all()
    assert scores.std() > 0
