"""The page's data: what each target, training image and class is to be shown with, in scripts that load when they are needed.

run          what the page opens with: sizes, class names, and of each target and training image a few numbers
targets-B    of targets in blocks: strongest carriers and opponents, targets alike, what verification found
images-B     of training images in blocks: the targets that they carry and harm
names-S-B    names of examples, S test or train
rankings     training images that carry or harm most targets, doubted labels, twins
map          places of targets on a map of their weights
classes      what each class gives to each
evidence     the figures for the critic
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodels.progress import progress
from datamodels.regress import Datamodels
from datamodels.report.answers import Answers
from datamodels.report.explorer import (
    AMONG,
    NONE,
    STRONGEST,
    Alike,
    ByImage,
    ByTarget,
    Strongest,
    alike,
    between_classes,
    by_image,
    by_target,
    doubts,
    most_of,
    strongest,
    times_among,
    twins,
)
from datamodels.report.figures import colour_of, line_of, name_of, order_of
from datamodels.report.gallery import Gallery
from datamodels.report.scripts import blocks, packed, write_script
from datamodels.report.sprites import PER_FILE, Tiles, tiles_for, write_sprites
from datamodels.settings import REPAIR
from datamodels.store import Store
from datamodels.subsets import Array, IndexArray

TARGETS_A_BLOCK, IMAGES_A_BLOCK, NAMES_A_BLOCK = 128, 512, 1024
ROWS_AT_ONCE = 1000
MOST_CLASSES = 40
"""Up to so many, what each gives to each is a table; of more the most giving and taking ones are shown of each."""
MOST_OF_A_CLASS = 12
DARK = 64
UNCERTAIN = 0.9
"""Networks that are wrong in more trainings than this doubt a label."""

Record = dict[str, Any]


class Parts(NamedTuple):
    """What a page is made of."""

    examples: Gallery
    store: Store
    models: Datamodels
    answers: Answers
    title: str


def write_content(folder: Path, parts: Parts, evidence: Record) -> None:
    """Write every script of the page's data, and its thumbnails, into a folder."""
    with _bar(parts) as advance:
        seen = _write_looks(folder, parts.examples, advance)
        found = _of_weights(parts, advance)
        _write_targets(folder, parts, found, advance)
        _write_images(folder, parts, found, advance)
        for side in _named_sides(parts.examples):
            _write_names(folder, parts.examples, side)
        of_store = _of_store(parts)
        write_script(folder, "rankings", _rankings(parts, found, seen, of_store))
        write_script(folder, "map", _map(parts, found))
        write_script(folder, "classes", _classes(parts.examples, found))
        write_script(folder, "evidence", evidence)
        write_script(folder, "run", _run(parts, found, seen, of_store))
        advance()


@contextmanager
def _bar(parts: Parts) -> Iterator[Callable[..., None]]:
    """The progress of all of it, in files and blocks of weights."""
    examples, (n, t) = parts.examples, parts.models.weights.shape
    sheets = sum(len(blocks(size, PER_FILE)) for size in _sizes(examples)) if examples.seen else 0
    of_targets, of_images = len(blocks(t, TARGETS_A_BLOCK)), len(blocks(n, IMAGES_A_BLOCK))
    all_targets = _sizes(examples)[1] + len(examples.behaviours)
    total = sheets + of_targets + 2 * of_images + len(blocks(all_targets, TARGETS_A_BLOCK)) + 1
    with progress("report", "parts", total) as advance:
        yield advance


def _sizes(examples: Gallery) -> tuple[int, int]:
    """How many training images and targets there are."""
    return len(examples.learner.train_labels), len(examples.learner.test_labels)


# Thumbnails and names.


class _Seen(NamedTuple):
    """How the thumbnails lie, and the pairs of test and training image that look most alike."""

    tiles: Tiles | None
    twins: Sequence[tuple[int, int, float]]
    ink: bool = False
    """Whether they are bright strokes on black, which are calmer the other way round on a bright page."""


def _write_looks(folder: Path, examples: Gallery, advance: Callable[..., None]) -> _Seen:
    if examples.seen is None:
        return _Seen(None, ())
    n, t = _sizes(examples)
    tiles = tiles_for(examples.looks(True, [0]).shape[1:], n + t)
    train = write_sprites(folder, "train", n, tiles, partial(examples.looks, True), advance)
    test = write_sprites(folder, "test", t, tiles, partial(examples.looks, False), advance)
    # Targets that are training images are their own twins.
    ink = examples.pictured and bool(examples.looks(True, [0]).shape[3] == 1 and np.median(train) < DARK)
    return _Seen(tiles, twins(test[: examples.targets.examples.tests], train, examples.looks), ink)


def _named_sides(examples: Gallery) -> list[str]:
    return ["train", "test"] if examples.named else []


def _write_names(folder: Path, examples: Gallery, side: str) -> None:
    of_train = side == "train"
    for number, (first, last) in enumerate(blocks(_sizes(examples)[0 if of_train else 1], NAMES_A_BLOCK)):
        write_script(folder, f"names-{side}-{number}", examples.names(of_train, range(first, last)))


