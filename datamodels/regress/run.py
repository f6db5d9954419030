"""The regression of a run: from its store to its folder of weights, once for each state of the store."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from datamodels.durable import read_json
from datamodels.errors import InputError
from datamodels.progress import progress
from datamodels.regress.path import fit_datamodels
from datamodels.regress.results import provenance, save
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
    if out.exists() and not (out / "meta.json").exists():
        raise InputError(f"{out} exists and holds no datamodels; nothing is written over it")
    return _regress(Store(store), out, settings, nullcontext())


def _regress(store: Store, folder: Path, settings: RegressSettings, timed: AbstractContextManager[None]) -> str:
    meta = provenance(store, settings)
    if not _is_made(folder, meta):
        with timed, progress("regress", "λ", settings.lams) as advance:
            fit = fit_datamodels(store, settings, advance)
        save(folder, fit, meta)
    metrics = read_json(folder / "metrics.json")
    mean, heldout = metrics["mean"], metrics["models_heldout"]
    found = f"LDS {mean['lds']:.3f} on {heldout} held-out models of {meta['models']}"
    return f"regress: {found}, {mean['nonzeros']:.0f} non-zero weights a target, in {folder}"


def _is_made(folder: Path, meta: object) -> bool:
    try:
        return bool(read_json(folder / "meta.json") == meta)
    except (OSError, ValueError):
        return False
