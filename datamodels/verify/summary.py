"""Verdicts in short: the table verify.csv, the line that a verification ends with, and the figures of both and of the page."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence

import numpy as np

from datamodels.brittleness.judging import FLIPPED, HELD
from datamodels.settings import FLIP, REPAIR
from datamodels.verify.known import Targets
from datamodels.verify.record import KINDS, SUPPORT, CounterfactualRecord, SearchRecord, Verified

OF_OUTCOME = ("mean_margin", "low", "high", "correct")
COLUMNS = (
    "target",
    "label",
    "method",
    "verdict",
    "size",
    "majority",
    "along",
    "models",
    "judged",
    *OF_OUTCOME,
    "breaks",
    "repairs",
    "name",
)
BEFORE = {FLIP: "not right before", REPAIR: "not wrong before"}
REACHED = {FLIP: "flips", REPAIR: "repairs"}


def table(verified: Verified, targets: Targets) -> str:
    """One line for each target and method: its verdict, |R|, |R| by the majority rule, in which method's order the images are,
    how many models were asked for and how many judged it, and what these say, with the interval at the level of their look.

    `breaks` and `repairs` are the other predictions that the set turns, numbers with spaces between; `name` what the target is
    called, empty for a test image that has but its index.
    """
    text, name = io.StringIO(), targets.name
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for search in verified.searches:
        about = (search.target, search.label, search.method, search.verdict, search.size, search.majority, search.along)
        last = search.last
        outcome = [getattr(last.outcome, name) for name in OF_OUTCOME] if last else [None] * len(OF_OUTCOME)
        beside = [" ".join(map(str, turned or ())) for turned in (search.breaks, search.repairs)]
        writer.writerow([*about, search.models, last.outcome.models if last else None, *outcome, *beside, name(search.target)])
    for target in unsearched(verified):
        base = verified.base[target]
        outcome = [getattr(base.outcome, name) for name in OF_OUTCOME]
        of_base = [target, base.label, "", BEFORE[verified.goal], None, None, "", base.outcome.models, base.outcome.models]
        writer.writerow([*of_base, *outcome, "", "", name(target)])
    return text.getvalue()


def told(verified: Verified, methods: Sequence[str]) -> str:
    """What came out, in a line."""
    does = REACHED[verified.goal]
    parts = [_of_method(method, does, [s for s in verified.searches if s.method == method]) for method in methods]
    repair = verified.goal == REPAIR
    tried = [r for r in verified.removals if r.right_before != repair and r.after and r.rule != SUPPORT]
    if tried:
        made = sum(r.repaired if repair else r.flipped for r in tried)
        control = sum(r.control_repaired if repair else r.control_flipped for r in tried)
        told = f"{made} of {len(tried)} removals of fixed size {verified.goal} a prediction"
        parts.append(f"{told}, and {control} of their controls")
    if verified.random_subsets:
        on = verified.random_subsets
        parts.append(f"LDS {on.lds:.3f} on {on.subsets} random subsets, at best {on.lds_ceiling:.3f}")
    if verified.counterfactuals:
        parts.append(f"predicted and measured drops: {_correlations_told(verified.counterfactuals)}")
    aside = len(unsearched(verified))
    of_these = f" ({aside} {BEFORE[verified.goal]})" if aside else ""
    return "; ".join([*parts, f"{len(verified.base)} targets{of_these}, {verified.models_used} models"])


def unsearched(verified: Verified) -> list[int]:
    """The targets that no search is begun for: those not right, or to repair them not wrong, beyond doubt."""
    wanted = FLIPPED if verified.goal == REPAIR else HELD
    return [target for target, base in verified.base.items() if base.outcome.verdict != wanted]


def _of_method(method: str, does: str, searches: Sequence[SearchRecord]) -> str:
    found = [search for search in searches if search.size is not None]
    size = (
        f", median |R| {median_size(searches)} (by the majority rule {median_size(searches, majority=True)})" if found else ""
    )
    cost = f", {np.mean([search.models for search in searches]):.0f} models each" if searches else ""
    apart = sum(search.two_modes for search in searches)
    far = "below" if does == REACHED[REPAIR] else "above"
    in_some = f"in {apart} search{'es' * (apart > 1)}"
    modes = f", {in_some} a few networks lie far {far} the others" if apart else ""
    return f"{method} {does} {len(found)} of {len(searches)} predictions{size}{_along(found)}{cost}{modes}{_beside(searches)}"


def _along(found: Sequence[SearchRecord]) -> str:
    """How many of the sets come first in the order of a rival, where any do."""
    rivals = Counter(search.along for search in found if search.along not in ("", search.method))
    return "".join(f", {number} of them by the order of {method}" for method, number in rivals.items())


def _beside(searches: Sequence[SearchRecord]) -> str:
    """How many other predictions the sets turn, where that is known and any are."""
    broken, right = beside(searches)
    return f", and breaks {broken} and repairs {right} others" if broken or right else ""


def beside(searches: Sequence[SearchRecord]) -> tuple[int, int]:
    """How many other predictions the sets of some searches break, and how many they repair, counted for each set."""
    return sum(len(search.breaks or ()) for search in searches), sum(len(search.repairs or ()) for search in searches)


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


def median_size(searches: Sequence[SearchRecord], majority: bool = False) -> str:
    """The median of verified |R|, or of |R| by the majority rule, censored searches taken for larger than all; '> n' where the
    median is censored.
    """
    wanted = [search.majority if majority else search.size for search in searches]
    sizes = sorted(np.inf if size is None else size for size in wanted)
    middle = float(np.median(sizes)) if sizes else np.inf
    return f"{middle:g}" if np.isfinite(middle) else f"> {max(search.tried for search in searches)}"
