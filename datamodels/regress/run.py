"""The regression of a run: from its store to its folder of weights, once for each state of the store."""

from __future__ import annotations

from pathlib import Path

from datamodels.durable import read_json
from datamodels.progress import progress
from datamodels.regress.path import fit_datamodels
from datamodels.regress.results import provenance, save
from datamodels.runs import read_store, stage_folder, stage_seconds
from datamodels.settings import Settings


def regress(settings: Settings) -> str:
    """Fit the datamodels of a run unless they are there for just these models and settings; say what is there then."""
    folder, store = stage_folder(settings, "regress"), read_store(settings)
    meta = provenance(store, settings.regress)
    if not _is_made(folder, meta):
        with stage_seconds(settings, "regress"), progress("regress", "λ", settings.regress.lams) as advance:
            fit = fit_datamodels(store, settings.regress, advance)
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
