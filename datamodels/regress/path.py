"""From a store to datamodels: one pass for the moments, the λ path, the choice of λ, the refit, the score.

Models are split three ways by a recorded seed, whole subsets at a time (see `split`): those to fit on, those that choose λ, and
held-out ones that only measure.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodels.errors import InputError, of_memory
from datamodels.progress import Bar, no_advance, no_progress, say
from datamodels.regress.arrays import (
    computing,
    give_back,
    on_device,
    to_numpy,
)
from datamodels.regress.choice import Choice
from datamodels.regress.columns import matrix, side_by_side, sparse_columns
from datamodels.regress.memory import needs
from datamodels.regress.moments import Moments
from datamodels.regress.prior import Covariates, Prior, estimate, posterior_mean
from datamodels.regress.repeats import Repeats, repeats
from datamodels.regress.score import predict, score
from datamodels.regress.solvers import ALONE, Gram, Lasso, Plan, Sharers, plan
from datamodels.regress.source import Source, targets_named
from datamodels.regress.split import Parts, Subsets, joined, split_models
from datamodels.regress.unfinished import Kept, Unfinished
from datamodels.regress.walk import walk
from datamodels.settings import RegressSettings
from datamodels.store import Store
from datamodels.subsets import Array, IndexArray

METRICS = ("lds", "r2", "mse", "nonzeros")
CHOSEN, FITTED, PRIOR, ABOUT = "chosen", "fitted", "prior", "about"
"""What is kept: two stages by blocks of targets, the prior, and what is known of all models together."""

FloatArray = npt.NDArray[np.float64]
Work = Callable[..., Kept]
Pieces = dict[str, list[tuple[int, int]]]
"""Of each stage, targets that one device takes at a time: the first, and one past the last, as the store counts."""


@dataclass(frozen=True)
class Fit:
    """Datamodels of all targets: weights for raw masks, bias (T,), λ (T,), and how they do on held-out models.

    `columns` are the weights (N, T) as a sparse matrix (CSC, float32), `weights` the same as an array. `metrics` has for each
    target `lds`, `r2`, `mse` (on held-out models) and `nonzeros`, each an array (T,). `constant_images` are those in all of the
    masks or in none, about which nothing can be learnt, `constant_targets` those of one margin only. `seconds` says how long
    each part took, `solver` what solved, how many targets at once, in which number format, and the bytes of memory that were
    planned for it on the device.
    """

    columns: Any
    bias: npt.NDArray[np.float32]
    lam: FloatArray
    metrics: dict[str, FloatArray]
    parts: Parts
    constant_images: IndexArray
    constant_targets: IndexArray
    seconds: dict[str, float]
    solver: dict[str, Any]

    @property
    def weights(self) -> npt.NDArray[np.float32]:
        """The weights, float32 (N, T)."""
        weights: npt.NDArray[np.float32] = self.columns.toarray()
        return weights


def fit_datamodels(
    store: Store,
    settings: RegressSettings,
    bar: Bar = no_progress,
    unfinished: Unfinished | None = None,
    covariates: Covariates | None = None,
    parts: Parts | None = None,
    gpu: str | None = None,
) -> Fit:
    """Weights, biases and scores of the targets of a store that the settings name.

    `bar` makes the bars of the parts of the work, `unfinished` keeps what is done, and brings what was done before. With
    `covariates` weights have a prior of these, see `prior`; without, or with `regress.sparse`, they are the lasso's. `parts`
    are the models to use, where the settings are not to split them. `gpu` is the number of a GPU, or cpu, see `computing`.

    Raises InputError when too few models are finished, a margin is not a number, there is too little memory, or no such GPU.
    """
    parts = parts or split_models(Subsets.of(store, store.done), settings)
    unfinished = unfinished or Unfinished()
    source = Source(store, *targets_named(store, settings.targets), parts.fit)
    kept = _all_kept(source, unfinished)
    if kept is not None:
        return _fit_of(source, parts, *kept, {})
    with computing(settings.device, gpu) as xp:
        return _whole(run_of(source, settings, bar, unfinished, covariates, parts, xp))


@dataclass(frozen=True)
class Share:
    """What one of several devices has done: how many targets in each stage, in how many seconds, and the solver's work."""

    targets: dict[str, int]
    seconds: dict[str, float]
    work: dict[str, int]


