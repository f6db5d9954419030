"""Checking a certificate, by who has the config and the data, and nothing else of the run that it is of.

First what can be known without training: whether it agrees with itself, and whether data, images and recipe here are those that
it tells of. Then its networks are trained again, with their keys, in the same groups, and their margins compared; and as many
fresh ones, of which nobody knows anything, or twice or four times as many where the first do not decide, are judged.

What is trained lies in RUN/checked, a folder for each certificate, which needs no store of the run and changes none: a check
that was cut off goes on from there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodels.brittleness.judging import FLIPPED, HELD, UNDECIDED, Outcome
from datamodels.durable import write_json
from datamodels.errors import InputError, shown
from datamodels.machine import refuse_tight_limits
from datamodels.provenance import difference
from datamodels.reading import Between, require
from datamodels.seals import seal_of
from datamodels.settings import PROGRAMS, GroupSettings, Settings
from datamodels.verify.certificate import (
    TOLERANCE,
    Certificate,
    ImageRecord,
    Judged,
    PutBacks,
    Refused,
    does,
    judged_margins,
    outcome_of,
    reached_by,
    read_certificate,
)
from datamodels.verify.certificate_images import digest_of_all, image_records
from datamodels.verify.certificate_making import machine_of
from datamodels.verify.certificate_questions import Looked, MarginsOf, asked, in_lists
from datamodels.verify.known import Examples
from datamodels.verify.questions.rechecks import RECHECK_FROM
from datamodels.verify.record import REPAIRED
from datamodels.verify.retrain import Retraining, alone
from datamodels.verify.run import retraining
from datamodels.verify.typed import to_json
from datamodels.worker import open_store
from datamodels.worker.decided import provenance_of
from datamodels.worker.engine import Engine

TIMES = (1, 2, 4)
"""Looks at fresh networks, as multiples of those that the certificate has without R."""
CHECKED = "checked.json"
MOST_AT_ONCE = 1024
EngineFor = Callable[[Settings], AbstractContextManager[Engine]]
"""Who trains, under settings."""


@dataclass(frozen=True)
class Checked:
    """That a certificate is confirmed: `compared` says how its margins were, `outcome` and `fresh` are of new networks
    without R, `outcome_on_all` and `fresh_on_all` of new ones on S.
    """

    certificate: str
    compared: str
    fresh: int
    outcome: Outcome
    fresh_on_all: int
    outcome_on_all: Outcome


def check(settings: Settings, engine_for: EngineFor, path: Path) -> str:
    """Check a certificate, a folder or its file; what to say of it where it is confirmed.

    Raises Refused, with the reason, where it is not, and InputError where it is no certificate.
    """
    refuse_tight_limits()
    found = read_certificate(path)
    within = _within(settings, found)
    with engine_for(within) as engine:
        refuse_contradictions(found, Examples(engine.learner))
        _refuse_other_data(found, engine)
        _refuse_other_target(found, Examples(engine.learner))
        _refuse_other_recipe(found, within, engine)
        with alone(within) as verify:
            open_store(within, engine)
            same = _trained_again(found, within, engine, verify / "proofs")
            compared = _compared(found, same, machine_of(engine))
            fresh = _fresh(found, within, engine)
            on_all = _fresh_on_all(found, within, engine)
        assert fresh.outcome is not None
        assert on_all.outcome is not None
        checked = Checked(str(path), compared, len(fresh.margins), fresh.outcome, len(on_all.margins), on_all.outcome)
        write_json(Path(within.run.dir) / CHECKED, to_json(checked))
    outcome = fresh.outcome
    interval = f"mean margin {outcome.mean_margin:.2f} ({outcome.low:.2f} to {outcome.high:.2f})"
    return (
        f"confirmed: target {shown(found.name, 80)} {found.claim}: {compared}; {len(fresh.margins)} fresh networks, {interval};"
        f" {len(on_all.margins)} on S, {on_all.outcome.mean_margin:.2f}{_unchecked(found)}"
    )


def _within(settings: Settings, found: Certificate) -> Settings:
    """The settings of a run of the certificate's own within this one: its seed, its groups, and no model of its store."""
    sizes = Between(1, MOST_AT_ONCE)
    require(found.groups, {"models_at_once": sizes, "models_per_kernel": sizes, "program": str}, Path("the certificate"))
    groups = GroupSettings(**{name: found.groups[name] for name in ("models_at_once", "models_per_kernel", "program")})
    if groups.program not in PROGRAMS:
        raise InputError(f"the certificate's program {shown(groups.program, 40)!r} is none of {', '.join(PROGRAMS)}")
    folder = Path(settings.run.dir) / "checked" / seal_of(to_json(found))[:16]
    return dataclasses.replace(
        settings,
        run=dataclasses.replace(settings.run, dir=str(folder)),
        store=dataclasses.replace(settings.store, num_models=1),
        verify=dataclasses.replace(settings.verify, seed=found.seed),
        groups=groups,
    )


