"""The report of a run, of the verdicts of one `verify.name`: summary.json, PNGs and SVGs, and index.html with all in it."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import yaml

from datamodels import __version__
from datamodels.brittleness import Outcome
from datamodels.durable import new_folder, only_maker, read_json, tidy, write_json
from datamodels.errors import InputError
from datamodels.learners import Learner
from datamodels.machine import describe_machine
from datamodels.reading import Unreadable, require
from datamodels.regress import Datamodels
from datamodels.report.figures import (
    CARRY,
    DONE,
    Picture,
    cdf_figure,
    drops_figure,
    heldout_figure,
    method_called,
    random_subsets_figure,
    target_figure,
    verified_figure,
)
from datamodels.report.gallery import Gallery
from datamodels.runs import page_folder, read_seconds, read_store, stage_folder, verdicts_folder
from datamodels.settings import REPAIR, Settings
from datamodels.store import Store
from datamodels.verify.known import Examples
from datamodels.verify.methods import DATAMODEL
from datamodels.verify.questions.random_subsets import read_margins
from datamodels.verify.record import SUPPORT, VERDICTS, RemovalRecord, SearchRecord, Verified, read_verified
from datamodels.verify.summary import REACHED, beside, drop_correlations, median_size, unsearched
from datamodels.verify.typed import to_json

Record = dict[str, Any]


def report(settings: Settings, learner: Learner) -> str:
    """Make the page, its pictures and summary.json; say in one line where the page is.

    Raises InputError when a stage before is missing, or was made from another state of the store.
    """
    start = time.monotonic()
    store, models = read_store(settings), Datamodels.load(stage_folder(settings, "regress"))
    verified = _read_verified(settings, models, store, Examples(learner).classes)
    examples = Gallery(learner, verified.behaviours)
    models.refuse_other(store)
    folder, made_from = page_folder(settings), _made_from(verified, models)
    already = f"report: already in {folder / 'index.html'}"
    if _is_made(folder, made_from):
        tidy(folder)
        return already
    with only_maker(folder, f"report: waiting for another process that is making {folder}"):
        if _is_made(folder, made_from):
            return already
        _make(settings, examples, store, models, verified, made_from, start)
    return f"report: {folder / 'index.html'}"


def _make(
    settings: Settings, examples: Gallery, store: Store, models: Datamodels, verified: Verified, made_from: str, start: float
) -> None:
    with new_folder(page_folder(settings), replace=True) as temporary:
        pictures = _pictures(store, models, verified, examples, verdicts_folder(settings))
        for name, picture in pictures.items():
            (temporary / f"{name}.png").write_bytes(picture.png)
            (temporary / f"{name}.svg").write_bytes(picture.svg)
        seconds = {**read_seconds(settings), "report": round(time.monotonic() - start, 2)}
        summary = {
            **summarise(store, models, verified, examples.targets.examples.tests),
            "seconds": seconds,
            "machine": describe_machine(),
            "made_from": made_from,
        }
        page = _page(settings, examples, verified, summary, pictures)
        (temporary / "index.html").write_text(page, encoding="utf-8")
        write_json(temporary / "summary.json", summary)


def summarise(store: Store, models: Datamodels, verified: Verified, tests: int) -> Record:
    """The figures of the run, of whose targets the first so many are test images.

    Those about removals are of the fixed size where there is one; `by_rule` has them all.
    """
    rules = {rule: _summarise_rule(verdicts) for rule, verdicts in _by_rule(verified).items()}
    main = next((rule for rule in rules if rule != SUPPORT), SUPPORT)
    rules.setdefault(main, _summarise_rule([]))
    return {
        "models": len(store.done),
        "heldout_models": len(models.heldout),
        "lds": models.metrics["mean"]["lds"],
        "accuracy": _accuracy(store, tests),
        "rule": main,
        **rules[main],
        "by_rule": rules,
        "goal": verified.goal,
        "by_method": {method: _summarise_method(found, DONE[verified.goal]) for method, found in _by_method(verified).items()},
        "random_subsets": to_json(verified.random_subsets),
        "drop_correlations": drop_correlations(verified.counterfactuals),
        "models_retrained": verified.models_used,
        "version": __version__,
        "machine": describe_machine(),
        "store_digest": models.meta["store_digest"],
    }


def _summarise_method(searches: list[SearchRecord], done: str) -> Record:
    breaks, repairs = beside(searches)
    return {
        "targets": len(searches),
        done: sum(search.size is not None for search in searches),
        "median_size": median_size(searches),
        "others_broken": breaks,
        "others_repaired": repairs,
        "models_per_target": float(np.mean([search.models for search in searches])) if searches else None,
    }


def _accuracy(store: Store, tests: int) -> float | None:
    """Share of pairs of model and test image that are right, over all models of the store; None where no target is one."""
    parts = (store.done[k : k + 1000] for k in range(0, len(store.done), 1000))
    right = sum(int((store.margins(ids)[:, :tests] > 0).sum()) for ids in parts)
    return right / (len(store.done) * tests) if tests else None


def _summarise_rule(verdicts: list[RemovalRecord]) -> Record:
    tried = [v for v in verdicts if v.after]

    def mean(values: list[float]) -> float | None:
        return float(np.mean(values)) if values else None

    def drop(after: Callable[[RemovalRecord], Outcome | None]) -> float | None:
        found = [(v.before, after(v)) for v in tried]
        return mean([before.mean_margin - outcome.mean_margin for before, outcome in found if outcome is not None])

    return {
        "targets": len(verdicts),
        "tried": len(tried),
        "mean_size": mean([v.size for v in tried]),
        "mean_margin_drop_removed": drop(lambda v: v.after),
        "mean_margin_drop_control": drop(lambda v: v.control),
        "right_before": sum(v.right_before for v in tried),
        "flipped_removed": sum(v.flipped for v in verdicts),
        "flipped_control": sum(v.control_flipped for v in verdicts),
        "repaired_removed": sum(v.repaired for v in verdicts),
        "repaired_control": sum(v.control_repaired for v in verdicts),
    }


def _read_verified(settings: Settings, models: Datamodels, store: Store, classes: int) -> Verified:
    path = verdicts_folder(settings) / VERDICTS
    try:
        verified = read_verified(path, store.meta.num_train, store.meta.num_targets, classes)
    except Unreadable as e:
        what = f"there is no {path}" if e.missing else str(e)
        raise InputError(f"{what}; run python -m datamodels.verify --targets file.txt with the same config") from e
    if not verified.store_digest == models.meta["store_digest"] == store.digest():
        told = f"{path}, the weights and the store are not of one state"
        raise InputError(f"{told}; run datamodels.regress, and datamodels.verify under another --verify.name")
    prior = models.meta.get("prior_digest")
    if verified.regress != models.meta["regress"] or verified.inputs.get("prior") != prior:
        told = f"{path} is of other weights than those that are there now"
        raise InputError(f"{told}; regress as before, or run datamodels.verify under another --verify.name")
    return verified


def _made_from(verified: Verified, models: Datamodels) -> str:
    """SHA-256 of everything that a report shows; equal before and after means that there is nothing to do again."""
    return hashlib.sha256(json.dumps([__version__, to_json(verified), models.meta], sort_keys=True).encode()).hexdigest()


def _is_made(folder: Path, made_from: str) -> bool:
    try:
        summary = read_json(folder / "summary.json")
        require(summary, {"made_from": str}, folder / "summary.json")
    except Unreadable:
        return False
    return bool(summary["made_from"] == made_from)


def _by_rule(verified: Verified) -> dict[str, list[RemovalRecord]]:
    rules: dict[str, list[RemovalRecord]] = {}
    for verdict in verified.removals:
        rules.setdefault(verdict.rule, []).append(verdict)
    return rules


def _by_method(verified: Verified) -> dict[str, list[SearchRecord]]:
    methods: dict[str, list[SearchRecord]] = {}
    for search in verified.searches:
        methods.setdefault(search.method, []).append(search)
    return methods


def _title(rule: str, goal: str) -> str:
    if rule == SUPPORT:
        return f"the smallest set that {REACHED[goal]} it"
    return f"the {rule} {'smallest' if goal == REPAIR else 'largest'} weights"


def _target_picture(verdict: RemovalRecord) -> str:
    return f"target-{verdict.target}-{verdict.rule}"


def _pictures(store: Store, models: Datamodels, verified: Verified, examples: Gallery, folder: Path) -> dict[str, Picture]:
    """Every picture of the report, by name; `folder` is that of the verdicts."""
    true = store.margins(models.heldout)[:, models.targets].astype(np.float32)
    predicted = models.predict(store.masks(models.heldout))
    pictures = {"heldout": heldout_figure(predicted, true, np.array(models.metrics["per_target"]["lds"]))}
    searches = _by_method(verified)
    if searches:
        pictures["cdf"] = cdf_figure(searches, examples.things, verified.goal)
    if verified.counterfactuals:
        pictures["drops"] = drops_figure(verified.counterfactuals, drop_correlations(verified.counterfactuals), examples.things)
    margins = read_margins(folder, verified.random_subsets.subsets) if verified.random_subsets else None
    if verified.random_subsets and margins:
        pictures["random-subsets"] = random_subsets_figure(margins.predicted, margins.true, verified.random_subsets)
    probes = {search.target: search.probes for search in searches.get(DATAMODEL, [])}
    for rule, verdicts in _by_rule(verified).items():
        tried = [v for v in verdicts if v.after]
        pictures |= {_target_picture(v): target_figure(v, examples, probes.get(v.target, ())) for v in tried}
        if tried:
            pictures[f"verified-{rule}"] = verified_figure(tried, f"Removed: {_title(rule, verified.goal)}", examples)
    return pictures


class _Shown(NamedTuple):
    """A removal as the page shows it; `first` is the first of its target with a figure."""

    record: RemovalRecord
    title: str
    class_name: str
    figure: str | None
    first: bool
    members: Sequence[tuple[int, str, str, float]]
    """Of named examples those of R: index, name, class and weight."""


def _members(verdict: RemovalRecord, examples: Gallery) -> list[tuple[int, str, str, float]]:
    if not examples.named:
        return []
    indices = list(verdict.removed_indices)
    classes = [examples.class_name(label) for label in examples.learner.train_labels[indices].tolist()]
    return list(zip(indices, examples.names(True, indices), classes, verdict.removed_weights, strict=True))


def _others(examples: Gallery, targets: Sequence[int] | None) -> str:
    """Other predictions that a set turns, by name and number; nothing where that is not known."""
    return ", ".join(f"{target} {examples.of_target(target)}".strip() for target in targets or ())


def _page(settings: Settings, examples: Gallery, verified: Verified, summary: Record, pictures: dict[str, Picture]) -> str:
    embedded = {name: "data:image/png;base64," + base64.b64encode(picture.png).decode() for name, picture in pictures.items()}
    rules = [
        {**values, "title": _title(rule, verified.goal), "figure": embedded.get(f"verified-{rule}")}
        for rule, values in summary["by_rule"].items()
    ]
    seen: set[int] = set()
    verdicts = []
    for v in sorted(verified.removals, key=lambda v: v.target):
        first = v.after is not None and v.target not in seen
        figure, members = embedded.get(_target_picture(v)), _members(v, examples)
        verdicts.append(_Shown(v, _title(v.rule, verified.goal), examples.class_name(v.label), figure, first, members))
        seen |= {v.target} if v.after else set()
    environment = jinja2.Environment(loader=jinja2.PackageLoader("datamodels.report", "."), autoescape=True)
    return environment.get_template("page.html.j2").render(
        run=Path(settings.run.dir).name,
        alpha=settings.store.alpha,
        train_images=len(examples.learner.train_labels),
        test_images=examples.targets.examples.tests,
        train_targets=len(examples.targets.examples.train_targets),
        looks=verified.looks,
        base_models=verified.verify.get("base_models"),
        max_size=verified.verify.get("max_size"),
        heldout=embedded["heldout"],
        rules=rules,
        cdf=embedded.get("cdf"),
        drops=embedded.get("drops"),
        random_subsets=embedded.get("random-subsets"),
        on_random_subsets=verified.random_subsets,
        methods={search.method: method_called(search.method) for search in verified.searches},
        base=verified.base,
        searches=sorted(verified.searches, key=lambda s: (s.target, s.method)),
        unsearched=sorted(unsearched(verified)),
        class_name=examples.class_name,
        named=examples.targets_named,
        name_of=examples.of_target,
        others=functools.partial(_others, examples),
        repair=verified.goal == REPAIR,
        done=DONE[verified.goal],
        carry=CARRY[verified.goal],
        things=examples.things,
        verdicts=verdicts,
        summary=summary,
        version=__version__,
        store_digest=summary["store_digest"],
        settings=yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(settings))), sort_keys=False),
    )
