"""What verification has found out about single targets, as the page's script reads it."""

from __future__ import annotations

from typing import Any

import numpy as np

from datamodels.brittleness import Outcome
from datamodels.regress import Datamodels
from datamodels.settings import REPAIR
from datamodels.subsets import Array
from datamodels.verify.known import Targets
from datamodels.verify.methods import DATAMODEL
from datamodels.verify.record import SUPPORT, Probe, RemovalRecord, SearchRecord, Verified

MOST_IN_ORDER = 1000
"""Images of an order that a page has: more than can be looked at."""

Record = dict[str, Any]


class Answers:
    """Everything in verify.json, target by target."""

    def __init__(self, verified: Verified, models: Datamodels, targets: Targets) -> None:
        self.verified, self.models, self.targets = verified, models, targets
        self.searches: dict[int, list[SearchRecord]] = {}
        self.removals: dict[int, list[RemovalRecord]] = {}
        for search in verified.searches:
            self.searches.setdefault(search.target, []).append(search)
        for removal in verified.removals:
            self.removals.setdefault(removal.target, []).append(removal)

    @property
    def asked(self) -> list[int]:
        """The targets that anything is known of."""
        return sorted({*self.verified.base, *self.searches, *self.removals})

    def weights(self, target: int) -> Array | None:
        """Weights (N,) of a target, of a behaviour their mean; None where there are none for it."""
        columns = [member - self.models.targets.start for member in self.targets.members(target)]
        if not all(0 <= column < len(self.models.targets) for column in columns):
            return None
        found: Array = np.asarray(self.models.weights[:, columns]).mean(1, dtype=np.float64)
        return found

    def of(self, target: int) -> Record | None:
        """All that was found out about a target; None where nothing was."""
        if target not in self.verified.base:
            return None
        weights = self.weights(target)
        return {
            "base": outcome(self.verified.base[target].outcome),
            "searches": [self._search(search, weights) for search in self.searches.get(target, [])],
            "removals": [_removal(removal) for removal in self.removals.get(target, [])],
        }

    def size(self, target: int) -> int | None:
        """The smallest verified number of images, of those that a search along the datamodel's order or another removes."""
        found = self.searches.get(target, [])
        first = [s.size for s in found if s.method == DATAMODEL and s.size is not None]
        others = [s.size for s in found if s.relabelled is None and s.size is not None]
        return min(first or others, default=None)

    def relabelled_size(self, target: int) -> int | None:
        """The smallest verified number of images, of those that a search relabels."""
        found = self.searches.get(target, [])
        return min((s.size for s in found if s.relabelled is not None and s.size is not None), default=None)

    def _search(self, search: SearchRecord, weights: Array | None) -> Record:
        order = search.order[:MOST_IN_ORDER]
        drops = None if weights is None else np.cumsum(weights[list(order)])
        return {
            "method": search.method,
            "along": search.along or search.method,
            "orders": [[order.method, order.size] for order in search.orders if order.tried],
            "verdict": search.verdict,
            "relabelled": search.relabelled,
            "size": search.size,
            "tried": search.tried,
            "order": order,
            "drops": drops,
            "probes": [_probe(probe) for probe in sorted(search.probes, key=lambda probe: probe.size)],
            "confirmed": outcome(search.confirmed),
            "twoModes": search.two_modes,
            "models": search.models,
            "breaks": search.breaks,
            "repairs": search.repairs,
        }

    def first(self) -> int | None:
        """The target that a page opens with: the one whose answer strikes most."""
        return max(self.asked, key=lambda target: (self._striking(target), -target), default=None)

    def _striking(self, target: int) -> float:
        """How much fewer, or to repair more, networks are right without the set than with all of S, and than without as many
        random images where that is known; by the size of the set.
        """
        base = self.verified.base[target].outcome if target in self.verified.base else None
        best = 0.0
        for search in self.searches.get(target, []):
            after = judged(search)
            if base is None or after is None or search.size is None or search.relabelled is not None:
                continue
            control = self._control(target) if search.method == DATAMODEL else None
            sign = 1 if self.verified.goal == REPAIR else -1
            turned = min(sign * (after.correct - beside.correct) for beside in (base, control) if beside is not None)
            best = max(best, (1.0 if control is not None else 0.5) * turned * _looks_good(search.size))
        return best

    def _control(self, target: int) -> Outcome | None:
        found = [removal.control for removal in self.removals.get(target, []) if removal.rule == SUPPORT]
        return found[0] if found else None


def _looks_good(size: int) -> float:
    """Sets of a handful say most: a single image can be an accident, hundreds cannot be looked at."""
    return float(1.0 / (1.0 + abs(np.log2(size / 8.0))))


def judged(search: SearchRecord) -> Outcome | None:
    """What is to be believed of the set that a search ends with: what fresh networks say, or else those that found it."""
    last = search.last
    return search.confirmed or (last.outcome if last else None)


def outcome(found: Outcome | None) -> Record | None:
    """Networks, mean margin and interval, how many are right, and the share's interval."""
    if found is None:
        return None
    return {
        "models": found.models,
        "mean": found.mean_margin,
        "low": found.low,
        "high": found.high,
        "right": round(found.correct * found.models),
        "share": [found.correct, found.correct_low, found.correct_high],
        "confidence": found.confidence,
    }


def _probe(probe: Probe) -> Record:
    return {"size": probe.size, "verdict": probe.verdict, "drop": probe.predicted_drop, "outcome": outcome(probe.outcome)}


def _removal(removal: RemovalRecord) -> Record:
    return {
        "rule": removal.rule,
        "size": removal.size,
        "controlSize": removal.control_size,
        "order": removal.removed_indices,
        "drops": np.cumsum(removal.removed_weights),
        "before": outcome(removal.before),
        "after": outcome(removal.after),
        "control": outcome(removal.control),
        "predicted": [removal.predicted_before, removal.predicted_after],
        "flipped": removal.flipped or removal.repaired,
    }