# Weights.


class _OfWeights(NamedTuple):
    """All that is made of the weights; `labels` are those of targets with weights."""

    by_target: ByTarget
    by_image: ByImage
    alike: Alike
    carries: IndexArray
    harms: IndexArray
    labels: IndexArray


def _of_weights(parts: Parts, advance: Callable[..., None]) -> _OfWeights:
    examples, models = parts.examples, parts.models
    learner, weights = examples.learner, models.weights
    labels = np.asarray(learner.test_labels)[list(models.targets)]
    targets = by_target(weights, np.asarray(learner.train_labels), _classes_of(examples), TARGETS_A_BLOCK, advance)
    images = by_image(weights, IMAGES_A_BLOCK, advance)
    counts = [times_among(indices, len(weights)) for indices in (targets.strongest.carriers, targets.strongest.opponents)]
    return _OfWeights(targets, images, alike(weights), counts[0], counts[1], labels)


def _classes_of(examples: Gallery) -> int:
    return examples.targets.examples.classes


def _lists(found: Strongest, rows: slice) -> Record:
    """The strongest of some rows, as the page unpacks them."""
    k = found.carriers.shape[1]
    return {
        "k": k,
        "carriers": packed(found.carriers[rows], "u4"),
        "carried": packed(found.carried[rows], "f4"),
        "opponents": packed(found.opponents[rows], "u4"),
        "opposed": packed(found.opposed[rows], "f4"),
    }


def _write_targets(folder: Path, parts: Parts, found: _OfWeights, advance: Callable[..., None]) -> None:
    """Blocks of all targets, behaviours behind them; those that have no weights have their answers alone."""
    examples, start = parts.examples, parts.models.targets.start
    behaviours = {behaviour.number: behaviour for behaviour in examples.behaviours}
    for number, (first, last) in enumerate(blocks(_sizes(examples)[1] + len(behaviours), TARGETS_A_BLOCK)):
        rows = slice(max(0, first - start), max(0, min(last, parts.models.targets.stop) - start))
        near = found.alike
        content: Record = {
            "first": first,
            "offset": rows.start + start - first,
            "weighted": max(0, rows.stop - rows.start),
            **_lists(found.by_target.strongest, rows),
            "near": packed(near.neighbours[rows] + np.uint32(start), "u4"),
            "cosines": packed(near.cosines[rows], "f4"),
            "neighbours": near.neighbours.shape[1],
            "answers": {target: answer for target in range(first, last) if (answer := parts.answers.of(target))},
            "behaviours": {k: _behaviour(parts, k) for k in range(first, last) if k in behaviours},
        }
        write_script(folder, f"targets-{number}", content)
        advance()


def _behaviour(parts: Parts, target: int) -> Record:
    """The strongest carriers and opponents of several targets as one; nothing where one of them has no weights."""
    weights = parts.answers.weights(target)
    return {} if weights is None else _lists(strongest(weights[None].astype(np.float32), STRONGEST), slice(None))


def _write_images(folder: Path, parts: Parts, found: _OfWeights, advance: Callable[..., None]) -> None:
    back, start = found.by_image.strongest, np.uint32(parts.models.targets.start)
    carriers, opponents = (np.where(side == NONE, side, side + start) for side in (back.carriers, back.opponents))
    shifted = back._replace(carriers=carriers, opponents=opponents)
    for number, (first, last) in enumerate(blocks(len(parts.models.weights), IMAGES_A_BLOCK)):
        rows = slice(first, last)
        content = {
            "first": first,
            **_lists(shifted, rows),
            "carries": packed(found.carries[rows], "u4"),
            "harms": packed(found.harms[rows], "u4"),
            "total": packed(found.by_image.total[rows], "f4"),
        }
        write_script(folder, f"images-{number}", content)
        advance()


# What a page opens with.


def _labels(parts: Parts) -> IndexArray:
    """Classes of all targets, of behaviours too, -1 where they are of several or not known."""
    learner, examples = parts.examples.learner, parts.examples
    of_behaviours = [examples.targets.label(behaviour.number) for behaviour in examples.behaviours]
    return np.concatenate([np.asarray(learner.test_labels, np.int64), np.array(of_behaviours, np.int64)])


class _OfStore(NamedTuple):
    """Of each target the share of the store's networks that are right, and their mean margin, (T,) each."""

    right: Array
    margin: Array


def _of_store(parts: Parts) -> _OfStore:
    store, t = parts.store, len(parts.examples.learner.test_labels)
    right, total = np.zeros(t), np.zeros(t)
    for first in range(0, len(store.done), ROWS_AT_ONCE):
        margins = store.margins(store.done[first : first + ROWS_AT_ONCE])
        right += (margins > 0).sum(0)
        total += margins.sum(0, dtype=np.float64)
    of_behaviours = [list(behaviour.targets) for behaviour in parts.examples.behaviours]
    shares, means = right / max(len(store.done), 1), total / max(len(store.done), 1)
    joined = [np.append(values, [values[members].mean() for members in of_behaviours]) for values in (shares, means)]
    return _OfStore(joined[0], joined[1])


