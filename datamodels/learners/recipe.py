"""The built-in learner: networks on a data set of this package's format, by the run's recipe, on one device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from datamodels.data import Dataset
from datamodels.errors import InputError
from datamodels.learners.contract import Model, Trained
from datamodels.learners.declared import declared_arrays
from datamodels.learners.looks import as_pictures, span
from datamodels.learners.sources import imported_sources, refuse_changed
from datamodels.machine import cores, processor
from datamodels.progress import say
from datamodels.runs import groups_of, stage_folder
from datamodels.settings import ARCHITECTURES, GroupSettings, Settings
from datamodels.store import read_meta
from datamodels.subsets import Array, IndexArray
from datamodels.training import (
    Trainer,
    attribute,
    choose_groups,
    describe_groups,
    device_named,
    first_order,
    for_each_group,
    give_back,
)
from datamodels.training.devices import describe_device, on_gpu
from datamodels.training.made import own_network
from datamodels.training.models import steps_of
from datamodels.training.tuning import speed_of_groups

MAKING = threading.RLock()
"""Two threads that want a trainer at once shall not make two: the images would be on the device twice."""
DIVERGED = "diverged: its margins were not finite, or beyond 65,504, in two trainings from different keys"


class Recipe:
    """Networks of `training.network`, trained as the section `training` says, in groups as those of the run's store.

    `gpu` is a device as in `--gpu`: the number of a GPU, cpu, or None for what is there. Networks come to it when the first of
    them are trained. `sources` are the digests of the files of a network of one's own in the process that began the work.
    Raises InputError where there is no such device, or no such network, or another one now.
    """

    def __init__(
        self, settings: Settings, data: Dataset, gpu: str | None = None, sources: Mapping[str, str] | None = None
    ) -> None:
        self.settings, self.data = settings, data
        self.device, self.made = device_named(gpu), dict[str, Trainer]()
        self.speeds = dict[GroupSettings, float]()
        name = settings.training.network
        if ":" in name:
            own_network(name)
            now = imported_sources(name.partition(":")[0])
            if sources is not None:
                refuse_changed(sources, now, "the work")
        logits = (len(data.test.labels), len(data.class_names))
        for name, spec in declared_arrays(settings.store.arrays).items():
            if name != "logits" or spec.shape != logits:
                wanted = "x".join(map(str, logits))
                raise InputError(f"store.arrays: of the built-in models only logits of shape {wanted} can be kept, not {name}")
        # Offered only where the data have them: see `contract.offered`.
        if data.has_pictures:
            self.pictures = self._pictures
        if data.train.names is not None and data.test.names is not None:
            self.names = self._names

    name = "the built-in recipe"

    @property
    def train_labels(self) -> IndexArray:
        """Classes (N,)."""
        labels: IndexArray = self.data.train.labels.numpy()
        return labels

    @property
    def test_labels(self) -> IndexArray:
        """Classes (T,)."""
        labels: IndexArray = self.data.test.labels.numpy()
        return labels

    @property
    def train_targets(self) -> tuple[int, ...]:
        """The training images that are targets too, behind the test images."""
        return self.data.train_targets

    @property
    def provenance(self) -> Mapping[str, Any]:
        """The recipe and the images."""
        targets = {"train_targets": list(self.train_targets)} if self.train_targets else {}
        return {"training": self.settings.training.deciding(), "data_digest": self.data.digest, **targets}

    @property
    def models_at_once(self) -> int:
        """As many as in the run's store, where it was measured, or given."""
        return self.groups.models_at_once

    @cached_property
    def groups(self) -> GroupSettings:
        """How models share the device: as the run's store has it. Where that lies on another machine this is set."""
        return groups_of(read_meta(stage_folder(self.settings, "store")))

    @property
    def trainer(self) -> Trainer:
        """What trains the store's models, and others alike."""
        with MAKING:
            if "trainer" not in self.made:
                kernel, program = self.groups.models_per_kernel, self.groups.program
                self.made["trainer"] = Trainer(self.data, self.settings.training, self.device, kernel, program=program)
            return self.made["trainer"]

    @property
    def beforehand(self) -> Trainer:
        """What trains before there is a store. On a GPU a program for each network: a kernel of several is slower there."""
        with MAKING:
            if "beforehand" not in self.made:
                kernel = 1 if on_gpu(self.device) else None
                self.made["beforehand"] = Trainer(self.data, self.settings.training, self.device, kernel)
            return self.made["beforehand"]

    def choose_groups(self, wanted: GroupSettings) -> GroupSettings:
        """Groups as wanted; what is left open is measured, and said."""
        groups, speeds = choose_groups(self.data, self.settings.training, wanted, self.device)
        self.speeds.update(speeds)
        for tried, speed in speeds.items():
            found = f"{speed:.0f} steps/s{' (chosen)' * (tried == groups)}" if speed else "did not work"
            say(f"worker: {describe_groups(tried, self.device)}: {found}")
        if not speeds and self.settings.training.network not in ARCHITECTURES:
            assert self.beforehand  # a network of one's own that cannot be trained is refused before there is a store
            self.give_back()
        return groups

    def measured_speed(self) -> float:
        """Steps per second in the store's groups, summed over all models of the device; 0 where that cannot be measured.

        Where groups were chosen it is known, else it is measured by a few steps, by none of the models that count.
        """
        if self.groups not in self.speeds:
            self.speeds[self.groups] = speed_of_groups(self.data, self.settings.training, self.groups, self.device)
        return self.speeds[self.groups]

    def steps(self, images: int) -> float:
        """Steps that a model on so many images takes, the look at all targets reckoned in them: a pass back is two forth."""
        recipe = self.settings.training
        looks = len(self.test_labels) * (2 if recipe.flip else 1) / recipe.batch_size
        return steps_of(recipe, len(self.train_labels), images) + looks / 3

    def describe_device(self) -> str:
        """The device in a few words."""
        return describe_device(self.device) if on_gpu(self.device) else f"{cores()} core{'s' * (cores() > 1)} of {processor()}"

    def train(self, models: Sequence[Model]) -> Trained:
        """Margins (K, T) and logits (K, T, classes). A model that diverges twice has failed."""
        labels = None
        if any(model.labels is not None for model in models):
            labels = np.stack([self.train_labels if model.labels is None else model.labels for model in models])
        outputs = self.trainer.outputs(_masks(models), [model.key for model in models], labels)
        failed = np.flatnonzero(np.isnan(outputs["margins"]).any(1)).tolist()
        return Trained(outputs, dict.fromkeys(failed, DIVERGED))

    def train_relabelled(self, models: Sequence[Model]) -> Trained:
        """As `train`, each model on its own labels."""
        return self.train(models)

    def side_by_side(self, items: Sequence[int], work: Callable[[int], None]) -> None:
        """A group on each core of a processor; on a GPU the next is made ready while one trains."""
        for_each_group(items, work, self.device)

    def give_back(self) -> None:
        """Give the device's memory back to whoever wants it next, this package's regression say."""
        with MAKING:
            self.made.clear()
        give_back(self.device)

    @property
    def classes(self) -> int:
        """How many."""
        return len(self.data.class_names)

    @property
    def class_names(self) -> Sequence[str]:
        """Of the data set."""
        return self.data.class_names

    def _pictures(self, of_train: bool, indices: Sequence[int]) -> Array:
        """Images uint8 (len(indices), H, W, 1 or 3): see `looks.as_pictures`."""
        images: Array = (self.data.train if of_train else self.data.test).images[list(indices)].numpy()
        return as_pictures(images, self._span)

    @cached_property
    def _span(self) -> tuple[float, float]:
        return span(split.images.numpy() for split in (self.data.train, self.data.test))

    def _names(self, of_train: bool, indices: Sequence[int]) -> list[str]:
        """Names, of files say."""
        names = (self.data.train if of_train else self.data.test).names
        assert names is not None
        return [names[index] for index in indices]

    def features(self, models: Sequence[Model]) -> Mapping[str, Array]:
        """What the last layer sees, of length 1, (K, N, d) and (K, T, d), and logits (K, T, classes)."""
        return self.trainer.features_of(_masks(models), [model.key for model in models])

    def first_order(self, models: Sequence[Model], dimensions: int) -> Mapping[str, Array]:
        """Sums over models of first-order attributions, and features; see `training.first_order`."""
        return first_order(self.beforehand, _masks(models), [model.key for model in models], dimensions)

    def attribute(self, method: str, models: Sequence[Model], targets: Sequence[int]) -> Array:
        """Scores (N, targets) by one of dattri's methods."""
        return attribute(self.trainer, method, _masks(models), [model.key for model in models], targets)

    def __getstate__(self) -> dict[str, Any]:
        """Trainers stay where they are: another process makes its own."""
        return {**self.__dict__, "made": {}}


def _masks(models: Sequence[Model]) -> Any:
    return np.stack([model.mask for model in models])
