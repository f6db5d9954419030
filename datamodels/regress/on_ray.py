"""A regression on a Ray cluster: pieces of the targets are tasks, and no file system is shared.

Each node is sent the masks and margins of the models once, and what is known of the prior. A process there takes the models in
once, and keeps that from one task to the next; what a task finds comes back, and is kept here as by any regression (see
`unfinished`). So it goes on after a crash, whoever found what before, and at the end all blocks are kept, and joined.

With `regress.block` the blocks are those of one device, and so are the weights: to the last bit where BLAS has as many threads,
else to rounding. Without it blocks are smaller, and weights the same within `regress.gap`.

First one task estimates the prior, if there is one, while all others wait for it. Then λ is chosen for each piece, and then
each is fitted with the choosing models taken in too, of which a process cannot rid itself: one that is given a piece to choose
λ for after that takes all models in again, which may be minutes. So nothing is fitted while anything waits to be chosen. But
once the last of these pieces are under way, whoever is idle fits what is chosen, and does not wait for the slowest. Then only
where a process dies with such a piece does another one take the models in again.
"""

from __future__ import annotations

import dataclasses
import functools
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from datamodels.cluster.serving import alive
from datamodels.errors import InputError, shown
from datamodels.progress import Bar, say
from datamodels.regress.arrays import computing, give_back, held_memory
from datamodels.regress.devices import missing_pieces, one_bar, steps_of
from datamodels.regress.path import ABOUT, CHOSEN, FITTED, PRIOR, Pieces, Run, Share, run_of
from datamodels.regress.prior import Covariates
from datamodels.regress.solvers import CPU_BLOCK, Sharers
from datamodels.regress.source import TILE_ROWS, Source, targets_named
from datamodels.regress.split import Parts, joined
from datamodels.regress.unfinished import Carried, Kept, Unfinished
from datamodels.settings import RegressSettings
from datamodels.store import Meta, Store
from datamodels.subsets import Array, ByteArray, IndexArray

if TYPE_CHECKING:
    from datamodels.cluster import Back, Cluster, Crew, Shared

PIECES_A_SLOT = 4
"""So that whoever is slow, or joins late, has fewer of them, and nobody waits long for the last."""
WORTH_A_TASK = 32
"""Targets: each product reads all of XᵀX, which takes as long as the reckoning for about so many."""


@dataclass(frozen=True)
class Sent:
    """What is sent of a store, and to a regression is the store, see `source.Models`.

    `masks` (m, ⌈N/8⌉) are those of the models `done`, ascending, `of_targets` (m, T') their margins on some targets.
    """

    folder: Path
    meta: Meta
    done: IndexArray
    masks: ByteArray
    of_targets: Array

    @classmethod
    def of(cls, store: Store, ids: IndexArray, first: int, last: int) -> Sent:
        """The models `ids` of a store, and the targets from the first to the last."""
        margins = np.empty((len(ids), last - first), store.meta.files["margins"].dtype)
        for start in range(0, len(ids), TILE_ROWS):
            rows = slice(start, start + TILE_ROWS)
            margins[rows] = store.margins(ids[rows])[:, first:last]
        return cls(store.folder, store.meta, ids, store.packed(ids), margins)

    def packed(self, ids: npt.ArrayLike) -> ByteArray:
        """See `Store.packed`."""
        found: ByteArray = self.masks[np.searchsorted(self.done, ids)]
        return found

    def margins(self, ids: npt.ArrayLike) -> Array:
        """See `Store.margins`: of the targets that were sent."""
        found: Array = self.of_targets[np.searchsorted(self.done, ids)]
        return found


class Piece(NamedTuple):
    """Targets of one stage, the first and one past the last; the prior is of all. Of none: what is to be said of all models."""

    stage: str
    first: int
    last: int


@dataclass(frozen=True)
class Plan:
    """What all processes are told. `tasks_here` says in one of them how many there are on its node, `gpus` what each has."""

    settings: RegressSettings
    parts: Parts
    targets: tuple[int, int]
    sent: Shared[Sent]
    covariates: Shared[Covariates] | None
    tasks_here: Callable[[], int]
    gpus: float


class Found(NamedTuple):
    """What a task gives: what is to be kept, which process it was, and what that has done."""

    kept: Mapping[str, Kept]
    process: str
    share: Share


