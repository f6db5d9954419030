"""The built-in recipe's data on its way to the nodes of a cluster, and the learner that is made of it there."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch

from datamodels.data import Dataset, Split, load
from datamodels.errors import InputError
from datamodels.learners.recipe import Recipe
from datamodels.settings import Settings
from datamodels.subsets import Array
from datamodels.training import keep_to_part

if TYPE_CHECKING:
    from datamodels.cluster import Shared


class Sent(NamedTuple):
    """A data set, its tensors as NumPy's arrays: they lie once on each node, whatever the number of its processes."""

    train: tuple[Array, Array]
    test: tuple[Array, Array]
    names: tuple[tuple[str, ...] | None, tuple[str, ...] | None]
    class_names: tuple[str, ...]
    digest: str
    train_targets: tuple[int, ...]


def sent(data: Dataset) -> Sent:
    """A data set to be sent."""
    train, test = ((split.images.numpy(), split.labels.numpy()) for split in (data.train, data.test))
    return Sent(train, test, (data.train.names, data.test.names), data.class_names, data.digest, data.train_targets)


def received(found: Sent) -> Dataset:
    """The data set that was sent."""
    sides = zip((found.train, found.test), found.names, strict=True)
    train, test = (Split(_tensor(images), _tensor(labels), names) for (images, labels), names in sides)
    return Dataset(train, test, found.class_names, found.digest, found.train_targets)


def _tensor(array: Array) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it must not be written to, which nobody does
        return torch.from_numpy(array)


def recipe_of_sent(
    settings: Settings, share: float, data: Shared[Sent], gpu: str | None = None, sources: Mapping[str, str] | None = None
) -> Recipe:
    """The built-in learner on images that came through the cluster, on its share of a GPU."""
    return _on_its_share(Recipe(settings, received(data.get()), gpu, sources), share)


def recipe_of_local(
    settings: Settings, share: float, digest: str, gpu: str | None = None, sources: Mapping[str, str] | None = None
) -> Recipe:
    """The built-in learner on the images that lie on this node. Raises InputError where they are other ones, or none."""
    data = load(settings)
    if data.digest != digest:
        raise InputError(f"the images in {os.path.join(settings.run.dir, 'data')} are not those of the command")  # noqa: PTH118
    return _on_its_share(Recipe(settings, data, gpu, sources), share)


def _on_its_share(recipe: Recipe, share: float) -> Recipe:
    keep_to_part(recipe.device, share)
    return recipe
