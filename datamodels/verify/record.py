"""What a verification has found, and the one place that writes and reads verify.json; page, table and Python take the records.

What is read is checked before it is believed: also a file of one's own can be given to be checked again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from datamodels.brittleness.judging import FLIPPED, Outcome
from datamodels.durable import write_json
from datamodels.errors import InputError, shown
from datamodels.reading import Between, Unreadable, read_json, require, whole_number
from datamodels.seals import SEAL, unsealed, write_sealed
from datamodels.settings import FLIP
from datamodels.verify.known import MOST, Behaviour, Examples, Index, Targets
from datamodels.verify.methods import is_method
from datamodels.verify.typed import FLAT, read, to_json

VERDICTS = "verify.json"
FORMAT_VERSION = 7
SUPPORT = "support"
"""The rule of a removal whose size the search has found; others are of a fixed size, in digits."""
TOP, RANDOM, BOTTOM = KINDS = ("top", "random", "bottom")
"""Of counterfactuals: the largest weights, random images, the smallest weights."""
REPAIRED = "repaired"
"""The verdict of a set that makes a wrong prediction right."""

LEAST_BY_MAJORITY = 4
"""Networks of a set that the majority rule goes by."""

Count = Annotated[int, Between(0, MOST)]
Size = Annotated[int, Between(1, MOST)]
Label = Annotated[int, Between(-1, MOST)]


@dataclass(frozen=True)
class OnAll:
    """A target's margin before: what networks trained on all of S say, and its class, -1 where that is not known."""

    outcome: Annotated[Outcome, FLAT]
    label: Label


@dataclass(frozen=True)
class Probe:
    """One set that a search tried, its first `size` images.

    Of its networks `asked` were asked for by the search, and `fresh` to confirm it; of both those that diverged do not count in
    `outcome.models`. Of the set that was found the outcome is that of the fresh ones alone, at the level of their look.
    `verdict` is that of the search for it; of any other set 'held' where its 95 % interval says so, else 'undecided'.
    `expected` is the margin that the search expected of the set before it was tried, `predicted_drop` what the weights alone
    predict for the removal of the images, in logits.
    """

    size: Count
    expected: float
    asked: Count
    verdict: str
    outcome: Annotated[Outcome, FLAT]
    predicted_drop: float
    fresh: Count = 0


@dataclass(frozen=True)
class Claim:
    """That the first `size` images of an order flip, or repair, a target's prediction: what a recheck needs of a search."""

    target: Index
    method: str
    verdict: str
    size: Size | None
    order: tuple[Index, ...]
    relabelled: Label | None


@dataclass(frozen=True)
class OrderRecord:
    """How far the search along one method's order came, where rivals were asked beside the datamodel: the smallest verified |R|
    along it, the largest set tried, its networks.

    A rival that was searched in its own right has the size that this has found. Any other was asked for a plainly smaller set
    alone: where there is none its size is None.
    """

    method: str
    size: Size | None
    tried: Count
    models: Count


@dataclass(frozen=True)
class SearchRecord:
    """All that a search tried. `verdict` is 'flipped' or 'repaired', or 'censored' where no set of the order is proved to do
    that.

    `size` is the smallest verified |R|, `tried` the largest set tried, `relabelled` the class that R gets where it stays in,
    `base_margin` the mean margin on all of S, `models` how many networks the search asked for. Of the other columns of the
    margins, with the set that was found, `breaks` are those that were right beyond doubt and are wrong beyond doubt now,
    `repairs` those the other way, by the networks that judged the set, at a level for all columns and looks together (see
    `judging.beyond_doubt`); None where no set was found. `two_modes` says that some of the search's networks lie far above the
    others, or where sets repair far below (see `brittleness.modes`).

    `along` is the method whose order the images are in: where rivals were asked perhaps another one than `method`. `orders`
    says how far each order came; it is empty where no rival was asked. What earlier versions wrote has neither.
    """

    target: Index
    label: Label
    method: str
    relabelled: Label | None
    verdict: str
    size: Size | None
    tried: Count
    order: tuple[Index, ...]
    weights: tuple[float, ...]
    base_margin: float
    models: Count
    probes: tuple[Probe, ...]
    breaks: tuple[Index, ...] | None = None
    repairs: tuple[Index, ...] | None = None
    two_modes: bool = False
    along: str = ""
    orders: tuple[OrderRecord, ...] = ()

    @property
    def last(self) -> Probe | None:
        """The probe of the set that was found, or else of the largest one; None where nothing was tried."""
        return next((probe for probe in self.probes if probe.size == (self.size or self.tried)), None)

    @property
    def confirmed(self) -> Outcome | None:
        """What fresh networks say of the set that was found; None without one."""
        return None if self.size is None or self.last is None else self.last.outcome

    @property
    def majority(self) -> int | None:
        """|R| by the rule of earlier papers: the smallest set tried of which at most half of the networks are right, or where
        sets repair more than half, and so all larger ones tried; None where the largest is not. Sets of which fewer than 4
        networks tell, and not all the same, are left out.
        """
        found = None
        told = [p for p in self.probes if p.outcome.models >= LEAST_BY_MAJORITY or p.outcome.low == p.outcome.high]
        for probe in sorted(told, key=lambda probe: -probe.size):
            if (probe.outcome.correct <= 0.5) == (self.base_margin < 0):
                break
            found = probe.size
        return found


