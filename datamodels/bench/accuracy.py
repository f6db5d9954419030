"""Test accuracy of the recipe's models: trained on all of S, and on subsets of size αN."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import t as student_t

from datamodels.bench.record import Record, describe, header
from datamodels.data import Dataset
from datamodels.errors import InputError
from datamodels.progress import Advance, progress
from datamodels.settings import Settings
from datamodels.subsets import BoolArray, draw_masks
from datamodels.training import Trainer, choose_groups, for_each_group

Accuracies = npt.NDArray[np.float64]


def bench_accuracy(settings: Settings, data: Dataset, device: torch.device, models: int = 8) -> tuple[Record, str]:
    """Mean test accuracy over `models` models of either kind, with its 95 % interval, as a record and as a table.

    Accuracy is the share of test images with a margin above 0, after test-time flip averaging where the recipe flips. Raises
    InputError for less than two models.
    """
    if models < 2:
        raise InputError(f"a mean accuracy with an interval takes 2 models or more, not {models}")
    groups, _ = choose_groups(data, settings.training, settings.groups, device)
    trainer = Trainer(data, settings.training, device, groups.models_per_kernel, program=groups.program)
    part = draw_masks(settings.store.seed, range(models), trainer.n, settings.store.alpha)
    kinds = {"all of S": np.ones((models, trainer.n), bool), f"α = {settings.store.alpha:g}": part}
    rows: list[Record] = []
    with progress("bench", "models", 2 * models) as advance:
        for name, masks in kinds.items():
            found = _accuracies(trainer, masks, settings.store.seed, groups.models_at_once, advance)
            rows.append({"trained_on": name, "images": int(masks[0].sum()), "models": models, **_interval(found)})
    record = {**header("accuracy", settings, data, device), "rows": rows}
    lines = [
        f"{row['trained_on']}: {row['mean']:.2%} ± {row['half_interval']:.2%} of {len(data.test.labels)} test images "
        f"(mean over n = {models} models from {row['images']} images each, 95 % interval)"
        for row in rows
    ]
    return record, "\n".join([describe(record), *lines])


def _accuracies(trainer: Trainer, masks: BoolArray, seed: int, at_once: int, advance: Advance) -> Accuracies:
    found = np.zeros(len(masks))

    def work(first: int) -> None:
        ids = range(first, min(first + at_once, len(masks)))
        found[ids] = (trainer.margins(masks[ids], [(seed, i) for i in ids]) > 0).mean(1)
        advance(len(ids))

    for_each_group(range(0, len(masks), at_once), work, trainer.device)
    return found


def _interval(accuracies: Accuracies) -> Record:
    """Mean, half its 95 % interval (Student's t), and the accuracies themselves."""
    n = len(accuracies)
    half = float(student_t.ppf(0.975, n - 1) * accuracies.std(ddof=1) / np.sqrt(n))
    return {"mean": float(accuracies.mean()), "half_interval": half, "accuracies": accuracies.round(4).tolist()}
