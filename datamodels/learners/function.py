"""A training function of one's own as a learner: `worker.main: module:function`.

    def train(index, mask):                   # mask: bool (N,), which training examples this model sees
        …
        return {"margins": margins}           # (T,), one for each target; index decides what is random

The module may have more, each only if it is there:

    train_labels, test_labels                 classes (N,) and (T,), whole numbers; without them controls are of no class
    class_names                               what the classes are called
    train_names, test_names                   N and T names of examples, one line each, for the page; both, or neither
    pictures(of_train, indices)               examples to look at, uint8 (len(indices), H, W, 1 or 3)
    train(index, mask, labels)                a third parameter, `labels` (N,): then images can be relabelled
    … {"margins": …, "logits": …}             logits (T, classes), from which confidences and runners-up follow
    train_many(indices, masks)                many models in one call, masks bool (K, N): arrays (K, …) by name; of a function
                                              of any other name it is that name with `_many`
    features(index, mask)                     (N, d) and (T, d), what the model sees of training examples and targets
    train_targets                             indices of training examples that are the last of the T targets, in that order

Instead of a function the module may hold a learner, an object or a class that is called without arguments: see `contract`.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from datamodels.errors import InputError, shown
from datamodels.learners.contract import Learner, Model, Trained
from datamodels.learners.declared import declared_arrays
from datamodels.learners.given import LOGITS, as_array, refuse_incomplete, refuse_other_names, refuse_other_targets, said_of
from datamodels.learners.sources import imported_sources, refuse_changed
from datamodels.own_code import FunctionError, named_in, of_its_own
from datamodels.settings import NO_TARGETS, Settings
from datamodels.store import ArraySpec
from datamodels.subsets import Array, IndexArray
from datamodels.training.devices import visible

MANY_AT_ONCE = 16
"""Models that a function for many is given together, unless groups.models_at_once says otherwise."""


def use_gpu(gpu: str | None) -> None:
    """Let one's own code see the one GPU that it is to use, or none, whatever it trains with; None changes nothing.

    CUDA reads the variable when it is first asked, so that nothing may have asked before. Raises InputError as `visible` does.
    """
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible(gpu)


def learner_named(settings: Settings, gpu: str | None = None, sources: Mapping[str, str] | None = None) -> Learner:
    """What `worker.main` names, with its device made visible: a function as a learner, or a learner.

    `sources` are the digests of its files in the process that began the work. Raises InputError when there is no such thing, or
    another one now, or for data.train_targets, which are the built-in training's; what its module raises is not caught.
    """
    use_gpu(gpu)
    name = settings.worker.main
    if settings.data.train_targets != NO_TARGETS:
        raise InputError(f"data.train_targets is for the built-in training; {name} names its own, as train_targets")
    found = named(name)
    now = imported_sources(name.partition(":")[0])
    if sources is not None:
        refuse_changed(sources, now, "the work")
    with said_of(name):
        if inspect.isclass(found):
            found = found()
        if callable(getattr(found, "train", None)):
            refuse_incomplete(found, name)
            learner: Learner = found
            return learner
    if not callable(found):
        raise InputError(f"worker.main names {name}, which is neither a function nor a learner")
    return Function(settings, found)


def named(name: str) -> Any:
    """What module:name names; see `named_in`."""
    return named_in("worker.main", name, "my_module:train")


class Function:
    """A training function as a learner; see above. N and T are `data.train_images` and `data.test_images`, or, where these
    are 0, as many as the module's labels.

    Raises InputError where the module's labels are not as many as the examples.
    """

    provenance: Mapping[str, Any] = {}
    hint = "; what its module may have beside it stands in datamodels/learners/function.py"

    def __init__(self, settings: Settings, function: Callable[..., Any]) -> None:
        self.settings, self.function, self.name = settings, function, settings.worker.main
        module_name, _, function_name = self.name.partition(":")
        module = sys.modules.get(module_name)
        self.n, self.t = (_size(settings, side, module) for side in ("train", "test"))
        self.wanted = {"margins": ArraySpec("float64", (self.t,)), **declared_arrays(settings.store.arrays)}
        many = getattr(module, f"{function_name}_many", None)
        self.many: Callable[..., Any] | None = many if callable(many) else None
        self.models_at_once = settings.groups.models_at_once or (MANY_AT_ONCE if self.many else 1)
        self.train_labels, self.test_labels = _labels_of(module, self.n, self.t)
        self.train_targets = _train_targets(module, self)
        self.takes_labels = "labels" in _parameters(function)
        if self.takes_labels and (self.train_labels >= 0).all():
            self.classes = 1 + int(max(self.train_labels.max(), self.test_labels.max()))
            self.train_relabelled = self._one_by_one
        looks = getattr(module, "features", None)
        if callable(looks):
            self.features = _features_by(looks, self)
        self._shows(module)

    def _shows(self, module: ModuleType | None) -> None:
        """Take what the module has to show of its examples; all of it is optional."""
        of_train, of_test, of_classes = (_names(module, f"{what}_names") for what in ("train", "test", "class"))
        if of_train is not None or of_test is not None:
            refuse_other_names(of_train, self.n, f"train_names of {self.name}")
            refuse_other_names(of_test, self.t, f"test_names of {self.name}")
            self.names = functools.partial(_names_among, of_train, of_test)
        if of_classes is not None:
            known = 1 + int(max(self.train_labels.max(), self.test_labels.max()))
            refuse_other_names(of_classes, known, f"class_names of {self.name}", at_least=True)
            self.class_names: Sequence[str] = of_classes
        pictures = getattr(module, "pictures", None)
        if callable(pictures):
            self.pictures: Callable[[bool, Sequence[int]], Any] = pictures

    def train(self, models: Sequence[Model]) -> Trained:
        """What the function gives for each model; one at which it fails has failed, with its words.

        Raises InputError when it gives anything else than what the store wants. What the machine is to blame for, such as
        memory that does not suffice, comes through: no subset is given up for it.
        """
        if self.many is not None:
            return self._together(self.many, models)
        return self._one_by_one(models)

    def _one_by_one(self, models: Sequence[Model]) -> Trained:
        return _joined([self._one(model) for model in models], self.wanted)

    def _one(self, model: Model) -> Trained:
        try:
            with of_its_own("its training function raised"):
                result = self._call(model)
            arrays = self._checked(result, model.number)
        except FunctionError as e:
            return self._failed(e)
        return Trained({name: array[None] for name, array in arrays.items()})

    def _failed(self, error: FunctionError) -> Trained:
        """A model at which the function failed, with zeros in the place of what it would have given."""
        return Trained({name: np.zeros((1, *spec.shape), spec.dtype) for name, spec in self.wanted.items()}, {0: str(error)})

    def _call(self, model: Model) -> Any:
        if not self.takes_labels:
            return self.function(model.number, model.mask.copy())
        labels = self.train_labels if model.labels is None else model.labels
        return self.function(model.number, model.mask.copy(), labels=labels.copy())

    def _together(self, many: Callable[..., Any], models: Sequence[Model]) -> Trained:
        """Many models in one call; when it fails, each is tried in a call of its own."""
        numbers = [model.number for model in models]
        try:
            with of_its_own("its training function raised"):
                result = many(np.array(numbers), np.stack([model.mask for model in models]))
            return Trained(self._mapping(result, numbers[0]))
        except FunctionError as e:
            if len(models) == 1:
                return self._failed(e)
            return _joined([self._together(many, [model]) for model in models], self.wanted)

    def _checked(self, result: Any, number: int) -> dict[str, Array]:
        arrays = self._mapping(result, number)
        for name, spec in self.wanted.items():
            if arrays[name].shape != spec.shape:
                raise InputError(
                    f"the training function gave {name} of shape {arrays[name].shape} for model {number}, not {spec.shape}"
                )
        if LOGITS in arrays and (arrays[LOGITS].ndim != 2 or len(arrays[LOGITS]) != self.t):
            raise InputError(
                f"the training function gave logits of shape {arrays[LOGITS].shape} for model {number}, not ({self.t}, classes)"
            )
        return arrays

    def _mapping(self, result: Any, number: int) -> dict[str, Array]:
        """The arrays of what the function gave."""
        wanted = set(self.wanted)
        with of_its_own("what its training function gave raised"):
            given = {name: result[name] for name in result} if isinstance(result, Mapping) else None
        if given is None or not wanted <= set(given) <= wanted | {LOGITS}:
            names = sorted(map(_shown, given)) if given is not None else type(result).__name__
            raise InputError(f"the training function gave {names} for model {number}; the store wants {sorted(wanted)}")
        arrays = {}
        for name, value in given.items():
            # A copy: the function may fill the same array for the next model.
            arrays[name] = np.array(as_array(value, f"the training function gave {name} for model {number}"))
            if arrays[name].dtype.kind not in "biuf":
                raise InputError(
                    f"the training function gave {name} for model {number} of type {arrays[name].dtype}, not real numbers"
                )
        return arrays


def _shown(key: Any) -> str:
    """A key of what the function gave, which need not be text, as a name to show."""
    return shown(key, 80) if isinstance(key, str) else type(key).__name__


def _joined(parts: Sequence[Trained], wanted: Mapping[str, ArraySpec]) -> Trained:
    """What single models gave, as of one call."""
    fine = [part for part in parts if not part.failures]
    names = set.intersection(*(set(part.arrays) for part in fine)) if fine else set(wanted)
    blank = {name: np.zeros_like(fine[0].arrays[name]) for name in names} if fine else {}
    arrays = {name: np.concatenate([(part.arrays if name in part.arrays else blank)[name] for part in parts]) for name in names}
    return Trained(arrays, {k: part.failures[0] for k, part in enumerate(parts) if part.failures})


def _features_by(looks: Callable[..., Any], learner: Function) -> Callable[[Sequence[Model]], Mapping[str, Array]]:
    """The method `features` of a module that has a function for it."""

    def features(models: Sequence[Model]) -> Mapping[str, Array]:
        found: dict[str, list[Array]] = {"features_train": [], "features_test": []}
        for model in models:
            try:
                with of_its_own("it raised"):
                    given = looks(model.number, model.mask.copy())
            except FunctionError as e:
                raise InputError(f"{learner.name}: the function features failed: {e}") from e
            if not isinstance(given, Sequence) or len(given) != 2:
                raise InputError(f"{learner.name}: the function features must give two arrays, (N, d) and (T, d)")
            for (name, rows), value, size in zip(found.items(), given, (learner.n, learner.t), strict=True):
                array = as_array(value, f"{learner.name}: the function features gave {name}")
                if array.ndim != 2 or len(array) != size or array.dtype.kind not in "biuf":
                    raise InputError(f"{learner.name}: {name} must be numbers of shape ({size}, d), not {array.shape}")
                rows.append(array)
        return {name: np.stack(rows) for name, rows in found.items()}

    return features


def _names(module: ModuleType | None, name: str) -> Any:
    """Names in a module, those of NumPy's as a list, as scikit-learn has them."""
    found = getattr(module, name, None)
    return found.tolist() if isinstance(found, np.ndarray) else found


