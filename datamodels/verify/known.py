"""What a run's targets are: columns of the margins, training images among them, and behaviours, several targets as one.

Numbers 0 … T-1 are columns: the test images, and after them those training images that are targets too
(`Learner.train_targets`). From T on there are behaviours, in the order in which they were first asked about; their margin is
the mean over their targets, model by model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np

from datamodels.errors import shown
from datamodels.learners import Learner
from datamodels.learners.given import class_names_of, names_of
from datamodels.reading import Between
from datamodels.subsets import BoolArray, IndexArray

TRAIN, CLASS, MISTAKEN, FILE, RANDOM = RESERVED = ("train", "class", "mistaken", "file", "random")
"""Words that begin a target's text, with a colon after them."""
MOST = 2**31

Index = Annotated[int, Between(0, MOST)]


@dataclass(frozen=True)
class Behaviour:
    """Several targets that are judged as one: by the mean of their margins, and their number among the run's targets."""

    name: str
    number: Index
    targets: tuple[Index, ...]


class Examples:
    """The examples of a learner, by the words with which they can be asked about."""

    def __init__(self, learner: Learner) -> None:
        self.n, self.t = len(learner.train_labels), len(learner.test_labels)
        self.train_labels, self.labels = np.asarray(learner.train_labels), np.asarray(learner.test_labels)
        self.train_targets: tuple[int, ...] = tuple(map(int, getattr(learner, "train_targets", ())))
        self.class_names = _writable(class_names_of(learner))
        self._learner = learner

    @property
    def tests(self) -> int:
        """How many test images there are; the columns after them are training images."""
        return self.t - len(self.train_targets)

    @cached_property
    def test_names(self) -> tuple[str, ...]:
        """The names of the test images; none where they have none."""
        return _writable(names_of(self._learner, False, range(self.tests)) or ())

    @cached_property
    def train_names(self) -> tuple[str, ...]:
        """The names of the training images."""
        return _writable(names_of(self._learner, True, range(self.n)) or ())

    @cached_property
    def tests_by_name(self) -> dict[str, list[int]]:
        """The test images of each name."""
        return _places(self.test_names)

    @cached_property
    def training_by_name(self) -> dict[str, list[int]]:
        """The training images of each name."""
        return _places(self.train_names)

    @cached_property
    def column_of(self) -> dict[int, int]:
        """The column of each training image that is a target."""
        return {image: column for column, image in enumerate(self.train_targets, self.tests)}

    @property
    def classes(self) -> int:
        """How many classes there are; 0 where they are not known."""
        return len(self.class_names) or 1 + max(int(self.labels.max()), int(self.train_labels.max()))

    def class_name(self, label: int) -> str:
        """What a class is called in a target's text: by its name, or where it has none by its number."""
        return self.class_names[label] if label < len(self.class_names) else str(label)

    def name(self, column: int) -> str | None:
        """What a column is called in a target's text; None for a test image that has no name but its index."""
        if column < self.tests:
            return self.test_names[column] if self.test_names else None
        image = self.train_targets[column - self.tests]
        return f"{TRAIN}:{self.train_names[image] if self.train_names else image}"


def _writable(names: Sequence[str]) -> tuple[str, ...]:
    """Names as UTF-8 has them: those of files may have halves of characters, which no file could be written with."""
    return tuple(name.encode("utf-8", "backslashreplace").decode("utf-8") for name in names)


def _places(names: Sequence[str]) -> dict[str, list[int]]:
    """Where each name stands: of tens of thousands none is searched for, line by line of a file."""
    found = dict[str, list[int]]()
    for place, name in enumerate(names):
        found.setdefault(name, []).append(place)
    return found


class Targets:
    """What every target of a verification is, columns and behaviours alike, by its number."""

    def __init__(self, examples: Examples, behaviours: Sequence[Behaviour] = ()) -> None:
        self.examples, self.behaviours = examples, tuple(behaviours)
        self._members = {behaviour.number: behaviour for behaviour in self.behaviours}

    def members(self, number: int) -> tuple[int, ...]:
        """The columns of which a target's margin is the mean: of a behaviour its targets, else itself."""
        return self._members[number].targets if number in self._members else (number,)

    def is_behaviour(self, number: int) -> bool:
        """Whether it is one of several targets."""
        return number in self._members

    def name(self, number: int) -> str | None:
        """What it is called; None for a test image that has no name but its index."""
        return self._members[number].name if number in self._members else self.examples.name(number)

    def called(self, number: int) -> str:
        """What it is called in a message."""
        return shown(self.name(number) or str(number), 80)

    def classes(self, number: int) -> IndexArray:
        """The classes of its targets, each once."""
        found: IndexArray = np.unique(self.examples.labels[list(self.members(number))])
        return found

    def label(self, number: int) -> int:
        """Its class, -1 where that is not known or its targets are of several."""
        classes = self.classes(number)
        return int(classes[0]) if len(classes) == 1 else -1

    def same_class(self, number: int) -> BoolArray:
        """Which training images are of its class, or of one of its targets' classes, bool (N,)."""
        return np.isin(self.examples.train_labels, self.classes(number))

    def itself(self, number: int) -> IndexArray:
        """The training images that it is: what carries it besides itself is the question, and these are in no set."""
        columns = np.array(self.members(number)) - self.examples.tests
        images = np.array(self.examples.train_targets, np.int64)
        return images[columns[columns >= 0]] if len(images) else images
