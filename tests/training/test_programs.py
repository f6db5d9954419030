"""Programs of a step: padded and compiled ones train the models that the plain one trains; limits of one kernel; bfloat16."""

import dataclasses
import os

import numpy as np
import pytest
import torch

from datamodels.errors import InputError
from datamodels.settings import COMPILED_PADDED, PADDED, PLAIN, GroupSettings, TrainingSettings
from datamodels.subsets import draw_masks
from datamodels.training import Trainer, choose_groups, models
from tests.conftest import dataset
from tests.standins.cuda import pretend

CPU = torch.device("cpu")
MASKS, KEYS = draw_masks(0, range(3), 60, 0.5), [(0, i) for i in range(3)]


@pytest.mark.parametrize("per_kernel", [1, 2, None])
def test_padded_images_train_the_same_models(digits, recipe, per_kernel):
    plain, padded = (Trainer(digits, recipe, CPU, per_kernel, torch.float64, program) for program in (PLAIN, PADDED))
    assert padded.images.pixels.shape[1] == 8
    assert padded.network == plain.network
    np.testing.assert_allclose(padded.margins(MASKS, KEYS), plain.margins(MASKS, KEYS), atol=1e-6)
    ours, theirs = (trainer.features_of(MASKS, KEYS) for trainer in (plain, padded))
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], atol=1e-5)


def test_several_models_a_compiled_kernel_are_refused(digits, recipe):
    with pytest.raises(InputError, match=r"compiled-padded is of one model a kernel; set groups.models_per_kernel 1"):
        choose_groups(digits, recipe, GroupSettings(4, 2, COMPILED_PADDED), CPU)


def test_a_program_that_is_given_is_not_measured(digits, recipe):
    assert choose_groups(digits, recipe, GroupSettings(4, 0, COMPILED_PADDED), CPU) == (
        GroupSettings(4, 1, COMPILED_PADDED),
        {},
    )
    assert choose_groups(digits, recipe, GroupSettings(4, 2, PADDED), CPU) == (GroupSettings(4, 2, PADDED), {})


def test_a_kernel_has_no_more_models_than_can_be_counted_in_32_bits(digits, recipe, monkeypatch):
    paper = TrainingSettings(width=64, last_padding=0, batch_size=512)
    images = dataclasses.replace(digits.train, images=torch.zeros(60, 32, 32, 3, dtype=torch.uint8))
    trainer = Trainer(dataclasses.replace(digits, train=images), paper, CPU)
    # conv1: 512 images × 64 channels × 32 × 32 pixels are 2²⁵ elements a model.
    assert trainer.most_per_kernel == 63
    whole = Trainer(digits, recipe, CPU, dtype=torch.float64)
    together = whole.margins(MASKS, KEYS)
    monkeypatch.setattr(models, "MOST_ELEMENTS", 2 * 500 * whole.network.largest_map(8, 8))
    assert [part.stop - part.start for part in whole.group(MASKS, KEYS).parts] == [2, 1]
    np.testing.assert_allclose(whole.margins(MASKS, KEYS), together, atol=1e-6)


@pytest.mark.parametrize(("width", "last_padding", "size"), [(4, 1, 8), (8, 0, 16), (3, 0, 20), (64, 0, 32)])
def test_the_largest_map_is_that_of_the_forward_pass(width, last_padding, size):
    data = dataset(10, 5)
    images = torch.zeros(10, size, size, 3, dtype=torch.uint8)
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, images=images))
    network = Trainer(data, TrainingSettings(width=width, last_padding=last_padding), CPU).network
    seen: list[int] = []
    convolve = torch.nn.functional.conv2d

    def noted(x, *rest):
        out = convolve(x, *rest)
        seen.extend([x.numel(), out.numel()])
        return out

    parameters = torch.from_numpy(network.initial_parameters(np.random.default_rng(0)))[None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "conv2d", noted)
        network.forward(parameters, network.initial_state([(0,)], CPU, torch.float32), torch.zeros(1, 3, size, size), False)
    assert network.largest_map(size, size) == max(seen)


def test_a_gpu_without_bfloat16_is_refused_in_a_sentence(digits, recipe, monkeypatch):
    pretend(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    Trainer(digits, recipe, CPU)
    with pytest.raises(InputError, match=r"bfloat16, which pretended GPU does not have; set --training.precision float32"):
        Trainer(digits, dataclasses.replace(recipe, precision="bfloat16"), CPU)


def test_float32_is_not_tf32_on_a_gpu(monkeypatch):
    from datamodels.training import device_named

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        assert device_named("1") == torch.device("cuda", 1)
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = before
        torch.backends.cuda.matmul.allow_tf32 = False