@dataclass(frozen=True)
class RemovalRecord:
    """A set removed, beside a control: as many random images of the target's class, or, where the goal is to repair, of the
    classes of the images removed. Margins before, after, and the control's.

    `after` and `control` are None where the search found no set. A prediction that was right is `flipped` where it is wrong
    beyond doubt after, one that was wrong `repaired` where it is right beyond doubt.
    """

    target: Index
    label: Label | None
    rule: str
    size: Count
    control_size: Count
    removed_indices: tuple[Index, ...]
    removed_weights: tuple[float, ...]
    predicted_before: float
    predicted_after: float
    before: Outcome
    after: Outcome | None
    control: Outcome | None
    right_before: bool
    flipped: bool
    control_flipped: bool
    repaired: bool = False
    control_repaired: bool = False


@dataclass(frozen=True)
class CounterfactualRecord:
    """A set removed to compare the drop of the mean margin, with its interval, with the one that the weights predict."""

    target: Index
    kind: str
    size: Count
    indices: tuple[Index, ...]
    predicted_drop: float
    measured_drop: float
    low: float
    high: float
    models: Count


@dataclass(frozen=True)
class RandomSubsetsRecord:
    """LDS (mean over targets) and Pearson's correlation over all pairs, on random subsets, each with its ceiling."""

    subsets: Count
    lds: float
    lds_ceiling: float
    pooled: float
    pooled_ceiling: float


@dataclass(frozen=True)
class Verified:
    """Everything in verify.json. `regress` and `verify` are the settings under which it was made, `inputs` the digests of
    files beside them that decide it, `looks` the numbers of networks of a search's looks, `models_used` the number of different
    networks retrained.
    """

    format_version: int
    version: str
    store_digest: str
    regress: Mapping[str, object]
    verify: Mapping[str, object]
    inputs: Mapping[str, str]
    looks: tuple[Count, ...]
    models_used: Count
    random_subsets: RandomSubsetsRecord | None
    base: dict[int, OnAll]
    searches: tuple[SearchRecord, ...]
    removals: tuple[RemovalRecord, ...]
    counterfactuals: tuple[CounterfactualRecord, ...]
    behaviours: tuple[Behaviour, ...] = ()

    def targets(self, examples: Examples) -> Targets:
        """What its targets are, by their numbers."""
        return Targets(examples, self.behaviours)

    @property
    def goal(self) -> str:
        """What sets were searched to do; an earlier version knew of one goal only, and did not say."""
        return str(self.verify.get("goal", FLIP))

    def and_more(self, more: Verified) -> Verified:
        """These findings as they are, and after them those about other targets; the number of networks is `more`'s."""
        return dataclasses.replace(
            self,
            models_used=more.models_used,
            base=self.base | more.base,
            searches=self.searches + more.searches,
            removals=self.removals + more.removals,
            counterfactuals=self.counterfactuals + more.counterfactuals,
            behaviours=more.behaviours,
        )


@dataclass(frozen=True)
class Claims:
    """What a recheck needs of a verify.json."""

    store_digest: str
    searches: tuple[Claim, ...]
    behaviours: tuple[Behaviour, ...] = ()

    @property
    def made(self) -> list[Claim]:
        """Those that there is something to check about."""
        return [claim for claim in self.searches if claim.verdict in (FLIPPED, REPAIRED) and claim.size is not None]


@dataclass(frozen=True)
class RecheckRecord:
    """Whether a claim holds with networks that no search has seen: their mean margin is at most 0 again, or where the
    prediction was repaired above 0. `verdict` is what the 95 % interval of that mean says: 'flipped' where the whole of it is
    at most 0, 'held' where it is above, else 'undecided'. `name` is what the target is called, None for a test image that has
    but its index.
    """

    target: Index
    method: str
    size: Size
    holds: bool
    verdict: str
    outcome: Outcome
    name: str | None = None


@dataclass(frozen=True)
class Rechecked:
    """Everything in recheck.json: of which file, with how many networks for each claim, how many hold, and how many of these
    beyond doubt, by their intervals.
    """

    checked: str
    models: Count
    holds: Count
    beyond_doubt: Count
    verdicts: tuple[RecheckRecord, ...]


def write_verified(folder: Path, verified: Verified) -> None:
    """Write verify.json, whole or not at all."""
    write_sealed(folder / VERDICTS, to_json(verified))


