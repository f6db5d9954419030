"""The λ path where images are a tenth to a hundred times as many as models, against scikit-learn's `lasso_path`."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from sklearn.linear_model import lasso_path

from datamodels import __version__
from datamodels.bench.record import Record, describe
from datamodels.errors import InputError
from datamodels.machine import describe_machine
from datamodels.progress import no_advance
from datamodels.regress.memory import needs
from datamodels.regress.solvers import Solver, plan
from datamodels.regress.source import TILE_ROWS
from datamodels.regress.walk import walk
from datamodels.settings import RegressSettings, Settings
from datamodels.subsets import Array, BoolArray, IndexArray, draw_masks, pack

SHAPES: tuple[tuple[int, int], ...] = (
    *((1000, 100), (2000, 200), (1000, 300), (500, 500), (2000, 2000), (300, 900)),
    *((600, 1800), (200, 2000), (120, 3600), (100, 3000), (100, 10_000)),
)
"""Models and images."""
TARGETS = (4, 32)
LAMS, LAST_RATIO = 100, 0.01
ROUNDS = 3
THEIRS = 4
"""Targets that scikit-learn solves, one after another; it is reckoned up to more."""
STEPS = 10**6


class Measured(NamedTuple):
    """CPU seconds, and the largest relative duality gap of the path."""

    seconds: float
    gap: float


class InMemory:
    """What a solver asks of a `Source`, of arrays."""

    def __init__(self, masks: BoolArray, margins: Array) -> None:
        self.masks, self.of, (self.n, self.t) = pack(masks), margins, (masks.shape[1], margins.shape[1])

    def packed(self, ids: IndexArray) -> Array:
        """See `Source`."""
        return self.masks[ids]

    def margins(self, ids: IndexArray, targets: Any, xp: Any) -> Any:
        """See `Source`."""
        return xp.asarray(self.of[ids][:, targets])

    known_margins = margins

    def tiles(self, ids: IndexArray) -> Iterator[IndexArray]:
        """See `Source`."""
        yield from (ids[start : start + TILE_ROWS] for start in range(0, len(ids), TILE_ROWS))


def bench_shapes(settings: RegressSettings, shapes: tuple[tuple[int, int], ...], rounds: int) -> list[Record]:
    """Rows for JSON: our CPU seconds, and scikit-learn's to its default tolerance and to our gap, medians of some rounds.

    100 λ down to 0.01 λ_max; scikit-learn with the Gram matrix where that may be faster, and without, the faster of the two.
    Everything from masks and margins in memory to weights is counted, on the processor.
    """
    rows = []
    for m, n in shapes:
        for t in TARGETS:
            masks, margins = sparse_problem(m, n, t)
            taken = [_round(masks, margins, settings) for _ in range(rounds)]
            name = taken[0][0]
            ours, default, same = (statistics.median(part[k].seconds for _, *part in taken) for k in range(3))
            gaps = [part.gap for part in taken[0][1:]]
            rows.append(
                {
                    "models": m,
                    "images": n,
                    "images_per_model": n / m,
                    "targets": t,
                    "solver": name,
                    "cpu_seconds": round(ours, 4),
                    "scikit_learn_cpu_seconds": round(default, 4),
                    "scikit_learn_cpu_seconds_to_our_gap": round(same, 4),
                    "times_scikit_learn": round(default / ours, 2),
                    "times_scikit_learn_to_our_gap": round(same / ours, 2),
                    "largest_gaps": gaps,
                    "rounds": rounds,
                }
            )
    return rows


def sparse_problem(m: int, n: int, t: int) -> tuple[BoolArray, Array]:
    """Masks (m, N) at α = 0.5 and margins float32 (m, T): 3 % of the weights, and 8 of them at least, not 0, and noise of 1."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(n, t)) * (rng.random((n, t)) < 0.03)
    weights[:8] = rng.normal(size=(8, t))
    masks = draw_masks(0, range(m), n, 0.5)
    return masks, (masks @ weights + 2 + rng.normal(size=(m, t))).astype(np.float32)


def _round(masks: BoolArray, margins: Array, settings: RegressSettings) -> tuple[str, Measured, Measured, Measured]:
    """Of one round: the solver that there was, and what we and scikit-learn, to its own tolerance and to our gap, take."""
    m, t = margins.shape
    ratios, path = np.geomspace(1, LAST_RATIO, LAMS), np.zeros((LAMS, masks.shape[1], t), np.float32)
    start = time.process_time()
    solver = _solver(masks, margins, settings)
    solver.add(np.arange(m), no_advance)

    def keep(k: int, which: IndexArray, weights: Any) -> BoolArray:
        path[k, :, which] = weights.T
        return np.ones(len(which), bool)

    top = walk(solver.lasso(slice(0, t)), ratios, masks.shape[1], solver.dtype, np, keep)
    ours = Measured(time.process_time() - start, float(_gaps(masks, margins, path, top[:, None] * ratios).max()))
    few = min(THEIRS, t)
    seconds, theirs = _scikit_learn(masks, margins[:, :few], ratios, 1e-4)
    gaps = _gaps(masks, margins[:, :few], theirs, top[:few, None] * ratios)
    default = Measured(seconds * t / few, float(gaps.max()))
    # Its tolerance is of ‖y‖², ours of the objective, which is least at the end of the path.
    of_y = margins[:, :few].astype(np.float64).var(0)
    least = _objective(masks, margins[:, :few], theirs[-1:], top[:few, None] * ratios[-1:])[:, 0] / of_y
    seconds, theirs = _scikit_learn(masks, margins[:, :few], ratios, settings.gap * float(least.min()))
    gaps = _gaps(masks, margins[:, :few], theirs, top[:few, None] * ratios)
    return solver.name, ours, default, Measured(seconds * t / few, float(gaps.max()))


