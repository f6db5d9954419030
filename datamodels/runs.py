"""The folder of a run: where its stages lie, what decided its models, how long each stage has worked.

RUN/data/      images, see data/files.py            RUN/regress/   weights, see regress/results.py
RUN/store/     masks and margins, store/FORMAT.md   RUN/verify/    retrained models and verdicts
RUN/report/    the page                             RUN/seconds.json
RUN/NAME/      verdicts under verify.name NAME, whose models are in RUN/verify/store/ too; RUN/report-NAME/ is their page
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from datamodels.durable import Lock, read_json, sweep, write_json
from datamodels.errors import InputError
from datamodels.provenance import refuse_difference
from datamodels.reading import Between, Each, Unreadable, require
from datamodels.settings import BUILT_IN, PLAIN, PROGRAMS, VERIFY, GroupSettings, Settings
from datamodels.store import Meta, Store

MOST_SECONDS_TO_WAIT = 10.0
"""For the file of seconds; a stopped process that holds it must not hold up a stage."""


def stage_folder(settings: Settings, stage: str) -> Path:
    """Where one stage of the run keeps its files: data, store, regress, verify or report."""
    return Path(settings.run.dir) / stage


def verdicts_folder(settings: Settings) -> Path:
    """Where the verdicts of `verify.name` lie."""
    return Path(settings.run.dir) / settings.verify.name


def page_folder(settings: Settings) -> Path:
    """Where the page of the verdicts of `verify.name` lies."""
    name = settings.verify.name
    return Path(settings.run.dir) / ("report" if name == VERIFY else f"report-{name}")


def deciding_settings(settings: Settings) -> dict[str, Any]:
    """The settings that decide every row of the run's store, up to its rounding; how many rows it has does not."""
    store = {key: value for key, value in dataclasses.asdict(settings.store).items() if key != "num_models"}
    if settings.worker.main != BUILT_IN:
        return {"worker": {"main": settings.worker.main}, "store": store}
    return {"training": settings.training.deciding(), "store": store}


def read_store(settings: Settings) -> Store:
    """The run's store, opened for reading.

    Raises InputError when there is none, or it was made under other settings than these.
    """
    store, wanted = Store(stage_folder(settings, "store")), deciding_settings(settings)
    refuse_difference(store.folder, {key: store.meta.provenance.get(key, {}) for key in wanted}, wanted)
    return store


GRADIENTS, SIMILARITY = OF_NETWORKS = ("gradients", "similarity")
"""Values of `regress.prior` that need the folder RUN/prior, which the worker makes of networks of the learner's."""


def no_prior_of_own(settings: Settings) -> str | None:
    """What is to be said where `regress.prior` asks one's own models for what they have not given; else None."""
    if (
        settings.worker.main == BUILT_IN
        or settings.regress.prior not in OF_NETWORKS
        or stage_folder(settings, "prior").exists()
    ):
        return None
    kind = settings.regress.prior
    return (
        f"regress.prior {kind} is made of what {settings.worker.main} does not give; take none, flat, or an .npy file of yours"
    )


def groups_of(meta: Meta) -> GroupSettings:
    """How the models of a run's store were grouped and their steps computed; chosen when it was made."""
    sizes = {name: Between(1, 2**31) for name in ("models_at_once", "models_per_kernel")}
    require(meta.provenance, {"groups": sizes}, Path("the store's meta.json"))
    groups = meta.provenance["groups"]
    program = groups.get("program", PLAIN)
    if program not in PROGRAMS:
        raise InputError(f"the store's meta.json names a program {program!r}, and there are {', '.join(PROGRAMS)}")
    return GroupSettings(**{name: groups[name] for name in sizes}, program=program)


@contextmanager
def stage_seconds(settings: Settings, stage: str) -> Iterator[None]:
    """Add the time that the block takes to the stage's; to be put around work, not around finding it done.

    The times of all processes of a stage add up.
    """
    start, run = time.monotonic(), Path(settings.run.dir)
    try:
        yield
    finally:
        # Neither shall the bookkeeping fail a stage that is done, nor cover up what failed it.
        with suppress(OSError, InputError):
            _add_seconds(settings, run, stage, time.monotonic() - start)


def _add_seconds(settings: Settings, run: Path, stage: str, more: float) -> None:
    run.mkdir(parents=True, exist_ok=True)
    sweep(run)
    lock, until = Lock(run / ".seconds.lock"), time.monotonic() + MOST_SECONDS_TO_WAIT
    if lock.take(wait=True, stop=lambda: time.monotonic() > until):
        try:
            seconds = read_seconds(settings)
            write_json(run / "seconds.json", {**seconds, stage: round(seconds.get(stage, 0.0) + more, 2)})
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
