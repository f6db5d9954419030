"""From a store to datamodels: one pass for the moments, the λ path, the choice of λ, the refit, the score.

Models are split three ways by a recorded seed, whole subsets at a time (see `split`): those to fit on, those that choose λ, and
held-out ones that only measure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_matrix
from scipy.stats import rankdata

from datamodels.errors import InputError, of_memory
from datamodels.progress import Bar, no_advance, no_progress, say
from datamodels.regress.arrays import (
    computing,
    give_back,
    keep_columns,
    on_device,
    put_columns,
    row_tiles,
    to_numpy,
)
from datamodels.regress.kernels import unpacked
from datamodels.regress.memory import needs
from datamodels.regress.moments import Moments
from datamodels.regress.prior import Covariates, Prior, estimate, posterior_mean
from datamodels.regress.repeats import Repeats, repeats
from datamodels.regress.solvers import Gram, Lasso, Solver, plan
from datamodels.regress.source import TILE_ROWS, Source, targets_named
from datamodels.regress.split import Parts, Subsets, split_models
from datamodels.regress.unfinished import Kept, Unfinished
from datamodels.regress.walk import walk
from datamodels.settings import RegressSettings
from datamodels.store import Store
from datamodels.store.layout import Array
from datamodels.subsets import BoolArray, IndexArray

PATIENCE = 5
"""Values of λ without a smaller error after which a target's path ends."""
METRICS = ("lds", "r2", "mse", "nonzeros")

FloatArray = npt.NDArray[np.float64]
Work = Callable[..., Kept]


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
    subsets = Subsets.of(store, store.done)
    parts = parts or split_models(subsets, settings)
    with computing(settings.device, gpu) as xp:
        return _fit(store, settings, bar, unfinished or Unfinished(), covariates, parts, subsets, xp)


def _fit(
    store: Store,
    settings: RegressSettings,
    bar: Bar,
    unfinished: Unfinished,
    covariates: Covariates | None,
    parts: Parts,
    subsets: Subsets,
    xp: Any,
) -> Fit:
    source = Source(store, *targets_named(store, settings.targets), parts.fit)
    sizes = (len(parts.fit), len(parts.choice), len(parts.heldout))
    known = None if covariates is None else len(covariates.names)
    of = needs(source.n, source.t, sizes, settings, source.margin_bytes, known, on_host=xp is np)
    planned = plan(source, settings, of, xp)
    solver = planned.solver
    run = _Run(source, settings, solver, planned.block, unfinished, bar, xp, subsets)
    run.take_in(parts.fit)
    if covariates is not None and not settings.sparse:
        run.take_in(parts.choice)
    if covariates is not None:
        run.estimate(covariates.since(source.first))
    if covariates is not None and not settings.sparse:
        found = run.each("fitted", "targets", 1, run.with_prior, parts.heldout)
    else:
        run.chosen = run.each("chosen", "λ", settings.lams, run.choose, parts.choice)
        # The refit sees the choosing models too: they are added to those that are there.
        run.take_in(parts.choice)
        found = run.each("fitted", "targets", 1, run.refit, parts.heldout)
    images, targets = (to_numpy(constant) for constant in solver.constants())
    how = {"solver": solver.name, "block": run.size, "number_format": solver.dtype.name, **solver.work}
    how["planned_bytes"] = planned.bytes(run.size)
    if run.prior is not None:
        how["prior"] = run.prior.described
    scores = {name: found[name] for name in METRICS}
    return Fit(_columns(source.n, found), found["bias"], found["lam"], scores, parts, images, targets, run.seconds, how)


