"""What can be trained: the contract between this package and whatever is asked which training images made it say something.

A **learner** is a training algorithm together with its data (the 𝒜 of the datamodels paper: Ilyas et al. 2022). Store,
regression, search and verification know nothing else of it. To bring your own, write a class with the attributes of `Learner`
and one method, `train`; everything works then. A function of your own in a file needs not even that: see `function`.

    class Nearest:
        name = "the nearest neighbour"
        provenance = {"learner": "nearest", "data": "digits"}     # what decides its rows
        models_at_once = 16                                       # how many it likes to be given together

        def __init__(self, x, y, x_test, y_test): ...             # and self.train_labels, self.test_labels

        def train(self, models):
            return Trained({"margins": np.stack([self.margins(model.mask) for model in models])})

A model that it is given is a value: a key, and the mask of the training images that it is to see. What is random about a model
follows from its key, so that it is the same wherever and whenever it is trained.

What only some learners can do beyond margins are small protocols, each one method: `Features`, `Gradients`, `Attributes`,
`Relabels`, `Pictures`, `Named`. Whoever needs one asks for it by `offered`, which says in a sentence what a learner does not
give. What it does give is checked wherever it is asked: see `given`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from datamodels.errors import InputError
from datamodels.subsets import Array, BoolArray, IndexArray

Key = tuple[int, ...]
FIRST_LISTED = 2**31
"""Numbers of models that are no store's i-th."""


@dataclass(frozen=True, eq=False)
class Model:
    """A model to be trained.

    `key` decides everything random about it: (seed, i) for model i of a store, more numbers for others. `mask` bool (N,) are
    the training images that it sees, `labels` (N,) what it is told of them, None where that is what the data says.
    """

    key: Key
    mask: BoolArray
    labels: IndexArray | None = None

    @property
    def number(self) -> int:
        """One number for the model: i for model i of a store; for others 31 bits of the SHA-256 of the key, from 2³¹ on."""
        if len(self.key) == 2:
            return self.key[1]
        digest = hashlib.sha256(np.array(self.key, "<u8").tobytes()).digest()
        return FIRST_LISTED + int.from_bytes(digest[:4], "little") % FIRST_LISTED


@dataclass(frozen=True)
class Trained:
    """What the training of K models gave.

    `arrays` by name, (K, …) each: `margins` (K, T) in logits, and what else the learner gives, such as `logits`
    (K, T, classes). `failures` says of models that could not be trained why, by their place 0 … K-1; their rows count for
    nothing.
    """

    arrays: Mapping[str, Array]
    failures: Mapping[int, str] = field(default_factory=dict)


class Learner(Protocol):
    """A training algorithm with its data: N training examples, T targets.

    `train_labels` (N,) and `test_labels` (T,) are classes, all of them -1 where they are not known. `provenance` is everything
    that decides a model's row beside its key, mask and labels: rows are never mixed with those of another provenance.
    `models_at_once` is how many models `train` likes to be given; a block of that size is what a crash costs.

    The last targets may be training examples: then an attribute `train_targets` has their indices, in that order.
    """

    @property
    def name(self) -> str:
        """What a person calls it, for messages."""
        ...

    @property
    def train_labels(self) -> IndexArray:
        """Classes (N,)."""
        ...

    @property
    def test_labels(self) -> IndexArray:
        """Classes (T,)."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What decides a row; of plain JSON."""
        ...

    @property
    def models_at_once(self) -> int:
        """How many models together."""
        ...

    def train(self, models: Sequence[Model]) -> Trained:
        """Train models, each on the data's own labels: those that have others go to `Relabels.train_relabelled`.

        What it raises ends the run, unless it is the fault of single models: those go into `failures`.
        """
        ...


@runtime_checkable
class SideBySide(Protocol):
    """A learner that is called from several threads at once."""

    def side_by_side(self, items: Sequence[int], work: Callable[[int], None]) -> None:
        """Call `work`, which calls `train`, with each item, as many at once as it likes; the first error ends it."""
        ...


@runtime_checkable
class Features(Protocol):
    """A learner whose models look at images by features: for similarities."""

    def features(self, models: Sequence[Model]) -> Mapping[str, Array]:
        """Of K models `features_train` (K, N, d), `features_test` (K, T, d), and `logits` (K, T, classes) where it has them."""
        ...


@runtime_checkable
class Gradients(Protocol):
    """A learner whose models have gradients: for a prior of first order."""

    def first_order(self, models: Sequence[Model], dimensions: int) -> Mapping[str, Array]:
        """Sums over the models of first-order attributions, `gradients` (2, N, T), and `features_train`, `features_test`.

        See `training.gradients`; features are (K', N, d) and (K', T, d) of the K' models that did not diverge.
        """
        ...


@runtime_checkable
class Attributes(Protocol):
    """A learner to whose models the methods of the library dattri can be applied."""

    def attribute(self, method: str, models: Sequence[Model], targets: Sequence[int]) -> Array:
        """Scores (N, targets) by one of these methods."""
        ...


@runtime_checkable
class Relabels(Protocol):
    """A learner that can be told other labels than the data's."""

    @property
    def classes(self) -> int:
        """How many classes there are."""
        ...

    def train_relabelled(self, models: Sequence[Model]) -> Trained:
        """As `train`, each model on its own `labels` (N,), or on the data's where these are None."""
        ...


@runtime_checkable
class Pictures(Protocol):
    """A learner whose examples can be looked at."""

    def pictures(self, of_train: bool, indices: Sequence[int]) -> Array:
        """Some training examples or targets as images, uint8 (len(indices), H, W, 1 or 3)."""
        ...


@runtime_checkable
class Named(Protocol):
    """A learner whose examples have names: of files, of rows of a table."""

    def names(self, of_train: bool, indices: Sequence[int]) -> Sequence[str]:
        """Names of some training examples or targets, one line each, in a list or tuple."""
        ...


@runtime_checkable
class NamesClasses(Protocol):
    """A learner whose classes have names."""

    @property
    def class_names(self) -> Sequence[str]:
        """What the classes are called, in a list or tuple: one line each."""
        ...


GIVES: dict[type[Any], str] = {
    Features: "features",
    Gradients: "gradients",
    Attributes: "networks that dattri can take apart",
    Relabels: "models of other labels",
    Pictures: "pictures",
    Named: "names",
}
P = TypeVar("P")


def offered(learner: Learner, protocol: type[P], who: str) -> P:
    """The learner as one that fulfils a protocol. Raises InputError, which names who needs it and what is not given."""
    if not isinstance(learner, protocol):
        raise InputError(f"{who} needs {GIVES[protocol]}, and {learner.name} gives none{getattr(learner, 'hint', '')}")
    return learner
