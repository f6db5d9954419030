"""From a store to datamodels: one pass for the moments, the λ path, the choice of λ, the refit, the score.

Models are split three ways by a recorded seed: those to fit on, those that choose λ, and held-out ones that only measure.
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

from datamodels.errors import InputError
from datamodels.progress import Bar, no_advance, no_progress
from datamodels.regress.arrays import array_module, to_numpy
from datamodels.regress.kernels import unpacked
from datamodels.regress.moments import Moments
from datamodels.regress.prior import Covariates, Prior, estimate, posterior_mean
from datamodels.regress.solvers import Gram, Lasso, Solver, plan
from datamodels.regress.source import TILE_ROWS, Source, targets_named
from datamodels.regress.unfinished import Kept, Unfinished
from datamodels.settings import RegressSettings
from datamodels.store import Store
from datamodels.store.layout import Array
from datamodels.subsets import ByteArray, IndexArray

FEWEST_IN_A_PART = 10
PATIENCE = 5
"""Values of λ without a smaller error after which a target's path ends."""
METRICS = ("lds", "r2", "mse", "nonzeros")

FloatArray = npt.NDArray[np.float64]
Work = Callable[..., Kept]
LEAST_LAM = 1e-300


@dataclass(frozen=True)
class Parts:
    """Model ids (ascending) to fit on, to choose λ by, and to measure on."""

    fit: IndexArray
    choice: IndexArray
    heldout: IndexArray


