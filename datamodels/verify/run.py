"""The verification of a run: for each target the smallest set of images that flips its prediction, proved by retraining.

The base margin, on all of S, is measured first; a target that networks do not have right beyond doubt is left alone. For the
others each method's order of images is searched (see `brittleness.search`), all searches at once. Where the datamodel's finds a
set, a control removes as many random images of the target's class, others for each of its models, so that its mean is over the
choice of images as well. Controls of one class and size serve every target of that class.

Beside the search, `verify.sizes` removes so many images with the largest weights from every target, with a control, and
`verify.counterfactuals` sets of three kinds, to see whether the weights say what comes of it.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np

from datamodels import __version__
from datamodels.brittleness import Search, Support, largest_weights, smallest_support, support_of
from datamodels.durable import write_arrays, write_file, write_json
from datamodels.errors import InputError
from datamodels.machine import refuse_tight_limits
from datamodels.regress import Datamodels
from datamodels.runs import read_store, stage_folder
from datamodels.seals import write_sealed
from datamodels.settings import Settings, VerifySettings
from datamodels.store.layout import Array
from datamodels.subsets import IndexArray, mask_without
from datamodels.verify.counterfactuals import KINDS, Counterfactual, counterfactuals
from datamodels.verify.fresh import Fresh, fresh_requests, judge_fresh
from datamodels.verify.hunt import Hunt, go
from datamodels.verify.judge import FLIPPED, HELD, Outcome, judge, looks
from datamodels.verify.methods import (
    DATAMODEL,
    DESCRIBED,
    Orders,
    base_requests,
    check_subsets,
    describe,
    embedding_named,
    methods_named,
    scores_of,
    sizes_named,
)
from datamodels.verify.record import FORMAT_VERSION, SUPPORT, read_checked
from datamodels.verify.retrain import Retrained, alone, retrain
from datamodels.verify.subject import Request, Subject

FRESH = "fresh.npz"
RECHECK_FROM = 10**6
"""Repetitions of a recheck count from here: models that no search has seen."""
COLUMNS = ("target", "label", "method", "verdict", "size", "threshold", "models", "mean_margin", "low", "high", "correct")

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Removal:
    """One set whose removal is measured, with its control; `rule` is 'support' or the fixed size in digits."""

    target: int
    label: int
    rule: str
    support: Support
    removed: list[Request]
    control: list[Request]
    control_size: int


def verify(settings: Settings, subject: Subject, models: Datamodels, targets: list[int]) -> str:
    """Verify the given targets and write verify.json and verify.csv; say in one line what came out.

    Raises InputError when the weights were not made from the run's store as it is, a method or size makes no sense, or another
    process verifies the same run.
    """
    _check_provenance(settings, models)
    refuse_tight_limits()
    with alone(settings) as folder:
        return _verify(settings, subject, models, targets, folder)


def _verify(settings: Settings, subject: Subject, models: Datamodels, targets: list[int], folder: Path) -> str:
    chosen, n = settings.verify, len(subject.train_labels)
    methods, steps = methods_named(chosen, subject), looks(chosen.models, chosen.most_models)
    sizes = sizes_named("verify.sizes", chosen.sizes, n)
    tested = sizes_named("verify.counterfactuals", chosen.counterfactuals, n)
    check_subsets(chosen)
    embedding = embedding_named(chosen, subject, methods)
    scores = scores_of(folder, settings, subject, methods, targets)

    def train(requests: Any, label: str) -> Retrained:
        return retrain(folder / "store", settings, subject, requests, label)

    fresh: Fresh | None = None
    on_all = base_requests(chosen, n)
    found = train(on_all, "verify: all of S")
    described = describe(folder / "base.npz", settings, subject, targets) if DESCRIBED & set(methods) else {}
    orders = Orders(chosen, subject, models, read_store(settings), targets, embedding, scores, described)
    if chosen.subsets:
        requests = fresh_requests(settings, n)
        fresh = judge_fresh(settings, models, train([r for some in requests for r in some], "verify: fresh subsets"), n)
        write_arrays(folder / FRESH, {"predicted": fresh.predicted, "halves": fresh.halves})
    base = {target: judge(*found.of(on_all, target)) for target in targets}
    right = [target for target in targets if base[target].verdict == HELD]
    hunts = [_hunt(orders, method, target, base[target], steps, n) for target in right for method in methods]
    go(hunts, train)
    removals = [
        plan(chosen, subject, orders.weights(target), base[target], target, size) for target in targets for size in sizes
    ]
    removals += [_of_hunt(chosen, subject, orders.weights(hunt.target), hunt) for hunt in hunts if hunt.method == DATAMODEL]
    removed = counterfactuals(chosen, {target: orders.weights(target) for target in targets}, tested)
    wanted = [request for r in removals for request in (*r.removed, *r.control)]
    found = train([*wanted, *(request for r in removed for request in r.requests)], "verify: sets of fixed size, controls")
    result = {
        "format_version": FORMAT_VERSION,
        "version": __version__,
        "store_digest": models.meta["store_digest"],
        "regress": models.meta["regress"],
        "verify": dataclasses.asdict(chosen),
        "looks": steps,
        "models_used": len(_used(on_all, hunts, removals, removed)) + chosen.subsets * chosen.subset_models,
        "fresh": fresh.summary() if fresh else None,
        "base": {
            str(target): {**dataclasses.asdict(outcome), "label": _label(subject, target)} for target, outcome in base.items()
        },
        "searches": [_search_record(hunt, subject, orders.weights(hunt.target), base[hunt.target]) for hunt in hunts],
        "removals": [_verdict(removal, base[removal.target], found) for removal in removals],
        "counterfactuals": [removal.measured(base[removal.target], found) for removal in removed],
    }
    write_sealed(folder / "verify.json", result)
    write_file(folder / "verify.csv", _csv(result).encode())
    return f"verify: {'; '.join(_summary(result, methods, len(targets)))}, in {folder}"


def plan(settings: VerifySettings, subject: Subject, weights: Array, base: Outcome, target: int, size: int) -> Removal:
    """What to train to measure the removal of a fixed number of images from one target, and its control."""
    support = largest_weights(weights, base.mean_margin, size)
    mask = mask_without(len(subject.train_labels), support.indices)
    removed = [Request.of(mask, repetition) for repetition in range(2 * settings.models)]
    return _with_control(settings, subject, Removal(target, _label(subject, target), str(size), support, removed, [], 0))


def _hunt(orders: Orders, method: str, target: int, base: Outcome, steps: list[int], n: int) -> Hunt:
    order = orders.of(method, target)
    search = Search(order, orders.drops(method, target, order), base.mean_margin, orders.settings.ratio)
    return Hunt(target, method, search, orders.relabelled(method, target), n, steps)


def _of_hunt(settings: VerifySettings, subject: Subject, weights: Array, hunt: Hunt) -> Removal:
    """What a search has found, to be compared with a control; no models where it has found nothing."""
    label = _label(subject, hunt.target)
    if hunt.found is None:
        support = smallest_support(weights, hunt.search.base, 0.0, settings.max_size)
        return Removal(hunt.target, label, SUPPORT, support, [], [], 0)
    support, removed = support_of(weights, hunt.search.base, hunt.search.order[: hunt.size]), hunt.judged(hunt.found)
    return _with_control(settings, subject, Removal(hunt.target, label, SUPPORT, support, removed, [], 0))


def _with_control(settings: VerifySettings, subject: Subject, removal: Removal) -> Removal:
    n, label = len(subject.train_labels), int(subject.test_labels[removal.target])
    same_class = np.flatnonzero(subject.train_labels == label)
    size = min(len(removal.support.indices), len(same_class))
    sets = [_control(settings.seed, label, same_class, size, request.repetition) for request in removal.removed]
    control = [Request.of(mask_without(n, r), k.repetition) for r, k in zip(sets, removal.removed, strict=True)]
    return dataclasses.replace(removal, control=control, control_size=size)


def _control(seed: int, label: int, same_class: IndexArray, size: int, repetition: int) -> IndexArray:
    """Random images of one class, a function of (seed, class, size, repetition) alone."""
    return np.random.default_rng([seed, abs(label), size, repetition]).permutation(same_class)[:size]


def _verdict(removal: Removal, base: Outcome, found: Retrained) -> Record:
    def outcome(requests: list[Request]) -> Outcome | None:
        return judge(*found.of(requests, removal.target)) if requests else None

    states = {"before": base, "after": outcome(removal.removed), "control": outcome(removal.control)}
    support, right_before = removal.support, base.mean_margin > 0
    flipped = {state: right_before and result is not None and result.verdict == FLIPPED for state, result in states.items()}
    return {
        "target": removal.target,
        "label": removal.label if removal.label >= 0 else None,
        "rule": removal.rule,
        "size": len(support.indices),
        "control_size": removal.control_size,
        "removed_indices": support.indices.tolist(),
        "removed_weights": support.weights.tolist(),
        "predicted_before": support.predicted_before,
        "predicted_after": support.predicted,
        **{state: dataclasses.asdict(result) if result else None for state, result in states.items()},
        "right_before": right_before,
        "flipped": flipped["after"],
        "control_flipped": flipped["control"],
    }


def _search_record(hunt: Hunt, subject: Subject, weights: Array, base: Outcome) -> Record:
    """All that a search tried. `verdict` is 'flipped', or 'censored' where not even the whole order flips the prediction.

    Each probe has the drop of the margin that the weights predict for the removal of its images.
    """
    tried = max((probe["size"] for probe in hunt.probes), default=0)
    drops = np.cumsum(weights[hunt.search.order])
    probes = [{**probe, "predicted_drop": float(drops[probe["size"] - 1])} for probe in hunt.probes]
    return {
        "target": hunt.target,
        "label": _label(subject, hunt.target),
        "method": hunt.method,
        "relabelled": hunt.relabelled if hunt.relabelled >= 0 else None,
        "verdict": FLIPPED if hunt.size is not None else "censored",
        "size": hunt.size,
        "tried": tried,
        "order": hunt.search.order[: hunt.size or tried].tolist(),
        "weights": weights[hunt.search.order[: hunt.size or tried]].tolist(),
        "base_margin": base.mean_margin,
        "models": len(_models_of(hunt)),
        "probes": probes,
    }


def _models_of(hunt: Hunt) -> set[Request]:
    """Every model that a search has asked for."""
    return {request for probe in hunt.probes for request in hunt.judged(probe)}


def _used(on_all: list[Request], hunts: list[Hunt], removals: list[Removal], removed: list[Counterfactual]) -> set[Request]:
    used = set(on_all).union(*(_models_of(hunt) for hunt in hunts), *(set(some.requests) for some in removed))
    return used.union(*({*removal.removed, *removal.control} for removal in removals))


def _label(subject: Subject, target: int) -> int:
    return int(subject.test_labels[target])


def _check_provenance(settings: Settings, models: Datamodels) -> None:
    store, weights = read_store(settings), stage_folder(settings, "regress")
    if models.meta["store_digest"] != store.digest():
        raise InputError(f"the weights in {weights} are not from the store as it is now; run python -m datamodels.regress")
    models.refuse_other(store)


def _csv(result: Record) -> str:
    """One line for each target and method: its verdict, |R|, the bound C of the probe, and the judged models."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for search in result["searches"]:
        last: Record = next((p for p in search["probes"] if p["size"] == (search["size"] or search["tried"])), {})
        writer.writerow({**last, **search, "models": search["models"]})
    for target, base in result["base"].items():
        if not any(search["target"] == int(target) for search in result["searches"]):
            writer.writerow({"target": target, "method": "", "verdict": "not right before", **base})
    return text.getvalue()


