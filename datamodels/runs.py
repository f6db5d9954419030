"""The folder of a run: where its stages lie, what decided its models, how long each stage has worked.

RUN/data/      images, see data/files.py            RUN/regress/   weights, see regress/results.py
RUN/store/     masks and margins, store/FORMAT.md   RUN/verify/    retrained models and verdicts
RUN/report/    the page                             RUN/seconds.json
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datamodels.durable import Lock, read_json, write_json
from datamodels.errors import InputError
from datamodels.provenance import refuse_difference
from datamodels.reading import Between, Each, Unreadable, require
from datamodels.settings import BUILT_IN, GroupSettings, Settings
from datamodels.store import Meta, Store


def stage_folder(settings: Settings, stage: str) -> Path:
    """Where one stage of the run keeps its files: data, store, regress, verify or report."""
    return Path(settings.run.dir) / stage


def deciding_settings(settings: Settings) -> dict[str, Any]:
    """The settings that decide every row of the run's store, up to its rounding; how many rows it has does not."""
    store = {key: value for key, value in dataclasses.asdict(settings.store).items() if key != "num_models"}
    if settings.worker.main != BUILT_IN:
        return {"worker": {"main": settings.worker.main}, "store": store}
    return {"training": dataclasses.asdict(settings.training), "store": store}


def read_store(settings: Settings) -> Store:
    """The run's store, opened for reading.

    Raises InputError when there is none, or it was made under other settings than these.
    """
    store, wanted = Store(stage_folder(settings, "store")), deciding_settings(settings)
    refuse_difference(store.folder, {key: store.meta.provenance.get(key, {}) for key in wanted}, wanted)
    return store


def refuse_own_function(settings: Settings) -> None:
    """Raise InputError where a run's models are not this package's, for what shows or needs its images."""
    if settings.worker.main != BUILT_IN:
        raise InputError("the page shows built-in data sets; with worker.main run datamodels.worker, .regress and .verify")


def groups_of(meta: Meta) -> GroupSettings:
    """How the models of a run's store were grouped: the block size, and what shares a kernel; chosen when it was made."""
    groups = {name: Between(1, 2**31) for name in ("models_at_once", "models_per_kernel")}
    require(meta.provenance, {"groups": groups}, Path("the store's meta.json"))
    return GroupSettings(**{name: meta.provenance["groups"][name] for name in groups})


@contextmanager
def stage_seconds(settings: Settings, stage: str) -> Iterator[None]:
    """Add the time that the block takes to the stage's; to be put around work, not around finding it done.

    The times of all processes of a stage add up.
    """
    start, run = time.monotonic(), Path(settings.run.dir)
    try:
        yield
    finally:
        run.mkdir(parents=True, exist_ok=True)
        lock = Lock(run / ".seconds.lock")
        lock.take(wait=True)
        try:
            seconds = read_seconds(settings)
            seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - start, 2)
            write_json(run / "seconds.json", seconds)
        finally:
            lock.release()


def read_seconds(settings: Settings) -> dict[str, float]:
    """Seconds of work of each stage so far."""
    try:
        file = Path(settings.run.dir) / "seconds.json"
        seconds: dict[str, float] = read_json(file)
        require(seconds, Each(float), file)
    except Unreadable:
        return {}
    return seconds
