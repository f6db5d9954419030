"""The report of a run, of the verdicts of one `verify.name`: summary.json, figures as PNG and SVG, and a page to explore.

RUN/report/index.html   the page: opened from disk, it loads nothing from anywhere else
RUN/report/page/        its style and scripts, as they lie in `assets/`
RUN/report/data/        what it shows, see `content`
RUN/report/*.png, *.svg the figures for papers
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from datamodels import __version__
from datamodels.durable import new_folder, only_maker, read_json, tidy, write_json
from datamodels.errors import InputError
from datamodels.learners import Learner
from datamodels.machine import describe_machine
from datamodels.progress import step
from datamodels.reading import Unreadable, require
from datamodels.regress import Datamodels
from datamodels.report import evidence
from datamodels.report.answers import Answers, judged
from datamodels.report.content import Parts, write_content
from datamodels.report.figures import (
    CARRY,
    DONE,
    Picture,
    cdf_figure,
    colour_of,
    drops_figure,
    heldout_figure,
    name_of,
    order_of,
    random_subsets_figure,
    verified_figure,
)
from datamodels.report.gallery import Gallery
from datamodels.report.summary import by_method, by_rule, summarise
from datamodels.runs import page_folder, read_seconds, read_store, stage_folder, verdicts_folder
from datamodels.settings import REPAIR, Settings
from datamodels.store import Store
from datamodels.subsets import Array, IndexArray
from datamodels.verify.known import Examples
from datamodels.verify.questions.random_subsets import read_margins
from datamodels.verify.record import SUPPORT, VERDICTS, Verified, read_verified
from datamodels.verify.summary import REACHED, drop_correlations, unsearched
from datamodels.verify.typed import to_json

HERE = Path(__file__).parent
ASSETS = HERE / "assets"
MOST_ROWS = 1000
"""Of a table of the page; all rows are in verify.csv, and all of a target's with the target."""
MOST_WORK = 1e12
"""Multiplications and additions for the figure of held-out models; of more models than that allows the first are shown."""

Record = dict[str, Any]


def report(settings: Settings, learner: Learner) -> str:
    """Make the page, its figures and summary.json; say in one line where the page is.

    Raises InputError when a stage before is missing, or was made from another state of the store.
    """
    start = time.monotonic()
    with step("report: reading the run"):
        store, models = read_store(settings), Datamodels.load(stage_folder(settings, "regress"))
        verified = _read_verified(settings, models, store, Examples(learner).classes)
        examples = Gallery(learner, verified.behaviours)
        models.refuse_other(store)
    folder, made_from = page_folder(settings), _made_from(settings, verified, models, examples)
    already = f"report: already in {folder / 'index.html'}"
    if _is_made(folder, made_from):
        tidy(folder)
        return already
    with only_maker(folder, f"report: waiting for another process that is making {folder}"):
        if _is_made(folder, made_from):
            return already
        parts = Parts(examples, store, models, Answers(verified, models, examples.targets), _called(settings))
        with step("report: making the page"):
            _make(settings, parts, made_from, start)
    return f"report: {folder / 'index.html'}"


def _make(settings: Settings, parts: Parts, made_from: str, start: float) -> None:
    verified, examples = parts.answers.verified, parts.examples
    with new_folder(page_folder(settings), replace=True) as temporary:
        with step("report: drawing the figures"):
            figures, numbers = _figures(parts, verdicts_folder(settings))
        for name, picture in figures.items():
            (temporary / f"{name}.png").write_bytes(picture.png)
            (temporary / f"{name}.svg").write_bytes(picture.svg)
        shutil.copytree(ASSETS, temporary / "page")
        (temporary / "data").mkdir()
        write_content(temporary / "data", parts, numbers)
        summary = {
            **summarise(parts.store, parts.models, verified, examples.targets.examples.tests),
            "seconds": {**read_seconds(settings), "report": round(time.monotonic() - start, 2)},
            "machine": describe_machine(),
            "made_from": made_from,
        }
        (temporary / "index.html").write_text(_page(settings, parts, summary, figures), encoding="utf-8")
        write_json(temporary / "summary.json", {**summary, "files": _files(temporary)})


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