@dataclass
class _Run:
    """One regression under way; `size` targets are solved at once, fewer when memory runs out."""

    source: Source
    settings: RegressSettings
    solver: Solver
    size: int
    unfinished: Unfinished
    bar: Bar
    xp: Any
    subsets: Subsets
    prior: Prior | None = None
    repeats: Repeats | None = None
    taken: list[IndexArray] = field(default_factory=list)
    chosen: Kept = field(default_factory=dict)
    advance: Callable[..., None] = no_advance
    advanced: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def take_in(self, ids: IndexArray) -> None:
        """Give models to the solver."""
        with self._timed("moments"), self.bar("models", len(ids)) as advance:
            self.solver.add(ids, advance)
        self.taken.append(ids)

    def each(self, stage: str, unit: str, steps: int, work: Work, judged: IndexArray) -> Kept:
        """Do a stage's work, of so many steps a target, for block after block of targets, unless that is kept.

        It is judged by some models. Returns what was found of all targets side by side.
        """
        found, at = list[Kept](), 0
        with self._timed(stage), self.bar(unit, steps * self.source.t) as self.advance:
            packed = on_device(self.source.packed(judged), self.xp)
            while at < self.source.t:
                block, done = self._kept(stage, at)
                if done is None:
                    done = self._attempt(work, block, packed, judged)
                    if done is None:
                        continue
                    self.unfinished.keep(self._name(stage, block), done)
                else:
                    self.advance(steps * (block.stop - block.start))
                found.append(done)
                at = block.stop
        return {name: np.concatenate([block[name] for block in found]) for name in found[0]}

    def _kept(self, stage: str, at: int) -> tuple[slice, Kept | None]:
        """The block of targets that begins at one, and what is kept of it; a new one ends where something kept begins."""
        first, end = self.source.first, at + self.size
        for start, stop in self.unfinished.blocks(stage):
            block = slice(start - first, stop - first)
            if block.start == at and block.stop <= self.source.t:
                done = self.unfinished.recall(self._name(stage, block))
                if done is not None:
                    return block, done
            elif block.start > at:
                end = min(end, block.start)
        return slice(at, min(end, self.source.t)), None

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

    def _step(self, steps: int, where: str = "") -> None:
        self.advanced += steps
        self.advance(steps, where)

    def choose(self, block: slice, packed: Any, judged: IndexArray) -> Kept:
        """λ (T,) with the smallest error on the choosing models, and the weights (N, T) there, of one block.

        The path runs from λ_max down; a target leaves when its error has not fallen for a few values.
        """
        lasso, ratios = self._lasso(block), np.geomspace(1, self.settings.lam_ratio, self.settings.lams)
        choice = _Choice(self, block, packed, self.source.margins(judged, block, self.xp), lasso)
        top = walk(lasso, ratios, self.source.n, self.solver.dtype, self.xp, choice.judge)
        self._step(len(ratios) * (block.stop - block.start) - choice.steps)
        return {"lam": top * ratios[choice.at], **_sparse(to_numpy(choice.best))}

    def refit(self, block: slice, packed: Any, heldout: IndexArray) -> Kept:
        """Weights, bias and metrics of one block at its λ, from all models but the held-out ones."""
        xp, lasso, every, lam = self.xp, self._lasso(block), np.arange(block.stop - block.start), self.chosen["lam"][block]
        start = on_device(_columns(self.source.n, self.chosen)[:, block].toarray(), xp)
        weights = lasso.solve(every, on_device(lam, xp), start)
        bias = lasso.bias(every, weights)
        return self._judged(weights, bias, block, packed, heldout, lam * self.source.unit(block))

    def estimate(self, covariates: Covariates) -> None:
        """Find the prior of all targets, from all models taken in."""
        with self._timed("prior"):
            self.repeats = repeats(self.source, self.subsets.among(np.concatenate(self.taken)))
            self.prior = estimate(covariates, self._moments.problem, self.source.t, self._moments.m, self.repeats)

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
        self._step(block.stop - block.start)
        unit = self.source.unit(block)
        metrics["mse"] *= unit**2
        found = to_numpy(weights)
        with np.errstate(over="ignore"):  # what is beyond float32 is refused before it is written
            if (unit != 1).any():
                found = found * unit.astype(found.dtype)
            kept = _sparse(found.astype(np.float32, copy=False))
            bias = (to_numpy(bias) * unit).astype(np.float32)
        return {**kept, "bias": bias, "lam": lam, **metrics, "nonzeros": kept["counts"]}


