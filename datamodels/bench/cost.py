"""What attribution is worth for its price: LDS, and verified |R|, against the processor time that all of it takes.

Each method is given what it is made of, little of it and more: networks for those that ask networks (dattri's TRAK, TracIn and
influence functions; this package's first-order attribution; similarity of features), models on random subsets for those that
regress (the lasso; the prior of a few networks' gradients; the same with TRAK's scores as a covariate). Counted is everything:
training, gradients, features, solving. Models on random subsets are those of the run's store, and cost what such models are
measured to.

All are judged alike. LDS is the mean over targets of the rank correlation of Σ_{j∈S'} score_jt with the mean margin of several
networks, over fresh random subsets S' that nothing was fitted to (`verify.subsets`, `verify.subset_models`). The smallest set
that flips is searched, for a few targets, along each method's order of the images of the target's class, as any verification
does it. Networks that judge are nobody's cost.

Seconds are those of the process on a processor, all its threads together, so that other work on the machine hardly changes
them; on a GPU they are those of the clock. What is done is kept in RUN/cost, point by point.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import t as student_t

from datamodels.bench.prior import timed
from datamodels.bench.record import Record, describe, header
from datamodels.bench.samples import FEWEST, drawn_parts
from datamodels.brittleness import cosine
from datamodels.brittleness.judging import HELD
from datamodels.durable import read_arrays, save_array, write_arrays
from datamodels.errors import InputError
from datamodels.learners import Features, Gradients, Model, offered
from datamodels.learners.given import attributed_by, features_of, first_order_of
from datamodels.learners.recipe import Recipe
from datamodels.progress import progress, say
from datamodels.regress.path import fit_datamodels
from datamodels.regress.prior import Covariates, covariates_named
from datamodels.regress.score import score
from datamodels.regress.split import Subsets, joined
from datamodels.runs import GRADIENTS, SIMILARITY, read_store, stage_folder
from datamodels.settings import FLIP, Settings
from datamodels.store import Store
from datamodels.subsets import Array, draw_mask
from datamodels.training import LIBRARY_METHODS, require_dattri
from datamodels.training.attributed import INFLUENCE, TRACIN, TRAK
from datamodels.verify.asking import ask
from datamodels.verify.kept import OfBaseModels, base_models
from datamodels.verify.known import Examples, Targets
from datamodels.verify.methods import Orders, check_subsets
from datamodels.verify.questions.base import BaseMargin
from datamodels.verify.questions.random_subsets import Margins, RandomSubsets
from datamodels.verify.retrain import alone
from datamodels.verify.run import retraining
from datamodels.worker import Engine, engine_of
from datamodels.worker.decided import provenance_of
from datamodels.worker.prior import AT_ONCE, FIRST_MODEL

mpl.use("agg")

TRAK_SUBSETS, LASSO, PRIOR, TRAK_PRIOR, BOTH = "trak-on-subsets", "lasso", "prior", "prior-of-trak", "prior-and-trak"
NETWORKS: dict[str, tuple[int, ...]] = {
    GRADIENTS: (1, 4, 16, 64),
    SIMILARITY: (1, 4, 16),
    TRACIN: (1, 4, 16),
    INFLUENCE: (1,),
    TRAK: (1, 5, 20, 100),
    TRAK_SUBSETS: (1, 5, 20),
}
"""How many networks each method that asks networks is given."""
FITS = (LASSO, PRIOR, TRAK_PRIOR, BOTH)
"""What regresses. As a covariate TRAK has as many networks on subsets as it has alone at the most."""
ALL = "all"
NAMES = {
    TRAK: "TRAK (dattri)",
    TRAK_SUBSETS: "TRAK (dattri), networks on subsets",
    TRACIN: "TracIn (dattri)",
    INFLUENCE: "influence (dattri)",
    GRADIENTS: "first-order attribution",
    SIMILARITY: "similarity, of the class",
    LASSO: "lasso",
    PRIOR: "prior of gradients, and models",
    TRAK_PRIOR: "prior of TRAK alone, and models",
    BOTH: "prior of gradients and TRAK, and models",
}
COLOURS = {
    **dict.fromkeys((TRAK, TRAK_SUBSETS, TRAK_PRIOR), "#009e73"),
    TRACIN: "#56b4e9",
    INFLUENCE: "#cc79a7",
    GRADIENTS: "#e69f00",
    SIMILARITY: "#0072b2",
    LASSO: "#5f6b76",
    **dict.fromkeys((PRIOR, BOTH), "#d55e00"),
}
MARKERS = dict(zip(NAMES, "osv^XPD*<>", strict=True))
LINES = {TRAK_SUBSETS: "--", TRAK_PRIOR: ":", BOTH: ":"}
MOST_SECONDS = 1200.0
"""A point that takes longer, by the one before it, is left out."""


class Point(NamedTuple):
    """A method with so many `networks` that it asks, or `models` that it regresses."""

    method: str
    networks: int
    models: int = 0

    @property
    def name(self) -> str:
        """What a search along its order is called, and its file."""
        return "-".join([self.method, str(self.networks), *([str(self.models)] if self.models else [])])


@dataclass(frozen=True)
class Made:
    """What a point gave: scores (N, T), of which larger ones carry a target, and what all of it took."""

    scores: Array
    seconds: float


@dataclass(frozen=True)
class Bench:
    """What is measured on."""

    settings: Settings
    engine: Engine
    store: Store
    folder: Path
    device: torch.device

    @property
    def learner(self) -> Recipe:
        """What is trained."""
        learner: Any = self.engine.learner
        return learner  # type: ignore[no-any-return]

    def made(self, name: str, make: Callable[[], Made]) -> Made:
        """What is kept under a name, or is made now, and kept."""
        file, of = self.folder / f"{name}.npz", json.dumps([provenance_of(self.settings, self.learner), self._decided])
        kept = read_arrays(file)
        if kept is None or str(kept.get("of")) != of or not {"scores", "seconds"} <= kept.keys():
            found = make()
            write_arrays(file, {"scores": found.scores, "seconds": np.array(found.seconds), "of": np.array(of)})
            return found
        return Made(kept["scores"], float(kept["seconds"]))

    @property
    def _decided(self) -> list[Any]:
        store, verify = self.settings.store, self.settings.verify
        return [store.seed, store.alpha, verify.seed, dataclasses.asdict(self.settings.prior), len(self.store.done)]


def bench_cost(
    settings: Settings, gpu: str | None = None, most_seconds: float = MOST_SECONDS, methods: str = ALL, targets: int = 5
) -> tuple[Record, str]:
    """LDS against seconds for each of `methods`, with little of what it is made of and with more, and the verified |R| of so
    many targets with the most of it, as a record and a table.

    The run must have its models, and its prior of gradients. `targets` are drawn by `verify.seed` from those that networks
    trained on all of S have right beyond doubt; with 0 nothing is searched. Points that would take longer than `most_seconds`
    are left out, and named. Raises InputError where the run has no models or prior, there is no such method, or dattri is not
    installed and some are its.
    """
    chosen = methods_named(methods)
    if targets < 0:
        raise InputError(f"--n is of how many targets |R| is verified, 0 or more, not {targets}")
    if settings.verify.subsets < 3:
        raise InputError(f"LDS is over random subsets, 3 or more; verify.subsets is {settings.verify.subsets}")
    check_subsets(settings.verify)
    if set(chosen) & {TRAK, TRAK_SUBSETS, TRACIN, INFLUENCE, TRAK_PRIOR, BOTH}:
        require_dattri()
    settings = dataclasses.replace(settings, verify=dataclasses.replace(settings.verify, goal=FLIP))
    store = read_store(settings)
    with engine_of(settings, gpu) as engine, alone(settings), one_thread():
        for kind in (Gradients, Features):
            offered(engine.learner, kind, "the bench of costs")
        folder = stage_folder(settings, "cost")
        folder.mkdir(exist_ok=True)
        bench = Bench(settings, engine, store, folder, torch.device(getattr(engine.learner, "device", "cpu")))
        _warm(bench)
        made, left_out = _all_made(bench, chosen, most_seconds)
        true = _fresh(bench)
        searches, searched = _searches(bench, _largest(made), targets)
    rows = [_row(point, found, true, searches.get(point.name, [])) for point, found in made.items()]
    halves, same = Margins(true.true, true.halves), bench.learner.train_labels[:, None] == bench.learner.test_labels
    record = {
        **header("cost", settings, bench.learner.data, bench.device),
        "seconds_are": "of the process, all threads" if bench.device.type == "cpu" else "of the clock",
        "models": len(store.done),
        "prior": dataclasses.asdict(settings.prior),
        "targets": store.meta.num_targets,
        "subsets": len(true.true),
        "subset_models": settings.verify.subset_models,
        "lds_ceiling": halves.record().lds_ceiling,
        "lds_of_the_class_alone": float(score(true.predicted @ same, true.true)["lds"].mean()),
        "searched_targets": searched,
        "ratio": settings.verify.ratio,
        "most_models": settings.verify.most_models,
        "rows": rows,
        "left_out": [point.name for point in left_out],
        "best": best(rows),
        "trak_wins": [_named(row) for row in rows if row["method"].startswith(TRAK) and row in _undominated(rows)],
    }
    return record, _table(record)


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: threads that wait for each other would count as work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _warm(bench: Bench) -> None:
    """Bring images to the device, and import what is imported late: neither belongs to a method."""
    assert bench.learner.trainer
    assert bench.learner.beforehand
    for name in ("dattri.task", "dattri.algorithm"):
        with suppress(ImportError):
            importlib.import_module(name)


# What each point is made of.


def methods_named(methods: str) -> list[str]:
    """The methods in a text, with commas between, or all. Raises InputError for one that there is not."""
    there = [*NETWORKS, *FITS]
    words = there if methods == ALL else [word.strip() for word in methods.split(",")]
    wrong = next((word for word in words if word not in there), None)
    if wrong is not None:
        raise InputError(f"--methods takes some of {', '.join(there)}, or {ALL}, not {wrong!r}")
    return words


def _all_made(bench: Bench, methods: Sequence[str], most_seconds: float) -> tuple[dict[Point, Made], list[Point]]:
    """Each point with its scores and seconds, and those left out because they would take too long."""
    asked = [Point(method, networks) for method in NETWORKS if method in methods for networks in NETWORKS[method]]
    fitted = [(method, m) for m in _numbers(bench) for method in FITS if method in methods]
    found, left_out = dict[Point, Made](), list[Point]()
    with progress("bench", "points", len(asked) + len(fitted)) as advance:
        for point in asked:
            before = [other for other in found if other.method == point.method]
            if before and found[before[-1]].seconds * point.networks / before[-1].networks > most_seconds:
                left_out.append(point)
                say(f"bench: {point.name} would take more than {most_seconds:.0f} s, and is left out")
            else:
                found[point] = bench.made(point.name, partial(_of_networks, bench, point))
            advance(1)
        a_model = _seconds_a_model(bench) if fitted else 0.0
        trak = max((point.networks for point in found if point.method == TRAK_SUBSETS), default=NETWORKS[TRAK_SUBSETS][0])
        priors = {method: _prior(bench, method, trak) for method, _ in fitted}
        for method, m in fitted:
            covariates, networks, seconds = priors[method]
            point = Point(method, networks, m)
            of_fit = bench.made(point.name, partial(_of_models, bench, m, covariates))
            found[point] = Made(of_fit.scores, of_fit.seconds + seconds + m * a_model)
            advance(1)
    return found, left_out


def _largest(made: dict[Point, Made]) -> dict[Point, Made]:
    """Of each method the point with the most networks and models."""
    last = {point.method: point for point in sorted(made, key=lambda point: (point.networks, point.models))}
    return {point: made[point] for point in last.values()}


def _numbers(bench: Bench) -> list[int]:
    """50, 100, 200, … models, and all that there are but a few."""
    total = len(bench.store.done) - _apart(bench)
    if total < FEWEST:
        raise InputError(f"{len(bench.store.done)} finished models are too few to regress")
    return sorted({*(FEWEST * 2**k for k in range(40) if FEWEST * 2**k <= total), total})


def _apart(bench: Bench) -> int:
    """Models that a fit wants to measure on; nothing here looks at that."""
    return len(_groups(bench)[0])


def _groups(bench: Bench) -> list[Any]:
    return Subsets.of(bench.store, bench.store.done).shuffled(np.random.default_rng(bench.settings.regress.seed))


def _of_networks(bench: Bench, point: Point) -> Made:
    """What so many networks say."""
    learner, n, t = bench.learner, bench.store.meta.num_train, bench.store.meta.num_targets
    settings, k = bench.settings, point.networks
    on_all, on_subsets = base_models(settings, learner, k), _on_subsets(settings, n, k)
    if point.method == GRADIENTS:
        work: Callable[[], Array] = partial(_first_order, learner, on_subsets, settings.prior.dimensions)
    elif point.method == SIMILARITY:
        work = partial(_similarity, learner, on_all)
    else:
        method = TRAK if point.method == TRAK_SUBSETS else point.method
        assert method in LIBRARY_METHODS
        models = on_subsets if point.method == TRAK_SUBSETS else on_all
        work = partial(attributed_by, learner, method, models, range(t))
    seconds, scores = timed(work, bench.device)
    return Made(scores.astype(np.float32), seconds)


def _on_subsets(settings: Settings, n: int, number: int) -> list[Model]:
    """The first networks of the run's prior, on random subsets, and more of the kind."""
    seed, alpha = settings.store.seed, settings.store.alpha
    return [Model((seed, FIRST_MODEL + k), draw_mask(seed, FIRST_MODEL + k, n, alpha)) for k in range(number)]


