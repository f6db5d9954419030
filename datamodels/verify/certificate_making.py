"""Making a certificate: the set that a search has found, its networks trained once more by themselves, and R put back.

What is trained for it lies in RUN/verify: `proofs/` has a store for each list of networks that a certificate tells of, and the
networks with images put back are among the run's retrained ones. A certification that was cut off goes on from there.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from datamodels import __version__
from datamodels.brittleness import Effort
from datamodels.brittleness.judging import FLIPPED
from datamodels.durable import is_there, new_folder, only_maker, write_arrays
from datamodels.errors import InputError, shown
from datamodels.learners import Learner
from datamodels.learners.recipe import Recipe
from datamodels.machine import describe_machine
from datamodels.reading import Unreadable
from datamodels.runs import groups_of, read_store, verdicts_folder
from datamodels.settings import ARCHITECTURES, Settings
from datamodels.training.devices import describe_device
from datamodels.verify.certificate import (
    FORMAT,
    FORMAT_VERSION,
    PUT_BACK_FROM,
    Certificate,
    Judged,
    NetworkRecord,
    PutBackRecord,
    PutBacks,
    Refused,
    does,
    judging,
    reached_by,
    write_certificate,
)
from datamodels.verify.certificate_images import digest_of_all, image_records, kind_of
from datamodels.verify.certificate_questions import Looked, MarginsOf, asked, in_lists
from datamodels.verify.certificate_readme import DATA, told_of, write_beside
from datamodels.verify.kept import base_requests
from datamodels.verify.known import Examples
from datamodels.verify.methods import DATAMODEL
from datamodels.verify.record import REPAIRED, VERDICTS, SearchRecord, Verified, read_verified
from datamodels.verify.retrain import Request, Retraining, alone
from datamodels.verify.run import retraining
from datamodels.verify.targets import Mistaken, targets_named
from datamodels.worker.decided import provenance_of
from datamodels.worker.engine import Engine

MOST_PUT_BACK, PAIRS = 32, 8
"""So many images are put back by themselves, unless another number is asked for, and so many pairs."""


@dataclass(frozen=True)
class Wanted:
    """Which answer is to be certified, where to, and at what cost.

    `target` is one as in `--targets`, `out` the folder, None for one in the run; at most `put_back` images are put back by
    themselves; `with_data` puts the images into the folder as well, as the learner sees them.
    """

    target: str
    method: str = DATAMODEL
    out: Path | None = None
    put_back: int = MOST_PUT_BACK
    with_data: bool = False


def certify(settings: Settings, engine: Engine, wanted: Wanted) -> tuple[Path, Certificate]:
    """Certify one answer in the run's verify.json; the folder, which is new, and what it says.

    Raises InputError where there is no such answer, or something is at the folder's place; Refused where its networks, trained
    once more, do not bear the claim out.
    """
    learner, examples = engine.learner, Examples(engine.learner)
    _refuse_impossible(wanted, learner)
    found = _verdicts(settings, examples)
    search = _search(found, examples, wanted, settings)
    folder = wanted.out or Path(settings.run.dir) / "certificates" / f"{search.target}-{search.method}"
    if is_there(folder):
        raise InputError(f"{folder} is there already; a certificate is never written over something: give another --out")
    with alone(settings) as verify:
        certificate = _certificate(settings, engine, found, search, wanted, verify / "proofs")
    with only_maker(folder, f"verify: waiting for another process that is writing {folder}"), new_folder(folder) as temporary:
        write_certificate(temporary, certificate)
        write_beside(temporary, certificate, settings)
        if wanted.with_data:
            assert isinstance(learner, Recipe)
            write_arrays(temporary / DATA, _arrays(learner))
    return folder, certificate


def told(folder: Path, found: Certificate) -> str:
    """What a certificate says, in a line."""
    outcome, kept = found.after.outcome, "relabelled" if found.relabelled is not None else "removed"
    networks = f"{outcome.models} networks, mean margin {outcome.mean_margin:.2f} ({outcome.low:.2f} to {outcome.high:.2f})"
    put_back = "" if found.put_back is None else f"; {told_of(found.put_back, found.claim)}"
    name = shown(found.name, 80)
    return f"certificate: {name} {found.claim} by {len(found.images)} images {kept}: {networks}{put_back}; in {folder}"


def _refuse_impossible(wanted: Wanted, learner: Learner) -> None:
    if wanted.put_back < 0:
        raise InputError(f"--putback takes a number of images from 0 on, not {wanted.put_back}")
    if wanted.with_data and not isinstance(learner, Recipe):
        raise InputError(f"--with-data is for the built-in training: the data of {learner.name} are its own")


def _verdicts(settings: Settings, examples: Examples) -> Verified:
    """The run's verdicts. Raises InputError where there are none, or others than of the run as it is now."""
    file = verdicts_folder(settings) / VERDICTS
    try:
        found = read_verified(file, examples.n, examples.t, examples.classes)
    except Unreadable as e:
        raise InputError(f"{e}; there is nothing to certify before python -m datamodels.verify --targets … has run") from e
    if found.store_digest != read_store(settings).digest():
        raise InputError(f"{file} was made from another store than that of this run as it is now")
    if found.verify.get("seed") != settings.verify.seed:
        made = shown(str(found.verify.get("seed")), 40)
        raise InputError(f"{file} was made with verify.seed {made}, not {settings.verify.seed}")
    return found