class _Choice:
    """Of each of a block's targets the λ with the smallest error so far, its place `at` (T,), and the weights `best` (N, T)."""

    def __init__(self, run: _Run, block: slice, packed: Any, truth: Any, lasso: Lasso) -> None:
        self.run, self.block, self.packed, self.truth, self.lasso = run, block, packed, truth, lasso
        t = block.stop - block.start
        self.best = run.xp.zeros((run.source.n, t), run.solver.dtype)
        self.least, self.at, self.since, self.of = (
            np.full(t, np.inf),
            np.zeros(t, np.int64),
            np.zeros(t, np.int64),
            np.arange(t),
        )
        self.steps = 0

    def judge(self, k: int, targets: IndexArray, found: Any) -> BoolArray:
        """See `walk`."""
        xp, t = self.run.xp, self.block.stop - self.block.start
        if len(targets) < len(self.of):
            self.truth = keep_columns(self.truth, on_device(np.searchsorted(self.of, targets), xp), xp)
            self.of = targets
        error = to_numpy(_error(found, self.lasso.bias(targets, found), self.packed, self.truth, xp))
        better = error < self.least[targets]
        won = targets[better]
        self.least[won], self.at[won] = error[better], k
        put_columns(self.best, on_device(won, xp), found, on_device(np.flatnonzero(better), xp), xp)
        self.since[targets] += 1
        self.since[won] = 0
        where = f"λ {k + 1} of {self.run.settings.lams}, {len(targets)} of {t} targets"
        self.run._step(t, f"targets {self.block.start} to {self.block.stop} of {self.run.source.t}, {where}")
        self.steps += t
        return np.asarray(self.since[targets] < PATIENCE)


def _sparse(weights: Array) -> Kept:
    """Weights (N, T) by columns: the non-zero ones, their rows, and how many each column has."""
    columns = csc_matrix(weights)
    return {"data": columns.data, "rows": columns.indices, "counts": np.diff(columns.indptr)}


def _columns(n: int, kept: Kept) -> Any:
    """The weights that were kept by columns, a sparse matrix (N, T)."""
    ends = np.concatenate([[0], np.cumsum(kept["counts"])])
    return csc_matrix((kept["data"], kept["rows"], ends), shape=(n, len(kept["counts"])))


def predict(weights: Any, bias: Any, packed: Any, xp: Any) -> FloatArray:
    """Margins (m, T), on the host, predicted for packed masks (m, ⌈N/8⌉): 1_S'·w + b."""
    tiles = row_tiles(len(packed), TILE_ROWS)
    return np.concatenate([to_numpy(_of_tile(weights, packed[rows], xp) + bias) for rows in tiles])


def score(predicted: FloatArray, true: Array) -> dict[str, FloatArray]:
    """LDS, R² and mean squared error of each target, (T,) each, over m models: `predicted` and `true` are (m, T).

    LDS is Spearman's rank correlation, 0 for a target whose prediction never changes. R² is 0 for one that is constant.
    """
    true = true.astype(np.float64)
    error, spread = ((true - predicted) ** 2).mean(0), true.var(0)
    r2 = 1 - np.divide(error, spread, out=np.ones_like(error), where=spread > 0)
    return {"lds": _correlation(rankdata(predicted, axis=0), rankdata(true, axis=0)), "r2": r2, "mse": error}


def _correlation(a: FloatArray, b: FloatArray) -> FloatArray:
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    correlation: FloatArray = np.divide((a * b).sum(0), scale, out=np.zeros(a.shape[1]), where=scale > 0)
    return correlation


def _error(weights: Any, bias: Any, packed: Any, truth: Any, xp: Any) -> Any:
    """Mean squared error (T,) on the choosing models."""
    total = xp.zeros(weights.shape[1])
    for rows in row_tiles(len(packed), TILE_ROWS):
        total += ((_of_tile(weights, packed[rows], xp) + bias - truth[rows]) ** 2).sum(0)
    return total / len(packed)


def _of_tile(weights: Any, packed: Any, xp: Any) -> Any:
    """1_S'·w for a tile of masks; as a function of its own it has let go of one tile's numbers when the next come."""
    return unpacked(packed, len(weights), xp, weights.dtype) @ weights