# What can be known without training.


def refuse_contradictions(found: Certificate, examples: Examples) -> None:
    """Raise Refused for what a certificate says of itself that is not so: indices, keys, intervals and verdicts."""
    if (found.num_train, found.num_targets) != (examples.n, examples.t):
        made = f"{found.num_train} training images and {found.num_targets} targets"
        raise Refused(f"it is of {made}, and there are {examples.n} and {examples.t} here")
    _refuse_other_sets(found, examples)
    for told, judged in (("S", found.before), ("S∖R", found.after)):
        _refuse_other_keys(found, judged, told)
        _refuse_other_verdict(judged, told)
    if found.claim not in (FLIPPED, REPAIRED) or found.after.verdict != found.wanted:
        raise Refused(f"it claims {shown(found.claim, 40)!r}, and its networks without R are judged {found.after.verdict!r}")
    if found.before.verdict != (FLIPPED if found.wanted == HELD else HELD):
        raise Refused(f"its networks on S are judged {found.before.verdict!r}: there is nothing that R could turn")
    if found.put_back is not None:
        _refuse_other_put_backs(found, found.put_back)


def _refuse_other_sets(found: Certificate, examples: Examples) -> None:
    for told, indices, most in (("R", found.removed, examples.n), ("its target", found.columns, examples.t)):
        if not indices or len(set(indices)) < len(indices) or max(indices) >= most:
            raise Refused(f"{told} is not made of different indices from 0 to {most - 1}")
    if len(found.removed) == examples.n and found.relabelled is None:
        raise Refused("R is all of S, and no network can be trained without it")
    if found.relabelled is not None and not 0 <= found.relabelled < examples.classes:
        raise Refused(f"it relabels images as class {found.relabelled}, and the classes run from 0 to {examples.classes - 1}")


def _refuse_other_target(found: Certificate, examples: Examples) -> None:
    """Raise Refused where a certificate calls its target something else than what its columns are."""
    labels = {int(examples.labels[column]) for column in found.columns}
    label = labels.pop() if len(labels) == 1 else -1
    if (found.label, found.classes) != (label, examples.classes):
        told = f"class {found.label} of {found.classes}"
        raise Refused(f"it says that its target is of {told}, and that is of {label} of {examples.classes}")
    if len(found.columns) > 1 and found.target >= examples.t:
        return  # a behaviour, whose name and number are its maker's
    column = found.columns[0]
    name = examples.name(column) or str(column)
    if len(found.columns) > 1 or (found.target, found.name) != (column, name):
        said = f"{found.target}, {shown(found.name, 80)}"
        raise Refused(f"it says that its target is {said}, and its margins are of {column}, {shown(name, 80)}")