class Seat:
    """A process of the regression: its run, with the models that it has taken in, stays from one piece to the next."""

    def __init__(self, plan: Plan, device: str | None) -> None:
        self.plan, self.device, self.name = plan, device, uuid.uuid4().hex
        first, last = plan.targets
        self.source = Source(plan.sent.get(), first, last, plan.parts.fit, offset=first)
        self.covariates = None if plan.covariates is None else plan.covariates.get()
        self.run: Run | None = None
        self.all_in = False

    def do(self, piece: Piece, brought: Mapping[str, Kept]) -> Found:
        """Do a piece, by what was found of it before. Raises InputError as a regression does."""
        kept = Carried(brought)
        with computing(self.plan.settings.device, self.device) as xp:
            try:
                share = self._do(piece, kept, xp)
            except BaseException:
                self.run = None  # the next piece has its memory, and begins anew
                raise
        return Found(kept.found, self.name, share)

    def _do(self, piece: Piece, kept: Carried, xp: Any) -> Share:
        fresh = self.run is None or (piece.stage == CHOSEN and self.all_in)
        run = self._new(xp) if fresh else self.run
        assert run is not None
        run.unfinished, run.seconds, before = kept, {}, dict(run.solver.work)
        self.run = run
        if fresh:
            run.begin()
            self.all_in = run.of_mean
        done = self._done(run, piece)
        work = {name: number - before.get(name, 0) for name, number in run.solver.work.items()}
        return Share(done, run.seconds, work)

    def _new(self, xp: Any) -> Run:
        """A run that has not begun, in the place of one that is given up."""
        self.run, self.all_in = None, False
        give_back(xp)
        plan = self.plan
        number = plan.tasks_here() if xp is np else max(1, round(1 / (plan.gpus or 1)))
        among = Sharers(number, held_memory(xp) if number > 1 else 0)
        return run_of(self.source, plan.settings, _lively, Carried({}), self.covariates, plan.parts, xp, among)

    def _done(self, run: Run, piece: Piece) -> dict[str, int]:
        """Do a piece, once the models that it needs are taken in; how many targets."""
        targets = [(piece.first, piece.last)]
        if piece.stage == CHOSEN:
            return {CHOSEN: run.some_chosen(targets)}
        if piece.stage == PRIOR:
            return {}  # it is found in the beginning
        if not self.all_in:
            run.take_in(run.parts.choice)
            self.all_in = True
        done = run.some_fitted(targets)
        run.about()
        return {FITTED: done}