def _solver(masks: BoolArray, margins: Array, settings: RegressSettings) -> Solver:
    source: Any = InMemory(masks, margins)
    return plan(source, settings, needs(source.n, source.t, (len(masks), 0, 0), settings, on_host=True), np).solver


def _scikit_learn(masks: BoolArray, margins: Array, ratios: Array, tolerance: float) -> tuple[float, Array]:
    """CPU seconds of the faster way, and the path (λ, N, T)."""
    m, n = masks.shape
    ways = [*([True] if n <= 4 * m else []), *([False] if 2 * n >= m else [])]
    return min((_scikit_learn_by(masks, margins, ratios, tolerance, way) for way in ways), key=lambda found: found[0])


def _scikit_learn_by(masks: BoolArray, margins: Array, ratios: Array, tolerance: float, gram: bool) -> tuple[float, Array]:
    start = time.process_time()
    x, y = np.asfortranarray(masks - masks.mean(0)), margins.astype(np.float64) - margins.mean(0, dtype=np.float64)
    g, xy = x.T @ x if gram else False, x.T @ y
    found = []
    for t in range(y.shape[1]):
        how = {"precompute": g, "Xy": xy[:, t].copy()} if gram else {"precompute": False}
        lams = np.abs(xy[:, t]).max() / len(x) * ratios
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one that does not come to its gap in so many sweeps says so by taking long
            found.append(lasso_path(x, y[:, t].copy(), alphas=lams, tol=tolerance, max_iter=STEPS, **how)[1])
    return time.process_time() - start, np.stack(found, 2).transpose(1, 0, 2)


def _objective(masks: BoolArray, margins: Array, path: Array, lams: Array) -> Array:
    """P of a path (λ, N, T), at λ (T, λ): (T, λ)."""
    r = _residuals(masks, margins, path)
    found: Array = (r**2).mean(1).T / 2 + lams * np.abs(path.astype(np.float64)).sum(1).T
    return found


def _gaps(masks: BoolArray, margins: Array, path: Array, lams: Array) -> Array:
    """The relative duality gaps (T, λ), reckoned from masks and margins alone; see `lasso`."""
    y, x, r = margins.astype(np.float64), masks - masks.mean(0), _residuals(masks, margins, path)
    primal = _objective(masks, margins, path, lams)
    steepest = np.stack([np.abs(x.T @ part).max(0) for part in r], 1) / len(y)
    along, size = np.einsum("mt,kmt->tk", y - y.mean(0), r) / len(y), (r**2).mean(1).T
    bound = lams / np.maximum(steepest, 1e-300)
    s = np.clip(along / np.maximum(size, 1e-300), -bound, bound)
    found: Array = (primal - s * along + s**2 * size / 2) / primal
    return found


def _residuals(masks: BoolArray, margins: Array, path: Array) -> Array:
    """Y − Xw, both centred, float64 (λ, m, T)."""
    x, y = masks - masks.mean(0), margins.astype(np.float64)
    return np.stack([y - y.mean(0) - x @ weights.astype(np.float64) for weights in path])


def bench_lasso(settings: Settings, rounds: int = ROUNDS) -> tuple[Record, str]:
    """The bench as a record for JSON and as a table. Raises InputError for less than one round."""
    if rounds < 1:
        raise InputError(f"the bench takes 1 round or more, not {rounds}")
    rows = bench_shapes(settings.regress, SHAPES, rounds)
    record = {
        "bench": "lasso",
        "version": __version__,
        "device": "cpu",
        "machine": describe_machine(),
        "gap": settings.regress.gap,
        "lams": LAMS,
        "last_ratio": LAST_RATIO,
        "rounds": rounds,
        "least_times_scikit_learn": min(row["times_scikit_learn"] for row in rows),
        "least_times_scikit_learn_to_our_gap": min(row["times_scikit_learn_to_our_gap"] for row in rows),
        "rows": rows,
    }
    lines = [
        f"m = {row['models']:5d}, N = {row['images']:6d}, T = {row['targets']:3d}: {row['solver']:5s} "
        f"{row['cpu_seconds']:8.3f} s, scikit-learn {row['times_scikit_learn']:6.2f} times that, "
        f"to our gap {row['times_scikit_learn_to_our_gap']:6.2f} times"
        for row in rows
    ]
    return record, "\n".join([describe(record), f"CPU seconds of a path of {LAMS} λ, medians of n = {rounds} rounds", *lines])