def _first_order(learner: Recipe, models: Sequence[Model], dimensions: int) -> Array:
    """Sums over networks of first-order attributions, by the larger ridge, as a verification's method has them."""
    parts = (models[k : k + AT_ONCE] for k in range(0, len(models), AT_ONCE))
    found: Array = np.sum([first_order_of(learner, part, dimensions, GRADIENTS)[GRADIENTS][-1] for part in parts], 0)
    return found


def _similarity(learner: Recipe, models: Sequence[Model]) -> Array:
    """Mean cosines (N, T) of the networks' features, and 0 for images of another class than the target's."""
    total: Any = 0.0
    for k in range(0, len(models), AT_ONCE):
        found = features_of(learner, models[k : k + AT_ONCE], SIMILARITY)
        total += sum(cosine(*pair) for pair in zip(found["features_train"], found["features_test"], strict=True))
    same: Array = learner.train_labels[:, None] == learner.test_labels
    return same * total / len(models)  # type: ignore[no-any-return]


def _seconds_a_model(bench: Bench) -> float:
    """Seconds of one model on a random subset, as the worker trains them."""
    learner, n = bench.learner, bench.store.meta.num_train

    def made() -> Made:
        models = _on_subsets(bench.settings, n, learner.models_at_once)
        seconds, _ = timed(partial(learner.train, models), bench.device)
        return Made(np.zeros((0, 0)), seconds / len(models))

    return bench.made("a model", made).seconds


