"""The training step and the evaluation on a device that is not the processor, with no such device: PyTorch's fake tensors.

'meta' plays the GPU. An operation that mixes devices raises, and so does one that waits for a number; a transfer is noted.
"""

import contextlib
import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from datamodels.data import Dataset, Split
from datamodels.settings import PADDED, PLAIN
from datamodels.subsets import draw_masks
from datamodels.training import Trainer
from datamodels.training.made import Maker
from datamodels.training.margins import margin
from datamodels.training.module import ModuleNetwork, Tried

DEVICE = torch.device("meta")


class Transfers(TorchDispatchMode):
    """Notes each operation whose tensors lie on more than one device."""

    def __init__(self):
        super().__init__()
        self.operations, self.mixed = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        self.operations += 1
        # A number in a program is a tensor without dimensions to vmap, and goes along with the operation.
        if len({tensor.device.type for tensor in tensors if tensor.ndim or "copy" in str(func)}) > 1:
            self.mixed.append(str(func))
        return out


def fake(data, mode):
    train, test = (Split(mode.from_tensor(s.images), mode.from_tensor(s.labels)) for s in (data.train, data.test))
    return Dataset(train, test, data.class_names, data.digest)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("per_kernel", [None, 1, 3])
@pytest.mark.parametrize("program", [PLAIN, PADDED])
@pytest.mark.parametrize("relabelled", [False, True])
def test_a_step_and_the_evaluation_stay_on_the_device(digits, recipe, precision, per_kernel, program, relabelled):
    labels = digits.train.labels.numpy()[None].repeat(4, 0) if relabelled else None
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        chosen = dataclasses.replace(recipe, precision=precision)
        trainer = Trainer(fake(digits, mode), chosen, DEVICE, per_kernel, program=program)
        group = trainer.group(draw_masks(0, range(4), 60, 0.5), [(0, i) for i in range(4)], labels)
        held = {**vars(group), **vars(group.batches), **group.state.mean, **group.state.variance}
        assert {value.device.type for value in held.values() if isinstance(value, torch.Tensor)} == {DEVICE.type}
        with Transfers() as step:
            group.advance()
        with Transfers() as evaluation:
            logits = trainer.test_logits(group.parameters, group.state)
            margins = margin(logits, trainer.images.test_labels)
    assert step.operations > 100
    assert step.mixed == evaluation.mixed == []
    assert (logits.device.type, logits.dtype, margins.shape) == (DEVICE.type, torch.float32, (4, 20))


@pytest.mark.parametrize(("name", "per_kernel"), [("Random", 3), ("Buffers", None), ("Attention", None)])
def test_a_step_of_a_network_of_ones_own_stays_on_the_device(digits, recipe, name, per_kernel, monkeypatch):
    # A module is made on the processor, whatever the device is.
    for kind, method in ((Maker, "__call__"), (ModuleNetwork, "initial_parameters")):
        monkeypatch.setattr(kind, method, on_the_processor(getattr(kind, method)))
    # Fake tensors have no numbers by which two trials could be told apart.
    monkeypatch.setattr(Tried, "is_as", lambda tried, other: True)
    chosen = dataclasses.replace(recipe, network=f"tests.training.own_networks:{name}")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        trainer = Trainer(fake(digits, mode), chosen, DEVICE, per_kernel)
        assert trainer.network.capturable
        group = trainer.group(draw_masks(0, range(4), 60, 0.5), [(0, i) for i in range(4)])
        held = {**vars(group), **vars(group.batches), **vars(group.state), **group.state.tensors}
        assert {value.device.type for value in held.values() if isinstance(value, torch.Tensor)} == {DEVICE.type}
        with Transfers() as step:
            group.advance()
        with Transfers() as evaluation:
            logits = trainer.test_logits(group.parameters, group.state)
    assert step.operations > 100
    assert step.mixed == evaluation.mixed == []
    assert (logits.device.type, logits.dtype, logits.shape) == (DEVICE.type, torch.float32, (4, 20, 10))


def on_the_processor(method):
    """A method that runs as if no mode were active."""

    def without(*arguments):
        with unset_fake_temporarily():
            return method(*arguments)

    return without


@pytest.mark.parametrize("name", ["velocity", "lr", "parameters"])
def test_a_tensor_that_was_left_on_the_processor_is_found_out(digits, recipe, name):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        trainer = Trainer(fake(digits, mode), recipe, DEVICE)
        group = trainer.group(draw_masks(0, range(2), 60, 0.5), [(0, 0), (0, 1)])
        setattr(group, name, torch.zeros(getattr(group, name).shape))
        with Transfers() as step, contextlib.suppress(RuntimeError):
            group.advance()
            assert step.mixed
