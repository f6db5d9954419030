"""How many models at once, by which program? Measured on the device at hand, with the recipe at hand, in a few steps each."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence

import numpy as np
import torch

from datamodels.data import Dataset
from datamodels.errors import InputError
from datamodels.progress import say, step
from datamodels.settings import COMPILED, COMPILED_PADDED, MEASURED, PADDED, PLAIN, GroupSettings, TrainingSettings
from datamodels.training import models
from datamodels.training.devices import STREAMS, for_each_group, groups_at_once, on_gpu, wait_for
from datamodels.training.group import STEPS_BEFORE_CAPTURE, Group
from datamodels.training.memory import free_memory, give_back, unless_out_of_memory
from datamodels.training.models import PADDED_CHANNELS, Trainer, first_line
from datamodels.training.networks import programs_for, require_program, shares_batches

MOST_AT_ONCE, MOST_SHARING = 64, 512
"""Models in a group that is tried, and where they share their batches."""
MEASURE_S = 0.5
# A larger group must be worth it: its block is what a crash costs, and the least that two workers can share.
GOOD_ENOUGH = 0.95
MEMORY_SHARE = 0.8

Speeds = dict[GroupSettings, float]


def choose_groups(
    data: Dataset, recipe: TrainingSettings, wanted: GroupSettings, device: torch.device
) -> tuple[GroupSettings, Speeds]:
    """The groups to train in, and the speeds measured for it: steps per second, summed over the models of the whole device.

    What `wanted` gives stays. What it leaves open is measured: K = 1, 2, 4, … models at once, until twice nothing was gained or
    the memory ends, and on a GPU for each K one grouped convolution for all as well as one program for each, plain, with padded
    images, and compiled. Of those within 5 % of the fastest the smallest group is chosen. What does not work has speed 0.
    Where nothing is left open, nothing is measured.

    Raises InputError where no way works, or `wanted` asks for what does not go together.
    """
    if wanted.program != MEASURED:
        require_program(recipe, wanted.program)
    most = MOST_SHARING if shares_batches(recipe) else MOST_AT_ONCE
    candidates = _candidates(wanted, device, _programs(recipe, data.train.images.shape[-1]), most)
    if sum(map(len, candidates)) == 1:
        return candidates[0][0], {}
    speeds = _measure(Ways(data, recipe, device), candidates)
    give_back(device)
    fastest = max(speeds.values())
    if not fastest:
        raise InputError(f"no way to train works on {device}; what each of them said stands above")
    enough = [groups for groups in speeds if speeds[groups] >= GOOD_ENOUGH * fastest]
    fewest = min(groups.models_at_once for groups in enough)
    return max((groups for groups in enough if groups.models_at_once == fewest), key=lambda groups: speeds[groups]), speeds


def speed_of_groups(data: Dataset, recipe: TrainingSettings, groups: GroupSettings, device: torch.device) -> float:
    """Steps per second, summed over the models of the whole device, measured by a few steps; 0 where they cannot be taken."""
    found = Ways(data, recipe, device).speed(groups)
    give_back(device)
    return found


def describe_groups(groups: GroupSettings, device: torch.device) -> str:
    """Groups in a few words."""
    shared = f", {groups.models_per_kernel} a kernel, {groups.program}" if on_gpu(device) else ""
    return f"K = {groups.models_at_once} at once{shared}"


class Ways:
    """The ways to train one recipe on one device: a trainer for each program, made when it is asked for."""

    def __init__(self, data: Dataset, recipe: TrainingSettings, device: torch.device) -> None:
        self.data, self.device = data, device
        self.recipe = for_a_few_steps(recipe, len(data.train.labels))
        self.trainers: dict[str, Trainer] = {}

    def trainer_for(self, groups: GroupSettings) -> Trainer:
        """The trainer of such groups. Each program has its own, with its own images: to bring these there takes seconds."""
        if groups.program not in self.trainers:
            trainer = Trainer(self.data, self.recipe, self.device, program=groups.program)
            if groups.program in (COMPILED, COMPILED_PADDED):
                trainer.loss = models.compiled_loss()  # what does not work is not to be measured as what goes on in its place
            self.trainers[groups.program] = trainer
        trainer = self.trainers[groups.program]
        trainer.per_kernel = groups.models_per_kernel
        return trainer

    def speed(self, groups: GroupSettings) -> float:
        """Steps per second, summed over all models that the device trains side by side; 0, and a line, where it fails."""
        rates: list[float | None] = []

        def rate(number: int) -> None:
            rates.append(unless_out_of_memory(lambda: _rate(self.trainer_for(groups), groups, number), self.device))

        try:
            with step(f"measuring the speed of {describe_groups(groups, self.device)}"):
                self.trainer_for(groups)
                for_each_group(range(groups_at_once(self.device)), rate, self.device)
        except InputError:
            raise
        except Exception as error:  # whatever a compiler or a driver says: another way may work
            say(f"{describe_groups(groups, self.device)} does not work: {first_line(error)}")
            rates = [None]
        if None in rates:
            give_back(self.device)
            return 0.0
        return sum(rate for rate in rates if rate is not None)


def fits(groups: GroupSettings, activations: int, device: torch.device) -> bool:
    """Whether there is memory for such groups, `activations` being the bytes of one model's."""
    side_by_side = min(groups.models_at_once, max(groups.models_per_kernel, STREAMS)) * groups_at_once(device)
    return side_by_side * activations <= MEMORY_SHARE * free_memory(device)


