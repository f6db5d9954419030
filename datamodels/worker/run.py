"""The models of a run: its store opened, and what is missing trained. Any number of processes may be at it at once."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from datamodels.data import Dataset, load, prepare
from datamodels.durable import is_there, only_maker, tidy
from datamodels.errors import InputError, shown
from datamodels.learners import Learner
from datamodels.learners.declared import declared_arrays
from datamodels.learners.function import learner_named
from datamodels.learners.given import MOST_AT_ONCE, asked_of, is_whole, of_this_package
from datamodels.learners.recipe import Recipe
from datamodels.machine import refuse_tight_limits
from datamodels.processes import devices_named
from datamodels.progress import Advance, duration, progress, say, step
from datamodels.provenance import refuse_difference
from datamodels.runs import deciding_settings, groups_of, stage_folder, stage_seconds
from datamodels.settings import BUILT_IN, LOCAL, MEASURED, PLAIN, GroupSettings, Settings
from datamodels.store import ArraySpec, Meta, Store, create_once, grow, read_meta
from datamodels.store.layout import FAILURES
from datamodels.training.devices import number_of_gpus
from datamodels.worker.blocks import there
from datamodels.worker.decided import own_sources, provenance_of, refuse_other_sizes, with_sources_of
from datamodels.worker.engine import Engine, Local
from datamodels.worker.jobs import RandomSubsets
from datamodels.worker.prior import make_prior
from datamodels.worker.speed import LONG_S

if TYPE_CHECKING:
    from datamodels.cluster import Cluster
    from datamodels.worker.on_ray import OnRay


@overload
def engine_of(settings: Settings, gpu: str | None, data: Dataset | None = None) -> Local: ...


@overload
def engine_of(settings: Settings, gpu: str | None, data: Dataset | None = None, engine: str = ...) -> Local | OnRay: ...


def engine_of(settings: Settings, gpu: str | None, data: Dataset | None = None, engine: str = LOCAL) -> Local | OnRay:
    """Who trains a run's models: its learner on the devices that `--gpu` names, or with engine `ray` on a cluster.

    `data` is the built-in recipe's, read where it is not given. A context. Raises InputError where there is no such device, or
    no such data or learner.
    """
    devices = [] if gpu is None else devices_named(gpu, number_of_gpus)
    own = settings.worker.main != BUILT_IN
    found = None if own else data or load(settings)
    make = functools.partial(learner_named, settings) if found is None else functools.partial(Recipe, settings, found)
    if engine == LOCAL:
        return Local(make, devices, functools.partial(_sources, settings))
    from datamodels.worker.on_ray import OnRay, recipe_there  # Ray's part is for those who want it

    def there(cluster: Cluster) -> Callable[..., Learner]:
        return make if found is None else recipe_there(cluster, settings, found)

    return OnRay(settings, make, there, functools.partial(own_sources, settings))


def _sources(settings: Settings, learner: Learner) -> dict[str, Any]:
    """What other processes are told of one's own code: the files that this one runs, which may change meanwhile."""
    del learner
    return {"sources": own_sources(settings)}


def prepared(settings: Settings) -> Dataset | None:
    """The built-in recipe's data, made if need be, which is said; None for a learner of one's own."""
    if settings.worker.main != BUILT_IN:
        return None
    print(prepare(settings), flush=True)
    return load(settings)


def train_missing(settings: Settings, engine: Engine) -> str:
    """Train every model of the run's store that is not there, with the other workers, if any; say what is there then.

    A model that cannot be trained is given up, with the reason. Raises InputError where none can.
    """
    refuse_tight_limits()
    with step("worker: opening the store"):
        folder, total = open_store(settings, engine), settings.store.num_models
    make_prior(settings, engine)
    if (Store(folder).missing < total).any():
        with stage_seconds(settings, "worker"):
            _train_all(settings, engine, folder)
    # Another worker may have been at it, and may have ended since.
    make_prior(settings, engine, wait=True)
    engine.give_back()
    return state(Store(folder), total)


def _train_all(settings: Settings, engine: Engine, folder: Path) -> None:
    total = settings.store.num_models
    size = groups_of(read_meta(folder)).models_at_once
    job = RandomSubsets(folder, total, size, settings.store.seed, settings.store.alpha)
    with progress("worker", "models", total, there(job, Store(folder))) as advance:
        advance.look = lambda: engine.where
        own = settings.worker.main != BUILT_IN
        engine.train(job, _LongTold(advance) if own else advance.to)


