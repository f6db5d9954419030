"""The figures of the report, each as a PNG and an SVG."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datamodels.brittleness import Outcome
from datamodels.reading import SCORES
from datamodels.report.gallery import Gallery, shortened
from datamodels.settings import FLIP, REPAIR
from datamodels.verify.record import CounterfactualRecord, Probe, RandomSubsetsRecord, RemovalRecord, SearchRecord

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
OTHER_COLOURS = ("#000000", "#7f3c8d", "#117733", "#882255")
"""Of scores by others, in turn."""
DONE = {FLIP: "flipped", REPAIR: "repaired"}
CARRY = {FLIP: "carry a prediction", REPAIR: "make a prediction wrong"}
KINDS = {"top": "largest weights", "random": "random images", "bottom": "smallest weights"}
DROPS = ("predicted_drop", "measured_drop")
KIND_COLOURS = {"top": "#d55e00", "random": "#5f6b76", "bottom": "#0072b2"}
LINES = {"relabel": "--", "random": ":"}
DPI = 110
MOST_THUMBNAILS = 30
THUMBNAIL_COLUMNS = 10
MOST_BARS = 30
FITS_THUMBNAIL, FITS_BESIDE, FITS_CLASS, FITS_PICTURE, FITS_TICK, FITS_TITLE = 9, 7, 13, 20, 34, 90
"""So many characters have room there."""
PLAIN: dict[str, Any] = {"parse_math": False}
"""For text of other people's, in which a $ is a $."""

Array = npt.NDArray[Any]


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


def method_called(method: str) -> str:
    """What a method is called on the page: somebody's scores by the name of their file."""
    return METHODS.get(method) or f"removed, by the scores {method.removeprefix(SCORES)}"


def cdf_figure(searches: Mapping[str, Sequence[SearchRecord]], things: str = "images", goal: str = FLIP) -> Picture:
    """For each method the share of targets whose prediction flips without, or by relabelling, at most so many images.

    `things` is what they are called. Where the goal is to repair, it is the share of those that are right then. Targets for
    which no set of the order does that are in the share's denominator: the curve ends below 1.
    """
    figure = Figure((9.6, 4.4), layout="constrained")
    axes = figure.subplots()
    most = max((search.tried for found in searches.values() for search in found), default=1)
    others = itertools.cycle(OTHER_COLOURS)
    for method, found in searches.items():
        sizes = sorted(search.size for search in found if search.size is not None)
        share = np.arange(len(sizes) + 1) / max(len(found), 1)
        ends = np.array([0, *sizes, max(most, *sizes, 1)], float)
        censored = len(found) - len(sizes)
        label = f"{method_called(method)}: {len(sizes)} of {len(found)}" + (f", {censored} censored" if censored else "")
        axes.step(
            ends,
            [*share, share[-1]],
            where="post",
            lw=2,
            ls=LINES.get(method, "-"),
            color=METHOD_COLOURS.get(method) or next(others),
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


def target_figure(verdict: RemovalRecord, examples: Gallery, probes: Sequence[Probe]) -> Picture:
    """One target: its picture, the images of R with their weights, the margin before, after and after more, and the control's.

    Where there are no pictures, names or indices stand in their place. `probes` are the sets of the datamodel's order that were
    tried on the way, with what came of them.
    """
    shown = list(verdict.removed_indices[:MOST_THUMBNAILS])
    own, of_others = examples.picture(verdict.target), examples.pictures(True, shown)
    if own is None or of_others is None:
        return _target_by_name(verdict, examples, probes)
    figure = Figure((9.6, 3.0), layout="constrained")
    picture, removed, course = figure.subplots(1, 3, width_ratios=(1.3, 4.4, 3.0))
    _show(picture, own)
    name = [shortened(examples.of_target(verdict.target), FITS_PICTURE)] if examples.of_target(verdict.target) else []
    lines = [f"target {verdict.target}", shortened(examples.class_name(verdict.label), FITS_PICTURE), *name]
    picture.set_title("\n".join(lines), fontsize=10 if not name else 8, **PLAIN)
    _thumbnails(removed, verdict, examples, of_others)
    _course(course, verdict, probes, examples.things)
    return _picture(figure)


def _target_by_name(verdict: RemovalRecord, examples: Gallery, probes: Sequence[Probe]) -> Picture:
    """One target whose examples have no pictures: those of R by name, with their weights as bars."""
    shown = list(verdict.removed_indices[:MOST_BARS])
    figure = Figure((9.6, max(3.0, 1.0 + 0.19 * len(shown))), layout="constrained")
    axes, course = figure.subplots(1, 2, width_ratios=(4.4, 3.0))
    weights = np.array(verdict.removed_weights[: len(shown)])
    places = np.arange(len(shown))
    axes.barh(places, weights, color=COLOURS["after"], height=0.7)
    labels = [_of_example(index, name, examples) for index, name in zip(shown, examples.names(True, shown), strict=True)]
    axes.set_yticks(places, labels, fontsize=7, **PLAIN)
    for place, weight in zip(places, weights, strict=True):
        axes.text(max(weight, 0.0), place, f" {weight:.2f}", ha="left", va="center", fontsize=6)
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.02)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlabel("weight", fontsize=8)
    more = "" if len(shown) == verdict.size else f", the first {len(shown)} shown"
    axes.set_title(f"R: {verdict.size} training {examples.things}{more}", fontsize=9)
    _course(course, verdict, probes, examples.things)
    of_class = [] if verdict.label is None else [examples.class_name(verdict.label)]
    title = shortened(", ".join([f"target {_of_target(verdict.target, examples, FITS_TITLE)}", *of_class]), FITS_TITLE)
    figure.suptitle(title, fontsize=10, **PLAIN)
    return _picture(figure)


