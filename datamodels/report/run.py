"""The report of a run: summary.json, PNGs and SVGs, and index.html with everything in it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from datamodels import __version__
from datamodels.data import Dataset
from datamodels.durable import new_folder, only_maker, read_arrays, read_json, tidy, write_json
from datamodels.errors import InputError
from datamodels.machine import describe_machine
from datamodels.reading import Unreadable, require
from datamodels.regress import Datamodels
from datamodels.report.figures import (
    METHODS,
    Picture,
    cdf_figure,
    drops_figure,
    fresh_figure,
    heldout_figure,
    target_figure,
    verified_figure,
)
from datamodels.runs import read_seconds, read_store, stage_folder
from datamodels.settings import Settings
from datamodels.store import Store
from datamodels.verify.methods import DATAMODEL
from datamodels.verify.record import SUPPORT, read_verified
from datamodels.verify.run import FRESH, drop_correlations, median_size

Record = dict[str, Any]


def report(settings: Settings, data: Dataset) -> str:
    """Make the page, its pictures and summary.json; say in one line where the page is.

    Raises InputError when a stage before is missing, or was made from another state of the store.
    """
    start = time.monotonic()
    store, models = read_store(settings), Datamodels.load(stage_folder(settings, "regress"))
    verified = _read_verified(settings, models, store, len(data.class_names))
    models.refuse_other(store)
    folder, made_from = stage_folder(settings, "report"), _made_from(verified, models)
    already = f"report: already in {folder / 'index.html'}"
    if _is_made(folder, made_from):
        tidy(folder)
        return already
    with only_maker(folder, f"report: waiting for another process that is making {folder}"):
        if _is_made(folder, made_from):
            return already
        _make(settings, data, store, models, verified, made_from, start)
    return f"report: {folder / 'index.html'}"


def _make(
    settings: Settings, data: Dataset, store: Store, models: Datamodels, verified: Record, made_from: Any, start: float
) -> None:
    with new_folder(stage_folder(settings, "report"), replace=True) as temporary:
        pictures = _pictures(store, models, verified, data, stage_folder(settings, "verify") / FRESH)
        for name, picture in pictures.items():
            (temporary / f"{name}.png").write_bytes(picture.png)
            (temporary / f"{name}.svg").write_bytes(picture.svg)
        seconds = {**read_seconds(settings), "report": round(time.monotonic() - start, 2)}
        summary = {
            **summarise(store, models, verified),
            "seconds": seconds,
            "machine": describe_machine(),
            "made_from": made_from,
        }
        page = _page(settings, data, verified, summary, pictures)
        (temporary / "index.html").write_text(page, encoding="utf-8")
        write_json(temporary / "summary.json", summary)


def summarise(store: Store, models: Datamodels, verified: Record) -> Record:
    """The figures of the run. Those about removals are of the fixed size where there is one; `by_rule` has them all."""
    rules = {rule: _summarise_rule(verdicts) for rule, verdicts in _by_rule(verified).items()}
    main = next((rule for rule in rules if rule != SUPPORT), SUPPORT)
    rules.setdefault(main, _summarise_rule([]))
    return {
        "models": len(store.done),
        "heldout_models": len(models.heldout),
        "lds": models.metrics["mean"]["lds"],
        "accuracy": _accuracy(store),
        "rule": main,
        **rules[main],
        "by_rule": rules,
        "by_method": {method: _summarise_method(found) for method, found in _by_method(verified).items()},
        "fresh": verified["fresh"],
        "drop_correlations": drop_correlations(verified),
        "models_retrained": verified["models_used"],
        "version": __version__,
        "machine": describe_machine(),
        "store_digest": models.meta["store_digest"],
    }


def _summarise_method(searches: list[Record]) -> Record:
    flipped = [search for search in searches if search["size"] is not None]
    return {
        "targets": len(searches),
        "flipped": len(flipped),
        "median_size": median_size(searches),
        "models_per_target": float(np.mean([search["models"] for search in searches])) if searches else None,
    }


def _accuracy(store: Store) -> float:
    """Share of model–target pairs that are right, over all models of the store."""
    right = sum(int((store.margins(store.done[k : k + 1000]) > 0).sum()) for k in range(0, len(store.done), 1000))
    return right / (len(store.done) * store.meta.num_targets)


def _summarise_rule(verdicts: list[Record]) -> Record:
    tried = [v for v in verdicts if v["after"]]

    def mean(values: list[float]) -> float | None:
        return float(np.mean(values)) if values else None

    def drop(state: str) -> float | None:
        return mean([v["before"]["mean_margin"] - v[state]["mean_margin"] for v in tried])

    return {
        "targets": len(verdicts),
        "tried": len(tried),
        "mean_size": mean([v["size"] for v in tried]),
        "mean_margin_drop_removed": drop("after"),
        "mean_margin_drop_control": drop("control"),
        "right_before": sum(v["right_before"] for v in tried),
        "flipped_removed": sum(v["flipped"] for v in verdicts),
        "flipped_control": sum(v["control_flipped"] for v in verdicts),
    }


def _read_verified(settings: Settings, models: Datamodels, store: Store, classes: int) -> Record:
    path = stage_folder(settings, "verify") / "verify.json"
    try:
        verified = read_verified(path, store.meta.num_train, store.meta.num_targets, classes)
    except Unreadable as e:
        what = f"there is no {path}" if e.missing else str(e)
        raise InputError(f"{what}; run python -m datamodels.verify --targets file.txt with the same config") from e
    digest = verified["store_digest"]
    if not digest == models.meta["store_digest"] == store.digest():
        raise InputError(
            f"{path}, the weights and the store are not of one state; run datamodels.regress and datamodels.verify again"
        )
    return verified


def _made_from(verified: Record, models: Datamodels) -> str:
    """SHA-256 of everything that a report shows; equal before and after means that there is nothing to do again."""
    return hashlib.sha256(json.dumps([__version__, verified, models.meta], sort_keys=True).encode()).hexdigest()


def _is_made(folder: Path, made_from: str) -> bool:
    try:
        summary = read_json(folder / "summary.json")
        require(summary, {"made_from": str}, folder / "summary.json")
    except Unreadable:
        return False
    return bool(summary["made_from"] == made_from)


def _by_rule(verified: Record) -> dict[str, list[Record]]:
    rules: dict[str, list[Record]] = {}
    for verdict in verified["removals"]:
        rules.setdefault(verdict["rule"], []).append(verdict)
    return rules


def _by_method(verified: Record) -> dict[str, list[Record]]:
    methods: dict[str, list[Record]] = {}
    for search in verified["searches"]:
        methods.setdefault(search["method"], []).append(search)
    return methods


def _title(rule: str) -> str:
    return "the smallest set that flips it" if rule == SUPPORT else f"the {rule} largest weights"


def _target_picture(verdict: Record) -> str:
    return f"target-{verdict['target']}-{verdict['rule']}"


def _pictures(store: Store, models: Datamodels, verified: Record, data: Dataset, fresh: Path) -> dict[str, Picture]:
    """Every picture of the report, by name; `fresh` is the file of what came of fresh subsets."""
    true = store.margins(models.heldout)[:, models.targets].astype(np.float32)
    predicted = models.predict(store.masks(models.heldout))
    pictures = {"heldout": heldout_figure(predicted, true, np.array(models.metrics["per_target"]["lds"]))}
    searches = _by_method(verified)
    if searches:
        pictures["cdf"] = cdf_figure(searches)
    if verified["counterfactuals"]:
        pictures["drops"] = drops_figure(verified["counterfactuals"], drop_correlations(verified))
    kept = read_arrays(fresh) if verified["fresh"] else None
    if kept is not None and _is_of_subsets(kept, verified["fresh"]["subsets"]):
        pictures["fresh"] = fresh_figure(kept["predicted"], kept["halves"].mean(0), verified["fresh"])
    probes = {search["target"]: search["probes"] for search in searches.get(DATAMODEL, [])}
    for rule, verdicts in _by_rule(verified).items():
        tried = [v for v in verdicts if v["after"]]
        pictures |= {_target_picture(v): target_figure(v, data, probes.get(v["target"], [])) for v in tried}
        if tried:
            pictures[f"verified-{rule}"] = verified_figure(tried, f"Removed: {_title(rule)}")
    return pictures


def _is_of_subsets(kept: dict[str, Any], subsets: int) -> bool:
    """Whether arrays are predictions (m, T) and the two halves (2, m, T) of what m subsets say."""
    if kept.keys() != {"predicted", "halves"} or kept["predicted"].ndim != 2:
        return False
    shape = kept["predicted"].shape
    numbers = all(array.dtype.kind == "f" and np.isfinite(array).all() for array in kept.values())
    return numbers and len(kept["predicted"]) == subsets and kept["halves"].shape == (2, *shape)


def _page(settings: Settings, data: Dataset, verified: Record, summary: Record, pictures: dict[str, Picture]) -> str:
    embedded = {name: "data:image/png;base64," + base64.b64encode(picture.png).decode() for name, picture in pictures.items()}
    rules = [
        {**values, "title": _title(rule), "figure": embedded.get(f"verified-{rule}")}
        for rule, values in summary["by_rule"].items()
    ]
    seen: set[int] = set()
    verdicts = []
    for v in sorted(verified["removals"], key=lambda v: v["target"]):
        shown = {
            "title": _title(v["rule"]),
            "class_name": data.class_names[v["label"]],
            "figure": embedded.get(_target_picture(v)),
        }
        verdicts.append({**v, **shown, "first": v["target"] not in seen and v["after"]})
        seen |= {v["target"]} if v["after"] else set()
    environment = jinja2.Environment(loader=jinja2.PackageLoader("datamodels.report", "."), autoescape=True)
    return environment.get_template("page.html.j2").render(
        run=Path(settings.run.dir).name,
        alpha=settings.store.alpha,
        train_images=len(data.train.labels),
        test_images=len(data.test.labels),
        looks=verified["looks"],
        base_models=settings.verify.base_models,
        max_size=settings.verify.max_size,
        heldout=embedded["heldout"],
        rules=rules,
        cdf=embedded.get("cdf"),
        drops=embedded.get("drops"),
        fresh=embedded.get("fresh"),
        fresh_subsets=verified["fresh"],
        methods=METHODS,
        base=verified["base"],
        searches=sorted(verified["searches"], key=lambda s: (s["target"], s["method"])),
        class_names=data.class_names,
        verdicts=verdicts,
        summary=summary,
        version=__version__,
        store_digest=summary["store_digest"],
        settings=yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(settings))), sort_keys=False),
    )