def _names_among(of_train: Sequence[str], of_test: Sequence[str], train: bool, indices: Sequence[int]) -> list[str]:
    """The method `names` of a module that has them."""
    return [(of_train if train else of_test)[index] for index in indices]


def _parameters(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of some built-in functions nothing is known
        return set()


def _labels_of(module: ModuleType | None, n: int, t: int) -> tuple[IndexArray, IndexArray]:
    """Classes (N,) and (T,), all -1 where the module has none. Raises InputError for one of them without the other."""
    train, test = _labels(module, "train_labels", n), _labels(module, "test_labels", t)
    if (train is None) != (test is None):
        there, lacking = ("train", "test") if test is None else ("test", "train")
        raise InputError(f"{module and module.__name__} has {there}_labels and no {lacking}_labels; give both, or neither")
    if train is None or test is None:
        return np.full(n, -1), np.full(t, -1)
    return train, test


def _train_targets(module: ModuleType | None, function: Function) -> tuple[int, ...]:
    """The training examples that are the last targets. Raises InputError for what are none."""
    found = getattr(module, "train_targets", ())
    refuse_other_targets(found, function.train_labels, function.test_labels, f"train_targets of {function.name}")
    return tuple(map(int, found))


def _size(settings: Settings, side: str, module: ModuleType | None) -> int:
    """N or T: as set, or as many as the module has labels."""
    given: int = getattr(settings.data, f"{side}_images")
    labels = getattr(module, f"{side}_labels", None)
    if not given and (labels is None or not np.ndim(labels)):
        raise InputError(
            f"{settings.worker.main} has no {side}_labels, which would tell how many examples there are; set data.{side}_images"
        )
    return given or len(as_array(labels, f"{settings.worker.main} has {side}_labels"))


def _labels(module: ModuleType | None, name: str, n: int) -> IndexArray | None:
    found = getattr(module, name, None)
    if module is None or found is None:
        return None
    labels = as_array(found, f"{module.__name__} has {name}")
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise InputError(f"{name} in {module.__name__} must be {n} whole numbers, not {labels.dtype} of shape {labels.shape}")
    return labels.astype(np.int64)