@dataclass(frozen=True)
class Fit:
    """Datamodels of all targets: weights for raw masks, bias (T,), λ (T,), and how they do on held-out models.

    `columns` are the weights (N, T) as a sparse matrix (CSC, float32), `weights` the same as an array. `metrics` has for each
    target `lds`, `r2`, `mse` (on held-out models) and `nonzeros`, each an array (T,). `constant_images` are those in all of the
    masks or in none, about which nothing can be learnt, `constant_targets` those of one margin only. `seconds` says how long
    each part took, `solver` what solved, how many targets at once, and in which number format.
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


def split_models(done: IndexArray, settings: RegressSettings) -> Parts:
    """Split the finished models by the settings' seed and shares.

    Raises InputError when one part would have fewer than 10 models.
    """
    order = np.random.default_rng(settings.seed).permutation(done)
    heldout = round(settings.heldout * len(done))
    choice = round(settings.choice * (len(done) - heldout))
    sizes = {"held-out": heldout, "choice": choice, "fit": len(done) - heldout - choice}
    if min(sizes.values()) < FEWEST_IN_A_PART:
        have = ", ".join(f"{size} {name}" for name, size in sizes.items())
        raise InputError(
            f"{len(done)} finished models are too few: of {have}, each must be {FEWEST_IN_A_PART} or more; train more"
        )
    cuts = np.split(order, [heldout, heldout + choice])
    return Parts(fit=np.sort(cuts[2]), choice=np.sort(cuts[1]), heldout=np.sort(cuts[0]))


def fit_datamodels(
    store: Store,
    settings: RegressSettings,
    bar: Bar = no_progress,
    unfinished: Unfinished | None = None,
    covariates: Covariates | None = None,
    parts: Parts | None = None,
) -> Fit:
    """Weights, biases and scores of the targets of a store that the settings name.

    `bar` makes the bars of the parts of the work, `unfinished` keeps what is done, and brings what was done before. With
    `covariates` weights have a prior of these, see `prior`; without, or with `regress.sparse`, they are the lasso's. `parts`
    are the models to use, where the settings are not to split them. Raises InputError when too few models are finished, a
    margin is not a number, or there is too little memory.
    """
    parts, xp = parts or split_models(store.done, settings), array_module(settings.device)
    source = Source(store, *targets_named(store, settings.targets))
    solver, size = plan(source, settings, len(parts.fit) + len(parts.choice), xp, covariates is not None)
    blocks = [slice(first, min(first + size, source.t)) for first in range(0, source.t, size)]
    run = _Run(source, settings, solver, blocks, unfinished or Unfinished(), bar, xp)
    run.take_in(parts.fit)
    if len(solver.constants()[0]) == source.n:
        raise InputError(f"each image is in all of the masks of {store.folder}, or in none of them; nothing can be learnt")
    known: dict[str, Any] = {}
    dense = covariates is not None and not settings.sparse
    if dense:
        run.take_in(parts.choice)
    if covariates is not None:
        run.prior = run.estimate(covariates.since(source.first))
        known = {"prior": run.prior.described}
    if dense:
        fitted = run.each("fitted", "blocks", 1, run.with_prior, parts.heldout, [{} for _ in blocks])
    else:
        chosen = run.each("chosen", "λ", settings.lams, run.choose, parts.choice, [{} for _ in blocks])
        # The refit sees the choosing models too: they are added to those that are there.
        run.take_in(parts.choice)
        fitted = run.each("fitted", "blocks", 1, run.refit, parts.heldout, chosen)
    bias, lam, *metrics = (np.concatenate([block[name] for block in fitted]) for name in ("bias", "lam", *METRICS))
    images, targets = (to_numpy(found) for found in solver.constants())
    how = {"solver": solver.name, "block": size, "number_format": solver.dtype.name, **solver.work, **known}
    scores = dict(zip(METRICS, metrics, strict=True))
    return Fit(_stacked(source.n, fitted), bias, lam, scores, parts, images, targets, run.seconds, how)


@dataclass
class _Run:
    """One regression under way."""

    source: Source
    settings: RegressSettings
    solver: Solver
    blocks: list[slice]
    unfinished: Unfinished
    bar: Bar
    xp: Any
    prior: Prior | None = None
    advance: Callable[..., None] = no_advance
    seconds: dict[str, float] = field(default_factory=dict)

    def take_in(self, ids: IndexArray) -> None:
        """Give models to the solver."""
        with self._timed("moments"), self.bar("models", len(ids)) as advance:
            self.solver.add(ids, advance)

    def each(self, stage: str, unit: str, steps: int, work: Work, judged: IndexArray, given: list[Kept]) -> list[Kept]:
        """Do a stage's work, of so many steps, for each block of targets, unless that is kept. It is judged by some models."""
        packed = self.source.packed(judged)
        found = []
        with self._timed(stage), self.bar(unit, steps * len(self.blocks)) as self.advance:
            for number, block in enumerate(self.blocks):
                name = f"{stage}-{self.source.first + block.start}-{self.source.first + block.stop}"
                done = self.unfinished.recall(name)
                if done is None:
                    done = work(number, packed, self.source.margins(judged, block), **given[number])
                    self.unfinished.keep(name, done)
                else:
                    self.advance(steps)
                found.append(done)
        return found

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def choose(self, number: int, packed: ByteArray, margins: Array) -> Kept:
        """λ (T,) with the smallest error on the choosing models, and the weights (N, T) there, of one block.

        The path runs from λ_max down. Each solution starts from the last two: between kinks it is linear in λ. A target leaves
        when its error has not fallen for a few values.
        """
        xp, settings, lasso = self.xp, self.settings, self._lasso(self.blocks[number])
        truth, t = xp.asarray(margins, np.float64), margins.shape[1]
        weights, before, best = (xp.zeros((self.source.n, t), self.solver.dtype) for _ in range(3))
        least, at, since = xp.full(t, np.inf), xp.zeros(t, np.int64), xp.zeros(t, np.int64)
        # A target without any correlation keeps zero weights; its λ only has to be positive.
        ratios, top = np.geomspace(1, settings.lam_ratio, settings.lams), xp.maximum(lasso.top, LEAST_LAM)
        for k, ratio in enumerate(ratios):
            active = xp.flatnonzero(since < PATIENCE)
            if not len(active):
                self.advance(len(ratios) - k)
                break
            last = xp.take(weights, active, axis=1)
            start = foreseen(last, xp.take(before, active, axis=1), ratios, k)
            found = lasso.solve(active, top[active] * ratio, start)
            weights[:, active], before[:, active] = found, last
            error = _error(found, lasso.bias(active, found), packed, truth[:, active], xp)
            better = error < least[active]
            won = active[better]
            least[won], at[won], best[:, won] = error[better], k, weights[:, won]
            since[active] += 1
            since[won] = 0
            where = f"λ {k + 1} of {len(ratios)}, {len(active)} of {t} targets"
            self.advance(1, f"block {number + 1} of {len(self.blocks)}, {where}")
        return {"lam": to_numpy(top * xp.asarray(ratios)[at]), **_sparse(to_numpy(best))}

    def refit(self, number: int, packed: ByteArray, margins: Array, lam: Array, **start: Array) -> Kept:
        """Weights, bias and metrics of one block at its λ, from all models but the held-out ones."""
        xp, lasso, every = self.xp, self._lasso(self.blocks[number]), self.xp.arange(margins.shape[1])
        weights = lasso.solve(every, xp.asarray(lam), xp.asarray(_stacked(self.source.n, [start]).toarray()))
        return self._judged(weights, lasso.bias(every, weights), packed, margins, lam)

    def estimate(self, covariates: Covariates) -> Prior:
        """The prior of all targets, from all models taken in."""
        with self._timed("prior"):
            return estimate(covariates, self._moments.problem(), self._moments.m)

    def _lasso(self, block: slice) -> Lasso:
        """The lasso of one block, its penalty by the prior where there is one."""
        if self.prior is None:
            return self.solver.lasso(block)
        assert isinstance(self.solver, Gram)
        return self.solver.weighted(block, self.prior.penalty(block))

    def with_prior(self, number: int, packed: ByteArray, margins: Array) -> Kept:
        """Weights, bias and metrics of one block under the prior; λ is the noise variance over the number of models."""
        block, moments, prior = self.blocks[number], self._moments, self.prior
        assert prior is not None
        problem = moments.problem(block)
        scale = np.sqrt(to_numpy(problem.variance))
        lam = prior.noise * scale**2 / moments.m
        mean, square = prior.at(block, scale)
        weights = posterior_mean(problem, mean, square, lam)
        return self._judged(weights, problem.bias(weights), packed, margins, lam)

    @property
    def _moments(self) -> Moments:
        assert isinstance(self.solver, Gram)
        return self.solver.moments

    def _judged(self, weights: Any, bias: Any, packed: ByteArray, margins: Array, lam: Array) -> Kept:
        metrics = score(predict(weights, bias, packed, self.xp), margins)
        kept = _sparse(to_numpy(weights).astype(np.float32))
        self.advance()
        return {**kept, "bias": to_numpy(bias).astype(np.float32), "lam": lam, **metrics, "nonzeros": kept["counts"]}


