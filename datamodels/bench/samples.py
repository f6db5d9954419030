"""How many models a good datamodel takes: LDS and R² against the number of models, with each prior and without."""

from __future__ import annotations

import dataclasses
import io
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from scipy.stats import t as student_t

from datamodels import __version__
from datamodels.bench.record import Record, describe
from datamodels.errors import InputError
from datamodels.machine import describe_machine
from datamodels.progress import progress
from datamodels.regress.arrays import computing
from datamodels.regress.path import fit_datamodels
from datamodels.regress.prior import FLAT, GRADIENTS, NONE, SIMILARITY, Covariates, covariates_named
from datamodels.regress.split import Parts, Subsets, joined
from datamodels.runs import read_store, stage_folder
from datamodels.settings import Settings
from datamodels.store import Store
from datamodels.subsets import Array, IndexArray

mpl.use("agg")

FEWEST = 50
HELDOUT = 200
LASSO, RIDGE, SPARSE = "lasso", "ridge", "sparse"


class Way(NamedTuple):
    """A way to estimate weights: `regress.prior` and `regress.sparse`, its name and colour in the figure."""

    prior: str
    sparse: bool
    name: str
    colour: str


WAYS = {
    LASSO: Way(NONE, False, "lasso", "#0072b2"),
    RIDGE: Way(FLAT, False, "ridge", "#5f6b76"),
    SIMILARITY: Way(SIMILARITY, False, "prior of similarity", "#cc79a7"),
    GRADIENTS: Way(GRADIENTS, False, "prior of gradients", "#d55e00"),
    SPARSE: Way(GRADIENTS, True, "the same, sparse", "#e69f00"),
}


def bench_samples(settings: Settings, draws: int = 3, gpu: str | None = None) -> tuple[Record, str]:
    """LDS and R² of each way to estimate weights, from m = 50, 100, 200, … and all models of the run, as a record and a table.

    The models of the same 200 subsets are held out throughout, drawn by `regress.seed`, and have no part in fit, choice or
    prior; each m is drawn `draws` times from the others, subset by subset. Raises InputError where the run has too few models,
    or no prior folder.
    """
    if draws < 1:
        raise InputError(f"--n is how often models are drawn, 1 or more, not {draws}")
    store, folder = read_store(settings), stage_folder(settings, "prior")
    subsets = Subsets.of(store, store.done)
    groups = subsets.shuffled(np.random.default_rng(settings.regress.seed))
    heldout, others = joined(groups[:HELDOUT]), groups[HELDOUT:]
    total = sum(map(len, others))
    numbers = sorted({*(FEWEST * 2**k for k in range(40) if FEWEST * 2**k <= total), total})
    if len(others) < 2 * FEWEST:
        on = f" on {len(groups)} different subsets" if subsets.repeated else ""
        raise InputError(f"{len(store.done)} finished models{on} are too few to draw from; {HELDOUT + 2 * FEWEST} is the least")
    n, t = store.meta.num_train, store.meta.num_targets
    known = {way.prior: covariates_named(way.prior, folder, n, t) for way in WAYS.values()}
    rows: list[Record] = []
    with computing(settings.regress.device, gpu) as xp, progress("bench", "fits", len(numbers) * len(WAYS) * draws) as advance:
        for m in numbers:
            found: dict[str, list[dict[str, Array]]] = {way: [] for way in WAYS}
            for draw in range(draws):
                parts = drawn_parts(others, m, heldout, settings, draw)
                for way, how in WAYS.items():
                    found[way].append(_metrics(store, settings, parts, known[how.prior], how.sparse, gpu))
                    advance(1)
            rows += [_row(way, m, metrics) for way, metrics in found.items()]
    device = "cpu" if xp is np else "gpu"
    record = {
        "bench": "samples",
        "version": __version__,
        "device": device,
        "machine": describe_machine(),
        "settings": {
            name: dataclasses.asdict(getattr(settings, name)) for name in ("data", "training", "store", "prior", "regress")
        },
        "draws": draws,
        "heldout": HELDOUT,
        "targets": t,
        "prior_models": settings.prior.models,
        "rows": rows,
    }
    record["ratios"] = [_ratio(rows, row, settings.prior.models) for row in rows if row["way"] not in (LASSO, RIDGE)]
    return record, _table(record)