def _prior(bench: Bench, method: str, trak: int) -> tuple[Covariates | None, int, float]:
    """The covariates of one way of fitting, from how many networks they are, and the seconds that these took."""
    if method == LASSO:
        return None, 0, 0.0
    n, t, networks = bench.store.meta.num_train, bench.store.meta.num_targets, bench.settings.prior.models
    arrays, points = [], []
    if method in (PRIOR, BOTH):
        own = covariates_named(GRADIENTS, stage_folder(bench.settings, "prior"), n, t)
        assert own is not None
        arrays.append(own.parts(slice(0, t)))
        points.append(Point(GRADIENTS, networks))
    if method in (TRAK_PRIOR, BOTH):
        points.append(Point(TRAK_SUBSETS, trak))
    made = [bench.made(point.name, partial(_of_networks, bench, point)) for point in points]
    whole = (sum(point.networks for point in points), sum(found.seconds for found in made))
    if method == PRIOR:
        return own, *whole
    file = bench.folder / f"{Point(method, whole[0]).name}.npy"
    save_array(file, np.concatenate([*arrays, made[-1].scores[None]]).astype(np.float32))
    return covariates_named(str(file), None, n, t), *whole


def _of_models(bench: Bench, models: int, covariates: Covariates | None) -> Made:
    """The weights of so many models of the store, without the seconds of their training."""
    groups = _groups(bench)
    parts = drawn_parts(groups[1:], models, joined(groups[:1]), bench.settings, 0)
    how = dataclasses.replace(bench.settings.regress, targets="all", sparse=False)
    fit = partial(fit_datamodels, bench.store, how, covariates=covariates, parts=parts, gpu=_number(bench.device))
    seconds, found = timed(fit, bench.device)
    return Made(found.weights, seconds)