def fit_share(
    store: Store,
    settings: RegressSettings,
    bar: Bar,
    unfinished: Unfinished,
    covariates: Covariates | None,
    parts: Parts,
    gpu: str | None,
    pieces: Pieces,
    sharers: int,
) -> Share:
    """Keep what `fit_datamodels` will look for, of some pieces of the targets: of those that nobody else has or has kept.

    `sharers` processes are at the same, each with all of the models and as much of this machine's memory as the others. A prior
    is estimated by one of them for all. Raises as `fit_datamodels` does.
    """
    source = Source(store, *targets_named(store, settings.targets), parts.fit)
    if not unfinished.missing(FITTED, source.first, source.last) and unfinished.recall(ABOUT) is not None:
        return Share({}, {}, {})
    with computing(settings.device, gpu) as xp:
        among = Sharers(sharers if xp is np else 1)
        return _share(run_of(source, settings, bar, unfinished, covariates, parts, xp, among), pieces)


def _whole(run: Run) -> Fit:
    lams, parts = run.settings.lams, run.parts
    run.begin()
    if not run.of_mean:
        run.chosen = run.each(CHOSEN, "λ", lams, run.choose, parts.choice)
        # The refit sees the choosing models too: they are added to those that are there.
        run.take_in(parts.choice)
    found = run.each(FITTED, "targets", 1, run.finish, parts.heldout)
    return _fit_of(run.source, parts, found, run.about(), run.seconds)


def _share(run: Run, pieces: Pieces) -> Share:
    done = dict[str, int]()
    run.begin()
    if not run.of_mean:
        done[CHOSEN] = run.some_chosen(pieces[CHOSEN])
        run.take_in(run.parts.choice)
    done[FITTED] = run.some_fitted(pieces[FITTED])
    run.about()
    return Share(done, run.seconds, dict(run.solver.work))


def run_of(
    source: Source,
    settings: RegressSettings,
    bar: Bar,
    unfinished: Unfinished,
    covariates: Covariates | None,
    parts: Parts,
    xp: Any,
    sharers: Sharers = ALONE,
) -> Run:
    """A regression that has not begun, planned for the memory that is free. Raises InputError where that is too little."""
    sizes = (len(parts.fit), len(parts.choice), len(parts.heldout))
    known = None if covariates is None else len(covariates.names)
    of = needs(source.n, source.t, sizes, settings, source.margin_bytes, known, on_host=xp is np)
    planned = plan(source, settings, of, xp, sharers)
    since = None if covariates is None else covariates.since(source.first)
    return Run(source, settings, planned, planned.block, unfinished, bar, xp, parts, since)


def _all_kept(source: Source, unfinished: Unfinished) -> tuple[Kept, Kept] | None:
    """What was found of all targets and what is known of the models, where nothing is left to do but to join it; or None."""
    if unfinished.missing(FITTED, source.first, source.last):
        return None
    about = unfinished.recall(ABOUT)
    found = [unfinished.recall(f"{FITTED}-{a}-{b}") for a, b in unfinished.walk(FITTED, source.first, source.last)]
    whole = [block for block in found if block is not None]
    return None if about is None or len(whole) < len(found) else (side_by_side(whole), about)


def _fit_of(source: Source, parts: Parts, found: Kept, about: Kept, seconds: dict[str, float]) -> Fit:
    scores = {name: found[name] for name in METRICS}
    constant = about["images"], about["targets"]
    how = json.loads(str(about["how"]))
    return Fit(matrix(source.n, found), found["bias"], found["lam"], scores, parts, *constant, seconds, how)


