"""The λ path of many targets at once, against scikit-learn's target by target, and how its cost grows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from sklearn.linear_model import lasso_path

from datamodels import __version__
from datamodels.bench.record import Record, describe
from datamodels.errors import InputError
from datamodels.machine import cores, describe_machine
from datamodels.progress import progress
from datamodels.regress.arrays import array_module, to_numpy
from datamodels.regress.lasso import lam_max, lipschitz, solve
from datamodels.regress.moments import Moments
from datamodels.regress.path import TILE_ROWS
from datamodels.settings import Settings
from datamodels.store.layout import Array
from datamodels.subsets import ByteArray, draw_masks, pack, unpack

LAST_RATIO = 0.01
ROUNDS = 3
NOISE = 3.0
SHARE_OF_WEIGHTS = 0.03


@dataclass(frozen=True)
class Size:
    """N training images, m models, T targets, and how many values of λ."""

    images: int
    models: int
    targets: int
    lams: int


LARGE = Size(2_000, 12_000, 256, 50)
SMALL = Size(1_000, 4_000, 128, 25)


def bench_regress(settings: Settings, sample: int = 8) -> tuple[Record, str]:
    """The bench as a record for JSON and as a table; scikit-learn solves `sample` of the targets and is reckoned up to all.

    Synthetic masks at α = 0.5, 3 % of the weights not zero, noise of standard deviation 3. Raises InputError for a sample of
    none, or of more targets than there are.
    """
    if not 1 <= sample <= LARGE.targets:
        raise InputError(f"scikit-learn can be given 1 to {LARGE.targets} targets, not {sample}")
    xp, gap = array_module(settings.regress.device), settings.regress.gap
    grown = {
        f"2 × {name}": replace(SMALL, **{name: 2 * getattr(SMALL, name)}) for name in ("models", "images", "targets", "lams")
    }
    with progress("bench", "parts", 2 + ROUNDS * (1 + len(grown))) as advance:
        packed, margins = synthetic(LARGE)
        ours, weights = _ours(packed, margins, LARGE, gap, xp)
        advance()
        theirs, worst = _scikit_learn(packed, margins, LARGE, sample, weights)
        advance()
        growth = {name: _median(size, gap, xp, advance) for name, size in {"base": SMALL, **grown}.items()}
    total = sum(ours.values())
    record = {
        "bench": "regress",
        "version": __version__,
        "device": "cpu" if xp is np else "gpu",
        "machine": describe_machine(),
        "size": vars(LARGE),
        "gap": gap,
        "seconds": {name: round(value, 2) for name, value in ours.items()},
        "scikit_learn_targets": sample,
        "scikit_learn_seconds_for_all": round(theirs, 1),
        "times_scikit_learn": round(theirs / total, 2),
        "worst_relative_objective_above_scikit_learns": worst,
        "base_size": vars(SMALL),
        "growth_seconds": growth,
        "growth_rounds": ROUNDS,
    }
    return record, _table(record)


def synthetic(size: Size) -> tuple[ByteArray, Array]:
    """Packed masks (m, ⌈N/8⌉) at α = 0.5 and margins float32 (m, T) of a sparse linear model with noise."""
    rng = np.random.default_rng(0)
    masks = draw_masks(0, range(size.models), size.images, 0.5)
    weights = rng.normal(size=(size.images, size.targets)) * (rng.random((size.images, size.targets)) < SHARE_OF_WEIGHTS)
    signal = masks.astype(np.float32) @ weights.astype(np.float32)
    return pack(masks), signal + NOISE * rng.standard_normal(signal.shape, np.float32)


def _ours(packed: ByteArray, margins: Array, size: Size, gap: float, xp: Any) -> tuple[dict[str, float], Array]:
    """Seconds for the moments and for the path, and the weights (λ, N, T) along it."""
    start = time.perf_counter()
    moments = Moments(size.images, size.targets, xp)
    for first in range(0, size.models, TILE_ROWS):
        moments.add(packed[first : first + TILE_ROWS], margins[first : first + TILE_ROWS])
    problem = moments.problem()
    float(problem.xx[0, 0])  # waits for a GPU
    gathered = time.perf_counter()
    constant, top, path = lipschitz(problem, xp), lam_max(problem, xp), list[Any]()
    weights = xp.zeros((size.images, size.targets))
    for ratio in np.geomspace(1, LAST_RATIO, size.lams):
        weights = solve(problem, top * ratio, weights, constant, xp, gap).weights
        path.append(weights.astype(np.float32))
    solved = time.perf_counter()
    return {"moments": gathered - start, "path": solved - gathered}, np.stack([to_numpy(w) for w in path])


def _scikit_learn(packed: ByteArray, margins: Array, size: Size, sample: int, weights: Array) -> tuple[float, float]:
    """Seconds for all targets, on all cores, and the most by which our objective lies above theirs, relative to theirs."""
    start = time.perf_counter()
    x = unpack(packed, size.images).astype(np.float64)
    y = margins[:, :sample].astype(np.float64)
    x -= x.mean(0)
    y -= y.mean(0)
    gram, products = x.T @ x, x.T @ y
    once = time.perf_counter() - start
    top = np.abs(products).max(0) / len(x)

    def one(t: int) -> Any:
        lams = top[t] * np.geomspace(1, LAST_RATIO, size.lams)
        return lasso_path(x, y[:, t], alphas=lams, precompute=gram, Xy=products[:, t])[1]

    start = time.perf_counter()
    found = Parallel(n_jobs=cores(), prefer="threads")(delayed(one)(t) for t in range(sample))
    each = (time.perf_counter() - start) / sample
    worst = max(_above(x, y[:, t], top[t], weights[..., t], found[t].T) for t in range(sample))
    return once + each * size.targets, worst


def _above(x: Array, y: Array, top: float, ours: Array, theirs: Array) -> float:
    """The most, over the path, by which P of our weights (λ, N) lies above P of theirs, relative to the latter."""
    lams = top * np.geomspace(1, LAST_RATIO, len(ours))

    def objective(weights: Array) -> Array:
        residual = y[:, None] - x @ weights.T.astype(np.float64)
        return np.asarray((residual**2).mean(0) / 2 + lams * np.abs(weights).sum(1))

    best = objective(theirs)
    return float(((objective(ours) - best) / best).max())


def _median(size: Size, gap: float, xp: Any, advance: Callable[[], None]) -> dict[str, float]:
    packed, margins = synthetic(size)
    rounds = []
    for _ in range(ROUNDS):
        rounds.append(_ours(packed, margins, size, gap, xp)[0])
        advance()
    return {name: round(statistics.median(taken[name] for taken in rounds), 6) for name in rounds[0]}


def _table(record: Record) -> str:
    base, seconds = record["growth_seconds"]["base"], record["seconds"]
    size = "N = {images}, m = {models}, T = {targets}, {lams} λ"
    theirs = f"{record['scikit_learn_seconds_for_all']:.0f} s (from {record['scikit_learn_targets']} targets)"
    lines = [
        describe(record),
        f"{size.format(**record['size'])}, gap {record['gap']:g}; n = 1",
        f"moments {seconds['moments']:.1f} s, path {seconds['path']:.1f} s; scikit-learn's lasso_path with the Gram matrix, "
        f"on all cores: {theirs}; ratio {record['times_scikit_learn']:.1f}",
        f"our objective lies at most {record['worst_relative_objective_above_scikit_learns']:.1e} above scikit-learn's",
        f"{size.format(**record['base_size'])} (n = {record['growth_rounds']}, medians):",
    ]
    for name, taken in record["growth_seconds"].items():
        ratios = ", ".join(f"{part} {value:.2f} s ({value / base[part]:.1f} ×)" for part, value in taken.items())
        lines.append(f"  {name:<12} {ratios}")
    return "\n".join(lines)
