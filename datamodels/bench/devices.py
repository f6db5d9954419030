"""What a second device is worth to a verification: half of the processor's cores alone against both halves, in one run."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from datamodels.bench.record import Record, describe, header
from datamodels.data import load, prepare
from datamodels.errors import InputError
from datamodels.processes import CPU, shares
from datamodels.regress import Datamodels
from datamodels.regress.run import regress
from datamodels.runs import stage_folder
from datamodels.settings import Settings
from datamodels.store import Store
from datamodels.training import device_named
from datamodels.verify import draw_targets, verify_targets
from datamodels.verify.record import VERDICTS
from datamodels.worker import engine_of, train_missing

ONE, TWO = "one", "two"
WAYS = {ONE: CPU, TWO: f"{CPU},{CPU}"}


def bench_devices(settings: Settings, rounds: int = 1) -> tuple[Record, str]:
    """Seconds of a verification of `verify.random_targets` targets, by half of the cores and by both halves.

    The run of the settings is trained first, where it is not there. Each way starts from a copy of it, with nothing retrained.
    Raises InputError for no rounds, one core only, or where the ways do not come to the same verdicts.
    """
    if rounds < 1 or not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        raise InputError("the bench takes a round or more, and two cores that processes can be bound to")
    prepare(settings)
    data = load(settings)
    with engine_of(settings, CPU, data) as engine:
        train_missing(settings, engine)
    regress(settings, CPU)
    rows = [_round(settings, number) for number in range(rounds)]
    record = {
        **header("devices", settings, data, device_named(CPU)),
        "targets": settings.verify.random_targets,
        "rows": rows,
        "ratio": round(sorted(row[TWO] / row[ONE] for row in rows)[len(rows) // 2], 3),
    }
    lines = [
        f"{row['models']} networks: {row[ONE]:.1f} s by half of the cores, {row[TWO]:.1f} s by both halves" for row in rows
    ]
    return record, "\n".join([describe(record), *lines, f"ratio {record['ratio']}, median of n = {rounds}"])


def _round(settings: Settings, number: int) -> Record:
    run, found = Path(settings.run.dir), {}
    row: Record = {}
    # By turns, so that neither way always has the warmer machine.
    for way in (ONE, TWO) if number % 2 == 0 else (TWO, ONE):
        scratch = run / f"bench-devices-{way}"
        shutil.rmtree(scratch, ignore_errors=True)
        for stage in ("data", "store", "prior", "regress"):
            if (run / stage).exists():
                shutil.copytree(run / stage, scratch / stage)
        try:
            row[way], row["models"], found[way] = _verified(settings, scratch, WAYS[way])
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    if found[ONE] != found[TWO]:
        raise InputError("one device and two do not come to the same verdicts")
    return row


def _verified(settings: Settings, run: Path, devices: str) -> tuple[float, int, bytes]:
    """Seconds of a verification in a folder, the networks that it took, and its verdicts."""
    settings = dataclasses.replace(settings, run=dataclasses.replace(settings.run, dir=str(run)))
    models, data = Datamodels.load(stage_folder(settings, "regress")), load(settings)
    targets = draw_targets(settings.verify.random_targets, len(data.test.labels), settings.verify.seed)
    start = time.monotonic()
    with _bound_to(shares(2)[0] if devices == CPU else []), engine_of(settings, devices, data) as engine:
        verify_targets(settings, engine, models, targets)
    seconds = time.monotonic() - start
    return seconds, len(Store(run / "verify" / "store").done), (run / "verify" / VERDICTS).read_bytes()


@contextmanager
def _bound_to(cores: Sequence[int]) -> Iterator[None]:
    """Let this thread, and those that it starts, run on these cores only; on all of them where none is named."""
    before = os.sched_getaffinity(0)
    try:
        if cores:
            os.sched_setaffinity(0, cores)
        yield
    finally:
        os.sched_setaffinity(0, before)
