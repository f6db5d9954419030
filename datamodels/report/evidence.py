"""The figures for the critic as numbers, from which the page's script draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datamodels.report.answers import outcome
from datamodels.report.figures import KIND_COLOURS, KINDS, colour_of, line_of, name_of
from datamodels.report.scripts import packed
from datamodels.subsets import Array
from datamodels.verify.record import CounterfactualRecord, RandomSubsetsRecord, RemovalRecord, SearchRecord

BINS = 40

Record = dict[str, Any]


def pairs(predicted: Array, true: Array) -> Record:
    """How many pairs of predicted and true margin, of any shape, lie in each of BINS × BINS squares."""
    counts, x, y = np.histogram2d(predicted.ravel(), true.ravel(), bins=BINS)
    return {"counts": packed(counts, "u4"), "bins": BINS, "x": [x[0], x[-1]], "y": [y[0], y[-1]]}


def bars(values: Array, bins: int = 30) -> Record:
    """A histogram, and the mean."""
    finite = values[np.isfinite(values)]
    counts, edges = np.histogram(finite, bins=bins)
    return {"counts": counts, "edges": edges, "mean": finite.mean() if len(finite) else None}


def shares(searches: Mapping[str, Sequence[SearchRecord]]) -> list[Record]:
    """For each method the sizes that its searches have found, in order, and how many searches there are."""
    return [
        {
            "method": method,
            "name": name_of(method),
            "colour": colour_of(method),
            "line": line_of(method),
            "sizes": sorted(search.size for search in found if search.size is not None),
            "targets": len(found),
            "tried": max((search.tried for search in found), default=1),
        }
        for method, found in searches.items()
    ]


def drops(found: Sequence[CounterfactualRecord], correlations: Mapping[str, float | None]) -> Record:
    """Predicted and measured drops of every counterfactual, by kind."""
    kinds = [
        {
            "name": name,
            "colour": KIND_COLOURS[kind],
            "correlation": correlations[kind],
            "points": [[c.predicted_drop, c.measured_drop, c.target, c.size, c.low, c.high] for c in found if c.kind == kind],
        }
        for kind, name in KINDS.items()
    ]
    return {"kinds": kinds, "correlation": correlations["all"]}


def on_random_subsets(predicted: Array, true: Array, found: RandomSubsetsRecord) -> Record:
    """Pairs of predicted and mean margin, and the correlations beside their ceilings."""
    reached = [
        {"name": "all pairs (Pearson)", "value": found.pooled, "ceiling": found.pooled_ceiling},
        {"name": "over subsets, mean of targets (Spearman)", "value": found.lds, "ceiling": found.lds_ceiling},
    ]
    return {**pairs(predicted, true), "subsets": found.subsets, "reached": reached}


def removed(verdicts: Sequence[RemovalRecord]) -> list[Record]:
    """Margins before and after a removal, and the control's, by the margin before."""
    ordered = sorted(verdicts, key=lambda v: v.before.mean_margin)
    return [
        {"target": v.target, **{state: outcome(getattr(v, state)) for state in ("before", "after", "control")}} for v in ordered
    ]
