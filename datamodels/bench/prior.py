"""What the prior costs: its networks' training, and all that is made of them, against each other."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch

from datamodels.bench.record import Record, describe, header
from datamodels.data import Dataset
from datamodels.errors import InputError
from datamodels.progress import progress
from datamodels.settings import Settings
from datamodels.subsets import draw_masks
from datamodels.training import Trainer, attribution
from datamodels.training.devices import wait_for
from datamodels.worker.prior import AT_ONCE, FIRST_MODEL

Result = TypeVar("Result")


def bench_prior(settings: Settings, data: Dataset, device: torch.device, models: int = AT_ONCE) -> tuple[Record, str]:
    """Seconds a network of the prior's training and of its attribution, from `models` networks, as a record and a table.

    On a processor these are seconds of one core, of this process; on a GPU they are those of the clock. Raises InputError for
    no networks.
    """
    if models < 1:
        raise InputError(f"--n is how many networks of the prior are made, 1 or more, not {models}")
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        trained, rest = _seconds(settings, data, device, models)
    finally:
        torch.set_num_threads(threads)
    record = {
        **header("prior", settings, data, device),
        "models": models,
        "models_at_once": min(AT_ONCE, models),
        "dimensions": settings.prior.dimensions,
        "training_s": round(trained, 3),
        "rest_s": round(rest, 3),
        "ratio": round(rest / trained, 3),
    }
    n, t = len(data.train.labels), len(data.test.labels)
    line = (
        f"N = {n}, T = {t}, a network of n = {models}: training {trained:.2f} s, gradients, kernel and scores {rest:.2f} s, "
        f"{rest / trained:.2f} times as much"
    )
    return record, f"{describe(record)}\n{line}"


def _seconds(settings: Settings, data: Dataset, device: torch.device, models: int) -> tuple[float, float]:
    """Seconds a network of training, and of the rest."""
    trainer, seed = Trainer(data, settings.training, device), settings.store.seed
    trained = rest = 0.0
    with progress("bench", "networks", models) as advance:
        for first in range(0, models, AT_ONCE):
            ids = [FIRST_MODEL + k for k in range(first, min(first + AT_ONCE, models))]
            masks, keys = draw_masks(seed, ids, trainer.n, settings.store.alpha), [(seed, i) for i in ids]
            with trainer.at_work():
                seconds, networks = timed(partial(trainer.train, masks, keys), device)
                trained += seconds
                seconds, _ = timed(partial(attribution, trainer, *networks, settings.prior.dimensions), device)
                rest += seconds
            advance(len(ids))
    return trained / models, rest / models


def timed(work: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    """Seconds of some work, and what it gives: of this process on a processor, all threads together; of the clock on a GPU."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    wait_for(device)
    begin = clock()
    result = work()
    wait_for(device)
    return clock() - begin, result