def _search(found: Verified, examples: Examples, wanted: Wanted, settings: Settings) -> SearchRecord:
    """The search whose answer is wanted. Raises InputError where there is none, or it found no set."""
    number, called = _number(found, examples, wanted, settings.verify.seed), shown(wanted.target, 80)
    of_target = [search for search in found.searches if search.target == number]
    search = next((search for search in of_target if search.method == wanted.method), None)
    if search is None:
        others = ", ".join(search.method for search in of_target)
        there = f"; there is one by {others}" if others else ""
        raise InputError(f"verify.json has no search for target {called} by the method {shown(wanted.method, 80)}{there}")
    if search.size is None or search.verdict not in (FLIPPED, REPAIRED):
        told = f"not even {search.tried} images" if search.tried else "no set"
        raise InputError(f"the search for target {called} by {search.method} found that {told} will do: nothing to certify")
    return search


def _number(found: Verified, examples: Examples, wanted: Wanted, seed: int) -> int:
    asked = targets_named(wanted.target, examples, seed)
    if len(asked) != 1:
        raise InputError(f"--certify takes one target, and {shown(wanted.target, 80)!r} is {len(asked)}")
    (one,) = asked
    if isinstance(one, int):
        return one
    for behaviour in found.behaviours:
        if behaviour.name == one.name and (isinstance(one, Mistaken) or set(behaviour.targets) == set(one.targets)):
            return behaviour.number
    raise InputError(f"verify.json has no verdict on {shown(one.name, 80)}")


def _certificate(
    settings: Settings, engine: Engine, found: Verified, search: SearchRecord, wanted: Wanted, proofs: Path
) -> Certificate:
    learner, examples = engine.learner, Examples(engine.learner)
    targets, seed = found.targets(examples), settings.verify.seed
    columns, removed = list(targets.members(search.target)), list(search.order[: search.size])
    mask = _mask(examples.n, removed)
    to = -1 if search.relabelled is None else search.relabelled
    repetitions = judging(search, settings.verify.most_models)
    before = MarginsOf(base_requests(settings.verify.base_models, examples.n), columns)
    after = MarginsOf([Request.of(mask, repetition, to) for repetition in repetitions], columns)
    in_lists([before, after], seed, lambda name: Retraining(proofs / name, settings, engine, "certify"), engine, "certify")
    judged = [_judged(of, seed) for of in (before, after)]
    _refuse_unborne(search, judged[0], judged[1])
    return Certificate(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        version=__version__,
        made=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        name=targets.name(search.target) or str(search.target),
        label=search.label,
        target=search.target,
        targets=image_records(learner, examples, False, columns),
        method=search.along or search.method,
        claim=search.verdict,
        relabelled=search.relabelled,
        images=image_records(learner, examples, True, removed),
        num_train=examples.n,
        num_targets=examples.t,
        classes=examples.classes,
        digests_of=kind_of(learner),
        train_digest=digest_of_all(learner, True),
        targets_digest=digest_of_all(learner, False),
        seed=seed,
        recipe=provenance_of(settings, learner),
        groups=dataclasses.asdict(groups_of(read_store(settings).meta)),
        plain=isinstance(learner, Recipe) and settings.training.network in ARCHITECTURES,
        machine=machine_of(engine),
        before=judged[0],
        after=judged[1],
        put_back=_put_back(settings, engine, search, columns, wanted.put_back),
    )


