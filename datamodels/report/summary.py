"""The figures of a run: summary.json, and the numbers at the head of the page's evidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from datamodels import __version__
from datamodels.brittleness import Outcome
from datamodels.machine import describe_machine
from datamodels.regress import Datamodels
from datamodels.report.figures import DONE
from datamodels.store import Store
from datamodels.verify.record import SUPPORT, RemovalRecord, SearchRecord, Verified
from datamodels.verify.summary import beside, drop_correlations, median_size
from datamodels.verify.typed import to_json

Record = dict[str, Any]


def summarise(store: Store, models: Datamodels, verified: Verified, tests: int) -> Record:
    """The figures of the run, of whose targets the first so many are test images.

    Those about removals are of the fixed size where there is one; `by_rule` has them all.
    """
    rules = {rule: _summarise_rule(verdicts) for rule, verdicts in by_rule(verified).items()}
    main = next((rule for rule in rules if rule != SUPPORT), SUPPORT)
    rules.setdefault(main, _summarise_rule([]))
    return {
        "models": len(store.done),
        "heldout_models": len(models.heldout),
        "lds": models.metrics["mean"]["lds"],
        "accuracy": accuracy(store, tests),
        "targets_asked": len(verified.base),
        "rule": main,
        **rules[main],
        "by_rule": rules,
        "goal": verified.goal,
        "by_method": {method: _summarise_method(found, DONE[verified.goal]) for method, found in by_method(verified).items()},
        "random_subsets": to_json(verified.random_subsets),
        "drop_correlations": drop_correlations(verified.counterfactuals),
        "models_retrained": verified.models_used,
        "version": __version__,
        "machine": describe_machine(),
        "store_digest": models.meta["store_digest"],
    }


def _summarise_method(searches: list[SearchRecord], done: str) -> Record:
    breaks, repairs = beside(searches)
    return {
        "targets": len(searches),
        done: sum(search.size is not None for search in searches),
        "sizes": {str(search.target): search.size for search in searches},
        "orders": orders_of(searches),
        "median_size": median_size(searches),
        "median_by_majority": median_size(searches, majority=True),
        "with_two_modes": sum(search.two_modes for search in searches),
        "others_broken": breaks,
        "others_repaired": repairs,
        "models_per_target": float(np.mean([search.models for search in searches])) if searches else None,
    }


def orders_of(searches: Sequence[SearchRecord]) -> Record:
    """Where rivals were asked: of each order the verified |R| along it, target by target, None where it found no smaller set
    than the orders asked before; how many answers are along it; its networks a target.
    """
    methods = dict.fromkeys(order.method for search in searches for order in search.orders)
    return {method: _of_order(method, searches) for method in methods}


def _of_order(method: str, searches: Sequence[SearchRecord]) -> Record:
    found = [(search, order) for search in searches for order in search.orders if order.method == method]
    return {
        "sizes": {str(search.target): order.size for search, order in found},
        "answers": sum(search.size is not None and search.along == method for search, _ in found),
        "models_per_target": float(np.mean([order.models for _, order in found])),
    }


def accuracy(store: Store, tests: int) -> float | None:
    """Share of pairs of model and test image that are right, over all models of the store; None where no target is one."""
    parts = (store.done[k : k + 1000] for k in range(0, len(store.done), 1000))
    right = sum(int((store.margins(ids)[:, :tests] > 0).sum()) for ids in parts)
    return right / (len(store.done) * tests) if tests else None


def _summarise_rule(verdicts: list[RemovalRecord]) -> Record:
    tried = [v for v in verdicts if v.after]

    def mean(values: list[float]) -> float | None:
        return float(np.mean(values)) if values else None

    def drop(after: Callable[[RemovalRecord], Outcome | None]) -> float | None:
        found = [(v.before, after(v)) for v in tried]
        return mean([before.mean_margin - outcome.mean_margin for before, outcome in found if outcome is not None])

    return {
        "targets": len(verdicts),
        "tried": len(tried),
        "mean_size": mean([v.size for v in tried]),
        "mean_margin_drop_removed": drop(lambda v: v.after),
        "mean_margin_drop_control": drop(lambda v: v.control),
        "right_before": sum(v.right_before for v in tried),
        "flipped_removed": sum(v.flipped for v in verdicts),
        "flipped_control": sum(v.control_flipped for v in verdicts),
        "repaired_removed": sum(v.repaired for v in verdicts),
        "repaired_control": sum(v.control_repaired for v in verdicts),
    }


def by_rule(verified: Verified) -> dict[str, list[RemovalRecord]]:
    """Its removals, by the rule of their size."""
    rules: dict[str, list[RemovalRecord]] = {}
    for verdict in verified.removals:
        rules.setdefault(verdict.rule, []).append(verdict)
    return rules


def by_method(verified: Verified) -> dict[str, list[SearchRecord]]:
    """Its searches, by the method that ordered the images."""
    methods: dict[str, list[SearchRecord]] = {}
    for search in verified.searches:
        methods.setdefault(search.method, []).append(search)
    return methods