class _LongTold:
    """Shows how many models are there; as soon as some came says once where the others take very long.

    Of one's own learner that is not known before: see `speed`.
    """

    def __init__(self, advance: Advance) -> None:
        self.advance, self.told = advance, False

    def __call__(self, there: int) -> None:
        self.advance.to(there)
        if not self.told and not math.isnan(self.advance.left):
            self.told = True
            if self.advance.left > LONG_S:
                left = self.advance.total - there
                told = f"{left:,} models more take about {duration(self.advance.left)} at the speed of the first"
                say(f"worker: {told}; Ctrl-C ends the work, and what is trained is kept")


def open_store(settings: Settings, engine: Engine) -> Path:
    """The folder of the run's store, made when it is not there, grown when the settings ask for more models than before.

    Groups whose size the settings leave open are measured when the store is made, and stay. Raises InputError when it was made
    under other settings, by other source files, or of other data, and says which.
    """
    learner, folder = engine.learner, stage_folder(settings, "store")
    n, t = len(learner.train_labels), len(learner.test_labels)

    def meta(groups: GroupSettings) -> Meta:
        store = deciding_settings(settings)["store"]
        provenance = {**provenance_of(settings, learner), "store": store, "groups": dataclasses.asdict(groups)}
        margins = ArraySpec(settings.store.margin_dtype, (t,))
        return Meta(settings.store.num_models, n, t, {"margins": margins, **declared_arrays(settings.store.arrays)}, provenance)

    if is_there(folder):
        engine.write(tidy, folder)
    else:
        with only_maker(folder, f"worker: waiting for another worker that is making {folder}"):
            if not is_there(folder):
                engine.write(create_once, folder, meta(_groups(settings, engine)))
    found = read_meta(folder)
    groups = groups_of(found)
    wanted = meta(_given_groups(settings.groups, groups))
    made = {**found.provenance, "groups": dataclasses.asdict(groups)}
    refuse_difference(folder, made, with_sources_of(folder, made, wanted.provenance, settings))
    refuse_other_sizes(folder, found, learner)
    if wanted.num_models > found.num_models:
        try:
            engine.write(grow, folder, wanted.num_models)
        except InputError:
            if read_meta(folder).num_models < wanted.num_models:  # else another worker has let it grow further meanwhile
                raise
    return folder


def state(store: Store, total: int) -> str:
    """What is there, in one line."""
    done, failed = int((store.done < total).sum()), [i for i in store.failures if i < total]
    line = f"worker: {done} of {total} models are done in {store.folder}"
    if failed:
        first = store.failures[failed[0]]
        others = sum(store.failures[i] != first for i in failed)
        more = f"; {others} of them for other reasons, see {store.folder / FAILURES}" if others else ""
        line += f"; given up: {', '.join(map(str, failed[:10]))}{', …' * (len(failed) > 10)} ({first}{more})"
    return line


def _groups(settings: Settings, engine: Engine) -> GroupSettings:
    """How models are grouped in a store that is made now."""
    if hasattr(engine.learner, "choose_groups"):
        return engine.ask(functools.partial(_chosen_groups, settings.groups))
    size = settings.groups.models_at_once or engine.learner.models_at_once
    return GroupSettings(size, min(settings.groups.models_per_kernel, size) or size, PLAIN)


def _chosen_groups(wanted: GroupSettings, learner: Learner) -> GroupSettings:
    chosen = asked_of(learner, "choose_groups", wanted)
    if isinstance(chosen, GroupSettings):
        sizes = (chosen.models_at_once, chosen.models_per_kernel)
        if of_this_package(learner) or all(is_whole(size) and 1 <= size <= MOST_AT_ONCE for size in sizes):
            return chosen
    wanted_of_it = f"GroupSettings of 1 to {MOST_AT_ONCE} models"
    raise InputError(f"choose_groups of {learner.name} must give {wanted_of_it}, not {shown(repr(chosen), 200)}")


def _given_groups(wanted: GroupSettings, found: GroupSettings) -> GroupSettings:
    """What the settings give, and where they leave it open what the store has."""
    return GroupSettings(
        wanted.models_at_once or found.models_at_once,
        min(wanted.models_per_kernel, found.models_at_once) or found.models_per_kernel,
        found.program if wanted.program == MEASURED else wanted.program,
    )