def machine_of(engine: Engine) -> dict[str, Any]:
    """Processor, versions, and the device that trains, where that is this package's own."""
    return {**describe_machine(), "device": engine.ask(_device)}


def _device(learner: Learner) -> str:
    return describe_device(learner.device) if isinstance(learner, Recipe) else "its own"


def _mask(n: int, removed: Sequence[int]) -> Any:
    mask = np.ones(n, bool)
    mask[list(removed)] = False
    return mask


def _judged(of: MarginsOf, seed: int) -> Judged:
    pairs = zip(of.requests, of.margins, strict=True)
    networks = (NetworkRecord(request.repetition, tuple(request.key(seed)), margin) for request, margin in pairs)
    return Judged.of(tuple(networks), 1)


def _refuse_unborne(search: SearchRecord, before: Judged, after: Judged) -> None:
    """Raise Refused where networks trained once more, in other groups, are not judged as those of the search were."""
    wanted = reached_by(search.verdict)
    for told, judged in (("S", before), ("S∖R", after)):
        if (judged.verdict == wanted) != (judged is after) or (judged is before and judged.verdict == "undecided"):
            outcome = judged.outcome
            interval = f"{outcome.mean_margin:.2f} ({outcome.low:.2f} to {outcome.high:.2f})"
            raise Refused(f"its networks on {told}, trained once more by themselves, are judged {judged.verdict}: {interval}")


def _put_back(settings: Settings, engine: Engine, search: SearchRecord, columns: list[int], most: int) -> PutBacks | None:
    """What becomes of the verdict when images of R are put back, in the run's store of retrained networks."""
    chosen = settings.verify
    removed, steps = list(search.order[: search.size]), Effort.of(chosen.models, chosen.most_models, chosen.ratio).looks
    if not most:
        return None
    rng = np.random.default_rng([settings.verify.seed, search.target, len(removed)])
    singly = [(removed[k],) for k in _drawn(rng, len(removed), most)]
    pairs = list(itertools.combinations(removed, 2)) if len(removed) > 2 else []
    in_pairs = [pairs[k] for k in _drawn(rng, len(pairs), min(PAIRS, most))]
    to, n = -1 if search.relabelled is None else search.relabelled, len(engine.learner.train_labels)
    questions = {
        images: Looked(_mask(n, [i for i in removed if i not in images]), to, PUT_BACK_FROM, steps, columns)
        for images in [*singly, *in_pairs]
    }
    asked(list(questions.values()), retraining(settings, engine, "certify"), engine, "put back")
    of = {images: _record(images, question, search) for images, question in questions.items()}
    one, two = (tuple(of[images] for images in drawn) for drawn in (singly, in_pairs))
    return PutBacks(settings.verify.seed, steps, len(removed), math.comb(len(removed), 2), one, two)


def _drawn(rng: np.random.Generator, of: int, most: int) -> list[int]:
    """All of so few, or a sample, in their order."""
    return list(range(of)) if of <= most else sorted(rng.choice(of, most, replace=False).tolist())


def _record(images: tuple[int, ...], question: Looked, search: SearchRecord) -> PutBackRecord:
    assert question.outcome is not None
    said = does(question.outcome, reached_by(search.verdict))
    return PutBackRecord(images, question.first, question.margins, question.outcome, said)


def _arrays(learner: Recipe) -> dict[str, Any]:
    """The images as the learner sees them, under the names that `data.dataset arrays` reads as well."""
    data = learner.data
    return {
        "x_train": data.train.images.numpy(),
        "y_train": data.train.labels.numpy(),
        "x_test": data.test.images.numpy(),
        "y_test": data.test.labels.numpy(),
    }
