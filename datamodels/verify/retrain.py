"""Models retrained on subsets of one's own choice, kept in a store: what was trained once is never trained again.

A retrained model is its subset and a repetition number: its key, and with it everything random about it, follows from
(verify.seed, mask, repetition) alone, and the label that R gets where it is relabelled. Its margins on all targets are kept, so
one training answers for every target. Models are listed in the store, in the blocks in which they are trained, before they are:
a verification that is cut off goes on with the same blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodels.durable import is_there, only_maker, sweep, tidy
from datamodels.errors import InputError
from datamodels.learners import Key, Learner, Model
from datamodels.progress import say
from datamodels.provenance import refuse_difference
from datamodels.runs import stage_folder, stage_seconds
from datamodels.settings import Settings
from datamodels.store import ArraySpec, Meta, Store, Writer, create_once, enlist, read_meta
from datamodels.store.check import refuse_damaged
from datamodels.store.layout import DONE
from datamodels.subsets import Array, BoolArray, pack, unpack
from datamodels.worker.blocks import Shown, no_show
from datamodels.worker.decided import provenance_of, refuse_other_sizes, with_sources_of
from datamodels.worker.engine import Engine
from datamodels.worker.jobs import BLOCK, LISTED, RELABELLED, REPETITION, ListedModels, listed_key, listed_model

FORMAT = 3
"""Of the store of retrained models: what its rows hold beside margins."""


class Request(NamedTuple):
    """One model to be trained: the packed mask of S∖R, its repetition number, and what becomes of R.

    R is left out, or, where `relabelled` is a class and not -1, stays in under that label.
    """

    packed: bytes
    repetition: int
    relabelled: int = -1

    @classmethod
    def of(cls, mask: BoolArray, repetition: int, relabelled: int = -1) -> Request:
        """The request for a mask, bool (N,)."""
        return cls(pack(mask).tobytes(), repetition, relabelled)

    def key(self, seed: int) -> Key:
        """The model's key."""
        return listed_key(seed, self.packed, self.repetition, self.relabelled)

    def model(self, seed: int, learner: Learner) -> Model:
        """The model itself."""
        mask = unpack(np.frombuffer(self.packed, np.uint8), len(learner.train_labels))
        return listed_model(seed, mask, self.repetition, self.relabelled, learner)


@dataclass(frozen=True)
class Retrained:
    """Retrained models: their store, and in which row each lies."""

    store: Store
    rows: dict[Request, int]

    def of(self, requests: Sequence[Request], columns: int | Sequence[int]) -> tuple[Array, Array]:
        """Margins and confidences, means over some columns, float (len(requests),) each; NaN for a model that was given up."""
        rows = [self.rows[request] for request in requests]
        given_up = self.store.arrays["done"][rows] != DONE
        which = np.ix_(np.array(rows), np.atleast_1d(columns))
        margins, confidences = (self.store.arrays[name][which].astype(np.float64).mean(1) for name in ("margins", "confidence"))
        margins[given_up] = confidences[given_up] = np.nan
        return margins, confidences

    def margins(self, requests: Sequence[Request]) -> Array:
        """Margins (len(requests), T) on all targets; NaN for a model that was given up."""
        rows = np.array([self.rows[request] for request in requests], np.int64)
        found = self.store.margins(rows).astype(np.float64)
        found[self.store.arrays["done"][rows] != DONE] = np.nan
        return found


@contextmanager
def alone(settings: Settings) -> Iterator[Path]:
    """The run's folder of verification, for one process at a time, from its first model to its verdicts.

    Raises InputError where another one is at work on it.
    """
    folder = stage_folder(settings, "verify")
    with only_maker(folder) as mine:
        if not mine:
            raise InputError(f"another verification is at work on {folder}; wait for it, or use another run.dir")
        folder.mkdir(exist_ok=True)
        sweep(folder)
        yield folder