def _summary(result: Record, methods: list[str], targets: int) -> list[str]:
    told = []
    for method in methods:
        searches = [search for search in result["searches"] if search["method"] == method]
        sizes = [search["size"] for search in searches if search["size"] is not None]
        size = f", median |R| {median_size(searches)}" if sizes else ""
        cost = f", {np.mean([search['models'] for search in searches]):.0f} models each" if searches else ""
        told.append(f"{method} flips {len(sizes)} of {len(searches)} predictions{size}{cost}")
    tried = [r for r in result["removals"] if r["right_before"] and r["after"] and r["rule"] != SUPPORT]
    if tried:
        flipped, control = (sum(v[name] for v in tried) for name in ("flipped", "control_flipped"))
        told.append(f"{flipped} of {len(tried)} removals of fixed size flip a prediction, and {control} of their controls")
    if result["fresh"]:
        fresh = result["fresh"]
        told.append(f"LDS {fresh['lds']:.3f} on {fresh['subsets']} fresh subsets, at best {fresh['lds_ceiling']:.3f}")
    told += [f"predicted and measured drops: {_correlations_told(result)}"] if result["counterfactuals"] else []
    return [*told, f"{targets} targets, {result['models_used']} models"]


def _correlations_told(result: Record) -> str:
    found = drop_correlations(result)
    return ", ".join(f"{kind} {'–' if r is None else f'{r:.2f}'}" for kind, r in found.items())


