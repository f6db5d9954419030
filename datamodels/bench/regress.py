"""The λ path of many targets at once, against scikit-learn's target by target, and how its cost grows."""

from __future__ import annotations

import importlib.util
import statistics
import time
import warnings
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
from datamodels.regress.arrays import computing, number_format, on_device, to_numpy
from datamodels.regress.lasso import lipschitz, solve
from datamodels.regress.moments import Moments
from datamodels.regress.source import TILE_ROWS
from datamodels.regress.walk import foreseen
from datamodels.settings import Settings
from datamodels.subsets import Array, BoolArray, ByteArray, draw_masks, pack, unpack

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


def bench_regress(settings: Settings, sample: int = 8, gpu: str | None = None) -> tuple[Record, str]:
    """The bench as a record for JSON and as a table; scikit-learn solves `sample` of the targets and is reckoned up to all.

    Synthetic masks at α = 0.5, 3 % of the weights not zero, noise of standard deviation 3. Raises InputError for a sample of
    none, or of more targets than there are.
    """
    if not 1 <= sample <= LARGE.targets:
        raise InputError(f"scikit-learn can be given 1 to {LARGE.targets} targets, not {sample}")
    gap = settings.regress.gap
    grown = {
        f"2 × {name}": replace(SMALL, **{name: 2 * getattr(SMALL, name)}) for name in ("models", "images", "targets", "lams")
    }
    parts = 2 + ROUNDS * (1 + len(grown))
    with computing(settings.regress.device, gpu) as xp, progress("bench", "parts", parts) as advance:
        packed, margins = synthetic(LARGE)
        ours, weights = _ours(packed, margins, LARGE, gap, xp)
        advance()
        theirs, worst = _scikit_learn(packed, margins, LARGE, sample, weights)
        others = _on_the_data_matrix(packed, margins, LARGE, weights)
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
        "on_the_data_matrix": others,
        "times_the_fastest_on_the_data_matrix": round(min(o["seconds_for_all"] for o in others.values()) / total, 1)
        if others
        else None,
        "base_size": vars(SMALL),
        "growth_seconds": growth,
        "growth_rounds": ROUNDS,
    }
    return record, _table(record)


