"""The figures of the report, each as a PNG and an SVG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from datamodels.errors import shown
from datamodels.reading import SCORES
from datamodels.report.gallery import Gallery, shortened
from datamodels.settings import FLIP, REPAIR
from datamodels.verify.record import CounterfactualRecord, RandomSubsetsRecord, RemovalRecord, SearchRecord

mpl.use("agg")
# The same figure gives the same file: no date, no random names; text stays text.
mpl.rcParams.update({"svg.hashsalt": "datamodels", "svg.fonttype": "none"})

# Okabe and Ito's colours, told apart by the colour-blind too.
COLOURS = {"before": "#5f6b76", "after": "#d55e00", "control": "#0072b2"}
NAMES = {"before": "all of S", "after": "R removed", "control": "as many random ones of the class removed"}
METHODS = {
    "datamodel": "removed, by datamodel",
    "relabel": "relabelled, by datamodel",
    "random": "removed, random of the class",
    "similarity": "removed, nearest in the networks' features",
    "gradients": "removed, first-order attribution",
    "tracin": "removed, TracIn",
    "influence": "removed, influence functions",
    "trak": "removed, TRAK",
    "embedding": "removed, nearest in a given embedding",
}
METHOD_COLOURS = {
    "datamodel": "#d55e00",
    "relabel": "#cc79a7",
    "random": "#5f6b76",
    "similarity": "#0072b2",
    "gradients": "#e69f00",
    "tracin": "#56b4e9",
    "influence": "#8c6d31",
    "trak": "#b8a500",
    "embedding": "#009e73",
}
DONE = {FLIP: "flipped", REPAIR: "repaired"}
CARRY = {FLIP: "carry a prediction", REPAIR: "make a prediction wrong"}
KINDS = {"top": "largest weights", "random": "random images", "bottom": "smallest weights"}
DROPS = ("predicted_drop", "measured_drop")
KIND_COLOURS = {"top": "#d55e00", "random": "#5f6b76", "bottom": "#0072b2"}
LINES = {"relabel": "--", "random": ":"}
OTHERS = ("#7a5195", "#2f7f6f", "#b04a3a", "#4a6fa5")
"""Colours of methods that have none of their own."""
DPI = 110
FITS_TICK = 34
"""So many characters have room there."""
PLAIN: dict[str, Any] = {"parse_math": False}
"""For text of other people's, in which a $ is a $."""

Array = npt.NDArray[Any]


def name_of(method: str) -> str:
    """What a method is called on the page."""
    return METHODS.get(method, f"removed, by {shown(method.removeprefix(SCORES), 60)}")


def order_of(method: str) -> str:
    """What its order of the images is called there."""
    return name_of(method).removeprefix("removed, ")


def colour_of(method: str) -> str:
    """Its colour; that of a method of somebody else's follows from its name."""
    return METHOD_COLOURS.get(method, OTHERS[sum(method.encode()) % len(OTHERS)])


def line_of(method: str) -> str:
    """Its line, as Matplotlib writes it."""
    return LINES.get(method, "-")


class Picture(NamedTuple):
    """One figure as the bytes of two files."""

    png: bytes
    svg: bytes


