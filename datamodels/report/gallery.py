"""What a page shows of training examples and targets: pictures, names, and the names of classes, where the learner has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from datamodels.errors import shown
from datamodels.learners import Learner, Named, Pictures
from datamodels.learners.given import class_names_of, names_of, pictures_of
from datamodels.subsets import Array
from datamodels.verify.known import Behaviour, Examples, Targets

UNKNOWN = "–"
MOST_ASIDE = 5
"""Pictures of a behaviour's targets in a row, and rows of them."""


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

    def pictures(self, of_train: bool, indices: Sequence[int]) -> Array | None:
        """Pictures uint8 (len(indices), H, W, 1 or 3); None where the learner has none."""
        return pictures_of(self.learner, of_train, indices)


def shortened(text: str, most: int) -> str:
    """Text of at most so many characters, of longer text a third of them its beginning: names of files differ at their ends."""
    if len(text) <= most:
        return text
    start = (most - 1) // 3
    return f"{text[:start]}…{text[len(text) - (most - 1 - start) :]}"
