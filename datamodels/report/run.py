"""The report of a run: summary.json, PNGs, and index.html with everything in it."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from datamodels import __version__
from datamodels.data import Dataset
from datamodels.durable import new_folder, read_json, write_json
from datamodels.errors import InputError
from datamodels.regress import Datamodels
from datamodels.regress.run import regress_folder
from datamodels.report.figures import heldout_figure, target_figure, verified_figure
from datamodels.settings import Settings
from datamodels.stages import read_seconds, stage_seconds
from datamodels.store import Store
from datamodels.verify.run import SUPPORT, verify_folder

Record = dict[str, Any]


def report_folder(settings: Settings) -> Path:
    """Where the run's page lies."""
    return settings.run_dir / "report"


def report(settings: Settings, data: Dataset) -> str:
    """Make the page, its pictures and summary.json; say in one line where the page is.

    Raises InputError when a stage before is missing, or was made from another state of the store.
    """
    store, models = Store(settings.run_dir / "store"), Datamodels.load(regress_folder(settings))
    verified = _read_verified(settings, models, store)
    folder = report_folder(settings)
    with stage_seconds(settings.run_dir, "report"), new_folder(folder) as temporary:
        pictures = _pictures(store, models, verified, data)
        for name, png in pictures.items():
            (temporary / name).write_bytes(png)
        summary = summarise(settings, store, models, verified)
        page = _page(settings, data, verified, summary, pictures)
        (temporary / "index.html").write_text(page, encoding="utf-8")
        write_json(temporary / "summary.json", summary)
    return f"report: {folder / 'index.html'}"


def summarise(settings: Settings, store: Store, models: Datamodels, verified: Record) -> Record:
    """The figures of the run. Those about removals are of the fixed size where there is one; `by_rule` has them all."""
    rules = {rule: _summarise_rule(verdicts) for rule, verdicts in _by_rule(verified).items()}
    main = next((rule for rule in rules if rule != SUPPORT), SUPPORT)
    return {
        "models": len(store.done),
        "heldout_models": len(models.heldout),
        "lds": models.metrics["mean"]["lds"],
        "accuracy": float(np.mean([(store.margins(part) > 0).mean() for part in np.array_split(store.done, 16)])),
        "rule": main,
        **rules[main],
        "by_rule": rules,
        "models_retrained": verified["models_used"],
        "seconds": read_seconds(settings.run_dir),
        "version": __version__,
        "store_digest": models.meta["store_digest"],
    }


def _summarise_rule(verdicts: list[Record]) -> Record:
    def drop(state: str) -> float:
        return float(np.mean([v["before"]["mean_margin"] - v[state]["mean_margin"] for v in verdicts]))

    return {
        "targets": len(verdicts),
        "mean_size": float(np.mean([v["size"] for v in verdicts])),
        "mean_margin_drop_removed": drop("after"),
        "mean_margin_drop_control": drop("control"),
        "right_before": sum(v["right_before"] for v in verdicts),
        "flipped_removed": sum(v["flipped"] for v in verdicts),
        "flipped_control": sum(v["control_flipped"] for v in verdicts),
    }


def _read_verified(settings: Settings, models: Datamodels, store: Store) -> Record:
    path = verify_folder(settings) / "verify.json"
    try:
        verified: Record = read_json(path)
        digest = verified["store_digest"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"there is no {path}; run python -m datamodels.verify --targets file.txt with the same config") from e
    if not digest == models.meta["store_digest"] == store.digest():
        raise InputError(
            f"{path}, the weights and the store are not of one state; run datamodels.regress and datamodels.verify again"
        )
    return verified


def _by_rule(verified: Record) -> dict[str, list[Record]]:
    rules: dict[str, list[Record]] = {}
    for verdict in verified["removals"]:
        rules.setdefault(verdict["rule"], []).append(verdict)
    return rules


def _title(rule: str) -> str:
    return "the smallest set that should flip it" if rule == SUPPORT else f"the {rule} largest weights"


def _target_picture(verdict: Record) -> str:
    return f"target-{verdict['target']}-{verdict['rule']}.png"


def _pictures(store: Store, models: Datamodels, verified: Record, data: Dataset) -> dict[str, bytes]:
    """Every picture of the report, by file name."""
    true = store.margins(models.heldout).astype(np.float32)
    predicted = models.predict(store.masks(models.heldout))
    pictures = {"heldout.png": heldout_figure(predicted, true, np.array(models.metrics["per_target"]["lds"]))}
    for rule, verdicts in _by_rule(verified).items():
        pictures[f"verified-{rule}.png"] = verified_figure(verdicts, f"Removed: {_title(rule)}")
    return {**pictures, **{_target_picture(v): target_figure(v, data) for v in verified["removals"]}}


def _page(settings: Settings, data: Dataset, verified: Record, summary: Record, pictures: dict[str, bytes]) -> str:
    embedded = {name: "data:image/png;base64," + base64.b64encode(png).decode() for name, png in pictures.items()}
    rules = [
        {**values, "title": _title(rule), "figure": embedded[f"verified-{rule}.png"]}
        for rule, values in summary["by_rule"].items()
    ]
    seen: set[int] = set()
    verdicts = []
    for v in sorted(verified["removals"], key=lambda v: v["target"]):
        shown = {"title": _title(v["rule"]), "class_name": data.class_names[v["label"]], "figure": embedded[_target_picture(v)]}
        verdicts.append({**v, **shown, "first": v["target"] not in seen})
        seen.add(v["target"])
    environment = jinja2.Environment(loader=jinja2.PackageLoader("datamodels.report", "."), autoescape=True)
    return environment.get_template("page.html.j2").render(
        run=settings.run_dir.name,
        alpha=settings.store.alpha,
        train_images=len(data.train.labels),
        test_images=len(data.test.labels),
        models_per_removal=settings.verify.models,
        heldout=embedded["heldout.png"],
        rules=rules,
        verdicts=verdicts,
        summary=summary,
        version=__version__,
        store_digest=summary["store_digest"],
        settings=yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(settings))), sort_keys=False),
    )