def _refuse_other_keys(found: Certificate, judged: Judged, told: str) -> None:
    requests = found.requests(judged)
    if len(set(requests)) < len(requests):
        raise Refused(f"it tells of one network on {told} twice")
    if [request.key(found.seed) for request in requests] != [network.key for network in judged.networks]:
        raise Refused(f"the keys of its networks on {told} are not those of this set R, this seed and these repetitions")


def _refuse_other_verdict(judged: Judged, told: str) -> None:
    usable = sum(network.margin is not None for network in judged.networks)
    if usable < 2:
        raise Refused(f"it has the margins of {usable} networks on {told}: too few to judge by")
    outcome = outcome_of(judged.networks, judged.looks)
    if not _alike(outcome, judged.outcome) or outcome.verdict != judged.verdict:
        raise Refused(f"the interval or the verdict of its networks on {told} is not that of their margins")


def _refuse_other_put_backs(found: Certificate, put_back: PutBacks) -> None:
    n = len(found.images)
    if (put_back.of_images, put_back.of_pairs) != (n, math.comb(n, 2)) or not put_back.looks:
        raise Refused("it does not tell of as many images to be put back as R has")
    for told, size, records in (("image", 1, put_back.singly), ("pair", 2, put_back.in_pairs)):
        sets = [frozenset(record.images) for record in records]
        if len(set(sets)) < len(sets) or not all(len(each) == size and each <= set(found.removed) for each in sets):
            raise Refused(f"it tells of a put-back {told} that is none of R, or of one twice")
        for record in records:
            few = sum(margin is not None for margin in record.margins) < 2
            outcome = None if few else judged_margins(record.margins, len(put_back.looks))
            if outcome is None or not _alike(outcome, record.outcome) or does(outcome, found.wanted) != record.does:
                images = ", ".join(map(str, record.images))
                raise Refused(f"what it says of {told} {images} put back is not what the margins there say")


def _alike(one: Outcome, other: Outcome) -> bool:
    """Whether two outcomes are one, but for the last bits."""
    names = ("mean_margin", "low", "high", "correct", "correct_low", "correct_high")
    close = (math.isclose(getattr(one, name), getattr(other, name), rel_tol=1e-9, abs_tol=1e-9) for name in names)
    return one.models == other.models and all(close)


def _refuse_other_data(found: Certificate, engine: Engine) -> None:
    """Raise Refused where R's images, the target, or anything else of the data is not what the certificate tells of."""
    learner, examples = engine.learner, Examples(engine.learner)
    for of_train, what, records in ((True, "image {} of R", found.images), (False, "target {}", found.targets)):
        here = image_records(learner, examples, of_train, [record.index for record in records])
        for record, own in zip(records, here, strict=True):
            _refuse_other_image(record, own, what)
    for of_train, told, digest in ((True, "training set", found.train_digest), (False, "set of targets", found.targets_digest)):
        if digest_of_all(learner, of_train) != digest:
            raise Refused(f"the {told} here is another than the certificate's: its digest differs")


def _refuse_other_image(record: ImageRecord, own: ImageRecord, what: str) -> None:
    for name in ("digest", "label", "name"):
        made, here = getattr(record, name), getattr(own, name)
        if made != here:
            told = f"{name} {shown(str(made), 80)} there, {shown(str(here), 80)} here"
            raise Refused(f"{what.format(record.index)} is another here than the certificate tells of ({told})")


def _refuse_other_recipe(found: Certificate, settings: Settings, engine: Engine) -> None:
    changed = list(difference(found.recipe, provenance_of(settings, engine.learner)))
    if changed:
        raise Refused(f"its networks were trained otherwise than the settings here say ({shown('; '.join(changed), 400)})")


# What comes out of training.


def _trained_again(found: Certificate, settings: Settings, engine: Engine, proofs: Path) -> list[MarginsOf]:
    """The margins of the certificate's own networks, on S and without R, trained as they were."""
    lists = [MarginsOf(found.requests(judged), found.columns) for judged in (found.before, found.after)]
    in_lists(lists, found.seed, lambda name: Retraining(proofs / name, settings, engine, "recheck"), engine, "recheck")
    return lists