def foreseen(last: Any, before: Any, ratios: FloatArray, k: int) -> Any:
    """Weights to begin with at the k-th λ: those at the last one, moved on as they moved before where they are not zero."""
    if k < 2:
        return last
    onward = (ratios[k] - ratios[k - 1]) / (ratios[k - 1] - ratios[k - 2])
    return last + last.dtype.type(onward) * (last - before) * (last != 0)


def _sparse(weights: Array) -> Kept:
    """Weights (N, T) by columns: the non-zero ones, their rows, and how many each column has."""
    columns = csc_matrix(weights)
    return {"data": columns.data, "rows": columns.indices, "counts": np.diff(columns.indptr)}


def _stacked(n: int, blocks: list[Kept]) -> Any:
    """The weights of several blocks side by side, a sparse matrix (N, T)."""
    data, rows, counts = (np.concatenate([block[name] for block in blocks]) for name in ("data", "rows", "counts"))
    return csc_matrix((data, rows, np.concatenate([[0], np.cumsum(counts)])), shape=(n, len(counts)))


def predict(weights: Any, bias: Any, packed: ByteArray, xp: Any) -> FloatArray:
    """Margins (m, T) predicted for packed masks (m, ⌈N/8⌉): 1_S'·w + b."""
    tiles = [packed[start : start + TILE_ROWS] for start in range(0, len(packed), TILE_ROWS)]
    return np.concatenate([to_numpy(unpacked(tile, len(weights), xp).astype(weights.dtype) @ weights + bias) for tile in tiles])


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


def _error(weights: Any, bias: Any, packed: ByteArray, truth: Any, xp: Any) -> Any:
    """Mean squared error (T,) on the choosing models."""
    total = xp.zeros(weights.shape[1])
    for start in range(0, len(packed), TILE_ROWS):
        rows = slice(start, start + TILE_ROWS)
        x = unpacked(packed[rows], len(weights), xp).astype(weights.dtype, copy=False)
        total += ((x @ weights + bias - truth[rows]) ** 2).sum(0)
    return total / len(packed)
