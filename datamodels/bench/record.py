"""What every bench's result begins with: what was measured, on what, with which versions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from datamodels import __version__
from datamodels.data import Dataset
from datamodels.machine import describe_machine
from datamodels.settings import Settings
from datamodels.training.devices import describe_device

Record = dict[str, Any]


def header(bench: str, settings: Settings, data: Dataset, device: torch.device) -> Record:
    """The first entries of a bench's record."""
    shape = list(data.train.images.shape)
    return {
        "bench": bench,
        "version": __version__,
        "device": describe_device(device),
        "machine": describe_machine(),
        "data": {"dataset": settings.data.dataset, "train": shape, "test_images": len(data.test.labels), "digest": data.digest},
        "training": dataclasses.asdict(settings.training),
        "alpha": settings.store.alpha,
    }


def describe(record: Record) -> str:
    """The machine and the versions in one line, for the head of a table."""
    machine = record["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    device = "" if record["device"] == "cpu" else f"{record['device']}, "
    return f"{device}{machine['cores']} cores of {machine['processor']}, Python {machine['python']}, {packages}"


def file_name(record: Record, settings: Settings) -> str:
    """The name of the file for a record, such as train-digits-cpu.json."""
    return "-".join([record["bench"], Path(settings.run.dir).name, *record["device"].lower().split()]) + ".json"