class Retraining:
    """The models that questions want, in the store in a folder: what it lacks is trained, while the engine has room for more.

    Wanted models are pooled. What is handed out of them are blocks of as many as the learner takes at once, and one that is not
    full only where something would be idle else. Models that were listed before go on in their own blocks. To be used within
    `alone`. Their time counts as that of `stage`. Raises InputError when the store was made under other settings.
    """

    def __init__(self, folder: Path, settings: Settings, engine: Engine, stage: str = "verify") -> None:
        self.folder, self.settings, self.engine, self.stage = folder, settings, engine, stage
        self.store = _opened(folder, settings, engine)
        self.rows = _rows(self.store)
        self.missing = set(self.store.missing.tolist())
        self.pool: dict[Request, None] = {}
        self.started: set[int] = set()
        self.back = 0

    @property
    def found(self) -> Retrained:
        """The models, of which those that nothing is `lacking` of may be asked for."""
        return Retrained(self.store, self.rows)

    @property
    def room(self) -> bool:
        """Whether more could be handed out than was."""
        return self.engine.room > 0

    def lacking(self, requests: Iterable[Request]) -> list[Request]:
        """Those of the models that are neither there nor given up. One that was given up has NaN for margins."""
        return [request for request in requests if request not in self.rows or self.rows[request] in self.missing]

    def want(self, requests: Iterable[Request]) -> None:
        """Let models be trained as well, unless they are there or under way."""
        self.pool.update((request, None) for request in self.lacking(requests) if self.rows.get(request) not in self.started)

    def hand_out(self) -> None:
        """Start as many blocks as there is room for."""
        room, idle = self.engine.room, self.engine.idle
        self.pool = dict.fromkeys(self.lacking(self.pool))
        listed = self._listed()[:room]
        new = self._new(room - len(listed), idle - len(listed))
        rows = [row for block in listed for row in block] + (self._list(new) if new else [])
        if rows:
            self.started.update(rows)
            self.pool = {request: None for request in self.pool if self.rows.get(request) not in self.started}
            self.engine.start(ListedModels(self.folder, self.settings.verify.seed, tuple(sorted(rows))))

    def wait(self, show: Shown = no_show) -> None:
        """Until some more models are there, of those handed out; `show` is told how many more, while they come."""
        before = set(self.store.failures)
        with stage_seconds(self.settings, self.stage):
            self.engine.wait(lambda there: show(there - self.back))
        self.store = Store(self.folder)
        self.missing.intersection_update(self.store.missing.tolist())
        self.back += len(self.started - self.missing)
        self.started &= self.missing
        if not self.started:
            self.back = 0
        _say_which_failed(self.stage, self.store, before)

    def _listed(self) -> list[list[int]]:
        """The rows in the pool that were listed before, block by block."""
        rows = sorted(self.rows[request] for request in self.pool if request in self.rows)
        return [list(block) for _, block in groupby(rows, lambda row: int(self.store.arrays[BLOCK][row]))]

    def _new(self, room: int, idle: int) -> list[Request]:
        """What new blocks are made of: subsets of about one size together, for a group takes as long as its largest."""
        new = [request for request in self.pool if request not in self.rows]
        ordered = sorted(new, key=lambda request: -int.from_bytes(request.packed, "little").bit_count())
        size = self.engine.learner.models_at_once
        full = min(len(ordered) // size, room)
        return ordered if full < min(room, idle) else ordered[: full * size]

    def _list(self, requests: Sequence[Request]) -> list[int]:
        """List models in blocks, in this order; their rows."""
        meta, at_once = read_meta(self.folder), self.engine.learner.models_at_once
        masks = unpack(np.stack([np.frombuffer(request.packed, np.uint8) for request in requests]), meta.num_train)
        first = meta.num_models + np.arange(len(requests)) // at_once * at_once
        known = {
            REPETITION: np.array([request.repetition for request in requests], np.int32),
            RELABELLED: np.array([request.relabelled for request in requests], np.int32),
            BLOCK: first.astype(np.int32),
        }
        rows: list[int] = self.engine.write(enlist, self.folder, masks, known, meta.num_models).tolist()
        self.rows.update(zip(requests, rows, strict=True))
        self.missing.update(rows)
        return rows


def _opened(folder: Path, settings: Settings, engine: Engine) -> Store:
    learner = engine.learner
    n, targets = len(learner.train_labels), len(learner.test_labels)
    base = stage_folder(settings, "store")
    # By what trained the run's own store, or knowingly by other code.
    own = read_meta(base).provenance
    decided = with_sources_of(base, own, provenance_of(settings, learner), settings)
    refuse_difference(base, {key: own.get(key, {}) for key in decided}, decided)
    refuse_other_sizes(base, read_meta(base), learner)
    wanted = {**decided, "seed": settings.verify.seed, "format": FORMAT}
    engine.write(_tidied, folder)
    if not is_there(folder):
        arrays = {"margins": ArraySpec("float32", (targets,)), "confidence": ArraySpec("float16", (targets,))}
        engine.write(create_once, folder, Meta(0, n, targets, {**arrays, **LISTED}, wanted))
    made = read_meta(folder).provenance
    if made.get("format") != FORMAT:
        told = f"{folder} was made by another version of this program (format {made.get('format')}, not {FORMAT})"
        raise InputError(f"{told}; delete it, and its networks are trained again, or use another run.dir")
    refuse_difference(folder, made, with_sources_of(folder, made, wanted, settings))
    engine.write(_merged, folder)
    store = Store(folder)
    refuse_damaged(store)
    return store


def _tidied(folder: Path) -> None:
    """Remove what dead processes have left beside a store and in it."""
    tidy(folder)
    for each in (folder, folder / "inbox"):
        sweep(each)


def _merged(folder: Path) -> None:
    """Take in what lies in a store's inbox."""
    with Writer(folder) as writer:
        writer.merge()


def _rows(store: Store) -> dict[Request, int]:
    """Where each listed model lies, trained or not."""
    ids = np.arange(store.meta.num_models)
    numbers = (store.array(name, ids).tolist() for name in (REPETITION, RELABELLED))
    found = zip(store.packed(ids), *numbers, ids.tolist(), strict=True)
    return {Request(mask.tobytes(), repetition, relabelled): row for mask, repetition, relabelled, row in found}


def _say_which_failed(stage: str, store: Store, before: set[int]) -> None:
    failed = [i for i in store.failures if i not in before]
    if failed:
        how_many = f"{len(failed)} models" if len(failed) > 1 else "a model"
        say(f"{stage}: {how_many} could not be trained, and do not count: {store.failures[failed[0]]}")
