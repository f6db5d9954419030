"""How many models at once? Measured on the device at hand, with the recipe at hand, in a few steps each."""

from __future__ import annotations

import dataclasses
import itertools
import time

import numpy as np
import torch

from datamodels.data import Dataset
from datamodels.settings import GroupSettings, TrainingSettings
from datamodels.training.devices import STREAMS, for_each_group, free_memory, groups_at_once, made_current, wait_for
from datamodels.training.group import STEPS_BEFORE_CAPTURE, Group
from datamodels.training.models import Trainer

MOST_AT_ONCE = 64
MEASURE_S = 0.5
# A larger group must be worth it: its block is what a crash costs, and the least that two workers can share.
GOOD_ENOUGH = 0.95
MEMORY_SHARE = 0.8

Speeds = dict[GroupSettings, float]


def choose_groups(
    data: Dataset, recipe: TrainingSettings, wanted: GroupSettings, device: torch.device
) -> tuple[GroupSettings, Speeds]:
    """The groups to train in, and the speeds measured for it: steps per second, summed over the models of the whole device.

    What `wanted` gives stays. What it leaves at 0 is measured: K = 1, 2, 4, … models at once, until twice nothing was gained or
    the memory ends, and on a GPU for each K one grouped convolution for all as well as one program for each. Of those within
    5 % of the fastest the smallest group is chosen. Where nothing is left open, nothing is measured.
    """
    candidates = _candidates(wanted, device)
    if sum(map(len, candidates)) == 1:
        return candidates[0][0], {}
    trainer, speeds, misses = Trainer(data, dataclasses.replace(recipe, epochs=1), device), Speeds(), 0
    activations = activation_bytes(trainer)
    for of_one_size in candidates:
        best = max(speeds.values(), default=0.0)
        fitting = [groups for groups in of_one_size if not speeds or fits(groups, activations, device)]
        speeds.update({groups: speed(trainer, groups) for groups in fitting})
        misses += max(speeds.values()) <= best
        if misses == 2 or not fitting:
            break
    enough = GOOD_ENOUGH * max(speeds.values())
    return next(groups for groups in sorted(speeds, key=lambda g: g.models_at_once) if speeds[groups] >= enough), speeds


def speed(trainer: Trainer, groups: GroupSettings) -> float:
    """Steps per second, summed over all models that the device trains side by side; 0 where a GPU has not the memory."""
    trainer.per_kernel = groups.models_per_kernel
    rates: list[float] = []
    try:
        for_each_group(range(groups_at_once(trainer.device)), lambda i: rates.append(_rate(trainer, groups, i)), trainer.device)
        return sum(rates)
    except torch.OutOfMemoryError:
        return 0.0


def fits(groups: GroupSettings, activations: int, device: torch.device) -> bool:
    """Whether there is memory for such groups, `activations` being the bytes of one model's."""
    side_by_side = min(groups.models_at_once, max(groups.models_per_kernel, STREAMS)) * groups_at_once(device)
    return side_by_side * activations <= MEMORY_SHARE * free_memory(device)


def activation_bytes(trainer: Trainer) -> int:
    """Bytes that one step of one model keeps for its backward pass. Raises InputError where a GPU has not the memory."""
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    try:
        with made_current(trainer.device), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            _group(trainer, 1).advance()
    except torch.OutOfMemoryError as e:
        raise trainer.no_room() from e
    return sum(seen.values())


def _candidates(wanted: GroupSettings, device: torch.device) -> list[list[GroupSettings]]:
    """What is to be tried, one list for each K."""
    doubling = itertools.takewhile(lambda k: k <= MOST_AT_ONCE, (2**i for i in itertools.count()))
    sizes = [wanted.models_at_once] if wanted.models_at_once else list(doubling)

    def of_size(k: int) -> list[GroupSettings]:
        shared = sorted({k, 1}) if device.type == "cuda" else [k]
        return [GroupSettings(k, g) for g in ([min(wanted.models_per_kernel, k)] if wanted.models_per_kernel else shared)]

    return [of_size(k) for k in sizes]


def _rate(trainer: Trainer, groups: GroupSettings, number: int) -> float:
    """Steps per second, summed over the models of one group."""
    k = groups.models_at_once
    with made_current(trainer.device):
        group = _group(trainer, k, number)
        for _ in range(STEPS_BEFORE_CAPTURE if trainer.device.type == "cuda" else 1):
            group.advance()
        advance = group.captured()

        def seconds(steps: int) -> float:
            wait_for(trainer.device)
            start = time.perf_counter()
            for _ in range(steps):
                group.step.zero_()  # always the same batch, whose images differ from model to model
                advance()
            wait_for(trainer.device)
            return time.perf_counter() - start

        first = seconds(1)
        more = int(MEASURE_S / first)
        return k * more / seconds(more) if more > 1 else k / first


def _group(trainer: Trainer, k: int, number: int = 0) -> Group:
    """K models for a step or two: on so few images that nothing is spent on drawing their order."""
    mask = np.arange(trainer.n) < max(trainer.recipe.batch_size, 2)
    return trainer.group(np.tile(mask, (k, 1)), [(number, i) for i in range(k)])
