"""The regression of a run: from its store to its folder of weights, once for each state of the store."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodels.durable import is_there, only_maker, read_json, tidy
from datamodels.errors import InputError, shown
from datamodels.progress import progress, say, step
from datamodels.regress.devices import devices_of, fit_shares
from datamodels.regress.exchange import export_pt, import_pt
from datamodels.regress.path import Fit, fit_datamodels
from datamodels.regress.prior import Covariates, covariates_named
from datamodels.regress.results import DENSE, FILES, SPARSE, About, Datamodels, provenance, read_about, save
from datamodels.regress.split import Subsets, split_models
from datamodels.regress.unfinished import Unfinished
from datamodels.runs import no_prior_of_own, read_store, stage_folder, stage_seconds
from datamodels.settings import RegressSettings, Settings
from datamodels.store import Store
from datamodels.store.check import refuse_damaged
from datamodels.store.precision import coarse

if TYPE_CHECKING:
    from datamodels.cluster import Cluster


def regress(settings: Settings, gpu: str | None = None, cluster: Cluster | None = None) -> str:
    """Fit the datamodels of a run unless they are there for just these models and settings; say what is there then.

    `gpu` names one device or several, see `processes.devices_named`, each of which does some of the targets. With a `cluster`
    its nodes do (see `on_ray`). Raises InputError where there is no store, or not the prior that is asked for, or not those
    devices.
    """
    folder, prior = stage_folder(settings, "regress"), stage_folder(settings, "prior")
    refusal = no_prior_of_own(settings)
    if refusal is not None:
        raise InputError(refusal)
    return _regress(read_store(settings), folder, settings.regress, stage_seconds(settings, "regress"), prior, gpu, cluster)


def regress_store(
    store: Path, out: Path, settings: RegressSettings, gpu: str | None = None, cluster: Cluster | None = None
) -> str:
    """As `regress`, for a store of any origin and a folder of one's own choice.

    Raises InputError when there is no such store, or something else than datamodels stands at `out`.
    """
    if is_there(out):
        _refuse_anything_but_datamodels(out)
    return _regress(Store(store), out, settings, nullcontext(), None, gpu, cluster)


def export_weights(settings: Settings, folder: Path | None, file: Path) -> str:
    """Write the weights of a folder, or of the run, as a .pt file. Raises InputError when there are none."""
    source = folder or stage_folder(settings, "regress")
    export_pt(Datamodels.load(source), file)
    return f"regress: the weights of {source} are in {file}"


def import_weights(file: Path, out: Path, masks: str | None = None, store: Path | None = None) -> str:
    """Make a folder of weights of a .pt file, as `exchange.import_pt` does; say what came of it.

    Raises InputError for another file, when nobody says for which masks its weights are, or when something stands at `out`.
    """
    if is_there(out):
        _refuse_anything_but_datamodels(out)
    with _alone(out):
        found = import_pt(file, out, masks, None if store is None else Store(store))
    return f"regress: {found}; in {out}, for masks of 0 and 1"


def _refuse_anything_but_datamodels(folder: Path) -> None:
    """Raise InputError where a folder is not just what a regression leaves: it is replaced whole by the next one."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names not in ({*FILES, SPARSE}, {*FILES, DENSE}):
        raise InputError(f"{folder} exists and holds something else than datamodels; nothing is written over it")