@dataclass
class Run:
    """One regression under way; `size` targets are solved at once, fewer when memory runs out."""

    source: Source
    settings: RegressSettings
    planned: Plan
    size: int
    unfinished: Unfinished
    bar: Bar
    xp: Any
    parts: Parts
    covariates: Covariates | None = None
    prior: Prior | None = None
    repeats: Repeats | None = None
    chosen: Kept = field(default_factory=dict)
    chosen_from: int = 0
    advance: Callable[..., None] = no_advance
    advanced: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.solver = self.planned.solver

    @property
    def of_mean(self) -> bool:
        """Whether the weights are the posterior mean, of which no λ is to be chosen."""
        return self.covariates is not None and not self.settings.sparse

    @property
    def finish(self) -> Work:
        """The last stage's work."""
        return self.with_prior if self.of_mean else self.refit

    def begin(self) -> None:
        """Take in the models that come first, and estimate the prior from them."""
        self.take_in(self.parts.fit)
        if self.of_mean:
            self.take_in(self.parts.choice)
        if self.covariates is not None:
            self.estimate(self.covariates)

    def take_in(self, ids: IndexArray) -> None:
        """Give models to the solver."""
        with self._timed("moments"), self.bar("models", len(ids)) as advance:
            self.solver.add(ids, advance)

    def each(self, stage: str, unit: str, steps: int, work: Work, judged: IndexArray) -> Kept:
        """Do a stage's work, of so many steps a target, for block after block of targets, unless that is kept.

        It is judged by some models. Returns what was found of all targets side by side.
        """
        with self._timed(stage), self.bar(unit, steps * self.source.t) as self.advance:
            packed = on_device(self.source.packed(judged), self.xp)
            return side_by_side(self._blocks(stage, steps, work, packed, judged, slice(0, self.source.t)))

    def some_chosen(self, pieces: list[tuple[int, int]]) -> int:
        """Choose λ for some pieces of the targets, as `some` does."""
        return self.some(CHOSEN, "λ", self.settings.lams, self.choose, self.parts.choice, pieces)

    def some_fitted(self, pieces: list[tuple[int, int]]) -> int:
        """Do the last stage for some pieces of the targets, as `some` does, where what was chosen for them is kept."""
        return self.some(FITTED, "targets", 1, self.finish, self.parts.heldout, pieces, self.recall_chosen)

    def some(
        self,
        stage: str,
        unit: str,
        steps: int,
        work: Work,
        judged: IndexArray,
        pieces: list[tuple[int, int]],
        ready: Callable[[int, int], bool] = lambda _first, _last: True,
    ) -> int:
        """As `each`, for those of the pieces that are `ready`, and that no other process has or has kept; how many targets."""
        done, first = 0, self.source.first
        with self._timed(stage), self.bar(unit, steps * sum(b - a for a, b in pieces)) as self.advance:
            packed = on_device(self.source.packed(judged), self.xp)
            for start, stop in pieces:
                with self.unfinished.claimed(stage, start, stop) as mine:
                    if mine and ready(start, stop):
                        for _ in self._blocks(stage, steps, work, packed, judged, slice(start - first, stop - first)):
                            pass
                        done += stop - start
        return done

    def _blocks(self, stage: str, steps: int, work: Work, packed: Any, judged: IndexArray, targets: slice) -> Iterator[Kept]:
        """What is found of one block after another, or was kept of it."""
        at = targets.start
        while at < targets.stop:
            block, done = self._kept(stage, at, targets.stop)
            if done is None:
                done = self._attempt(work, block, packed, judged)
                if done is None:
                    continue
                self.unfinished.keep(self._name(stage, block), done)
            else:
                self.advance(steps * (block.stop - block.start))
            yield done
            at = block.stop

    def _kept(self, stage: str, at: int, stop: int) -> tuple[slice, Kept | None]:
        """The block of targets that begins at one, and what is kept of it; a new one ends where something kept begins."""
        first, end = self.source.first, at + self.size
        for kept in self.unfinished.blocks(stage):
            block = slice(kept[0] - first, kept[1] - first)
            if block.start == at and block.stop <= self.source.t:
                done = self.unfinished.recall(self._name(stage, block))
                if done is not None:
                    return block, done
            elif block.start > at:
                end = min(end, block.start)
        return slice(at, min(end, stop)), None

    def recall_chosen(self, start: int, stop: int) -> bool:
        """Have at hand what was chosen for some targets, as the store counts them; whether all of that is kept."""
        if self.of_mean:
            return True
        blocks = self.unfinished.covering(CHOSEN, start, stop, (self.source.first, self.source.last))
        found = [self.unfinished.recall(f"{CHOSEN}-{a}-{b}") for a, b in blocks or []]
        kept = [block for block in found if block is not None]
        if not blocks or len(kept) < len(found):
            return False
        self.chosen, self.chosen_from = side_by_side(kept), blocks[0][0] - self.source.first
        return True

    def _name(self, stage: str, block: slice) -> str:
        return f"{stage}-{self.source.first + block.start}-{self.source.first + block.stop}"

    def _attempt(self, work: Work, block: slice, packed: Any, judged: IndexArray) -> Kept | None:
        """What is found of one block, or None where memory ran out: then the next block has half as many targets.

        Raises InputError when there is no room for one.
        """
        self.advanced = 0
        try:
            return work(block, packed, judged)
        except (MemoryError, RuntimeError) as e:
            if not of_memory(e):
                raise
        # Only here has the error let go of what the block held.
        give_back(self.xp)
        self.advance(-self.advanced)
        size = block.stop - block.start
        if size == 1:
            raise InputError("memory is full with one target at a time; fewer regress.targets take less, and so does saga")
        self.size = size // 2
        say(f"regress: memory is full with {size} targets at once; going on with {self.size}")
        return None

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def step(self, steps: int, where: str = "") -> None:
        """So many steps more are done."""
        self.advanced += steps
        self.advance(steps, where)

    def choose(self, block: slice, packed: Any, judged: IndexArray) -> Kept:
        """λ (T,) with the smallest error on the choosing models, and the weights (N, T) there, of one block.

        The path runs from λ_max down; a target leaves when its error has not fallen for a few values.
        """
        lasso, ratios = self._lasso(block), np.geomspace(1, self.settings.lam_ratio, self.settings.lams)
        truth, n, dtype = self.source.margins(judged, block, self.xp), self.source.n, self.solver.dtype

        def step(targets: int, k: int, left: int) -> None:
            of = f"targets {block.start} to {block.stop} of {self.source.t}"
            self.step(targets, f"{of}, λ {k + 1} of {self.settings.lams}, {left} of {targets} targets")

        choice = Choice(lasso, packed, truth, n, dtype, self.xp, step)
        top = walk(lasso, ratios, n, dtype, self.xp, choice.judge)
        self.step(len(ratios) * (block.stop - block.start) - choice.steps)
        return {"lam": top * ratios[choice.at], **sparse_columns(to_numpy(choice.best))}

    def refit(self, block: slice, packed: Any, heldout: IndexArray) -> Kept:
        """Weights, bias and metrics of one block at its λ, from all models but the held-out ones."""
        xp, lasso, every = self.xp, self._lasso(block), np.arange(block.stop - block.start)
        of_block = slice(block.start - self.chosen_from, block.stop - self.chosen_from)
        lam = self.chosen["lam"][of_block]
        start = on_device(matrix(self.source.n, self.chosen)[:, of_block].toarray(), xp)
        weights = lasso.solve(every, on_device(lam, xp), start)
        bias = lasso.bias(every, weights)
        return self._judged(weights, bias, block, packed, heldout, lam * self.source.unit(block))

    def estimate(self, covariates: Covariates) -> None:
        """Find the prior of all targets, from all models taken in, unless it is kept."""
        with self._timed("prior"), self.unfinished.alone(PRIOR):
            kept = self.unfinished.recall(PRIOR)
            if kept is None:
                ids = joined([self.parts.fit, self.parts.choice] if self.of_mean else [self.parts.fit])
                again = repeats(self.source, Subsets.of(self.source.store, ids))
                found = estimate(covariates, self._moments.problem, self.source.t, self._moments.m, again)
                kept = {name: np.asarray(getattr(found, name)) for name in ("mean", "spread", "noise", "inside")}
                kept |= {"size": np.asarray(again.size), "among": again.noise}
                self.unfinished.keep(PRIOR, kept)
        self.prior = Prior(covariates, kept["mean"], kept["spread"], float(kept["noise"]), kept["inside"])
        self.repeats = Repeats(float(kept["size"]), kept["among"])

    def about(self) -> Kept:
        """What there is to be said of all models taken in, and of how they were; it is kept."""
        images, targets = (to_numpy(constant) for constant in self.solver.constants())
        how = {"solver": self.solver.name, "block": self.size, "number_format": self.solver.dtype.name, **self.solver.work}
        how["planned_bytes"] = self.planned.bytes(self.size)
        if self.prior is not None:
            how["prior"] = self.prior.described
        about = {"images": images, "targets": targets, "how": np.array(json.dumps(how))}
        self.unfinished.keep(ABOUT, about)
        return about

    def _lasso(self, block: slice) -> Lasso:
        """The lasso of one block, its penalty by the prior where there is one."""
        if self.prior is None:
            return self.solver.lasso(block)
        assert isinstance(self.solver, Gram)
        factors = self.xp.empty((self.source.n, block.stop - block.start), self.solver.dtype)
        for part in self.prior.parts(block):
            self._put(factors, block, part, self.prior.penalty(part))
        return self.solver.weighted(block, factors)

    def _put(self, into: Any, block: slice, part: slice, values: Array) -> None:
        """Columns of some of a block's targets, rounded on the way to the device."""
        columns = slice(part.start - block.start, part.stop - block.start)
        into[:, columns] = on_device(values.astype(into.dtype), self.xp)

    def with_prior(self, block: slice, packed: Any, heldout: IndexArray) -> Kept:
        """Weights, bias and metrics of one block under the prior; λ is the noise variance over the number of models."""
        moments, prior = self._moments, self.prior
        assert prior is not None
        assert self.repeats is not None
        problem = moments.problem(block)
        scale = np.sqrt(to_numpy(problem.variance))
        left = prior.noise * scale**2
        lam = left * self.repeats.of(block).effect(left) / moments.m
        mean, deviation = (self.xp.empty(problem.correlation.shape, self.solver.dtype) for _ in range(2))
        for part in prior.parts(block):
            of_part, square = prior.at(part, scale[part.start - block.start : part.stop - block.start])
            self._put(mean, block, part, of_part)
            self._put(deviation, block, part, np.sqrt(square))
        weights = posterior_mean(problem, mean, deviation, lam)
        del deviation
        bias = problem.bias(weights)
        return self._judged(weights, bias, block, packed, heldout, lam * self.source.unit(block) ** 2)

    @property
    def _moments(self) -> Moments:
        assert isinstance(self.solver, Gram)
        return self.solver.moments

    def _judged(self, weights: Any, bias: Any, block: slice, packed: Any, heldout: IndexArray, lam: Array) -> Kept:
        metrics = score(predict(weights, bias, packed, self.xp), self.source.margins(heldout, block, np))
        self.step(block.stop - block.start)
        unit = self.source.unit(block)
        metrics["mse"] *= unit**2
        found = to_numpy(weights)
        with np.errstate(over="ignore"):  # what is beyond float32 is refused before it is written
            if (unit != 1).any():
                found = found * unit.astype(found.dtype)
            kept = sparse_columns(found.astype(np.float32, copy=False))
            bias = (to_numpy(bias) * unit).astype(np.float32)
        return {**kept, "bias": bias, "lam": lam, **metrics, "nonzeros": kept["counts"]}
