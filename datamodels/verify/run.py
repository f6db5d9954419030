"""The verification of a run: for each target the set R to remove, models retrained without it, and beside it the control.

Where the datamodel knows no set of at most `verify.max_size` images that brings g to C, there is nothing to prove, and nothing
is trained. The control removes as many random images of the target's class, others for each of its models, so that its mean is
over the choice of images as well. Controls of one class and size serve every target of that class.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodels import __version__
from datamodels.brittleness import Support, largest_weights, smallest_support
from datamodels.durable import write_json
from datamodels.errors import InputError
from datamodels.regress import Datamodels
from datamodels.runs import read_store, stage_folder
from datamodels.settings import Settings, VerifySettings
from datamodels.subsets import IndexArray, mask_without
from datamodels.verify.judge import Outcome, judge
from datamodels.verify.retrain import retrain
from datamodels.verify.subject import Request, Subject

FORMAT_VERSION = 1
SUPPORT = "support"


@dataclass(frozen=True)
class Removal:
    """One thing to put to the proof: for one target, remove R; `rule` is 'support' or the fixed size in digits.

    `removed` and `control` are the models to train for it, none where no R reaches the threshold.
    """

    target: int
    label: int
    rule: str
    support: Support
    removed: list[Request]
    control: list[Request]
    control_size: int


def verify(settings: Settings, subject: Subject, models: Datamodels, targets: list[int]) -> str:
    """Verify the given targets and write verify.json; say in one line what came out.

    Raises InputError when the weights were not made from the run's store as it is.
    """
    _check_provenance(settings, models)
    n, j = len(subject.train_labels), settings.verify.models
    rules = removal_rules(settings.verify, n)
    removals = [plan(settings.verify, subject, models, target, rule) for target in targets for rule in rules]
    base = [Request.of(mask_without(n, []), r) for r in range(j)]
    requests = [*base, *(request for removal in removals for request in (*removal.removed, *removal.control))]
    folder = stage_folder(settings, "verify")
    folder.mkdir(parents=True, exist_ok=True)
    margins = retrain(folder / "store", settings, subject, requests)
    by_request = dict(zip(requests, margins, strict=True))
    result = {
        "format_version": FORMAT_VERSION,
        "version": __version__,
        "store_digest": models.meta["store_digest"],
        "regress": models.meta["regress"],
        "verify": dataclasses.asdict(settings.verify),
        "models_used": len(by_request),
        "removals": [_verdict(removal, base, by_request) for removal in removals],
    }
    write_json(folder / "verify.json", result)
    return _summary(result["removals"], folder)


def removal_rules(settings: VerifySettings, n: int) -> list[str]:
    """The rules in `verify.sizes`. Raises InputError for a word that is neither 'support' nor a size from 1 to N-1."""
    rules = [word.strip() for word in settings.sizes.split(",")]
    for rule in rules:
        if rule != SUPPORT and not (rule.isascii() and rule.isdigit() and 0 < int(rule) < n):
            raise InputError(f"verify.sizes takes '{SUPPORT}' and sizes from 1 to {n - 1}, with commas between, not {rule!r}")
    return list(dict.fromkeys(rules))


def plan(settings: VerifySettings, subject: Subject, models: Datamodels, target: int, rule: str) -> Removal:
    """What to train for one target and one rule."""
    weights, bias = models.of(target)
    if rule == SUPPORT:
        support = smallest_support(weights, bias, settings.threshold, min(settings.max_size, len(weights) - 1))
    else:
        support = largest_weights(weights, bias, settings.threshold, int(rule))
    label, n = int(subject.test_labels[target]), len(weights)
    same_class = np.flatnonzero(subject.train_labels == label)
    size = min(len(support.indices), len(same_class))
    no_such_set = rule == SUPPORT and not support.reaches
    repetitions = range(0 if no_such_set else settings.models)
    removed = [Request.of(mask_without(n, support.indices), r) for r in repetitions]
    control = [Request.of(mask_without(n, _control(settings.seed, label, same_class, size, r)), r) for r in repetitions]
    return Removal(target, label, rule, support, removed, control, size)


def _control(seed: int, label: int, same_class: IndexArray, size: int, repetition: int) -> IndexArray:
    """Random images of one class, a function of (seed, class, size, repetition) alone."""
    return np.random.default_rng([seed, abs(label), size, repetition]).permutation(same_class)[:size]


def _verdict(removal: Removal, base: list[Request], margins: dict[Request, Any]) -> dict[str, Any]:
    def outcome(requests: list[Request]) -> Outcome | None:
        return judge(np.array([margins[request][removal.target] for request in requests])) if requests else None

    states = {"before": outcome(base), "after": outcome(removal.removed), "control": outcome(removal.control)}
    support, before = removal.support, states["before"]
    right_before = before is not None and before.mean_margin > 0
    flipped = {state: right_before and result is not None and result.wrong for state, result in states.items()}
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
        "reaches_threshold": support.reaches,
        **{state: dataclasses.asdict(result) if result else None for state, result in states.items()},
        "right_before": right_before,
        "flipped": flipped["after"],
        "control_flipped": flipped["control"],
    }


def _check_provenance(settings: Settings, models: Datamodels) -> None:
    store, weights = read_store(settings), stage_folder(settings, "regress")
    if models.meta["store_digest"] != store.digest():
        raise InputError(f"the weights in {weights} are not from the store as it is now; run python -m datamodels.regress")


def _summary(verdicts: list[dict[str, Any]], folder: Path) -> str:
    tried = [v for v in verdicts if v["right_before"] and v["after"]]
    flipped, control = (sum(v[name] for v in tried) for name in ("flipped", "control_flipped"))
    found = f"{flipped} of {len(tried)} removals flip a prediction that was right, and {control} of their controls"
    without = sum(not v["after"] for v in verdicts)
    none = f"; for {without} targets no set is known that should" if without else ""
    return f"verify: {found}{none}, in {folder}"
