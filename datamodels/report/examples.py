"""What a page shows of training examples and targets: pictures, and the names of classes, where the learner has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datamodels.learners import Learner, Pictures
from datamodels.subsets import Array

UNKNOWN = "–"
BLANK = 16
"""Pixels a side of what stands in the place of a picture where there is none."""


@dataclass(frozen=True)
class Examples:
    """A learner's examples, to be looked at."""

    learner: Learner

    @property
    def classes(self) -> int:
        """How many classes there are; 0 where they are not known."""
        if isinstance(self.learner, Pictures):
            return len(self.learner.class_names)
        return int(self.learner.train_labels.max()) + 1

    def class_name(self, label: int | None) -> str:
        """What a class is called; a dash where it is not known."""
        if label is None or label < 0:
            return UNKNOWN
        return self.learner.class_names[label] if isinstance(self.learner, Pictures) else f"class {label}"

    def of_training(self, index: int) -> str:
        """What a training example is called: its class, or where that is not known its index."""
        label = int(self.learner.train_labels[index])
        return f"no. {index}" if label < 0 else self.class_name(label)

    def pictures(self, of_train: bool, indices: Sequence[int]) -> Array:
        """Pictures uint8 (len(indices), H, W, 1 or 3); blank ones where the learner has none."""
        if isinstance(self.learner, Pictures):
            return self.learner.pictures(of_train, indices)
        return np.full((len(indices), BLANK, BLANK, 1), 32, np.uint8)
