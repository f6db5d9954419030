"""The verification of a run: for each target the smallest set of images that flips its prediction, proved by retraining.

The base margin, on all of S, is measured; a target that networks do not have right beyond doubt is not searched, or where
`verify.goal` is repair one that they do not have wrong beyond doubt. For the others each method's order of images is searched
(see `brittleness.search`). Where the datamodel's finds a set, it is compared with a control. Beside the search, `verify.sizes`
removes so many images with the largest weights from every target (to repair, the smallest), with a control, and
`verify.counterfactuals` sets of three kinds, to see whether the weights say what comes of it (see `questions`).

Verdicts lie in the folder RUN/`verify.name`. What is there stays as it is, and new targets are added; under other settings, or
with other weights, another name is wanted. The retrained models are shared by all names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from datamodels.durable import sweep, write_file
from datamodels.errors import InputError
from datamodels.learners import Learner
from datamodels.machine import refuse_tight_limits
from datamodels.progress import progress, say, step
from datamodels.provenance import difference
from datamodels.reading import Unreadable
from datamodels.regress import Datamodels
from datamodels.runs import read_store, stage_folder, verdicts_folder
from datamodels.settings import FLIP, Settings, VerifySettings
from datamodels.verify.asking import ask
from datamodels.verify.expected import Expected
from datamodels.verify.kept import OfBaseModels, base_requests
from datamodels.verify.known import Examples, Targets
from datamodels.verify.methods import DATAMODEL, NONE, words
from datamodels.verify.plan import Plan, Questions
from datamodels.verify.questions import Question
from datamodels.verify.questions.random_subsets import RandomSubsets, read_margins
from datamodels.verify.record import VERDICTS, Verified, read_verified, write_verified
from datamodels.verify.retrain import Retraining, alone
from datamodels.verify.summary import table, told
from datamodels.verify.targets import Asked, Mistaken, numbered
from datamodels.verify.used import digests, read_used, write_used
from datamodels.worker.engine import Engine

OF_NO_VERDICT = ("name", "random_targets")
"""Settings of `verify` that decide nothing about a target's verdicts."""


def no_word(expected: Expected) -> None:
    """Nobody is told what is to come."""
    del expected


def verify_targets(
    settings: Settings,
    engine: Engine,
    models: Datamodels,
    targets: Sequence[Asked],
    foresee: Callable[[Expected], None] = no_word,
) -> str:
    """Verify the given targets, add them to verify.json and verify.csv; say in one line what these tell then.

    `foresee` is told about how many models are to come, before the first of them, and may refuse them by an InputError.
    Raises InputError when the weights were not made from the run's store as it is, a method or size makes no sense, what is
    there was made under other settings, or another process verifies the same run.
    """
    with step("verify: looking at the store and the weights"):
        _refuse_stale(settings, models)
    refuse_tight_limits()
    with alone(settings):
        plan, folder = Plan.of(settings, engine.learner), verdicts_folder(settings)
        if words(settings.verify.rivals) and not plan.rivals:
            say(f"verify: verify.rivals ({settings.verify.rivals}) are asked beside the method {DATAMODEL} only, and left out")
        inputs = plan.inputs(settings, models)
        kept = _kept(folder / VERDICTS, settings, engine.learner, models, inputs)
        known = Targets(Examples(engine.learner), () if kept is None else kept.behaviours)
        of_base = functools.partial(_mistaken, OfBaseModels(folder, settings, engine), known.examples)
        known, numbers = numbered(targets, known, of_base)
        new = [number for number in numbers if kept is None or number not in kept.base]
        plan.check(settings, engine.learner, known, new)
        subsets = _random_subsets(kept, settings, engine.learner, models, folder)
        if new:
            foresee(plan.expected(settings, len(new), subsets is not None))
        folder.mkdir(exist_ok=True)
        sweep(folder)
        found = _with_new(kept, plan, settings, engine, models, known, new, subsets, folder)
        write_file(folder / "verify.csv", table(found, known).encode())
        return f"verify: {told(found, plan.methods)}, in {folder}"


def _mistaken(base: OfBaseModels, examples: Examples, asked: Mistaken) -> tuple[int, ...]:
    """The test images of a class that the base models, by their mean logits, take for another. Raises InputError for none."""
    base.folder.mkdir(exist_ok=True)
    taken_for = base.logits[: examples.tests].argmax(1)
    found = np.flatnonzero((examples.labels[: examples.tests] == asked.of) & (taken_for == asked.to)).tolist()
    if not found:
        of, to = examples.class_name(asked.of), examples.class_name(asked.to)
        raise InputError(f"{asked.name}: no test image of class {of} is called {to} by networks trained on all of S")
    return tuple(found)


