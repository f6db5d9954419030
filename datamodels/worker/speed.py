"""How fast an engine trains the built-in recipe: measured by a few steps, kept in RUN/speeds.json.

It is measured once for each device, recipe, data and groups of models.

It serves estimates of time and nothing else. Of a learner of one's own nothing is known before its first models are there.
"""

from __future__ import annotations

import functools
import hashlib
import json
import operator
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from datamodels.durable import read_json, write_json
from datamodels.errors import InputError
from datamodels.learners import Learner
from datamodels.learners.recipe import Recipe
from datamodels.progress import step
from datamodels.reading import Each, Unreadable, require
from datamodels.runs import read_seconds, stage_folder
from datamodels.settings import Settings
from datamodels.store import Store
from datamodels.worker.engine import Engine, Local

SPEEDS = "speeds.json"
SLOWEST, FASTEST = 1e-6, 1e9
"""Steps per second: what is beyond was not measured here."""
LONG_S = 24 * 3600.0
"""Work that takes longer is not begun without a word of consent."""


@dataclass(frozen=True)
class Speed:
    """Seconds that a model takes in the mean, of all that are trained side by side, by how many images of S it sees.

    `by` tells what says so, such as 'on 2 cores of a processor'.
    """

    by: str
    seconds: Callable[[int], float]


def speed_of(settings: Settings, engine: Engine) -> Speed | None:
    """How fast the engine trains the models of a run, whose store is there; None where nobody can say.

    What was measured before of this recipe on such a device, with such groups of models, is taken as it was. Of a learner of
    one's own it is what its models in the store took, all of its workers' time together.
    """
    learner = engine.learner
    if not isinstance(learner, Recipe):
        return _as_before(settings, len(learner.train_labels))
    device, width = engine.ask(_device), len(engine.devices) or 1 if isinstance(engine, Local) else engine.idle
    file, groups = Path(settings.run.dir) / SPEEDS, learner.groups
    of = _digest([learner.provenance, groups.models_at_once, groups.models_per_kernel, groups.program])
    key, kept = f"{device}; {of}", _kept(file)
    if not kept.get(key, 0.0) > 0:
        with step("measuring the speed of a few steps"):
            found = engine.ask(_measured)
        if not found > 0:  # what failed once may not fail again
            return None
        kept[key] = found
        with suppress(OSError):
            write_json(file, kept)
    told = device if width == 1 else f"{width} × {device}"
    return Speed(f"on {told}", functools.partial(_seconds, learner, kept[key] * width))


def _digest(what: object) -> str:
    """A few letters for the recipe, the images and the groups: another of these is trained at another speed."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _as_before(settings: Settings, n: int) -> Speed | None:
    """The speed of a learner of one's own, in proportion to the images that a model sees."""
    models, seconds = len(Store(stage_folder(settings, "store")).done), read_seconds(settings).get("worker", 0.0)
    if not models or not seconds > 0:
        return None
    of_an_image = seconds / models / (settings.store.alpha * n)
    return Speed("as fast as the models in the store", functools.partial(operator.mul, of_an_image))


def _seconds(learner: Recipe, steps_per_second: float, images: int) -> float:
    return learner.steps(images) / steps_per_second


def _device(learner: Learner) -> str:
    assert isinstance(learner, Recipe)
    return learner.describe_device()


def _measured(learner: Learner) -> float:
    assert isinstance(learner, Recipe)
    return learner.measured_speed()


def _kept(file: Path) -> dict[str, float]:
    """Steps per second by device, recipe and groups; nothing where that cannot be read, or be so: then it is measured again."""
    try:
        found: dict[str, float] = read_json(file)
        require(found, Each(float), file)
    except (Unreadable, InputError):
        return {}
    return {key: speed for key, speed in found.items() if SLOWEST <= speed <= FASTEST}
