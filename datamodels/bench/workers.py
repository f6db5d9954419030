"""How many trainings several workers on one store spend on each model that is wanted: 1 where none is trained twice.

The hardest case: models that cost next to nothing, a block each, so that claims, deliveries and merges are all that there is.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from datamodels import __version__
from datamodels.bench.record import Record, describe
from datamodels.errors import InputError
from datamodels.learners import Model, Trained
from datamodels.machine import describe_machine
from datamodels.runs import stage_folder
from datamodels.settings import Settings
from datamodels.store import ArraySpec, Meta, Store, create
from datamodels.worker.blocks import train_blocks
from datamodels.worker.jobs import RandomSubsets

N, T, SEED, ALPHA = 1000, 100, 3, 0.5
WORKERS = (1, 2, 4, 16)
BLOCKS = (1, 16)
PATIENCE_S = 120
"""Until all workers of a measurement stand ready."""


def bench_workers(settings: Settings, models: int = 2000) -> tuple[Record, str]:
    """The bench as a record for JSON and as a table; it works in a folder of the run's, which it removes.

    Raises InputError for no models, and where a bench's folder is left from before.
    """
    if models < 1:
        raise InputError(f"the bench takes a model or more, not {models}")
    folder = stage_folder(settings, "bench")
    if folder.exists():
        raise InputError(f"{folder} is there already; another bench is at work, or was cut off: delete it")
    folder.mkdir(parents=True)
    try:
        rows = [_measured(folder / f"store-{size}-{workers}", workers, size, models) for size in BLOCKS for workers in WORKERS]
    finally:
        shutil.rmtree(folder)
    record = {
        "bench": "workers",
        "version": __version__,
        "device": "disk",
        "machine": describe_machine(),
        "num_train": N,
        "num_targets": T,
        "models": models,
        "rows": rows,
    }
    return record, _table(record)


def _measured(folder: Path, workers: int, size: int, models: int) -> Record:
    create(folder, Meta(models, N, T, {"margins": ArraySpec("float32", (T,))}, {"of": "a bench"}))
    # Forked from a server that has imported this module, and nothing else: this process may have threads, of PyTorch or of
    # Ray, whose locks no fork survives; and one that imports everything again takes longer than the quick models.
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    trainings, together = context.Value("q", 0), context.Barrier(workers + 1, timeout=PATIENCE_S)
    said = [folder.with_name(f"{folder.name}-{k}.log") for k in range(workers)]
    processes = [context.Process(target=_work, args=(folder, models, size, trainings, together, file)) for file in said]
    for process in processes:
        process.start()
    with suppress(threading.BrokenBarrierError):  # by one that could not begin, of which is told below
        together.wait()
    start = time.perf_counter()
    for process in processes:
        process.join()
    seconds = time.perf_counter() - start
    failed = [(process.exitcode, file) for process, file in zip(processes, said, strict=True) if process.exitcode]
    if failed:
        told = "; ".join(f"exit code {code}: {_last_line(file)}" for code, file in failed)
        raise RuntimeError(f"{len(failed)} of {workers} workers have failed: {told}")
    if len(Store(folder).done) != models:
        raise RuntimeError(f"{workers} workers have ended, and of {models} models {len(Store(folder).done)} are there")
    return {
        "workers": workers,
        "block": size,
        "trainings_per_model": round(trainings.value / models, 4),
        "models_per_s": round(models / seconds, 1),
    }


def _work(folder: Path, models: int, size: int, trainings: Any, together: Any, said: Path) -> None:
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT, 0o600), 2)  # their bars are not for the bench's terminal
    try:
        together.wait()
    except threading.BrokenBarrierError:
        raise SystemExit("not all workers stood ready in time") from None
    train_blocks(RandomSubsets(folder, models, size, SEED, ALPHA), _CostsNothing(trainings))


def _last_line(file: Path) -> str:
    lines = file.read_text(errors="replace").strip().splitlines() if file.is_file() else []
    return lines[-1] if lines else "it said nothing"


class _CostsNothing:
    """A learner whose models take no time; it counts them."""

    name = "the bench"
    provenance: Mapping[str, Any] = {}
    models_at_once = 1

    def __init__(self, trainings: Any) -> None:
        self.trainings = trainings
        self.train_labels, self.test_labels = np.full(N, -1), np.full(T, -1)

    def train(self, models: Sequence[Model]) -> Trained:
        """Margins drawn at random."""
        with self.trainings.get_lock():
            self.trainings.value += len(models)
        rows = [np.random.default_rng(model.key).normal(size=T).astype(np.float32) for model in models]
        return Trained({"margins": np.stack(rows)})


def _table(record: Record) -> str:
    lines = [
        describe({**record, "device": "cpu"}),
        f"{record['models']} models that cost nothing, N = {N}, T = {T}",
        f"{'workers':>8} {'block':>6} {'trainings a model':>18} {'models/s':>9}",
    ]
    lines += [
        f"{row['workers']:>8} {row['block']:>6} {row['trainings_per_model']:>18.4f} {row['models_per_s']:>9.0f}"
        for row in record["rows"]
    ]
    return "\n".join(lines)