def _lds(parts: Parts, number: int) -> Array:
    """LDS of each of so many targets; NaN where it is not known."""
    found = np.full(number, np.nan)
    known = parts.models.metrics.get("per_target", {}).get("lds")
    if known is not None:
        found[list(parts.models.targets)] = known
    return found


def _run(parts: Parts, found: _OfWeights, seen: _Seen, of_store: _OfStore) -> Record:
    examples, answers, labels = parts.examples, parts.answers, _labels(parts)
    learner = examples.learner
    sizes = np.array([_size_of(answers, target) for target in range(len(labels))])
    first = answers.first()
    return {
        "title": parts.title,
        "things": examples.things,
        "seen": examples.seen,
        "repair": answers.verified.goal == REPAIR,
        "models": len(parts.store.done),
        "train": len(learner.train_labels),
        "targets": len(learner.test_labels),
        "tests": examples.targets.examples.tests,
        "trainTargets": examples.targets.examples.train_targets,
        "behaviours": [{"name": examples.of_target(b.number), "targets": b.targets} for b in examples.behaviours],
        "classes": [examples.class_name(label) for label in range(_classes_of(examples))],
        "named": examples.named,
        "tiles": seen.tiles.about() if seen.tiles else None,
        "ink": seen.ink,
        "perBlock": {"targets": TARGETS_A_BLOCK, "images": IMAGES_A_BLOCK, "names": NAMES_A_BLOCK},
        "among": AMONG,
        "exact": found.alike.exact,
        "weighted": [parts.models.targets.start, parts.models.targets.stop],
        "labels": packed(labels, "i4"),
        "trainLabels": packed(np.asarray(learner.train_labels), "i4"),
        "right": packed(of_store.right, "f4"),
        "margin": packed(of_store.margin, "f4"),
        "lds": packed(_lds(parts, len(labels)), "f4"),
        "size": packed(sizes, "i4"),
        "relabelled": packed(np.array([answers.relabelled_size(target) or NONE_FOUND for target in range(len(labels))]), "i4"),
        "methods": {method: _method(method) for method in _methods(answers)},
        "first": first if first is not None else _opened_without_answers(of_store.margin, parts),
    }


def _method(method: str) -> dict[str, str]:
    """What the page calls a method, and its order, and how it draws it."""
    return {"name": name_of(method), "order": order_of(method), "colour": colour_of(method), "line": line_of(method)}


def _methods(answers: Answers) -> list[str]:
    """Those of its searches, and of the orders that were asked beside theirs."""
    searches = answers.verified.searches
    return list(dict.fromkeys([s.method for s in searches] + [order.method for s in searches for order in s.orders]))


NONE_FOUND, NOT_SEARCHED = 0, -1
"""In the place of a size: a target of which searches found no set, one that was not searched, asked about or not."""


def _size_of(answers: Answers, target: int) -> int:
    return (answers.size(target) or NONE_FOUND) if target in answers.searches else NOT_SEARCHED


def _opened_without_answers(margins: Array, parts: Parts) -> int:
    """The target whose prediction is nearest to being another one."""
    start, stop = parts.models.targets.start, parts.models.targets.stop
    return start + int(np.abs(margins[start:stop]).argmin())


# Lists, map, classes.


def _rankings(parts: Parts, found: _OfWeights, seen: _Seen, of_store: _OfStore) -> Record:
    learner, totals = parts.examples.learner, found.by_image.total
    tests = parts.examples.targets.examples.tests
    known = np.asarray(learner.test_labels)[:tests] >= 0
    wrong = np.flatnonzero(known & (of_store.right[:tests] < 1 - UNCERTAIN))
    return {
        "carry": most_of(found.carries, totals),
        "harm": most_of(found.harms, totals),
        "doubted": doubts(totals, np.asarray(learner.train_labels)),
        "wrong": [[int(t), float(of_store.right[t])] for t in wrong[np.argsort(of_store.margin[wrong], kind="stable")][:30]],
        "twins": seen.twins,
    }


def _map(parts: Parts, found: _OfWeights) -> Record:
    return {"first": parts.models.targets.start, "places": packed(found.alike.places, "f4")}


def _classes(examples: Gallery, found: _OfWeights) -> Record:
    classes = _classes_of(examples)
    gives = between_classes(found.by_target.by_class, found.labels, classes)
    if classes <= MOST_CLASSES:
        return {"gives": gives}
    takes: list[list[list[float]] | None] = []
    for label in range(classes):
        column = gives[:, label]
        if np.isnan(column).all():
            takes.append(None)
            continue
        order = np.argsort(-column, kind="stable")
        shown = np.concatenate([order[:MOST_OF_A_CLASS], order[-MOST_OF_A_CLASS:]])
        takes.append([[int(other), float(column[other])] for other in shown])
    return {"takes": takes}
