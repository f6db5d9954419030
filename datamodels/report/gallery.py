"""What a page shows of training examples and targets: pictures, names, and the names of classes, where the learner has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from datamodels.errors import shown
from datamodels.learners import Learner, Named, Pictures
from datamodels.learners.given import class_names_of, names_of, pictures_of
from datamodels.subsets import Array
from datamodels.verify.known import Behaviour, Examples, Targets

UNKNOWN = "–"
MOST_ASIDE = 5
"""Pictures of a behaviour's targets in a row, and rows of them."""
MOST_CELLS = 1024
"""Of a row of features that is shown; of longer ones neighbours are shown by their mean."""
MOST_DEVIATIONS = 2.5
PICTURES, FEATURES = "pictures", "features"
"""What there is to be seen of examples."""


@dataclass(frozen=True)
class Gallery:
    """A learner's examples, to be looked at. Text is of one line that can be printed; a page escapes it besides."""

    learner: Learner
    behaviours: Sequence[Behaviour] = ()

    @cached_property
    def targets(self) -> Targets:
        """What the targets are, by their numbers."""
        return Targets(Examples(self.learner), self.behaviours)

    @property
    def targets_named(self) -> bool:
        """Whether any target may have a name: examples have, or some are training examples, or behaviours."""
        return self.named or bool(self.targets.examples.train_targets or self.behaviours)

    def of_target(self, target: int) -> str:
        """What a target is called; nothing where it has but its index."""
        return shown(self.targets.name(target) or "")

    def picture(self, target: int) -> Array | None:
        """A target's picture, uint8 (H, W, 1 or 3), of a behaviour some of its targets' in a square; None without pictures."""
        members = self.targets.members(target)
        side = min(MOST_ASIDE, math.isqrt(len(members)))
        found = self.pictures(False, members[: side * side])
        if found is None:
            return None
        rows = found.reshape(side, side, *found.shape[1:]).transpose(0, 2, 1, 3, 4)
        square: Array = rows.reshape(side * found.shape[1], side * found.shape[2], -1)
        return square

    @cached_property
    def _class_names(self) -> Sequence[str]:
        return [shown(name, 80) for name in class_names_of(self.learner)]

    @property
    def named(self) -> bool:
        """Whether they have names."""
        return isinstance(self.learner, Named)

    @property
    def pictured(self) -> bool:
        """Whether they have pictures."""
        return isinstance(self.learner, Pictures)

    @property
    def things(self) -> str:
        """What a page calls them."""
        return "images" if self.pictured else "examples"

    def class_name(self, label: int | None) -> str:
        """What a class is called; a dash where it is not known."""
        if label is None or label < 0:
            return UNKNOWN
        return self._class_names[label] if self._class_names else f"class {label}"

    def of_training(self, index: int) -> str:
        """What a training example is called: its class, or where that is not known its index."""
        label = int(self.learner.train_labels[index])
        return f"no. {index}" if label < 0 else self.class_name(label)

    def names(self, of_train: bool, indices: Sequence[int]) -> list[str]:
        """Names of training examples or targets; `no. 17` where they have none."""
        found = names_of(self.learner, of_train, indices)
        return [f"no. {index}" for index in indices] if found is None else [shown(name) for name in found]

    def name(self, of_train: bool, index: int) -> str:
        """The name of one."""
        return self.names(of_train, [index])[0]

    @property
    def seen(self) -> str | None:
        """What there is to be seen of them: pictures, or rows of features; None where there is neither."""
        return PICTURES if self.pictured else FEATURES if self._features is not None else None

    def looks(self, of_train: bool, indices: Sequence[int]) -> Array:
        """What is to be seen of some, uint8 (len(indices), H, W, 1 or 3): a picture, or a cell for each feature, grey where it
        is as in the mean over S, dark where it is larger. To be asked only where something is `seen`.
        """
        found = self.pictures(of_train, indices)
        if found is not None:
            return found
        assert self._features is not None
        mean, deviation, sides = self._scale
        rows = (_of_split(self._features, of_train)[list(indices)].astype(np.float64) - mean) / deviation
        shades = np.rint(127.5 * (1 - np.clip(rows / MOST_DEVIATIONS, -1, 1))).astype(np.uint8)
        return _as_cells(shades, sides)

    @cached_property
    def _features(self) -> Any:
        """The data of a learner whose examples are rows of features; None for others."""
        data = getattr(self.learner, "data", None)
        return data if getattr(data, "has_pictures", True) is False else None

    @cached_property
    def _scale(self) -> tuple[Array, Array, tuple[int, int]]:
        """Mean and deviation of each feature over S, and the height and width of its cells."""
        rows = _of_split(self._features, True).astype(np.float64)
        width = math.ceil(math.sqrt(min(rows.shape[1], MOST_CELLS)))
        height = -(-min(rows.shape[1], MOST_CELLS) // width)
        return rows.mean(0), np.maximum(rows.std(0), 1e-12), (height, width)

    def pictures(self, of_train: bool, indices: Sequence[int]) -> Array | None:
        """Pictures uint8 (len(indices), H, W, 1 or 3); None where the learner has none."""
        return pictures_of(self.learner, of_train, indices)


def _of_split(data: Any, of_train: bool) -> Array:
    """Rows of features (n, d), without copying them."""
    found: Array = (data.train if of_train else data.test).images.numpy()
    return found


def _as_cells(shades: Array, sides: tuple[int, int]) -> Array:
    """Shades (k, d) as cells (k, H, W, 1), neighbours by their mean where there are more than cells; what is over is grey."""
    cells = sides[0] * sides[1]
    if shades.shape[1] > cells:
        edges = np.linspace(0, shades.shape[1], cells + 1).astype(int)
        shades = (np.add.reduceat(shades.astype(np.int64), edges[:-1], axis=1) // np.diff(edges)).astype(np.uint8)
    filled = np.pad(shades, ((0, 0), (0, cells - shades.shape[1])), constant_values=128)
    return filled.reshape(len(shades), *sides, 1)


def shortened(text: str, most: int) -> str:
    """Text of at most so many characters, of longer text a third of them its beginning: names of files differ at their ends."""
    if len(text) <= most:
        return text
    start = (most - 1) // 3
    return f"{text[:start]}…{text[len(text) - (most - 1 - start) :]}"