@contextmanager
def _lively(unit: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar that nobody is shown: with each step the process says that it does not hang."""
    del unit, total
    yield lambda _n=1, _where="": alive()


def prepare(plan: Plan, device: str | None) -> Seat:
    """In a process of the cluster: what does its pieces."""
    return Seat(plan, device)


def _do(piece: Piece, brought: Mapping[str, Kept], seat: Seat) -> tuple[Found, None]:
    return seat.do(piece, brought), None


def fit_pieces(
    cluster: Cluster,
    store: Store,
    settings: RegressSettings,
    unfinished: Unfinished,
    covariates: Covariates | None,
    parts: Parts,
    bar: Bar,
) -> list[dict[str, Any]]:
    """Let a cluster find what is not kept yet, and keep it, so that `fit_datamodels` has but to join it; what each process did.

    Raises InputError as a regression does, with the node's name, and where the cluster has no memory for what it is sent.
    """
    unfinished.drop_damaged()
    first, last = targets = targets_named(store, settings.targets)
    pieces = missing_pieces(unfinished, targets, settings, _size(settings, last - first, cluster.slots()))
    if not pieces[FITTED]:
        if unfinished.recall(ABOUT) is not None:
            return []
        pieces = {CHOSEN: [], FITTED: [(first, first)]}
    if settings.device == "gpu" and not cluster.gpus():
        raise InputError("regress.device is gpu, but tasks on this cluster have none; give --ray.gpus 1, or auto or cpu")
    ids = joined([parts.fit, parts.choice, parts.heldout])
    sent = cluster.share(Sent.of(store, ids, first, last), f"masks and margins of {len(ids)} models")
    known = None if covariates is None else cluster.share(covariates, "what regress.prior names")
    plan = Plan(settings, parts, targets, sent, known, cluster.tasks_here(), cluster.gpus())
    work = _Work(cluster, unfinished, plan, pieces)
    with cluster.crew(functools.partial(prepare, plan), "regress") as crew, one_bar(settings, targets, pieces, bar) as heard:
        return work.through(crew, heard)


def _size(settings: RegressSettings, targets: int, slots: int) -> int:
    """How many targets are a piece: `regress.block`, or so few that there are several pieces for each slot."""
    if settings.block:
        return settings.block
    even, several = (-(-targets // (max(1, slots) * each)) for each in (1, PIECES_A_SLOT))
    return min(CPU_BLOCK, max(several, min(even, WORTH_A_TASK)))


class _Work:
    """The pieces of a regression on their way: which wait, which are out, and who did which."""

    def __init__(self, cluster: Cluster, unfinished: Unfinished, plan: Plan, pieces: Pieces) -> None:
        self.cluster, self.unfinished, self.targets = cluster, unfinished, plan.targets
        self.steps = {PRIOR: 0, **steps_of(plan.settings)}
        wanted = plan.covariates is not None and unfinished.recall(PRIOR) is None
        self.waiting = {PRIOR: [Piece(PRIOR, *plan.targets)] if wanted else []}
        self.waiting |= {stage: [Piece(stage, *piece) for piece in pieces[stage]] for stage in (CHOSEN, FITTED)}
        self.out: set[Piece] = set()
        self.failed: dict[Piece, Back] = {}
        self.reports: dict[str, dict[str, Any]] = {}

    def through(self, crew: Crew[Seat], heard: Callable[[str, Any], None]) -> list[dict[str, Any]]:
        """Give all pieces, and keep what comes back, until nothing is left; what each process did."""
        while self.out or any(self.waiting.values()):
            self._give(crew)
            for back in crew.back():
                self._take(back, crew, heard)
        return sorted(self.reports.values(), key=lambda report: str(report["node"]))

    def _give(self, crew: Crew[Seat]) -> None:
        """Give what may be given now, see above."""
        for stage, waiting in self.waiting.items():
            before = any(piece.stage != stage for piece in self.out)
            for piece in list(waiting):
                if not (crew.idle if before else crew.room):
                    return
                if self._ready(piece):
                    waiting.remove(piece)
                    self.out.add(piece)
                    crew.give(piece, functools.partial(_do, piece, self._brought(piece)))
            if waiting:
                return

    def _ready(self, piece: Piece) -> bool:
        """Whether nothing that it needs is under way; nothing of that waits, for stages are given one after another."""
        if any(other.stage == PRIOR for other in self.out):
            return False
        needed = (other for other in self.out if piece.stage == FITTED and other.stage == CHOSEN)
        return not any(other.first < piece.last and piece.first < other.last for other in needed)

    def _brought(self, piece: Piece) -> dict[str, Kept]:
        """What was found before and a piece goes on from."""
        names = [PRIOR]
        if piece.stage == FITTED:
            blocks = self.unfinished.covering(CHOSEN, piece.first, piece.last, self.targets)
            names += [f"{CHOSEN}-{first}-{last}" for first, last in blocks or []]
        return {name: kept for name in names if (kept := self.unfinished.recall(name)) is not None}

    def _take(self, back: Back, crew: Crew[Seat], heard: Callable[[str, Any], None]) -> None:
        """Keep what a piece gave."""
        piece: Piece = back.key
        if back.error is not None:
            self._again(piece, back, crew)
            return
        self.out.remove(piece)
        found: Found = back.value
        for name, arrays in found.kept.items():
            self.unfinished.keep(name, arrays)
        self._note(back.node.name, found)
        steps = self.steps[piece.stage] * (piece.last - piece.first)
        heard(back.node.name, (piece.stage, steps, f"targets {piece.first} to {piece.last}"))
        failed = self.failed.pop(piece, None)
        if failed is not None and failed.node != back.node:
            why = f"failed at what {back.node.name} has done ({shown(str(failed.error), 300)})"
            self.cluster.refuse(failed.node, why, "regress")

    def _again(self, piece: Piece, back: Back, crew: Crew[Seat]) -> None:
        """Give a piece to another node. Raises the error where there is none, or two have failed at it."""
        assert back.error is not None
        failed, others = self.failed.setdefault(piece, back), [node for node in self.cluster.nodes() if node != back.node]
        if failed is not back or not others:
            raise back.error
        say(f"regress: {shown(str(back.error), 1000)}; another node tries it")
        crew.give(piece, functools.partial(_do, piece, self._brought(piece)), avoid=[back.node])

    def _note(self, node: str, found: Found) -> None:
        report = self.reports.setdefault(found.process, {"node": node, "targets": {}, "seconds": {}, "work": {}})
        for name, numbers in dataclasses.asdict(found.share).items():
            for part, number in numbers.items():
                report[name][part] = report[name].get(part, 0) + number