def _of_target(target: int, examples: Gallery, most: int = FITS_TICK) -> str:
    """A target's number, and its name where it has one."""
    name = examples.of_target(target)
    return f"{target} · {shortened(name, most)}" if name else f"{target}"


def _of_example(index: int, name: str, examples: Gallery) -> str:
    """The name of a training example, and its class where that is known."""
    known = examples.learner.train_labels[index] >= 0
    return shortened(name, FITS_TICK) + (f", {shortened(examples.of_training(index), FITS_CLASS)}" if known else "")


def _thumbnails(axes: Axes, verdict: RemovalRecord, examples: Gallery, images: Array) -> None:
    """The images of R as one mosaic: a figure with axes for each of them takes seconds to lay out."""
    shown = list(verdict.removed_indices[: len(images)])
    names = examples.names(True, shown) if examples.named else None
    classes = [shortened(examples.of_training(index), FITS_CLASS) for index in shown]
    apart = ": " if max(map(len, classes), default=0) <= FITS_BESIDE else "\n"
    height, width, channels = images.shape[1:]
    row_height, column_width = round(height * (1.6 if apart == ": " else 1.8)), round(width * 1.15)
    rows = max(1, -(-len(shown) // THUMBNAIL_COLUMNS))
    background = 0 if channels == 1 else 255  # white in either colour map
    mosaic = np.full((rows * row_height, THUMBNAIL_COLUMNS * column_width, channels), background, np.uint8)
    for k, image in enumerate(images):
        y, x = k // THUMBNAIL_COLUMNS * row_height, k % THUMBNAIL_COLUMNS * column_width
        mosaic[y : y + height, x : x + width] = image
        text = f"{classes[k]}{apart}{verdict.removed_weights[k]:.2f}"
        text += "" if names is None else f"\n{shortened(names[k], FITS_THUMBNAIL)}"
        size = 6 if names is None else 5
        axes.text(x + width / 2 - 0.5, y + height - 0.3, text, ha="center", va="top", fontsize=size, **PLAIN)
    _show(axes, mosaic)
    more = "" if len(shown) == verdict.size else f", the first {len(shown)} shown"
    axes.set_title(
        f"R: {verdict.size} training images{more} ({'class: weight' if apart == ': ' else 'class, weight'})", fontsize=9
    )


def _course(axes: Axes, verdict: RemovalRecord, probes: Sequence[Probe], things: str) -> None:
    """Mean margins over the number of images removed, largest weights first, with the share of models that are right."""
    assert verdict.after is not None
    assert verdict.control is not None
    by_size = {0: verdict.before, **{probe.size: probe.outcome for probe in probes}, verdict.size: verdict.after}
    sizes = sorted(by_size)
    _with_intervals(axes, sizes, [by_size[size] for size in sizes], fmt="o-", color=COLOURS["after"], label="R removed")
    _with_intervals(axes, [verdict.size], [verdict.control], fmt="s", color=COLOURS["control"], label="control")
    right = {0: verdict.before, verdict.size: verdict.after, sizes[-1]: by_size[sizes[-1]]}
    for size, outcome in right.items():
        place: dict[str, Any] = {"xytext": (5, 4), "textcoords": "offset points", "fontsize": 7}
        axes.annotate(f"{outcome.correct:.0%}", (size, outcome.mean_margin), **place)
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xlabel(f"{things} removed", fontsize=8)
    axes.set_ylabel("mean margin", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.set_title("margin, and share of models that are right", fontsize=8)
    axes.legend(fontsize=7, frameon=False)


def _with_intervals(axes: Axes, x: list[int], outcomes: Sequence[Outcome], **style: Any) -> None:
    mean, low, high = (np.array([getattr(outcome, key) for outcome in outcomes]) for key in ("mean_margin", "low", "high"))
    axes.errorbar(x, mean, yerr=np.stack([mean - low, high - mean]), ms=4, lw=1.2, capsize=2, **style)


def _show(axes: Axes, pixels: Array) -> None:
    axes.axis("off")
    shown = pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels
    axes.imshow(shown, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")


def _picture(figure: Figure) -> Picture:
    png, svg = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks; the SVG has it as text
        figure.savefig(png, format="png", dpi=DPI)
        figure.savefig(svg, format="svg", dpi=DPI, metadata={"Date": None})
    return Picture(png.getvalue(), svg.getvalue())