def heldout_figure(predicted: Array, true: Array, lds: Array) -> Picture:
    """Predicted against true margin (m, T) of the held-out models, and how LDS (T,) spreads over targets."""
    figure = Figure((9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    bins = left.hexbin(predicted.ravel(), true.ravel(), gridsize=60, bins="log", cmap="viridis", mincnt=1, linewidths=0)
    low, high = float(predicted.min()), float(predicted.max())
    left.plot([low, high], [low, high], color=COLOURS["after"], lw=1.2, label="predicted = true")
    left.set(xlabel="predicted margin", ylabel="true margin", title=f"{len(true)} held-out models × {true.shape[1]} targets")
    left.legend(loc="upper left", frameon=False)
    figure.colorbar(bins, ax=left, label="model–target pairs")
    right.hist(lds, bins=30, color=COLOURS["control"])
    right.axvline(float(lds.mean()), color=COLOURS["after"], lw=1.5, label=f"mean {lds.mean():.3f}")
    right.set(xlabel="LDS of a target (Spearman, over held-out models)", ylabel="targets", title="How well margins are ranked")
    right.legend(frameon=False)
    return _picture(figure)


def cdf_figure(searches: Mapping[str, Sequence[SearchRecord]], things: str = "images", goal: str = FLIP) -> Picture:
    """For each method the share of targets whose prediction flips without, or by relabelling, at most so many images.

    `things` is what they are called. Where the goal is to repair, it is the share of those that are right then. Targets for
    which no set of the order does that are in the share's denominator: the curve ends below 1.
    """
    figure = Figure((9.6, 4.4), layout="constrained")
    axes = figure.subplots()
    most = max((search.tried for found in searches.values() for search in found), default=1)
    for method, found in searches.items():
        sizes = sorted(search.size for search in found if search.size is not None)
        share = np.arange(len(sizes) + 1) / max(len(found), 1)
        ends = np.array([0, *sizes, max(most, *sizes, 1)], float)
        censored = len(found) - len(sizes)
        label = f"{name_of(method)}: {len(sizes)} of {len(found)}" + (f", {censored} censored" if censored else "")
        axes.step(
            ends,
            [*share, share[-1]],
            where="post",
            lw=2,
            ls=line_of(method),
            color=colour_of(method),
            label=label,
        )
    axes.set(
        xlim=(0, None), ylim=(0, 1.02), xlabel=f"{things} of R", ylabel=f"share of targets {DONE[goal]} by at most so many"
    )
    axes.set_title(f"How many training {things} {CARRY[goal]}: verified by retraining")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=9)
    return _picture(figure)


def drops_figure(
    counterfactuals: Sequence[CounterfactualRecord], correlations: Mapping[str, float | None], things: str = "images"
) -> Picture:
    """Predicted against measured drop of the margin, for sets of the largest, of random, and of the smallest weights."""
    figure = Figure((6.4, 5.2), layout="constrained")
    axes = figure.subplots()
    for kind, name in KINDS.items():
        predicted, measured = ([getattr(c, drop) for c in counterfactuals if c.kind == kind] for drop in DROPS)
        r = correlations[kind]
        label = name.replace("images", things) + ("" if r is None else f" (correlation {r:.2f})")
        axes.scatter(predicted, measured, s=14, alpha=0.6, color=KIND_COLOURS[kind], label=label)
    predicted = [c.predicted_drop for c in counterfactuals]
    ends = [min(0.0, *predicted), max(0.0, *predicted)]
    axes.plot(ends, ends, color="black", lw=0.8, label="predicted = measured")
    r = correlations["all"]
    sets = f"{len(counterfactuals)} removals of {len({c.size for c in counterfactuals})} sizes"
    axes.set_title(sets + ("" if r is None else f", correlation {r:.2f}"))
    axes.set(xlabel="predicted drop of the margin", ylabel="measured drop of the mean margin")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _picture(figure)


def random_subsets_figure(predicted: Array, true: Array, found: RandomSubsetsRecord) -> Picture:
    """Predicted against true mean margin (s, T) on random subsets, and the correlations beside what could be reached."""
    figure = Figure((9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    bins = left.hexbin(predicted.ravel(), true.ravel(), gridsize=60, bins="log", cmap="viridis", mincnt=1, linewidths=0)
    low, high = float(predicted.min()), float(predicted.max())
    left.plot([low, high], [low, high], color=COLOURS["after"], lw=1.2, label="predicted = true")
    title = f"{len(true)} random subsets × {true.shape[1]} targets"
    left.set(xlabel="predicted margin", ylabel="mean margin of the networks", title=title)
    left.legend(loc="upper left", frameon=False)
    figure.colorbar(bins, ax=left, label="subset–target pairs")
    names = {"pooled": "all pairs\n(Pearson)", "lds": "over subsets, mean\nof targets (Spearman)"}
    for x, key in enumerate(names):
        reached, most = getattr(found, key), getattr(found, f"{key}_ceiling")
        right.bar(x, most, color="none", edgecolor=COLOURS["before"], lw=1.5, label="" if x else "ceiling")
        right.bar(x, reached, color=COLOURS["control"], width=0.6, label="" if x else "datamodel")
        right.annotate(f"{reached:.2f} of {most:.2f}", (x, most), ha="center", va="bottom")
    right.set_xticks(range(len(names)), list(names.values()), fontsize=9)
    right.set(ylim=(0, 1.12), ylabel="correlation", title="What noise leaves to be reached")
    right.legend(loc="lower center", fontsize=8)
    return _picture(figure)


def verified_figure(verdicts: Sequence[RemovalRecord], title: str, examples: Gallery) -> Picture:
    """Mean margins with their intervals for all targets of one rule, sorted by the margin before."""
    ordered = sorted(verdicts, key=lambda v: v.before.mean_margin)
    figure = Figure((9.6, 1.4 + 0.24 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    y = np.arange(len(ordered))
    for offset, state in zip((0.0, -0.16, 0.16), COLOURS, strict=True):
        mean, low, high = (
            np.array([getattr(getattr(v, state), key) for v in ordered]) for key in ("mean_margin", "low", "high")
        )
        error = np.stack([mean - low, high - mean])
        axes.errorbar(mean, y + offset, xerr=error, fmt="o", ms=4, lw=1.2, color=COLOURS[state], label=NAMES[state])
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(y, [_of_target(v.target, examples) for v in ordered], fontsize=8, **PLAIN)
    axes.set(xlabel="mean margin of the models, with 95 % interval (below 0: misclassified)", ylabel="target", title=title)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    return _picture(figure)


def _of_target(target: int, examples: Gallery, most: int = FITS_TICK) -> str:
    """A target's number, and its name where it has one."""
    name = examples.of_target(target)
    return f"{target} · {shortened(name, most)}" if name else f"{target}"


def _picture(figure: Figure) -> Picture:
    png, svg = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks; the SVG has it as text
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, for both files
        figure.savefig(png, format="png", dpi=DPI)
        figure.savefig(svg, format="svg", dpi=DPI, metadata={"Date": None})
    return Picture(png.getvalue(), svg.getvalue())