def _compared(found: Certificate, lists: list[MarginsOf], machine: dict[str, Any]) -> str:
    """How the margins came out, in words. Raises Refused where they are others, or judged otherwise."""
    pairs = [(told, judged, of) for told, judged, of in zip(("S", "S∖R"), (found.before, found.after), lists, strict=True)]
    alike = _kind(machine) == _kind(found.machine)
    for told, judged, of in pairs if alike else ():
        for network, again in zip(judged.networks, of.margins, strict=True):
            if not _same(network.margin, again):
                margins = f"the margin {_number(network.margin)}, and trained again here it has {_number(again)}"
                raise Refused(f"the network of repetition {network.repetition} on {told} is said to have {margins}")
    number = sum(len(of.margins) for of in lists)
    if alike:
        return f"its {number} networks, trained again, have the margins that it tells of (to {TOLERANCE:g})"
    for told, judged, of in pairs:
        now = judged_margins(of.margins, judged.looks)
        if now.verdict != judged.verdict:
            interval = f"{now.mean_margin:.2f} ({now.low:.2f} to {now.high:.2f})"
            raise Refused(
                f"its networks on {told}, trained again here, are judged {now.verdict}, not {judged.verdict}: {interval}"
            )
    where = f"{_kind(found.machine)} there, {_kind(machine)} here"
    told = f"its {number} networks, trained again, are judged as it says"
    return (
        f"{told} (on another kind of machine, whose rounding differs, margins are not compared one by one: {shown(where, 200)})"
    )


def _kind(machine: Mapping[str, Any]) -> str:
    """What decides rounding: processor, device, and the version of PyTorch."""
    packages = machine.get("packages")
    version = packages.get("torch") if isinstance(packages, dict) else None
    return f"{machine.get('processor')}, {machine.get('device')}, torch {version}"


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= TOLERANCE * max(1.0, abs(one))


def _number(margin: float | None) -> str:
    return "none" if margin is None else f"{margin:.4f}"


def _fresh(found: Certificate, settings: Settings, engine: Engine) -> Looked:
    """Fresh networks without R. Raises Refused where they do not bear the claim out."""
    to = -1 if found.relabelled is None else found.relabelled
    steps = [times * len(found.after.networks) for times in TIMES]
    fresh = Looked(found.mask(), to, RECHECK_FROM, steps, found.columns)
    return _borne_out(fresh, reached_by(found.claim), "without R", settings, engine)


def _fresh_on_all(found: Certificate, settings: Settings, engine: Engine) -> Looked:
    """Fresh networks on S: those of the certificate may be the few, of many, that have the target as it wants them.

    Raises Refused where they do not have it as the certificate says.
    """
    steps = [times * len(found.before.networks) for times in TIMES]
    fresh = Looked(found.mask(tuple(found.removed)), -1, RECHECK_FROM, steps, found.columns)
    return _borne_out(fresh, FLIPPED if found.wanted == HELD else HELD, "on S", settings, engine)


def _borne_out(fresh: Looked, verdict: str, told: str, settings: Settings, engine: Engine) -> Looked:
    asked([fresh], retraining(settings, engine, "recheck"), engine, "recheck")
    outcome = fresh.outcome
    assert outcome is not None
    if outcome.verdict != verdict:
        interval = f"{outcome.mean_margin:.2f} ({outcome.low:.2f} to {outcome.high:.2f})"
        certain = "do not decide" if outcome.verdict == UNDECIDED else f"are judged {outcome.verdict}"
        raise Refused(f"{len(fresh.margins)} fresh networks {told} {certain}: mean margin {interval}")
    return fresh


def _unchecked(found: Certificate) -> str:
    """What of a certificate a check leaves open, in words."""
    return "" if found.put_back is None else "; what it says of images put back was not trained again"