def drop_correlations(result: Record) -> dict[str, float | None]:
    """Pearson's correlation of predicted and measured drops over all counterfactuals, and over those of each kind; None where
    one of the two does not vary.
    """
    told = result["counterfactuals"]
    parts = {"all": told, **{kind: [c for c in told if c["kind"] == kind] for kind in KINDS}}
    return {kind: _drop_correlation(part) for kind, part in parts.items()}


def _drop_correlation(told: list[Record]) -> float | None:
    drops = np.array([(c["predicted_drop"], c["measured_drop"]) for c in told], np.float64).reshape(-1, 2)
    return float(np.corrcoef(drops.T)[0, 1]) if len(drops) > 2 and (np.ptp(drops, axis=0) > 0).all() else None


def median_size(searches: list[Record]) -> str:
    """The median of verified |R|, censored searches taken for larger than all; '> n' where the median is censored."""
    sizes = sorted(search["size"] if search["size"] is not None else np.inf for search in searches)
    middle = float(np.median(sizes)) if sizes else np.inf
    return f"{middle:g}" if np.isfinite(middle) else f"> {max(search['tried'] for search in searches)}"


def recheck(settings: Settings, subject: Subject, file: Path) -> str:
    """Retrain the sets that a verify.json calls flipped, with fresh models, and write recheck.json beside the run's own.

    A verdict holds when the mean margin of the fresh models, as many as of a last look, is at most 0 again. Raises InputError
    when the file is none, or has no such verdict.
    """
    n, t = len(subject.train_labels), len(subject.test_labels)
    told = read_checked(file, n, t, int(subject.train_labels.max()) + 1)
    flipped, digest = [s for s in told["searches"] if s["verdict"] == FLIPPED and s["size"] is not None], told["store_digest"]
    if digest != read_store(settings).digest():
        raise InputError(f"{file} was made from another store than that of this run")
    if not flipped:
        raise InputError(f"{file} has no prediction that was flipped; there is nothing to check again")
    n = len(subject.train_labels)
    number = looks(settings.verify.models, settings.verify.most_models)[-1]

    def requests(search: Record) -> list[Request]:
        mask = mask_without(n, search["order"][: search["size"]])
        to = -1 if search["relabelled"] is None else search["relabelled"]
        return [Request.of(mask, repetition, to) for repetition in range(RECHECK_FROM, RECHECK_FROM + number)]

    wanted = [request for search in flipped for request in requests(search)]
    with alone(settings) as folder:
        found = retrain(folder / "store", settings, subject, wanted, "recheck")
        verdicts = []
        for search in flipped:
            fresh = judge(*found.of(requests(search), search["target"]))
            about = {name: search[name] for name in ("target", "method", "size")}
            verdicts.append({**about, "holds": fresh.mean_margin <= 0, "fresh": dataclasses.asdict(fresh)})
        holds = sum(verdict["holds"] for verdict in verdicts)
        write_json(folder / "recheck.json", {"checked": str(file), "models": number, "holds": holds, "verdicts": verdicts})
        return f"recheck: {holds} of {len(verdicts)} flipped verdicts hold with {number} fresh models each, in {folder}"
