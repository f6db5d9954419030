"""Verdicts in short: the table verify.csv, the line that a verification ends with, and the figures of both and of the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from datamodels.verify.record import KINDS, SUPPORT, CounterfactualRecord, SearchRecord, Verified

COLUMNS = ("target", "label", "method", "verdict", "size", "threshold", "models", "mean_margin", "low", "high", "correct")
OF_OUTCOME = COLUMNS[-4:]


def table(verified: Verified) -> str:
    """One line for each target and method: its verdict, |R|, the bound C of the probe, and the judged models."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for search in verified.searches:
        about = (search.target, search.label, search.method, search.verdict, search.size)
        last = search.last
        outcome = [getattr(last.outcome, name) for name in OF_OUTCOME] if last else [None] * len(OF_OUTCOME)
        writer.writerow([*about, last.threshold if last else None, search.models, *outcome])
    searched = {search.target for search in verified.searches}
    for target, base in verified.base.items():
        if target not in searched:
            outcome = [getattr(base.outcome, name) for name in OF_OUTCOME]
            writer.writerow([target, base.label, "", "not right before", None, None, base.outcome.models, *outcome])
    return text.getvalue()


def told(verified: Verified, methods: Sequence[str]) -> str:
    """What came out, in a line."""
    parts = [_of_method(method, [s for s in verified.searches if s.method == method]) for method in methods]
    tried = [r for r in verified.removals if r.right_before and r.after and r.rule != SUPPORT]
    if tried:
        flipped, control = sum(r.flipped for r in tried), sum(r.control_flipped for r in tried)
        parts.append(f"{flipped} of {len(tried)} removals of fixed size flip a prediction, and {control} of their controls")
    if verified.random_subsets:
        on = verified.random_subsets
        parts.append(f"LDS {on.lds:.3f} on {on.subsets} random subsets, at best {on.lds_ceiling:.3f}")
    if verified.counterfactuals:
        parts.append(f"predicted and measured drops: {_correlations_told(verified.counterfactuals)}")
    return "; ".join([*parts, f"{len(verified.base)} targets, {verified.models_used} models"])


def _of_method(method: str, searches: Sequence[SearchRecord]) -> str:
    flipped = [search for search in searches if search.size is not None]
    size = f", median |R| {median_size(searches)}" if flipped else ""
    cost = f", {np.mean([search.models for search in searches]):.0f} models each" if searches else ""
    return f"{method} flips {len(flipped)} of {len(searches)} predictions{size}{cost}"


def _correlations_told(drops: Sequence[CounterfactualRecord]) -> str:
    return ", ".join(f"{kind} {'–' if r is None else f'{r:.2f}'}" for kind, r in drop_correlations(drops).items())


def drop_correlations(drops: Sequence[CounterfactualRecord]) -> dict[str, float | None]:
    """Pearson's correlation of predicted and measured drops over all counterfactuals, and over those of each kind; None where
    one of the two does not vary.
    """
    parts = {"all": list(drops), **{kind: [drop for drop in drops if drop.kind == kind] for kind in KINDS}}
    return {kind: _drop_correlation(part) for kind, part in parts.items()}


def _drop_correlation(drops: Sequence[CounterfactualRecord]) -> float | None:
    pairs = np.array([(drop.predicted_drop, drop.measured_drop) for drop in drops], np.float64).reshape(-1, 2)
    return float(np.corrcoef(pairs.T)[0, 1]) if len(pairs) > 2 and (np.ptp(pairs, axis=0) > 0).all() else None


def median_size(searches: Sequence[SearchRecord]) -> str:
    """The median of verified |R|, censored searches taken for larger than all; '> n' where the median is censored."""
    sizes = sorted(search.size if search.size is not None else np.inf for search in searches)
    middle = float(np.median(sizes)) if sizes else np.inf
    return f"{middle:g}" if np.isfinite(middle) else f"> {max(search.tried for search in searches)}"
