"""What long work will take, said before it begins: models, time on these devices, room on the disk.

Work of more than 24 hours does not begin without `--yes`, and work for which the disk has no room does not begin at all. The
time is that of the models, reckoned from a few steps (see `worker.speed`); for the prior's networks, the regression and the
page there is none. An estimate changes nothing of what is done.

Of a learner of one's own nothing is known before its first models: the worker begins, and says after them how long it takes.
Where other workers are at the same store the work has begun, and nobody is asked again for it. The verification that follows is
asked for.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from datamodels.durable import is_there, real_place
from datamodels.errors import InputError
from datamodels.learners.declared import declared_arrays
from datamodels.learners.recipe import Recipe
from datamodels.machine import room
from datamodels.progress import duration, rate, say, step
from datamodels.reading import Unreadable
from datamodels.regress.split import refuse_too_few
from datamodels.runs import GRADIENTS, read_seconds, stage_folder, verdicts_folder
from datamodels.settings import Settings
from datamodels.store import ArraySpec, Meta, Store, forget_claims
from datamodels.verify.expected import Expected
from datamodels.verify.known import Examples
from datamodels.verify.plan import Plan
from datamodels.verify.record import VERDICTS, read_verified
from datamodels.verify.targets import Asked
from datamodels.worker import open_store
from datamodels.worker.engine import Engine
from datamodels.worker.jobs import LISTED
from datamodels.worker.speed import LONG_S, Speed, speed_of

FEWEST = 16
"""So many models tell more of the speed than a few steps."""
UNKNOWN = "how long the models take is not known before the first of them"
DATA, MODELS, WEIGHTS, VERIFICATION, PAGE = STAGES = ("data", "models", "weights", "verification", "page")


class Forecast:
    """What one command's work takes: the worker's, a verification's, or with `targets` that of the whole road.

    With `yes` long work begins all the same.
    """

    def __init__(self, settings: Settings, engine: Engine, yes: bool, targets: Sequence[Asked] | None = None) -> None:
        self.settings, self.engine, self.yes, self.targets = settings, engine, yes, targets
        self.n, self.t = len(engine.learner.train_labels), len(engine.learner.test_labels)
        self.slower, self.begun = 1.0, False
        """How many times as long as was reckoned the models took; whether the whole road was short enough, or agreed to."""

    # The worker's models, and what follows them on the road.

    def before_models(self) -> None:
        """Say what is to come. Opens the store. Raises InputError where it is too long, or there is no room for it."""
        total = self.settings.store.num_models
        plan = None if self.targets is None else Plan.of(self.settings, self.engine.learner)
        self._refuse_without_room(total)
        if self.targets is not None:
            refuse_too_few(max(total, self._done()), self.settings.regress)
        with step("worker: opening the store"):
            folder = open_store(self.settings, self.engine)
        missing = int((Store(folder).missing < total).sum())
        new = 0 if self.targets is None else self._new_targets()
        if not missing and not new:
            return
        speed, others = speed_of(self.settings, self.engine), forget_claims(folder)
        asked = not others and isinstance(self.engine.learner, Recipe)
        seconds = self._of_models(speed, missing)
        told = _told(missing, "models to train", seconds, seconds) + (", beside other workers" if others else "")
        if plan is None:
            self._refuse_long(f"{missing} models", seconds, seconds, asked=asked)
            say(f"worker: {told}{_by(speed, missing, seconds)}; {self._room(total, None)}")
            return
        expected = plan.expected(self.settings, new, bool(self.settings.verify.subsets))
        few, as_a_rule, many = (seconds + each for each in self._of_verification(speed, expected)) if new else (seconds,) * 3
        if others:  # their work has begun; the verification is this command's alone, and is asked now rather than half way
            self._refuse_long("the models of the verification", as_a_rule - seconds, many - seconds)
        else:
            self._refuse_long("the models of all stages", as_a_rule, many, asked=asked)
        self.begun = (asked or bool(others)) and not math.isnan(as_a_rule)
        self._say_road(missing, told, new, self._verification(speed, expected) if new else "there")
        span = UNKNOWN if math.isnan(few) else f"{_span(few, many)} in all for the models{_by(speed, 0, 0)}"
        say(f"road: {span}; {self._room(total, expected)}")

    @contextmanager
    def while_training(self) -> Iterator[None]:
        """Learn from what is trained meanwhile how many times as long models take as was reckoned.

        That is taken of all workers together, and so too long where several are at it.
        """
        folder, total = stage_folder(self.settings, "store"), self.settings.store.num_models
        before, seconds = int((Store(folder).missing < total).sum()), read_seconds(self.settings).get("worker", 0.0)
        speed = speed_of(self.settings, self.engine) if before else None
        yield
        trained = before - int((Store(folder).missing < total).sum())
        reckoned = self._of_models(speed, trained)
        took = read_seconds(self.settings).get("worker", 0.0) - seconds
        if isinstance(self.engine.learner, Recipe) and trained >= FEWEST and reckoned > 0 and took > 0:
            self.slower = took / reckoned

    def stage(self, name: str) -> None:
        """Say where on the road the work is."""
        say(f"road: {STAGES.index(name) + 1} of {len(STAGES)}, {name}")

    def before_verification(self, expected: Expected) -> None:
        """Say what the models of a verification take. Raises InputError where it is too long, but on a road that was begun."""
        speed, asked = speed_of(self.settings, self.engine), not self.begun
        self._refuse_long("the models of the verification", *self._of_verification(speed, expected)[1:], asked=asked)
        say(
            f"verify: {self._verification(speed, expected)}{_by(speed, 0, 0)}; {room(self._verify_bytes(expected))} on the disk"
        )

    # Time.

    def _of_models(self, speed: Speed | None, models: int) -> float:
        """Seconds; NaN where nobody can say."""
        seen = round(self.settings.store.alpha * self.n)
        return math.nan if speed is None else models * speed.seconds(seen) * self.slower

    def _of_verification(self, speed: Speed | None, expected: Expected) -> tuple[float, float, float]:
        """Seconds: few, as a rule, and many."""
        subsets = self._of_models(speed, expected.on_subsets)
        on_all = math.nan if speed is None else speed.seconds(self.n) * self.slower
        few, as_a_rule, many = (subsets + models * on_all for models in expected[:3])
        return few, as_a_rule, many

    def _verification(self, speed: Speed | None, expected: Expected) -> str:
        few, _, many = self._of_verification(speed, expected)
        least, most = (models + expected.on_subsets for models in (expected.few, expected.many))
        models = f"{least:,} models" if least == most else f"{least:,} to {most:,} models, as its searches go"
        return models if math.isnan(few) else f"{models}, {_span(few, many)}"

    def _refuse_long(self, what: str, seconds: float, most: float, asked: bool = True) -> None:
        if self.yes or not asked or not seconds > LONG_S:
            return
        again = "the same command with --yes begins (make: YES=1); what was measured is kept"
        raise InputError(f"{what} take {_span(seconds, most)}, which is more than 24 hours; {again}")

    # Room on the disk.

    def _refuse_without_room(self, total: int) -> None:
        folder = stage_folder(self.settings, "store")
        size, free = max(0, total - self._done()) * self._row_bytes(), _free(folder)
        if size > free:
            raise InputError(f"no room for the store in {folder}: its models take {room(size)}, and {room(free)} are free")

    def _done(self) -> int:
        """How many models are there by now."""
        folder = stage_folder(self.settings, "store")
        return len(Store(folder).done) if is_there(folder) else 0

    def _row_bytes(self) -> int:
        store = self.settings.store
        return bytes_of_row(self.n, {"margins": ArraySpec(store.margin_dtype, (self.t,)), **declared_arrays(store.arrays)})

    def _room(self, total: int, expected: Expected | None) -> str:
        """What all of the run takes, of which some may be there."""
        learner, parts = self.engine.learner, {"store": float(total * self._row_bytes())}
        if isinstance(learner, Recipe):
            files = stage_folder(self.settings, "data").glob("*")
            parts["images"] = float(sum(file.stat().st_size for file in files if file.is_file()))
        if self.settings.regress.prior == GRADIENTS:
            parts["prior"] = 4.0 * self.n * self.t
        parts["weights"] = 4.0 * self.n * self.t
        if expected is not None:
            parts["verification"] = self._verify_bytes(expected)
        told = ", ".join(f"{name} {room(size)}" for name, size in parts.items())
        return f"{room(sum(parts.values()))} on the disk ({told})"

    def _verify_bytes(self, expected: Expected) -> float:
        arrays = {"margins": ArraySpec("float32", (self.t,)), "confidence": ArraySpec("float16", (self.t,)), **LISTED}
        return float((expected.many + expected.on_subsets) * bytes_of_row(self.n, arrays))

    # The road.

    def _new_targets(self) -> int:
        """How many targets have no verdicts yet, as far as that can be said without training."""
        assert self.targets is not None
        examples = Examples(self.engine.learner)
        there: set[object] = set()
        with suppress(Unreadable, InputError):
            there = {*read_verified(verdicts_folder(self.settings) / VERDICTS, examples.n, examples.t, examples.classes).base}
        return sum(target not in there for target in self.targets)

    def _say_road(self, missing: int, models: str, new: int, verification: str) -> None:
        """Every stage of the road, and what remains of it."""
        told = {
            DATA: "there",
            MODELS: models if missing else "there",
            WEIGHTS: "",
            VERIFICATION: f"{new} new targets: {verification}" if new else "there",
            PAGE: "",
        }
        for number, name in enumerate(STAGES, 1):
            say(f"road: {number} {name}{': ' * bool(told[name])}{told[name]}")


def bytes_of_row(n: int, arrays: Mapping[str, ArraySpec]) -> int:
    """Bytes that a model takes in a store of N images with such arrays."""
    files = Meta(1, n, 0, arrays, {}).files.values()
    return sum(np.dtype(spec.dtype).itemsize * math.prod(spec.shape) for spec in files)


def _free(folder: Path) -> int:
    """Bytes that are free where a folder lies, or will lie."""
    place = real_place(folder)
    return shutil.disk_usage(next(each for each in place.parents if each.is_dir())).free


def _told(models: int, what: str, few: float, many: float) -> str:
    return f"{models:,} {what}" + ("" if math.isnan(few) else f", {_span(few, many)}")


def _span(few: float, many: float) -> str:
    """A time that is about known, or lies between two."""
    first, last = duration(few), duration(many)
    return f"about {first}" if first == last else f"about {first} to {last}"


def _by(speed: Speed | None, models: int, seconds: float) -> str:
    """By what, and how fast."""
    if speed is None:
        return ""
    return f", {speed.by}" + (f" ({rate(models / seconds, 'models')})" if models and seconds else "")