def _with_new(
    kept: Verified | None,
    plan: Plan,
    settings: Settings,
    engine: Engine,
    models: Datamodels,
    known: Targets,
    new: list[int],
    subsets: RandomSubsets | None,
    folder: Path,
) -> Verified:
    """What is there, and what is found about the new targets."""
    if kept is not None and not new:
        if subsets is not None:  # their file is gone
            _ask([subsets], settings, engine)
            subsets.margins.write(folder)
        return kept
    on_all = digests(base_requests(settings.verify.base_models, len(engine.learner.train_labels)))
    used = digests([]) if kept is None else read_used(folder, kept.models_used, on_all)
    with step("verify: ordering the images"):
        questions = Questions.of(plan, plan.orders(settings, engine, models, known, new, folder), new, subsets)
    asked = _ask(questions.all(), settings, engine)
    with step("verify: writing the verdicts"):
        of_new = digests(request for question in asked for request in question.used())
        used = np.concatenate([used, np.setdiff1d(of_new, used)])
        found = questions.records(settings, models, plan.inputs(settings, models), len(used))
        write_used(folder, used)
        if questions.subsets is not None:
            questions.subsets.margins.write(folder)
        whole = found if kept is None else kept.and_more(found)
        write_verified(folder, whole)
    return whole


def _ask(questions: Sequence[Question], settings: Settings, engine: Engine) -> list[Question]:
    with progress("verify", "models", 0) as bar:
        bar.look = lambda: engine.where
        return ask(questions, retraining(settings, engine), bar)


def retraining(settings: Settings, engine: Engine, stage: str = "verify") -> Retraining:
    """The models that questions want: kept in the run's store of such models of that seed, for every name.

    Their time counts as that of `stage`.
    """
    return Retraining(retrained_folder(settings), settings, engine, stage)


def retrained_folder(settings: Settings) -> Path:
    """Where the store of retrained models of `verify.seed` lies."""
    seed = settings.verify.seed
    return stage_folder(settings, "verify") / ("store" if seed == VerifySettings.seed else f"store-{seed}")


def _random_subsets(
    kept: Verified | None, settings: Settings, learner: Learner, models: Datamodels, folder: Path
) -> RandomSubsets | None:
    """The question about random subsets, unless it is answered: they serve all targets."""
    answered = kept.random_subsets if kept is not None else None
    if not settings.verify.subsets or (answered is not None and read_margins(folder, answered.subsets) is not None):
        return None
    return RandomSubsets(settings, models, len(learner.train_labels))


def _refuse_stale(settings: Settings, models: Datamodels) -> None:
    store, weights = read_store(settings), stage_folder(settings, "regress")
    if models.meta["store_digest"] != store.digest():
        raise InputError(f"the weights in {weights} are not from the store as it is now; run python -m datamodels.regress")
    models.refuse_other(store)
    given, made = vars(settings.regress), models.meta["regress"]
    other = next(difference(made, {name: value for name, value in given.items() if name in made}, "regress."), None)
    if other is not None:
        told = f"the weights in {weights} were made otherwise than the settings say ({other})"
        say(f"verify: {told}; they are taken as they are")


def _kept(file: Path, settings: Settings, learner: Learner, models: Datamodels, inputs: Mapping[str, str]) -> Verified | None:
    """The verdicts that are there. Raises InputError where they were made under settings, or of weights, other than now."""
    examples = Examples(learner)
    try:
        found = read_verified(file, examples.n, examples.t, examples.classes)
    except Unreadable as e:
        if e.missing:
            return None
        raise InputError(f"{e}; give --verify.name, or delete it") from e
    if found.store_digest != models.meta["store_digest"]:
        raise InputError(f"{file} was made from another store than that of this run as it is now; give --verify.name")
    wanted = {"regress": models.meta["regress"], "verify": _deciding(vars(settings.verify)), "digest of": inputs}
    made = {"regress": found.regress, "verify": _deciding(found.verify), "digest of": found.inputs}
    first = next(difference(made, wanted), None)
    if first is not None:
        raise InputError(f"{file} was made under another setting ({first}); give --verify.name for verdicts beside it")
    return found


def _deciding(settings: Mapping[str, object]) -> dict[str, object]:
    # An earlier version did not say of a goal, and of rivals: it had one, and none.
    found = {"goal": FLIP, "rivals": NONE} | {name: value for name, value in settings.items() if name not in OF_NO_VERDICT}
    return found | {name: ",".join(words(str(found[name]))) for name in ("methods", "rivals") if name in found}