def _regress(
    store: Store,
    folder: Path,
    settings: RegressSettings,
    timed: AbstractContextManager[None],
    prior: Path | None,
    gpu: str | None,
    cluster: Cluster | None,
) -> str:
    devices = devices_of(settings.device, gpu)
    with step("regress: reading the store and the prior"):
        covariates = covariates_named(settings.prior, prior, store.meta.num_train, store.meta.num_targets)
        meta = provenance(store, settings)
    if covariates is not None:
        meta["prior_digest"] = covariates.digest
    if is_made(folder, meta):
        tidy(folder)
    else:
        with _alone(folder), timed:
            with step("regress: checking the store"):
                refuse_damaged(store)
            unfinished = Unfinished(folder.with_name(f".{folder.name}.unfinished"), meta)
            with step("regress: estimating the weights"):
                fit = _fit(store, settings, unfinished, covariates, prior, devices, cluster)
            _say_what_is_constant(fit)
            found = coarse(store)
            if found is not None:
                say(f"regress: {found}")
            _say_what_is_replaced(folder, meta)
            with step("regress: writing the weights"):
                save(folder, fit, meta)
            unfinished.forget()
    metrics = read_json(folder / "metrics.json")
    mean, heldout = metrics["mean"], metrics["models_heldout"]
    found = f"LDS {mean['lds']:.3f} on {heldout} held-out models of {meta['models']}"
    return f"regress: {found}, {mean['nonzeros']:.0f} non-zero weights a target, in {folder}"


def _fit(
    store: Store,
    settings: RegressSettings,
    unfinished: Unfinished,
    covariates: Covariates | None,
    prior: Path | None,
    devices: Sequence[str | None],
    cluster: Cluster | None,
) -> Fit:
    """Fit on one device, or let several, or nodes, keep their shares, and join them.

    What none of several devices has done is done on the first one then.
    """
    parts = split_models(Subsets.of(store, store.done), settings)
    several = [device for device in devices if device is not None]
    if cluster is not None:
        from datamodels.regress.on_ray import fit_pieces

        reports = fit_pieces(cluster, store, settings, unfinished, covariates, parts, _bar)
        return _reported(fit_datamodels(store, settings, _bar, unfinished, covariates, parts), "nodes", reports)
    reports = fit_shares(store, settings, unfinished, prior, parts, several, _bar) if len(several) > 1 else []
    fit = fit_datamodels(store, settings, _bar, unfinished, covariates, parts, devices[0])
    return _reported(fit, "devices", reports)


def _reported(fit: Fit, who: str, reports: list[dict[str, Any]]) -> Fit:
    """With what each device, or each process on a node, has done; the longest of each part is how long it took."""
    if not reports:
        return fit
    seconds = [fit.seconds, *(report["seconds"] for report in reports)]
    longest = {part: max(of.get(part, 0.0) for of in seconds) for of in seconds for part in of}
    return dataclasses.replace(fit, seconds=longest, solver={**fit.solver, who: reports})


def _bar(unit: str, total: int) -> AbstractContextManager[Any]:
    return progress("regress", unit, total)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raise InputError where another process is at work on the same folder."""
    with only_maker(folder) as mine:
        if not mine:
            raise InputError(f"another regression is at work on {folder}")
        yield


def _say_what_is_constant(fit: Fit) -> None:
    found = {
        "images are in all of the masks or in none": fit.constant_images,
        "targets have one margin only": fit.constant_targets,
    }
    for what, which in found.items():
        if len(which):
            named = ", ".join(map(str, which[:5])) + ", …" * (len(which) > 5)
            say(f"regress: {len(which)} {what}, and have zero weights: {named}")


def _say_what_is_replaced(folder: Path, meta: About) -> None:
    """Say that weights will be replaced which were made with other settings, or imported; not those of fewer models."""
    try:
        there = read_about(folder)
    except InputError:
        return
    if there.get("imported_from") is not None:
        say(f"regress: the weights in {folder}, imported from {shown(str(there['imported_from']), 80)}, are replaced")
        return
    before, now = there.get("regress", {}), meta["regress"]
    changed = [
        f"regress.{key} {shown(str(before.get(key)), 80)} → {value}" for key, value in now.items() if before.get(key) != value
    ]
    if changed:
        keep = "to keep both, give --store DIR and --out another folder"
        say(f"regress: the weights in {folder} are replaced, which were made otherwise ({', '.join(changed)}); {keep}")


def is_made(folder: Path, meta: object) -> bool:
    """Whether a folder has the weights of which this is said."""
    try:
        return bool(read_about(folder) == meta)
    except InputError:
        return False
