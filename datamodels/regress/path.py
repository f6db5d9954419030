"""From a store to datamodels: one pass for the moments, the λ path, the choice of λ, the refit, the score.

Models are split three ways by a recorded seed: those to fit on, those that choose λ, and held-out ones that only measure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from datamodels.errors import InputError
from datamodels.regress.arrays import array_module, to_numpy, unpacked
from datamodels.regress.lasso import lam_max, lipschitz, solve
from datamodels.regress.moments import Moments, Problem
from datamodels.settings import RegressSettings
from datamodels.store import Store
from datamodels.store.layout import Array
from datamodels.subsets import ByteArray, IndexArray

FEWEST_IN_A_PART = 10
PATIENCE = 5
"""Values of λ without a smaller error after which a target's path ends."""
TILE_ROWS = 2048

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Parts:
    """Model ids (ascending) to fit on, to choose λ by, and to measure on."""

    fit: IndexArray
    choice: IndexArray
    heldout: IndexArray


@dataclass(frozen=True)
class Fit:
    """Datamodels of all targets: weights (N, T) and bias (T,) for raw masks, λ (T,), and how they do on held-out models.

    `metrics` has for each target `lds`, `r2`, `mse` (on held-out models) and `nonzeros`, each an array (T,). `constant_images`
    are those in all of the masks or in none, about which nothing can be learnt, `constant_targets` those of one margin only.
    """

    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    lam: FloatArray
    metrics: dict[str, FloatArray]
    parts: Parts
    constant_images: IndexArray
    constant_targets: IndexArray


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


def fit_datamodels(store: Store, settings: RegressSettings, advance: Callable[[int], None] = lambda _: None) -> Fit:
    """Weights, biases and scores of all targets of a store; `advance(1)` is called after each λ of the path.

    Raises InputError when too few models are finished or a margin is not a number.
    """
    parts, xp = split_models(store.done, settings), array_module(settings.device)
    moments = Moments(store.meta.num_train, store.meta.num_targets, xp)
    _gather(moments, store, parts.fit)
    problem, blocks = moments.problem(), target_blocks(store.meta.num_targets, settings)
    constant = lipschitz(problem, xp)
    packed, margins = store.packed(parts.choice), _checked(store, parts.choice)
    chosen = [_choose(problem.of(block), constant, packed, margins[:, block], settings, xp, advance) for block in blocks]
    # The refit sees the choosing models too: their moments are added to those that are there.
    _gather(moments, store, parts.choice)
    everything = moments.problem()
    constant = lipschitz(everything, xp)
    packed, margins = store.packed(parts.heldout), _checked(store, parts.heldout)
    fitted = []
    for block, (lam, start) in zip(blocks, chosen, strict=True):
        part = everything.of(block)
        weights = solve(part, lam, start, constant, xp, settings.gap).weights
        fitted.append(_fitted(part, weights, lam, packed, margins[:, block], xp))
    weights, bias, lams = (np.concatenate([block[k] for block in fitted], -1) for k in range(3))
    metrics = {name: np.concatenate([block[3][name] for block in fitted]) for name in fitted[0][3]}
    return Fit(weights, bias, lams, metrics, parts, *map(to_numpy, moments.constants()))


def target_blocks(targets: int, settings: RegressSettings) -> list[slice]:
    """The targets, so many at a time as are solved together."""
    return [slice(first, min(first + settings.block, targets)) for first in range(0, targets, settings.block)]


def _fitted(problem: Problem, weights: Any, lam: Any, packed: ByteArray, margins: Array, xp: Any) -> tuple[Any, Any, Any, Any]:
    """Weights, bias, λ and metrics of one block of targets, in host memory."""
    bias = problem.bias(weights)
    metrics = score(predict(weights, bias, packed, xp), margins)
    host = to_numpy(weights)
    metrics["nonzeros"] = (host != 0).sum(0).astype(np.float64)
    return host.astype(np.float32), to_numpy(bias).astype(np.float32), to_numpy(lam), metrics


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


def _checked(store: Store, ids: IndexArray) -> Array:
    """Margins of some models. Raises InputError when one is not a finite number."""
    margins = store.margins(ids)
    finite = np.isfinite(margins).all(1)
    if not finite.all():
        raise InputError(f"model {ids[~finite][0]} of {store.folder} has a margin that is not a number; train it again")
    return margins


def _gather(moments: Moments, store: Store, ids: IndexArray) -> None:
    for start in range(0, len(ids), TILE_ROWS):
        part = ids[start : start + TILE_ROWS]
        moments.add(store.packed(part), _checked(store, part))


def _choose(
    problem: Problem,
    constant: float,
    packed: ByteArray,
    margins: Array,
    settings: RegressSettings,
    xp: Any,
    advance: Callable[[int], None],
) -> tuple[Any, Any]:
    """λ (T,) with the smallest error on the choosing models, and the weights (N, T) there.

    The path runs from λ_max down, each solution starting from the last; a target leaves it when its error has not fallen
    for a few values.
    """
    truth, top = xp.asarray(margins, np.float64), lam_max(problem, xp)
    n, t = problem.correlation.shape
    weights, best = xp.zeros((n, t)), xp.zeros((n, t))
    least, at, since = xp.full(t, np.inf), xp.zeros(t, np.int64), xp.zeros(t, np.int64)
    ratios = np.geomspace(1, settings.lam_ratio, settings.lams)
    for k, ratio in enumerate(ratios):
        active = xp.flatnonzero(since < PATIENCE)
        if len(active):
            part = problem.of(active)
            # A target without any correlation keeps zero weights; its λ only has to be positive.
            lam = xp.maximum(top[active] * ratio, np.finfo(np.float64).tiny)
            weights[:, active] = solve(part, lam, weights[:, active], constant, xp, settings.gap).weights
            error = _error(part, weights[:, active], packed, truth[:, active], xp)
            better = error < least[active]
            won = active[better]
            least[won], at[won], best[:, won] = error[better], k, weights[:, won]
            since[active] += 1
            since[won] = 0
        advance(1)
    lam = xp.maximum(top * xp.asarray(ratios)[at], np.finfo(np.float64).tiny)
    return lam, best


def _error(problem: Problem, weights: Any, packed: ByteArray, truth: Any, xp: Any) -> Any:
    """Mean squared error (T,) on the choosing models."""
    total, bias = xp.zeros(weights.shape[1]), problem.bias(weights)
    for start in range(0, len(packed), TILE_ROWS):
        rows = slice(start, start + TILE_ROWS)
        x = unpacked(packed[rows], len(weights), xp).astype(np.float64)
        total += ((x @ weights + bias - truth[rows]) ** 2).sum(0)
    return total / len(packed)
