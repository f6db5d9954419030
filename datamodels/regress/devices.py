"""A regression over several devices: a process for each, all with all of the models, each with some of the targets.

They keep what they find where one regression keeps what it has done so far (see `unfinished`), and take one piece of the
targets after another of those that no other has. Which pieces there are is decided beforehand; so weights do not depend on who
did which. A process that dies has its pieces done by others. Then a regression finds all blocks kept, and joins them.

With `regress.block` the blocks are those of one device, and so are the weights: to the last bit where BLAS has as many threads,
else to rounding, as with any other number of cores. Without it blocks are smaller, and weights the same within `regress.gap`.

Each process reads the masks and margins, and makes XᵀX of its own; a prior is estimated by one of them, for all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodels.errors import InputError
from datamodels.processes import ALL, CPU, Team, devices_named
from datamodels.progress import Bar, say
from datamodels.regress.arrays import count_gpus, refuse_contradiction
from datamodels.regress.path import CHOSEN, FITTED, Pieces, Share, fit_share
from datamodels.regress.prior import covariates_named
from datamodels.regress.results import About
from datamodels.regress.solvers import CPU_BLOCK, GPU_BLOCK
from datamodels.regress.source import targets_named
from datamodels.regress.split import Parts, joined
from datamodels.regress.unfinished import Unfinished
from datamodels.serving import tell
from datamodels.settings import RegressSettings
from datamodels.store import Store

ATTEMPTS = 2
"""How often devices are set to work: once more where a process has died."""


@dataclass(frozen=True)
class Plan:
    """What all processes are told: the store, its models, the settings, where to keep what they find, the pieces."""

    store: Path
    settings: RegressSettings
    prior: Path | None
    parts: Parts
    unfinished: Path
    meta: About
    pieces: Pieces
    sharers: int


def devices_of(device: str, gpu: str | None) -> Sequence[str | None]:
    """The devices of `--gpu`, None for the one that is there, by `regress.device`.

    Raises InputError where the two contradict each other, and for what names no devices.
    """
    found = [] if gpu is None else devices_named(gpu, lambda: count_gpus(device))
    if not found or (gpu == ALL and found == [CPU]):
        return [None]
    for name in found:
        refuse_contradiction(device, name)
    return found


def fit_shares(
    store: Store,
    settings: RegressSettings,
    unfinished: Unfinished,
    prior: Path | None,
    parts: Parts,
    devices: Sequence[str],
    bar: Bar,
) -> list[dict[str, Any]]:
    """Let devices keep what a regression will find done; what each of them did. Little or nothing where one is enough.

    `prior` is the folder that `regress.prior` may name. What is not done here, for a process has died again and again, is left.
    Raises InputError as a regression does.
    """
    pieces = pieces_of(unfinished, store, settings, devices)
    most = max(map(len, pieces.values()))
    if 0 < most < len(devices):
        say(f"regress: only {most} of {len(devices)} devices have something to do, in blocks of so many targets")
    if most < 2:
        return []
    plan = Plan(store.folder, settings, prior, parts, unfinished.begun(), unfinished.meta, pieces, min(most, len(devices)))
    targets = targets_named(store, settings.targets)
    with Team(devices[:most], functools.partial(prepare, plan)) as team, one_bar(settings, targets, pieces, bar) as heard:
        return _work(team, heard)


def _work(team: Team[Callable[[], Share]], heard: Callable[[str, Any], None]) -> list[dict[str, Any]]:
    reports = []
    for _ in range(ATTEMPTS):
        shares = team.all(_do, heard=heard)
        done = zip(team.devices, shares, strict=True)
        reports += [{"device": device, **dataclasses.asdict(share)} for device, share in done if share and share.targets]
        if None not in shares:
            break
        say(f"regress: a process ended on {', '.join(team.revive())}; its targets are done by others")
    return reports


def pieces_of(unfinished: Unfinished, store: Store, settings: RegressSettings, devices: Sequence[str]) -> Pieces:
    """The targets that are not done, so many together as `regress.block` says, or as many that each device has as many."""
    first, last = targets_named(store, settings.targets)
    size = settings.block
    if not size:
        at_once = len(devices) * (CPU_BLOCK if set(devices) == {CPU} else GPU_BLOCK)
        size = -(-(last - first) // (len(devices) * -(-(last - first) // at_once)))
    return missing_pieces(unfinished, (first, last), settings, size)


def missing_pieces(unfinished: Unfinished, targets: tuple[int, int], settings: RegressSettings, size: int) -> Pieces:
    """The targets, the first and one past the last of them, that are not done in each stage, so many together or fewer."""
    first, last = targets
    pieces: Pieces = {CHOSEN: [], FITTED: []}
    for stage in steps_of(settings):
        for start, stop in unfinished.missing(stage, first, last):
            pieces[stage] += [(at, min(at + size, stop)) for at in range(start, stop, size)]
    return pieces


def steps_of(settings: RegressSettings) -> dict[str, int]:
    """The steps of each stage for a target."""
    of_lasso = settings.prior == "none" or settings.sparse
    return {CHOSEN: settings.lams, FITTED: 1} if of_lasso else {FITTED: 1}


def prepare(plan: Plan, device: str) -> Callable[[], Share]:
    """In the process of a device: what is to be done there. Raises InputError where store or prior are others by now."""
    store = Store(plan.store)
    store.done = joined([plan.parts.fit, plan.parts.choice, plan.parts.heldout])  # not those that have come since
    if store.digest() != plan.meta["store_digest"]:
        raise InputError(f"{plan.store} has changed since the regression began; run the same command again")
    covariates = covariates_named(plan.settings.prior, plan.prior, store.meta.num_train, store.meta.num_targets)
    if covariates is not None and covariates.digest != plan.meta["prior_digest"]:
        raise InputError("what regress.prior names has changed since the regression began; run the same command again")
    kept = Unfinished(plan.unfinished, plan.meta)
    of = (store, plan.settings, _telling, kept, covariates, plan.parts, device, plan.pieces, plan.sharers)
    return functools.partial(fit_share, *of)


def _do(here: Callable[[], Share]) -> Share:
    return here()


@contextmanager
def _telling(unit: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar that is told to the process that has the one of all."""
    del total
    yield lambda n=1, where="": tell((unit, n, where))


@contextmanager
def one_bar(
    settings: RegressSettings, targets: tuple[int, int], pieces: Pieces, bar: Bar
) -> Iterator[Callable[[str, Any], None]]:
    """Takes what all processes tell of their steps, and shows them as targets."""
    (first, last), steps = targets, steps_of(settings)
    whole, every = sum(steps.values()), sum(steps.values()) * (last - first)
    left = sum(steps[stage] * (stop - start) for stage in steps for start, stop in pieces[stage])
    done, shown = every - left, 0
    with bar("targets", last - first) as advance:

        def show(device: str, where: str) -> None:
            nonlocal shown
            now = min(done, every) // whole
            if now > shown or now < last - first:  # nothing is said twice once all is done
                advance(now - shown, f"{device}: {where}" if where else "")
            shown = now

        def heard(device: str, told: tuple[str, int, str]) -> None:
            nonlocal done
            unit, n, where = told
            done += n if unit != "models" else 0
            show(device, where if unit != "models" else "taking in models")

        show("", "")
        yield heard