def write_rechecked(folder: Path, rechecked: Rechecked) -> None:
    """Write recheck.json, whole or not at all."""
    write_json(folder / "recheck.json", to_json(rechecked))


def read_verified(path: Path, n: int, t: int, classes: int) -> Verified:
    """What a verification of T targets has found about N images; `classes` is 0 where they are not known.

    Raises Unreadable or InputError where the file is missing, of another format version, damaged, or of other images.
    """
    content = read_json(path)
    require(content, {"format_version": int}, path)
    version = content["format_version"]
    if version != FORMAT_VERSION:
        told = f"{path} has format version {version}, this program reads {FORMAT_VERSION}"
        raise InputError(f"{told}; give --verify.name, or delete it, and run datamodels.verify again")
    found = read(Verified, unsealed(content, path), path)
    t = _with_behaviours(found.behaviours, t, path)
    for target in found.base:
        _check(target, (), None, n, t, path)
    for search in found.searches:
        _check_search(search, found, n, t, classes, path)
    for removal in found.removals:
        _check_removal(removal, found, n, t, classes, path)
    for drop in found.counterfactuals:
        _check(drop.target, drop.indices, drop.size, n, t, path)
        if drop.kind not in KINDS:
            raise Unreadable(path, "is damaged: it has a counterfactual of no kind")
    return found


def _check_search(search: SearchRecord, found: Verified, n: int, t: int, classes: int, path: Path) -> None:
    _check(search.target, search.order, search.size, n, t, path)
    named = (search.method, *([search.along] if search.along else []), *(order.method for order in search.orders))
    known = all(map(is_method, named)) and search.target in found.base and len(search.weights) == len(search.order)
    labelled = not classes or (_is_labelled(search.target, search.label, found, classes) and (search.relabelled or 0) < classes)
    beside = max((*(search.breaks or ()), *(search.repairs or ())), default=0) < t - len(found.behaviours)
    if not known or not labelled or not beside:
        raise Unreadable(path, f"is damaged: its search for target {search.target} is of no method, class or margin before")


def _check_removal(removal: RemovalRecord, found: Verified, n: int, t: int, classes: int, path: Path) -> None:
    _check(removal.target, removal.removed_indices, removal.size, n, t, path)
    known = (removal.rule == SUPPORT or whole_number(removal.rule) is not None) and removal.target in found.base
    paired = (removal.after is None) == (removal.control is None)
    paired = paired and len(removal.removed_weights) == len(removal.removed_indices)
    labelled = not classes or _is_labelled(removal.target, removal.label, found, classes)
    if not known or not paired or not labelled:
        raise Unreadable(path, f"is damaged: its removal for target {removal.target} is of no rule or class, or has no control")


def _is_labelled(target: int, label: int | None, found: Verified, classes: int) -> bool:
    """Whether a label is a class; a behaviour of several has none."""
    of_several = any(behaviour.number == target for behaviour in found.behaviours) and label in (None, -1)
    return of_several or (label is not None and 0 <= label < classes)


def _with_behaviours(behaviours: Sequence[Behaviour], t: int, path: Path) -> int:
    """How many targets there are with the behaviours. Raises Unreadable where these are not of the T columns or in order."""
    for number, behaviour in enumerate(behaviours, t):
        of = behaviour.targets
        if behaviour.number != number or not of or len(set(of)) < len(of) or max(of) >= t:
            raise Unreadable(path, f"is damaged: its behaviour {shown(behaviour.name, 80)!r} is not of targets 0 to {t - 1}")
    if len({behaviour.name for behaviour in behaviours}) < len(behaviours):
        raise Unreadable(path, "is damaged: two of its behaviours have one name")
    return t + len(behaviours)


def read_claims(path: Path, n: int, t: int, classes: int) -> Claims:
    """What a recheck needs of a verify.json of any version, and of one's own.

    Raises InputError where the file is none, or tells of images, targets or classes that there are not.
    """
    try:
        content = read_json(path)
        found = read(Claims, content, path)
    except Unreadable as e:
        raise InputError(f"cannot read {path} as the verify.json of a verification: it {e.why}") from e
    if SEAL in content:
        unsealed(content, path)
    t = _with_behaviours(found.behaviours, t, path)
    for claim in found.searches:
        _check(claim.target, claim.order, claim.size, n, t, path)
        if claim.relabelled is not None and not 0 <= claim.relabelled < classes:
            raise InputError(f"{path} relabels images as class {claim.relabelled}, and the classes run from 0 to {classes - 1}")
    return found


def _check(target: int, images: Sequence[int], size: int | None, n: int, t: int, path: Path) -> None:
    """Raise Unreadable where a record tells of a target or images that there are not, or of fewer than its size."""
    if target >= t:
        raise Unreadable(path, f"tells of target {target}; there are 0 to {t - 1}")
    if len(set(images)) < len(images) or not all(image < n for image in images) or (size or 0) > len(images):
        raise Unreadable(path, f"tells of images for target {target} that there are not, or of fewer than it says")
