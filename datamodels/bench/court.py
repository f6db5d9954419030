"""How often a verification claims what is not so: its own searches, on targets whose truth is known.

Networks are trained on all of S of a run, and their margins on the targets that they have least clearly right or wrong are what
trainings vary by: real margins, each target's less their mean. What the searches go along is made up from the run as well: the
orders of its weights with the drops that these predict, from margins on all of S that the networks have. The truth is

    m(k) = b − θ d(k) + a Brownian motion,   θ lognormal with a standard deviation of 0.3,   the motion with one of 0.15 b

and what is drawn of it goes through `brittleness.search` as networks' margins do. In some scenarios the margin levels off just
above 0, which no set of the order flips, or a share of the networks keeps the margin that it has on all of S: two modes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from datamodels.bench.record import Record, describe, header
from datamodels.brittleness import Effort, Search
from datamodels.brittleness.curve import Measured
from datamodels.brittleness.spread import Spread, at_the_edge, spread_at_the_edge
from datamodels.data import load
from datamodels.errors import InputError
from datamodels.progress import progress
from datamodels.regress import Datamodels
from datamodels.runs import read_store, stage_folder
from datamodels.settings import Settings
from datamodels.store import Store
from datamodels.subsets import Array
from datamodels.training import device_named
from datamodels.verify.asking import ask
from datamodels.verify.kept import base_requests
from datamodels.verify.known import Examples, Targets
from datamodels.verify.methods import chosen_weights
from datamodels.verify.questions import Listed
from datamodels.verify.retrain import Retrained, Retraining, alone
from datamodels.verify.run import retraining
from datamodels.worker import engine_of

SEARCHES, NETWORKS = 1000, 512
JUST_ABOVE = 0.02
FACTOR, WANDERING = 0.3, 0.15
LEAST_BASE = 1.0
"""Of the margins on all of S that searches begin from: a target that is right beyond doubt."""


class Scenario(NamedTuple):
    """What is tried: a share of networks that keep the margin on all of S, and the level below which no margin falls."""

    name: str
    of_mode: float = 0.0
    level: float = -np.inf
    skewed: bool = False


SCENARIOS = (
    Scenario("real margins"),
    Scenario("levels off at +0.02", level=JUST_ABOVE),
    Scenario("the most skewed targets", skewed=True),
    Scenario("the most skewed, levels off", level=JUST_ABOVE, skewed=True),
    *(Scenario(f"{share:.0%} of networks high", share) for share in (0.05, 0.1, 0.15)),
    *(Scenario(f"{share:.0%} high, levels off", share, JUST_ABOVE) for share in (0.05, 0.1, 0.15)),
)


@dataclass(frozen=True)
class Known:
    """What scenarios are made of: drops (K,) of each order, margins on all of S, and what trainings vary by (J, E)."""

    drops: list[Array]
    bases: Array
    residuals: Array
    spread: Spread


class OnAll(Listed):
    """Networks trained on all of S, and their margins."""

    margins: Array

    def judge(self, found: Retrained) -> None:
        """The margins (J, T) of those that could be trained."""
        margins = found.margins(self.requests)
        self.margins = margins[np.isfinite(margins).all(1)].astype(np.float64)


def bench_court(
    settings: Settings, searches: int = SEARCHES, networks: int = NETWORKS, gpu: str | None = None
) -> tuple[Record, str]:
    """So many searches of each scenario, with the margins of so many networks of the run, as a record and as a table.

    The networks are kept in the run's store of retrained models. Raises InputError where the run has no weights, or no targets
    that networks have right.
    """
    if searches < 1:
        raise InputError(f"--n is how many searches are simulated, 1 or more, not {searches}")
    data, models = load(settings), Datamodels.load(stage_folder(settings, "regress"))
    read_store(settings)
    with engine_of(settings, gpu, data) as engine, alone(settings), progress("court", "models", 0) as bar:
        on_all = OnAll(base_requests(networks, len(data.train.labels)))
        trained: Retraining = retraining(settings, engine)
        ask([on_all], trained, bar)
        known = _known(settings, models, Targets(Examples(engine.learner)), on_all.margins)
    rows = []
    with progress("court", "searches", searches * len(SCENARIOS)) as bar:
        for number, scenario in enumerate(SCENARIOS):
            found = []
            for search in range(searches):
                found.append(
                    simulated(known, scenario, settings, np.random.default_rng([settings.verify.seed, number, search]))
                )
                bar.to(number * searches + search + 1)
            rows.append(row_of(scenario.name, found))
    record = {
        **header("court", settings, data, device_named(gpu)),
        "networks": len(on_all.margins),
        "searches": searches,
        "first": settings.verify.models,
        "looks": list(_effort(settings).looks),
        "ratio": settings.verify.ratio,
        "spread": {"variance": known.spread.variance, "degrees": known.spread.degrees},
        "rows": rows,
    }
    about = f"{searches} searches each, with the margins of {len(on_all.margins)} networks"
    return record, "\n".join([describe(record), about, *_table(rows)])


def _known(settings: Settings, models: Datamodels, targets: Targets, margins: Array) -> Known:
    mean = margins.mean(0)
    right = [t for t in range(models.targets.start, models.targets.stop) if mean[t] > LEAST_BASE]
    if not right:
        raise InputError(f"there is no target that networks have right by a margin above {LEAST_BASE:g}")
    weights = chosen_weights(models, read_store(settings), targets, right, _of_no_behaviour)
    drops = []
    for k, target in enumerate(right):
        images = (
            np.flatnonzero(targets.same_class(target)) if settings.verify.candidates == "class" else np.arange(len(weights))
        )
        order = images[np.argsort(-weights[images, k], kind="stable")][: settings.verify.max_size]
        drops.append(np.cumsum(weights[order, k]))
    nearest = at_the_edge(mean)
    spread = spread_at_the_edge(margins[: settings.verify.base_models])
    return Known(drops, mean[right], margins[:, nearest] - mean[nearest], spread)


def _of_no_behaviour(columns: Sequence[int]) -> tuple[Datamodels, Store]:
    raise AssertionError(columns)


def _effort(settings: Settings) -> Effort:
    return Effort.of(settings.verify.models, settings.verify.most_models, settings.verify.ratio)


@dataclass(frozen=True)
class Simulated:
    """One search: what it found, what is true, and what it cost."""

    size: int | None
    true_size: int | None
    margin: float
    reported: float
    covered: bool
    searching: int
    confirming: int


def simulated(known: Known, scenario: Scenario, settings: Settings, rng: np.random.Generator) -> Simulated:
    """One search of a scenario; everything random about it comes from `rng`."""
    which = int(rng.integers(len(known.drops)))
    drops, base = known.drops[which], float(known.bases[which])
    truth = base - np.exp(rng.normal(0, FACTOR)) * drops + np.cumsum(rng.normal(0, 1, len(drops))) * _steps(drops, base)
    truth = np.maximum(truth, scenario.level)
    noise = _noise(known.residuals, scenario, rng)

    def margins(level: float, number: int) -> Array:
        drawn = rng.choice(noise, number)
        if not scenario.of_mode:
            return level + drawn
        gap = max(base - level, 0.0)
        return level + drawn + gap * ((rng.random(number) < scenario.of_mode) - scenario.of_mode)

    on_all = base + rng.choice(noise, settings.verify.base_models)
    search = Search(drops, Measured.of(on_all), known.spread, _effort(settings))
    heard: dict[tuple[int, bool], Array] = {}
    while search.step is not None:
        size, number, fresh = search.step
        before = heard.get((size, fresh), np.zeros(0))
        heard[size, fresh] = np.append(before, margins(truth[size - 1], number - len(before)))
        search.learn(heard[size, fresh])
    flips = np.flatnonzero(truth <= 0)
    found, outcome = search.high, search.confirmed
    margin = float(truth[found - 1]) if found else np.nan
    return Simulated(
        size=found,
        true_size=int(flips[0]) + 1 if len(flips) else None,
        margin=margin,
        reported=outcome.mean_margin if outcome else np.nan,
        covered=outcome is not None and outcome.low <= margin <= outcome.high,
        searching=sum(len(values) for (_, fresh), values in heard.items() if not fresh),
        confirming=sum(len(values) for (_, fresh), values in heard.items() if fresh),
    )


def _steps(drops: Array, base: float) -> Array:
    """The standard deviation of each step of the motion: in all `WANDERING` of the base margin where the drop reaches it."""
    speed = np.maximum(np.diff(drops, prepend=0.0), 0) / base
    return WANDERING * base * np.sqrt(speed)


def _noise(residuals: Array, scenario: Scenario, rng: np.random.Generator) -> Array:
    """What the trainings of one target vary by (J,)."""
    if not scenario.skewed:
        return residuals[:, rng.integers(residuals.shape[1])]
    skewness = (residuals**3).mean(0) / np.maximum((residuals**2).mean(0), 1e-12) ** 1.5
    most = np.argsort(-np.abs(skewness))[: max(1, residuals.shape[1] // 5)]
    return residuals[:, rng.choice(most)]


def row_of(name: str, found: Sequence[Simulated]) -> Record:
    """What came of a scenario."""
    flipped = [one for one in found if one.size is not None]
    known = [one for one in flipped if one.true_size is not None]
    sizes = [np.inf if one.size is None else one.size for one in found]
    return {
        "scenario": name,
        "searches": len(found),
        "flipped": len(flipped) / len(found),
        "flippable": sum(one.true_size is not None for one in found) / len(found),
        "wrong": sum(one.margin > 0 for one in flipped) / len(found),
        "networks": _mean([one.searching + one.confirming for one in found]),
        "confirming": _mean([one.confirming for one in found]),
        "median_size": float(np.median(sizes)) if np.isfinite(np.median(sizes)) else None,
        "images_too_many": _mean([one.size - one.true_size for one in known if one.size and one.true_size]),
        "reported_less_true": _mean([one.reported - one.margin for one in flipped]),
        "covered": _mean([one.covered for one in flipped]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _table(rows: Sequence[Record]) -> list[str]:
    head = (
        "scenario",
        "flipped",
        "can be",
        "wrong",
        "networks",
        "of these fresh",
        "|R| too large by",
        "margin off by",
        "covered",
    )
    shown = [
        (
            row["scenario"],
            f"{row['flipped']:.1%}",
            f"{row['flippable']:.1%}",
            f"{row['wrong']:.2%}",
            f"{row['networks']:.1f}",
            f"{row['confirming']:.1f}",
            *("–" if row[key] is None else f"{row[key]:.2f}" for key in ("images_too_many", "reported_less_true", "covered")),
        )
        for row in rows
    ]
    lines = [head, ("---",) * len(head), *shown]
    return ["| " + " | ".join(line) + " |" for line in lines]
