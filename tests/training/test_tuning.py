"""How many models at once is measured: what is given stays, memory bounds it, and more at once pays on a processor."""

import dataclasses

import pytest
import torch

from datamodels.errors import InputError
from datamodels.settings import PLAIN, GroupSettings, TrainingSettings
from datamodels.training import Trainer, choose_groups, tuning
from datamodels.training.group import STEPS_BEFORE_CAPTURE, Group
from tests.conftest import dataset

CPU = torch.device("cpu")
RECIPE = TrainingSettings(width=4, last_padding=1, epochs=2, batch_size=10, max_shift=0, flip=False, cutout=0)


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch):
    monkeypatch.setattr(tuning, "MEASURE_S", 0.05)


def test_many_small_networks_at_once_are_faster_than_one(digits):
    chosen, speeds = choose_groups(digits, RECIPE, GroupSettings(), CPU)
    assert chosen.models_at_once == chosen.models_per_kernel > 1
    assert speeds[chosen] >= 0.95 * max(speeds.values()) > speeds[GroupSettings(1, 1, PLAIN)]
    assert [g.models_at_once for g in speeds] == [2**i for i in range(len(speeds))]


def test_what_is_given_is_not_measured(digits, monkeypatch):
    monkeypatch.setattr(tuning.Ways, "speed", lambda *_: pytest.fail("measured"))
    assert choose_groups(digits, RECIPE, GroupSettings(6, 4), CPU) == (GroupSettings(6, 4, PLAIN), {})
    assert choose_groups(digits, RECIPE, GroupSettings(6), CPU) == (GroupSettings(6, 6, PLAIN), {})
    assert choose_groups(digits, RECIPE, GroupSettings(6, 10), CPU) == (GroupSettings(6, 6, PLAIN), {})


def test_a_group_is_no_larger_than_memory_allows(digits, monkeypatch):
    one = tuning.activation_bytes(Trainer(digits, RECIPE, CPU))
    monkeypatch.setattr(tuning, "groups_at_once", lambda _: 2)
    monkeypatch.setattr(tuning, "free_memory", lambda _: int(9 * one / tuning.MEMORY_SHARE))
    _, speeds = choose_groups(digits, RECIPE, GroupSettings(), CPU)
    assert max(g.models_at_once for g in speeds) == 4


def test_the_first_group_that_nothing_beats_is_chosen(digits, monkeypatch):
    speeds = {1: 100.0, 2: 180.0, 4: 300.0, 8: 310.0, 16: 280.0, 32: 300.0, 64: 900.0}
    monkeypatch.setattr(tuning.Ways, "speed", lambda _, groups: speeds[groups.models_at_once])
    chosen, measured = choose_groups(digits, RECIPE, GroupSettings(), CPU)
    assert chosen == GroupSettings(4, 4, PLAIN)
    assert list(measured.values()) == [100.0, 180.0, 300.0, 310.0, 280.0, 300.0]


def test_activations_grow_with_the_batch(digits):
    data = dataset(60, 5)
    small, large = (
        tuning.activation_bytes(Trainer(data, dataclasses.replace(RECIPE, batch_size=size), CPU)) for size in (10, 40)
    )
    assert 2 * small < large < 5 * small


def test_too_little_memory_for_one_model_is_said_while_measuring(digits, monkeypatch):
    def no_memory(group):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Group, "advance", no_memory)
    with pytest.raises(InputError, match="too little memory for one ResNet-9 of width 4"):
        choose_groups(digits, RECIPE, GroupSettings(), CPU)


@pytest.mark.parametrize(("n", "batch_size"), [(60, 10), (60, 60), (20, 50), (60, 1)])
def test_the_groups_that_are_measured_have_the_steps_before_a_capture_and_one_more(n, batch_size):
    recipe = tuning.for_a_few_steps(dataclasses.replace(RECIPE, batch_size=batch_size), n)
    group = tuning.few_steps(Trainer(dataset(n, 5), recipe, CPU), 2)
    assert min(group.num_steps) > STEPS_BEFORE_CAPTURE
    group.warmed_up()()
    assert int(group.step) == STEPS_BEFORE_CAPTURE + 1
    assert torch.isfinite(group.parameters).all()