def _made_from(settings: Settings, verified: Verified, models: Datamodels, examples: Gallery) -> str:
    """SHA-256 of what a report shows, and of the files here that make it; as long as it is the same, nothing is done again.

    Pictures have no part in it: those of the known data sets belong to the data, and a run with other data is refused. Nor have
    seconds and the machine, for they change from run to run.
    """
    known = examples.targets.examples
    names = [known.class_names, known.test_names, known.train_names]
    told = [__version__, _called(settings), to_json(verified), models.meta, names]
    found = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for file in sorted(path for path in HERE.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        found.update(file.read_bytes())
    return found.hexdigest()


def _called(settings: Settings) -> str:
    """What a run is called."""
    return Path(settings.run.dir).name


def _is_made(folder: Path, made_from: str) -> bool:
    """Whether the page is there, of this and with all of its files."""
    try:
        summary = read_json(folder / "summary.json")
        require(summary, {"made_from": str, "files": int}, folder / "summary.json")
    except Unreadable:
        return False
    return bool(summary["made_from"] == made_from and summary["files"] == _files(folder))


def _files(folder: Path) -> int:
    """How many files a page has beside summary.json."""
    return sum(file.is_file() and file.name != "summary.json" for file in folder.rglob("*"))


def _title(rule: str, goal: str) -> str:
    if rule == SUPPORT:
        return f"the smallest set that {REACHED[goal]} it"
    return f"the {rule} {'smallest' if goal == REPAIR else 'largest'} weights"


# Figures for the critic: as files, and as numbers from which the page draws them.


def _figures(parts: Parts, folder: Path) -> tuple[dict[str, Picture], Record]:
    """Every figure of the report by name, as files and as numbers; `folder` is that of the verdicts."""
    verified, things = parts.answers.verified, parts.examples.things
    figures: dict[str, Picture] = {}
    numbers: Record = {"things": things, "repair": verified.goal == REPAIR}
    predicted, true = _heldout(parts)
    lds = np.array(parts.models.metrics["per_target"]["lds"])
    figures["heldout"] = heldout_figure(predicted, true, lds)
    numbers["heldout"] = {**evidence.pairs(predicted, true), "lds": evidence.bars(lds), "models": len(true)}
    if searches := by_method(verified):
        figures["cdf"] = cdf_figure(searches, things, verified.goal)
        numbers["cdf"] = evidence.shares(searches)
    if found := verified.counterfactuals:
        correlations = drop_correlations(found)
        figures["drops"] = drops_figure(found, correlations, things)
        numbers["drops"] = evidence.drops(found, correlations)
    margins = read_margins(folder, verified.random_subsets.subsets) if verified.random_subsets else None
    if verified.random_subsets and margins:
        figures["random-subsets"] = random_subsets_figure(margins.predicted, margins.true, verified.random_subsets)
        numbers["random-subsets"] = evidence.on_random_subsets(margins.predicted, margins.true, verified.random_subsets)
    for rule, verdicts in by_rule(verified).items():
        tried = [v for v in verdicts if v.after]
        if tried:
            title = f"Removed: {_title(rule, verified.goal)}"
            figures[f"verified-{rule}"] = verified_figure(tried[:MOST_ROWS], title, parts.examples)
            numbers[f"verified-{rule}"] = evidence.removed(tried[:MOST_ROWS])
    return figures, numbers


def _heldout(parts: Parts) -> tuple[Array, Array]:
    """Predicted and true margins (m, T') of the held-out models, or of the first of them where there are very many."""
    models = parts.models
    ids = _heldout_ids(parts)
    true: Array = parts.store.margins(ids)[:, models.targets].astype(np.float32)
    return models.predict(parts.store.masks(ids)), true


def _heldout_ids(parts: Parts) -> IndexArray:
    n, t = parts.models.weights.shape
    return parts.models.heldout[: max(1, int(MOST_WORK / n / t))]


# The page's text and tables, around what its scripts show.


def _page(settings: Settings, parts: Parts, summary: Record, figures: Mapping[str, Picture]) -> str:
    verified, examples = parts.answers.verified, parts.examples
    rules = [
        {**values, "rule": rule, "title": _title(rule, verified.goal), "figure": f"verified-{rule}" in figures}
        for rule, values in summary["by_rule"].items()
    ]
    environment = jinja2.Environment(loader=jinja2.PackageLoader("datamodels.report", "."), autoescape=True)
    return environment.get_template("page.html.j2").render(
        run=parts.title,
        alpha=settings.store.alpha,
        train_images=len(examples.learner.train_labels),
        test_images=examples.targets.examples.tests,
        train_targets=len(examples.targets.examples.train_targets),
        looks=verified.looks,
        base_models=verified.verify.get("base_models"),
        max_size=verified.verify.get("max_size"),
        rules=rules,
        figures=set(figures),
        heldout_shown=len(_heldout_ids(parts)),
        on_random_subsets=verified.random_subsets,
        method_name=name_of,
        order_name=order_of,
        rivals=[order_of(m) for method, of in summary["by_method"].items() for m in of["orders"] if m != method],
        colour_of=colour_of,
        base=verified.base,
        searches=sorted(verified.searches, key=lambda s: (s.target, s.method))[:MOST_ROWS],
        searches_in_all=len(verified.searches),
        judged=judged,
        unsearched=sorted(unsearched(verified)),
        class_name=examples.class_name,
        named=examples.targets_named,
        name_of=examples.of_target,
        others=functools.partial(_others, examples),
        repair=verified.goal == REPAIR,
        done=DONE[verified.goal],
        carry=CARRY[verified.goal],
        things=examples.things,
        removals=sorted(verified.removals, key=lambda v: v.target)[:MOST_ROWS],
        removals_in_all=len(verified.removals),
        summary=summary,
        scripts=SCRIPTS,
        version=__version__,
        store_digest=summary["store_digest"],
        settings=yaml.safe_dump(json.loads(json.dumps(_settings_of(settings, parts))), sort_keys=False),
    )


def _settings_of(settings: Settings, parts: Parts) -> Record:
    """All settings; of the weights and verdicts those under which they were made, whoever asks for the page."""
    found = dataclasses.asdict(settings)
    for section, made in (("regress", parts.models.meta["regress"]), ("verify", parts.answers.verified.verify)):
        found[section] |= {name: value for name, value in made.items() if name != "name"}
    return found


SCRIPTS = (
    "base",
    "pictures",
    "plot",
    "ways",
    "course",
    "answer",
    "targets",
    "images",
    "map",
    "classes",
    "evidence",
    "tables",
    "start",
)
"""In the order in which the page loads them."""


def _others(examples: Gallery, targets: Sequence[int] | None) -> str:
    """Other predictions that a set turns, by name and number; nothing where that is not known."""
    return ", ".join(f"{target} {examples.of_target(target)}".strip() for target in targets or ())