def drawn_parts(groups: list[IndexArray], m: int, heldout: IndexArray, settings: Settings, draw: int) -> Parts:
    """A draw of m models, those on one mask together: first those that choose, then those that fit."""
    order = np.random.default_rng([settings.regress.seed, m, draw]).permutation(len(groups))
    ends = np.cumsum([len(groups[k]) for k in order])
    drawn = [groups[k] for k in order[: np.searchsorted(ends, m) + 1]]
    drawn[-1] = drawn[-1][: len(drawn[-1]) - (sum(map(len, drawn)) - m)]
    choice = round(settings.regress.choice * len(drawn))
    return Parts(fit=joined(drawn[choice:]), choice=joined(drawn[:choice]), heldout=heldout)


def _metrics(
    store: Store, settings: Settings, parts: Parts, covariates: Covariates | None, sparse: bool, gpu: str | None
) -> dict[str, Array]:
    how = dataclasses.replace(settings.regress, targets="all", sparse=sparse)
    metrics: dict[str, Array] = fit_datamodels(store, how, covariates=covariates, parts=parts, gpu=gpu).metrics
    return metrics


def _row(way: str, m: int, draws: list[dict[str, Array]]) -> Record:
    """Means over draws and targets, with the 95 % interval over targets (of each target's mean over draws), and each draw's."""
    row: Record = {"way": way, "models": m, "nonzeros": float(np.mean([metrics["nonzeros"] for metrics in draws]))}
    for name in ("lds", "r2"):
        values = np.array([metrics[name] for metrics in draws])
        of_targets = values.mean(0)
        half = float(student_t.ppf(0.975, len(of_targets) - 1) * of_targets.std(ddof=1) / np.sqrt(len(of_targets)))
        row[name] = {"mean": float(values.mean()), "half_interval": half, "draws": values.mean(1).round(5).tolist()}
    return row


def _ratio(rows: list[Record], row: Record, extra: int) -> Record:
    """The models that the lasso needs for this row's LDS, over those of the row, without and with the prior's own.

    Read off the lasso's curve, which is taken for linear in log m between the measured numbers; where the curve ends below,
    `at_least` is True and the ratio is of its end.
    """
    lasso = [r for r in rows if r["way"] == LASSO]
    m, lds = np.array([r["models"] for r in lasso]), np.array([r["lds"]["mean"] for r in lasso])
    # A curve that falls somewhere, by chance, is read at its running maximum.
    needed = float(np.exp(np.interp(row["lds"]["mean"], np.maximum.accumulate(lds), np.log(m))))
    return {
        "way": row["way"],
        "models": row["models"],
        "lasso_models": needed,
        "at_least": bool(row["lds"]["mean"] > lds.max()),
        "ratio": needed / row["models"],
        "ratio_with_the_priors_own": needed / (row["models"] + extra),
    }


def _table(record: Record) -> str:
    lines = [describe(record)]
    about = f"means over {record['targets']} targets and n = {record['draws']} draws, {record['heldout']} held-out models"
    lines.append(f"LDS (R²), {about}; ±: 95 % interval over targets")
    numbers = sorted({row["models"] for row in record["rows"]})
    for m in numbers:
        for row in (r for r in record["rows"] if r["models"] == m):
            ratio = next((_in_words(r) for r in record["ratios"] if (r["way"], r["models"]) == (row["way"], m)), "")
            lds = f"{row['lds']['mean']:.3f} ± {row['lds']['half_interval']:.3f}  ({row['r2']['mean']:6.3f})"
            lines.append(f"m = {m:5d}  {WAYS[row['way']].name:20s} {lds}, {row['nonzeros']:4.0f} non-zero{ratio}")
    return "\n".join(lines)


def _in_words(ratio: Record) -> str:
    least = "≥ " if ratio["at_least"] else ""
    whole = f"{least}{ratio['ratio_with_the_priors_own']:.1f} with the prior's own models"
    return f"  sample ratio {least}{ratio['ratio']:.1f}, {whole}"


def samples_figure(record: Record) -> bytes:
    """LDS against the number of models, a curve for each way of estimating, as the bytes of a PNG."""
    figure = Figure((7.2, 4.6), layout="constrained")
    axes: Any = figure.subplots()
    for way, how in WAYS.items():
        rows = [row for row in record["rows"] if row["way"] == way]
        m = [row["models"] for row in rows]
        mean, half = (np.array([row["lds"][key] for row in rows]) for key in ("mean", "half_interval"))
        axes.plot(m, mean, "o-", color=how.colour, label=how.name, ms=4)
        axes.fill_between(m, mean - half, mean + half, color=how.colour, alpha=0.15, lw=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({row["models"] for row in record["rows"]}))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set(xlabel="models trained", ylabel=f"LDS on {record['heldout']} held-out models", ylim=(0, None))
    axes.set_title(f"{record['settings']['data']['dataset']}, mean over {record['targets']} targets")
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
