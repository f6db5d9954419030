"""The form of verify.json, checked before anything is made of it: also a file of one's own can be given to be checked again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodels.errors import InputError
from datamodels.reading import Between, Each, Unreadable, read_json, require, whole_number
from datamodels.seals import SEAL, unsealed
from datamodels.verify.counterfactuals import KINDS
from datamodels.verify.methods import METHODS

FORMAT_VERSION = 5
SUPPORT = "support"
"""The rule of a removal whose size the search has found; others are of a fixed size, in digits."""
MOST = 2**31
INDEX, COUNT, LABEL = Between(0, MOST), Between(0, MOST), Between(-1, MOST)

Record = dict[str, Any]

NUMBERS = dict.fromkeys(("mean_margin", "low", "high", "correct", "correct_low", "correct_high"), float)
OUTCOME = {"models": COUNT, **NUMBERS, "confidence": (float, None)}
SIZE = (Between(1, MOST), None)
CHECKED = {"target": INDEX, "method": str, "verdict": str, "size": SIZE, "order": [INDEX], "relabelled": (LABEL, None)}
SEARCH = {
    **CHECKED,
    "label": LABEL,
    "tried": COUNT,
    "base_margin": float,
    "models": COUNT,
    "probes": [{"size": COUNT, "predicted_drop": float, **OUTCOME}],
}
REMOVAL = {
    "target": INDEX,
    "label": (LABEL, None),
    "rule": str,
    "size": COUNT,
    "removed_indices": [INDEX],
    "removed_weights": [float],
    "predicted_before": float,
    "predicted_after": float,
    "before": OUTCOME,
    "after": (OUTCOME, None),
    "control": (OUTCOME, None),
    "right_before": bool,
    "flipped": bool,
    "control_flipped": bool,
}
DROPS = {"target": INDEX, "kind": str, "predicted_drop": float, "measured_drop": float}
VERIFIED = {
    "store_digest": str,
    "looks": [COUNT],
    "models_used": COUNT,
    "fresh": (dict.fromkeys(("subsets", "lds", "lds_ceiling", "pooled", "pooled_ceiling"), float), None),
    "base": Each({**OUTCOME, "label": LABEL}),
    "searches": [SEARCH],
    "removals": [REMOVAL],
    "counterfactuals": [DROPS],
}


def read_verified(path: Path, n: int, t: int, classes: int) -> Record:
    """What a verification of T targets has found about N images.

    Raises Unreadable or InputError where the file is missing, of another format version, damaged, or of other images.
    """
    content = read_json(path)
    require(content, {"format_version": int}, path)
    version = content["format_version"]
    if version != FORMAT_VERSION:
        told = f"{path} has format version {version}, this program reads {FORMAT_VERSION}"
        raise InputError(f"{told}; run datamodels.verify again")
    found = unsealed(content, path)
    require(found, VERIFIED, path)
    for search in found["searches"]:
        _check(search, "order", n, t, path)
        known = search["method"] in METHODS and str(search["target"]) in found["base"]
        if not known or not 0 <= search["label"] < classes or (search["relabelled"] or 0) >= classes:
            raise Unreadable(
                path, f"is damaged: its search for target {search['target']} is of no method, class or margin before"
            )
    for removal in found["removals"]:
        _check(removal, "removed_indices", n, t, path)
        rule, label, weights = removal["rule"], removal["label"], removal["removed_weights"]
        known = rule == SUPPORT or whole_number(rule) is not None
        paired = (removal["after"] is None) == (removal["control"] is None) and len(weights) == len(removal["removed_indices"])
        if not known or not paired or label is None or not 0 <= label < classes:
            raise Unreadable(
                path, f"is damaged: its removal for target {removal['target']} is of no rule or class, or has no control"
            )
    if not all(drop["kind"] in KINDS for drop in found["counterfactuals"]):
        raise Unreadable(path, "is damaged: it has a counterfactual of no kind")
    return found


def read_checked(path: Path, n: int, t: int, classes: int) -> Record:
    """What a recheck needs of a verify.json of any version: `store_digest` and `searches`.

    Raises InputError where the file is none, or tells of images, targets or classes that there are not.
    """
    try:
        found = read_json(path)
        require(found, {"store_digest": str, "searches": [CHECKED]}, path)
    except Unreadable as e:
        raise InputError(f"cannot read {path} as the verify.json of a verification: it {e.why}") from e
    if SEAL in found:
        unsealed(found, path)
    for search in found["searches"]:
        _check(search, "order", n, t, path)
        if search["relabelled"] is not None and not 0 <= search["relabelled"] < classes:
            raise InputError(
                f"{path} relabels images as class {search['relabelled']}, and the classes run from 0 to {classes - 1}"
            )
    return dict(found)


def _check(told: Mapping[str, Any], indices: str, n: int, t: int, path: Path) -> None:
    """Raise Unreadable where a search or removal tells of a target or images that there are not, or of fewer than its size."""
    target, images, size = told["target"], told[indices], told["size"]
    if target >= t:
        raise Unreadable(path, f"tells of target {target}; there are 0 to {t - 1}")
    if len(set(images)) < len(images) or not all(image < n for image in images) or (size or 0) > len(images):
        raise Unreadable(path, f"tells of images for target {target} that there are not, or of fewer than it says")