def plant(size: Size, xp: Any) -> Any:
    """True weights float32 (N, T), sparse."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((size.images, size.targets), np.float32)
    return on_device(weights * (rng.random(weights.shape, np.float32) < SHARE_OF_WEIGHTS), xp)


def synthetic_rows(ids: range, size: Size, planted: Any, xp: Any) -> tuple[BoolArray, Array]:
    """Masks (m, N) at α = 0.5 and margins float32 (m, T) of some models: a sparse linear model with noise."""
    masks = draw_masks(0, ids, size.images, 0.5)
    noise = np.random.default_rng([0, ids.start]).standard_normal((len(ids), size.targets), np.float32)
    return masks, to_numpy(on_device(masks, xp, np.float32) @ planted) + NOISE * noise


def synthetic(size: Size) -> tuple[ByteArray, Array]:
    """Packed masks (m, ⌈N/8⌉) and margins float32 (m, T)."""
    masks, margins = synthetic_rows(range(size.models), size, plant(size, np), np)
    return pack(masks), margins


def _ours(packed: ByteArray, margins: Array, size: Size, gap: float, xp: Any) -> tuple[dict[str, float], Array]:
    """Seconds for the moments and for the path, and the weights (λ, N, T) along it."""
    start = time.perf_counter()
    moments = Moments(size.images, size.targets, xp, number_format(gap))
    for first in range(0, size.models, TILE_ROWS):
        moments.add(packed[first : first + TILE_ROWS], margins[first : first + TILE_ROWS])
    problem = moments.problem()
    to_numpy(problem.gram[0, 0])  # waits for a GPU
    gathered = time.perf_counter()
    constant, top, path = lipschitz(problem), problem.lam_max(), list[Any]()
    weights, before = (xp.zeros((size.images, size.targets), number_format(gap)) for _ in range(2))
    ratios = np.geomspace(1, LAST_RATIO, size.lams)
    for k, ratio in enumerate(ratios):
        found = solve(problem, top * ratio, foreseen(weights, before, ratios, k, xp), constant, gap).weights
        weights, before = found, weights
        path.append(to_numpy(weights.astype(np.float32)))
    solved = time.perf_counter()
    return {"moments": gathered - start, "path": solved - gathered}, np.stack(path)


def _scikit_learn(packed: ByteArray, margins: Array, size: Size, sample: int, weights: Array) -> tuple[float, float]:
    """Seconds for all targets, on all cores, and the most by which our objective lies above theirs, relative to theirs."""
    start = time.perf_counter()
    x, y, top = _centred(packed, margins[:, :sample], size)
    gram, products = x.T @ x, x.T @ y
    once = time.perf_counter() - start

    def one(t: int) -> Any:
        lams = top[t] * np.geomspace(1, LAST_RATIO, size.lams)
        return lasso_path(x, y[:, t], alphas=lams, precompute=gram, Xy=products[:, t])[1]

    start = time.perf_counter()
    found = Parallel(n_jobs=cores(), prefer="threads")(delayed(one)(t) for t in range(sample))
    each = (time.perf_counter() - start) / sample
    worst = max(_above(x, y[:, t], top[t], weights[..., t], found[t].T) for t in range(sample))
    return once + each * size.targets, worst


def _on_the_data_matrix(packed: ByteArray, margins: Array, size: Size, weights: Array) -> dict[str, dict[str, float]]:
    """What other solvers that are installed take, which work on X itself, at a tolerance of 1e-4.

    Seconds of one target's path, the same for all targets if all cores were used without loss, and how far our objective lies
    above theirs at most.
    """
    x, y, top = _centred(packed, margins[:, :1], size)
    x, lams, found = np.asfortranarray(x), top[0] * np.geomspace(1, LAST_RATIO, size.lams), {}
    for name in filter(importlib.util.find_spec, ("celer", "skglm")):
        _path_by(name, np.asfortranarray(x[:200]), y[:200, 0], lams[:2])  # compiles what is compiled on first use
        start = time.perf_counter()
        theirs = _path_by(name, x, y[:, 0], lams)
        seconds = time.perf_counter() - start
        above = _above(x, y[:, 0], top[0], weights[..., 0], theirs.T)
        found[name] = {
            "seconds_for_one": round(seconds, 2),
            "seconds_for_all": round(seconds * size.targets / cores(), 1),
            "our_objective_above_theirs": above,
        }
    return found


def _path_by(name: str, x: Array, y: Array, lams: Array) -> Array:
    """Weights (N, λ) by another package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the small problem that only warms up
        if name == "celer":
            from celer import celer_path

            return np.asarray(celer_path(x, y, "lasso", alphas=lams, tol=1e-4)[1])
        from skglm import Lasso

        return np.asarray(Lasso(tol=1e-4, fit_intercept=False).path(x, y, lams)[1])


def _centred(packed: ByteArray, margins: Array, size: Size) -> tuple[Array, Array, Array]:
    """X and y in float64, less their means, and λ_max of each target."""
    x, y = unpack(packed, size.images).astype(np.float64), margins.astype(np.float64)
    x -= x.mean(0)
    y -= y.mean(0)
    return x, y, np.abs(x.T @ y).max(0) / len(x)


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
        *(
            f"{name} on the data matrix: {o['seconds_for_one']:.1f} s a target, {o['seconds_for_all']:.0f} s for all"
            for name, o in record["on_the_data_matrix"].items()
        ),
        f"{size.format(**record['base_size'])} (n = {record['growth_rounds']}, medians):",
    ]
    for name, taken in record["growth_seconds"].items():
        ratios = ", ".join(f"{part} {value:.2f} s ({value / base[part]:.1f} ×)" for part, value in taken.items())
        lines.append(f"  {name:<12} {ratios}")
    return "\n".join(lines)
