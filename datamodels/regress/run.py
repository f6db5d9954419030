"""The regression of a run: from its store to its folder of weights, once for each state of the store."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from datamodels.durable import read_json
from datamodels.errors import InputError
from datamodels.progress import progress, say
from datamodels.regress.path import Fit, fit_datamodels, target_blocks
from datamodels.regress.results import FILES, provenance, save
from datamodels.runs import read_store, stage_folder, stage_seconds
from datamodels.settings import RegressSettings, Settings
from datamodels.store import Store


def regress(settings: Settings) -> str:
    """Fit the datamodels of a run unless they are there for just these models and settings; say what is there then."""
    return _regress(
        read_store(settings), stage_folder(settings, "regress"), settings.regress, stage_seconds(settings, "regress")
    )


def regress_store(store: Path, out: Path, settings: RegressSettings) -> str:
    """As `regress`, for a store of any origin and a folder of one's own choice.

    Raises InputError when there is no such store, or something else than datamodels stands at `out`.
    """
    if out.exists():
        _refuse_anything_but_datamodels(out)
    return _regress(Store(store), out, settings, nullcontext())


def _refuse_anything_but_datamodels(folder: Path) -> None:
    """Raise InputError where a folder is not just what a regression leaves: it is replaced whole by the next one."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names != FILES:
        raise InputError(f"{folder} exists and holds something else than datamodels; nothing is written over it")


def _regress(store: Store, folder: Path, settings: RegressSettings, timed: AbstractContextManager[None]) -> str:
    meta = provenance(store, settings)
    total = settings.lams * len(target_blocks(store.meta.num_targets, settings))
    if not _is_made(folder, meta):
        with timed, progress("regress", "λ", total) as advance:
            fit = fit_datamodels(store, settings, advance)
        _say_what_is_constant(fit)
        save(folder, fit, meta)
    metrics = read_json(folder / "metrics.json")
    mean, heldout = metrics["mean"], metrics["models_heldout"]
    found = f"LDS {mean['lds']:.3f} on {heldout} held-out models of {meta['models']}"
    return f"regress: {found}, {mean['nonzeros']:.0f} non-zero weights a target, in {folder}"


def _say_what_is_constant(fit: Fit) -> None:
    found = {
        "images are in all of the masks or in none": fit.constant_images,
        "targets have one margin only": fit.constant_targets,
    }
    for what, which in found.items():
        if len(which):
            named = ", ".join(map(str, which[:5])) + ", …" * (len(which) > 5)
            say(f"regress: {len(which)} {what}, and have zero weights: {named}")


def _is_made(folder: Path, meta: object) -> bool:
    try:
        return bool(read_json(folder / "meta.json") == meta)
    except (OSError, ValueError):
        return False
