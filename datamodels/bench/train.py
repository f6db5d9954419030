"""Models per second: K at once, for K = 1, 2, 4, …, and one at a time, as ratios measured in one run.

Every contender trains whole models of the run's recipe, on subsets of size αN, where a few seconds are enough for that. Where
they are not, it takes the steps that fit, and the rest of the training is reckoned from them: seconds per model = (start +
steps · seconds per step + evaluation) / K. Rounds go through all contenders in turn, so that a slow minute of a shared machine
meets all of them; medians are reported, with the range.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from datamodels.bench.one_at_a_time import Feed, Loop, ffcv_batches, resident_batches
from datamodels.bench.record import Record, describe, header
from datamodels.data import Dataset
from datamodels.errors import InputError
from datamodels.machine import cores
from datamodels.progress import progress
from datamodels.runs import stage_folder
from datamodels.settings import PLAIN, GroupSettings, Settings, StoreSettings
from datamodels.subsets import draw_masks
from datamodels.training import Trainer, choose_groups, describe_groups, for_each_group
from datamodels.training.devices import fastest_convolutions, groups_at_once, on_gpu, wait_for
from datamodels.training.group import STEPS_BEFORE_CAPTURE

TRIAL_S = 3.0
PEAK_S = 1.0


@dataclass(frozen=True)
class Trial:
    """What one group of `models` took: seconds to start it, for each of its steps, and to evaluate it."""

    models: int
    start_s: float
    num_steps: int
    step_s: float
    evaluation_s: float

    @property
    def models_per_s(self) -> float:
        """Models per second of this group alone."""
        return self.models / (self.start_s + self.num_steps * self.step_s + self.evaluation_s)

    @property
    def steps_per_s(self) -> float:
        """Steps per second, summed over the models of the group."""
        return self.models / self.step_s


@dataclass(frozen=True)
class Contender:
    """A way to train: `trials` runs it once and gives the trial of each group that went side by side."""

    name: str
    models_at_once: int
    trials: Callable[[], list[Trial]]


def bench_train(settings: Settings, data: Dataset, device: torch.device, rounds: int = 3) -> tuple[Record, str]:
    """The bench as a record for JSON and as a table. Raises InputError for less than one round."""
    if rounds < 1:
        raise InputError(f"the bench takes 1 round or more, not {rounds}")
    chosen, speeds = choose_groups(data, settings.training, GroupSettings(), device)
    tried = [groups for groups in speeds if speeds[groups]]
    programs = {PLAIN, *(groups.program for groups in tried)}
    trainers = {program: Trainer(data, settings.training, device, program=program) for program in programs}
    trainer = trainers[PLAIN]
    contenders = [
        *_one_at_a_time(settings, data, trainer),
        *(_grouped(settings, trainers[groups.program], groups) for groups in tried),
    ]
    found: dict[str, list[Record]] = {contender.name: [] for contender in contenders}
    with progress("bench", "trials", rounds * len(contenders)) as advance:
        for _ in range(rounds):
            for contender in contenders:
                found[contender.name].append(_measured(contender, settings.training.batch_size))
                advance()
    flops, peak = flops_per_image(trainer), matmul_peak(device, trainer.images.pixels.dtype)
    rows = [_summary(contender, found[contender.name], flops, peak) for contender in contenders]
    alone = max(row["models_per_s"] for row in rows if row["one_at_a_time"])
    for row in rows:
        row["times_one_at_a_time"] = round(row["models_per_s"] / alone, 2)
    record = {
        **header("train", settings, data, device),
        "rounds": rounds,
        "groups_side_by_side": groups_at_once(device),
        "training_gflop_per_image": round(flops / 1e9, 6),
        "matmul_peak_tflop_per_s": round(peak / 1e12, 3),
        "chosen": dataclasses.asdict(chosen),
        "rows": rows,
    }
    return record, _table(record)


def flops_per_image(trainer: Trainer) -> float:
    """Floating-point operations of one training step for each image, forward and backward, as PyTorch counts them."""
    with trainer.at_work():
        group = trainer.group(np.ones((1, trainer.n), bool), [(0, 0)])
        with FlopCounterMode(display=False) as counter:
            group.advance()
    return float(counter.get_total_flops()) / trainer.recipe.batch_size


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of one large matrix product with all that the device has: the best of many."""
    n = 8192 if on_gpu(device) else 2048
    a, b = (torch.randn(n, n).to(device, dtype) for _ in range(2))
    best, stop = float("inf"), time.perf_counter() + PEAK_S
    while time.perf_counter() < stop:
        start = time.perf_counter()
        torch.mm(a, b)
        wait_for(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def _one_at_a_time(settings: Settings, data: Dataset, trainer: Trainer) -> list[Contender]:
    """The plain loops: with images on the device, on a processor with one thread and with all, and with FFCV's Loader.

    FFCV sets PyTorch's threads in each epoch, to those of its own workers.
    """
    subset = np.flatnonzero(draw_masks(settings.store.seed, [0], trainer.n, settings.store.alpha)[0])
    on_device = "images on the device"
    beton = stage_folder(settings, "data") / "train.beton"
    by_ffcv = beton.exists() and not trainer.images.of_features  # of images, as its own examples have them
    feeds = {"FFCV Loader": ffcv_batches(beton, trainer, data)} if by_ffcv else {}

    def contender(name: str, feed: Feed, threads: int) -> Contender:
        def trials() -> list[Trial]:
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                return [_loop_trial(trainer, Loop(trainer, subset, feed(subset)))]
            finally:
                torch.set_num_threads(before)

        return Contender(f"one at a time, {name}", 1, trials)

    resident = functools.partial(resident_batches, trainer)
    if not on_gpu(trainer.device):
        plain = [contender(f"{on_device}, threads: {n}", resident, n) for n in sorted({1, cores()})]
    else:
        plain = [contender(on_device, resident, torch.get_num_threads())]
    return [*plain, *(contender(name, feed, torch.get_num_threads()) for name, feed in feeds.items())]


def _grouped(settings: Settings, trainer: Trainer, groups: GroupSettings) -> Contender:
    """K at once, as many such groups side by side as the device takes."""
    k = groups.models_at_once

    def trials() -> list[Trial]:
        trainer.per_kernel, found = groups.models_per_kernel, list[Trial]()
        side_by_side = range(groups_at_once(trainer.device))
        for_each_group(side_by_side, lambda i: found.append(group_trial(settings.store, trainer, k, i * k)), trainer.device)
        return found

    return Contender(describe_groups(groups, trainer.device).removeprefix("K = "), k, trials)


def group_trial(store: StoreSettings, trainer: Trainer, k: int, first: int) -> Trial:
    """Train a group of K models, those from number `first` on, for as many of their steps as fit into a few seconds."""
    ids, seed = range(first, first + k), store.seed
    with trainer.at_work():
        start = time.perf_counter()
        group = trainer.group(draw_masks(seed, ids, trainer.n, store.alpha), [(seed, i) for i in ids])
        before = min(STEPS_BEFORE_CAPTURE, group.num_steps[0])
        with fastest_convolutions(trainer.device):
            for _ in range(before):
                group.advance()
        advance = group.captured()
        started, step_s = timed_steps(lambda _: advance(), group.num_steps[0] - before, trainer.device)
        trainer.test_margins(group.parameters, group.state).cpu()
        return Trial(k, started[0] - start, group.num_steps[0] - before, step_s, time.perf_counter() - started[1])


def _loop_trial(trainer: Trainer, loop: Loop) -> Trial:
    start = time.perf_counter()
    loop.advance(0)
    started, step_s = timed_steps(lambda step: loop.advance(step + 1), loop.num_steps - 1, trainer.device)
    loop.margins().cpu()
    loop.batches.close()
    return Trial(1, started[0] - start, loop.num_steps - 1, step_s, time.perf_counter() - started[1])


def timed_steps(advance: Callable[[int], None], steps: int, device: torch.device) -> tuple[tuple[float, float], float]:
    """Take up to so many steps, for a few seconds; when they began and ended, and seconds per step."""
    wait_for(device)
    begun, taken, chunk = time.perf_counter(), 0, 1
    while taken < steps and time.perf_counter() - begun < TRIAL_S:
        for step in range(taken, min(taken + chunk, steps)):
            advance(step)
        taken, chunk = min(taken + chunk, steps), chunk + 1
        wait_for(device)
    ended = time.perf_counter()
    return (begun, ended), (ended - begun) / max(taken, 1)


def _measured(contender: Contender, batch_size: int) -> Record:
    """One trial of a contender: speeds summed over its groups, and the share of all cores that it kept busy."""
    wall, cpu = time.perf_counter(), time.process_time()
    trials = contender.trials()
    busy = (time.process_time() - cpu) / (time.perf_counter() - wall) / cores()
    return {
        "models_per_s": sum(trial.models_per_s for trial in trials),
        "images_per_s": sum(trial.steps_per_s for trial in trials) * batch_size,
        "cores_busy": busy,
    }


def _summary(contender: Contender, trials: Sequence[Record], flops: float, peak: float) -> Record:
    median = {name: statistics.median(trial[name] for trial in trials) for name in trials[0]}
    speeds = [trial["models_per_s"] for trial in trials]
    return {
        "name": contender.name,
        "models_at_once": contender.models_at_once,
        "one_at_a_time": contender.name.startswith("one at a time"),
        "models_per_s": round(median["models_per_s"], 4),
        "models_per_s_range": [round(min(speeds), 4), round(max(speeds), 4)],
        "images_per_s": round(median["images_per_s"], 1),
        "tflop_per_s": round(median["images_per_s"] * flops / 1e12, 4),
        "share_of_matmul_peak": round(median["images_per_s"] * flops / peak, 4),
        "cores_busy": round(median["cores_busy"], 3),
    }


def _table(record: Record) -> str:
    head = f"{'':<46} {'models/s':>9} {'images/s':>9} {'TFLOP/s':>8} {'of peak':>8} {'cores':>6} {'ratio':>6}"
    lines = [
        f"{describe(record)}; n = {record['rounds']} rounds, medians",
        f"training: {record['training_gflop_per_image']:.3g} GFLOP an image; "
        f"largest matrix product: {record['matmul_peak_tflop_per_s']:.3g} TFLOP/s",
        head,
    ]
    rows = (
        f"{row['name']:<46} {row['models_per_s']:>9.3f} {row['images_per_s']:>9.0f} {row['tflop_per_s']:>8.3f} "
        f"{row['share_of_matmul_peak']:>8.1%} {row['cores_busy']:>6.0%} {row['times_one_at_a_time']:>6.2f}"
        for row in record["rows"]
    )
    return "\n".join([*lines, *rows])