def _number(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else str(device.index or 0)


# How they are judged.


def _fresh(bench: Bench) -> Margins:
    """Margins on fresh random subsets; what is "predicted" there are the masks themselves, of which any scores make theirs."""
    question = _Subsets(bench)
    _ask(bench, [question])
    return question.margins


class _Subsets(RandomSubsets):
    """The question about random subsets, with masks in the place of a prediction."""

    def __init__(self, bench: Bench) -> None:
        meta = bench.store.meta
        as_is: Any = _AsMasks(range(meta.num_targets))
        super().__init__(bench.settings, as_is, meta.num_train)


@dataclass(frozen=True)
class _AsMasks:
    targets: range

    def predict(self, masks: Array) -> Array:
        """The masks, as numbers."""
        return masks.astype(np.float64)


def _ask(bench: Bench, questions: Sequence[Any]) -> None:
    with progress("bench", "models", 0) as bar:
        ask(questions, retraining(bench.settings, bench.engine), bar)


def _searches(bench: Bench, made: dict[Point, Made], number: int) -> tuple[dict[str, list[Any]], list[int]]:
    """The searches along each point's order of some targets, and which targets these are."""
    if not number:
        return {}, []
    t = bench.store.meta.num_targets
    on_all = BaseMargin(_orders(bench, {}, range(t)), range(t), [])
    _ask(bench, [on_all])
    right = [target for target, outcome in on_all.outcomes.items() if outcome.verdict == HELD]
    chosen = sorted(np.random.default_rng(bench.settings.verify.seed).permutation(right)[:number].tolist())
    if not chosen:
        return {}, []
    asked = BaseMargin(_orders(bench, made, chosen), chosen, [point.name for point in made])
    _ask(bench, [asked])
    found: dict[str, list[Any]] = {point.name: [] for point in made}
    for search in asked.searches:
        record = search.record()
        found[record.method].append(record)
    return found, chosen


def _orders(bench: Bench, made: dict[Point, Made], targets: Sequence[int]) -> Orders:
    """The orders of images that scores make: of the target's class, the largest first, for all methods alike.

    Sizes are tried where the weights of one and the same datamodel say: that of most models with the prior of gradients.
    """
    known, columns = Targets(Examples(bench.learner)), list(targets)
    scores = {point.name: found.scores[:, columns].astype(np.float64) for point, found in made.items()}
    covariates, networks, _ = _prior(bench, PRIOR, 0)
    m = _numbers(bench)[-1]
    guide = bench.made(Point(PRIOR, networks, m).name, partial(_of_models, bench, m, covariates))
    weights = guide.scores[:, columns].astype(np.float64)
    base = OfBaseModels(bench.folder, bench.settings, bench.engine, columns)
    return Orders(bench.settings.verify, bench.learner, known, columns, weights, None, scores, base)


def _row(point: Point, found: Made, fresh: Margins, searches: Sequence[Any]) -> Record:
    predicted = fresh.predicted @ found.scores.astype(np.float64)
    lds = score(predicted, fresh.true)["lds"]
    half = float(student_t.ppf(0.975, len(lds) - 1) * lds.std(ddof=1) / np.sqrt(len(lds)))
    sizes = [search.size for search in searches]
    return {
        **point._asdict(),
        "seconds": round(found.seconds, 3),
        "lds": {"mean": float(lds.mean()), "half_interval": half},
        "sizes": sizes,
        "flipped": len([size for size in sizes if size is not None]),
        "median_size": _median(sizes),
        "networks_a_search": float(np.mean([search.models for search in searches])) if searches else None,
    }


def _median(sizes: Sequence[int | None]) -> float | None:
    """The median |R|, where a target that no set of the order flips has a larger one than any; None where that is it."""
    found = float(np.median([np.inf if size is None else size for size in sizes])) if sizes else np.inf
    return found if np.isfinite(found) else None


def _undominated(rows: Sequence[Record]) -> list[Record]:
    """Those that no other row beats in LDS for at most their seconds, the cheapest first."""
    ordered = sorted(rows, key=lambda row: (row["seconds"], -row["lds"]["mean"]))
    found, most = list[Record](), -np.inf
    for row in ordered:
        if row["lds"]["mean"] > most:
            found.append(row)
            most = row["lds"]["mean"]
    return found


def best(rows: Sequence[Record]) -> list[Record]:
    """What has the largest LDS for its price: rows that no cheaper one reaches, the cheapest first."""
    return [{**_named(row), "seconds": row["seconds"], "lds": row["lds"]["mean"]} for row in _undominated(rows)]


def _named(row: Record) -> Record:
    return {name: row[name] for name in Point._fields}


# How they are told.


def _table(record: Record) -> str:
    about = (
        f"LDS, mean over {record['targets']} targets ± 95 % interval over them, on {record['subsets']} fresh subsets × "
        f"{record['subset_models']} networks; nothing can have more than {record['lds_ceiling']:.3f}, and to count how many "
        f"images are of the target's class gives {record['lds_of_the_class_alone']:.3f}"
    )
    searched = len(record["searched_targets"])
    sizes = f"|R| of {searched} targets, at ratio {record['ratio']:g}" if searched else "no |R| was verified"
    lines = [describe(record), about, f"{sizes}; seconds are those {record['seconds_are']}, n = 1", ""]
    width = max(len(_what(row)) for row in record["rows"])
    for row in record["rows"]:
        of_lds = f"{row['lds']['mean']:6.3f} ± {row['lds']['half_interval']:.3f}"
        of_sets = f"  median |R| {_told(row['median_size'])}, {row['flipped']} of {searched} flipped"
        median = of_sets if row["sizes"] else ""
        lines.append(f"{_what(row):{width}s} {row['seconds']:8.1f} s  {of_lds}{median}")
    if record["left_out"]:
        lines.append(f"left out for their time: {', '.join(record['left_out'])}")
    lines.append("the largest LDS for its price: " + "; ".join(f"{_what(row)} ({row['lds']:.3f})" for row in record["best"]))
    wins = record["trak_wins"]
    lines.append(
        f"TRAK has the largest LDS for its price with {'; '.join(map(_what, wins))}" if wins else "TRAK has it at no price"
    )
    return "\n".join(lines)


def _what(row: Record) -> str:
    parts = [f"{row[name]} {name if row[name] > 1 else name[:-1]}" for name in ("networks", "models") if row[name]]
    return f"{NAMES[row['method']]}: {' + '.join(parts)}"


def _told(median: float | None) -> str:
    return "beyond" if median is None else f"{median:g}"


def cost_figure(record: Record) -> bytes:
    """LDS, and where it was verified the median |R|, against seconds: a curve for each method, as the bytes of a PNG."""
    searched = any(row["median_size"] is not None for row in record["rows"])
    figure = Figure((10.4 if searched else 7.2, 5.2), layout="constrained")
    panels: Any = figure.subplots(1, 2 if searched else 1, squeeze=False)[0]
    for method in dict.fromkeys(row["method"] for row in record["rows"]):
        rows = sorted((row for row in record["rows"] if row["method"] == method), key=lambda row: row["seconds"])
        style = {
            "color": COLOURS[method],
            "ls": LINES.get(method, "-"),
            "marker": MARKERS[method],
            "ms": 5,
            "label": NAMES[method],
        }
        panels[0].plot([row["seconds"] for row in rows], [row["lds"]["mean"] for row in rows], **style)
        if searched:
            known = [row for row in rows if row["median_size"] is not None]
            panels[1].plot([row["seconds"] for row in known], [row["median_size"] for row in known], **style)
    panels[0].axhline(record["lds_ceiling"], color="black", lw=0.8, ls="--")
    panels[0].axhline(record["lds_of_the_class_alone"], color="black", lw=0.8, ls=":")
    panels[0].set(ylabel=f"LDS on {record['subsets']} fresh subsets", ylim=(0, 1))
    title = f"{record['data']['dataset']}, {record['targets']} targets; dashed: the ceiling, dotted: the class alone"
    panels[0].set_title(title, fontsize=10)
    if searched:
        panels[1].set(ylabel="median |R|, verified", ylim=(0, None))
        panels[1].set_title(f"{len(record['searched_targets'])} targets", fontsize=10)
    for axes in panels:
        axes.set_xscale("log")
        axes.set_xlabel("processor seconds, everything counted" if record["device"] == "cpu" else "seconds of the clock")
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