def activation_bytes(trainer: Trainer) -> int:
    """Bytes that one step of one model keeps for its backward pass. Raises InputError where a GPU has not the memory."""

    def measured() -> int:
        seen: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            group = few_steps(trainer, 1)
            group.advance()
        return sum(seen.values()) + group.buffer_bytes

    with trainer.at_work():
        found = unless_out_of_memory(measured, trainer.device)
    if found is None:
        raise trainer.no_room()
    return found


def for_a_few_steps(recipe: TrainingSettings, n: int) -> TrainingSettings:
    """The recipe with epochs enough for the steps before a capture and the captured one, on the few images of `few_steps`."""
    return dataclasses.replace(recipe, epochs=-(-(STEPS_BEFORE_CAPTURE + 1) * recipe.batch_size // _few(recipe, n)))


def few_steps(trainer: Trainer, k: int, number: int = 0) -> Group:
    """K models for a few steps: on so few images that nothing is spent on drawing their order, which shared costs nothing."""
    mask = np.arange(trainer.n) < (trainer.n if trainer.shares_batches else _few(trainer.recipe, trainer.n))
    return trainer.group(np.tile(mask, (k, 1)), [(number, i) for i in range(k)])


def _few(recipe: TrainingSettings, n: int) -> int:
    return min(n, max(recipe.batch_size, 2))


def _measure(ways: Ways, candidates: Sequence[Sequence[GroupSettings]]) -> Speeds:
    """The speed of each candidate, size by size, as long as it pays and there is room."""
    speeds, misses = Speeds(), 0
    with step("measuring the memory of a model"):
        activations = activation_bytes(ways.trainer_for(GroupSettings(1, 1, PLAIN)))
    for of_one_size in candidates:
        best = max(speeds.values(), default=0.0)
        fitting = [groups for groups in of_one_size if not speeds or fits(groups, activations, ways.device)]
        speeds.update({groups: ways.speed(groups) for groups in fitting})
        misses += max(speeds.values(), default=0.0) <= best
        if misses == 2 or not fitting:
            break
    return speeds


def _candidates(wanted: GroupSettings, device: torch.device, programs: Sequence[str], most: int) -> list[list[GroupSettings]]:
    """What is to be tried, one list for each K. Raises InputError for several models a compiled kernel."""
    if wanted.program in (COMPILED, COMPILED_PADDED) and wanted.models_per_kernel > 1:
        raise InputError(
            f"groups.program {wanted.program} is of one model a kernel; set groups.models_per_kernel 1, or another program"
        )
    doubling = itertools.takewhile(lambda k: k <= most, (2**i for i in itertools.count()))
    sizes = [wanted.models_at_once] if wanted.models_at_once else list(doubling)

    def allowed(groups: GroupSettings) -> bool:
        given = (min(wanted.models_per_kernel, groups.models_at_once), wanted.program)
        return given[0] in (0, groups.models_per_kernel) and given[1] in (MEASURED, groups.program)

    return [[groups for groups in _ways_of(k, wanted, device, programs) if allowed(groups)] for k in sizes]


def _programs(recipe: TrainingSettings, channels: int) -> list[str]:
    """The programs worth trying: no padding where there is nothing to pad."""
    padding = (PADDED, COMPILED_PADDED)
    return [program for program in programs_for(recipe) if channels % PADDED_CHANNELS or program not in padding]


def _ways_of(k: int, wanted: GroupSettings, device: torch.device, programs: Sequence[str]) -> list[GroupSettings]:
    """All ways to train K models at once that there are on a device, the given ones among them."""
    if not on_gpu(device):
        shared = 1 if wanted.program in (COMPILED, COMPILED_PADDED) else min(wanted.models_per_kernel or k, k)
        return [GroupSettings(k, shared, PLAIN if wanted.program == MEASURED else wanted.program)]
    apart = [GroupSettings(k, 1, program) for program in programs]
    shared = min(wanted.models_per_kernel or k, k)
    together = [GroupSettings(k, shared, program) for program in (PLAIN, PADDED) if program in (PLAIN, wanted.program)]
    return [*apart, *(groups for groups in together if shared > 1)]


def _rate(trainer: Trainer, groups: GroupSettings, number: int) -> float:
    """Steps per second, summed over the models of one group."""
    k = groups.models_at_once
    with trainer.at_work():
        group = few_steps(trainer, k, number)
        advance = group.warmed_up()

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
