"""A training function of one's own as a learner: `worker.main: module:function`.

    def train(index, mask):                   # mask: bool (N,), which training examples this model sees
        …
        return {"margins": margins}           # (T,), one for each target; index decides what is random

The module may have more, each only if it is there:

    train_labels, test_labels                 classes (N,) and (T,), whole numbers; without them controls are of no class
    train(index, mask, labels)                a third parameter, `labels` (N,): then images can be relabelled
    … {"margins": …, "logits": …}             logits (T, classes), from which confidences and runners-up follow
    train_many(indices, masks)                many models in one call, masks bool (K, N): arrays (K, …) by name; of a function
                                              of any other name it is that name with `_many`
    features(index, mask)                     (N, d) and (T, d), what the model sees of training examples and targets

Instead of a function the module may hold a learner, an object or a class that is called without arguments: see `contract`.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from datamodels.errors import InputError, in_a_sentence, one_line, shown
from datamodels.learners.contract import Learner, Model, Trained
from datamodels.learners.declared import declared_arrays
from datamodels.learners.sources import imported_sources, refuse_changed
from datamodels.own_code import FunctionError, named_in, of_its_own
from datamodels.settings import Settings
from datamodels.store import ArraySpec
from datamodels.subsets import Array, IndexArray
from datamodels.training.devices import visible

LOGITS = "logits"
MOST_AT_ONCE = 1024
MOST_CLASSES = 2**20
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
    another one now; what its module raises is not caught.
    """
    use_gpu(gpu)
    name = settings.worker.main
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


def refuse_incomplete(learner: Any, name: str) -> None:
    """Raise InputError where a learner lacks what the contract wants of it, or has something else in its place."""
    lacking = [
        each for each in ("name", "train_labels", "test_labels", "provenance", "models_at_once") if not hasattr(learner, each)
    ]
    if lacking:
        raise InputError(f"the learner {name} has no {lacking[0]}; see datamodels/learners/contract.py")
    for side in ("train_labels", "test_labels"):
        labels = getattr(learner, side)
        if not isinstance(labels, np.ndarray) or labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
            raise InputError(f"{side} of the learner {name} must be a NumPy array (n,) of whole numbers, one for each example")
        known = labels.min() >= 0 and labels.max() < MOST_CLASSES
        if not known and (labels != -1).any():
            raise InputError(f"{side} of the learner {name} must be classes from 0 to {MOST_CLASSES - 1}, or all -1: not known")
    at_once = learner.models_at_once
    if isinstance(at_once, bool) or not isinstance(at_once, (int, np.integer)) or not 1 <= at_once <= MOST_AT_ONCE:
        raise InputError(
            f"models_at_once of the learner {name} must be from 1 to {MOST_AT_ONCE}, not {shown(str(at_once), 80)}"
        )


@contextmanager
def said_of(name: str) -> Iterator[None]:
    """Make an InputError of whatever a learner of a person's own raises, with its words, but not of Ctrl-C."""
    try:
        with of_its_own("raised"):
            yield
    except FunctionError as e:
        raise InputError(f"the learner {name} {e}") from e


def trained_by(learner: Learner, models: Sequence[Model]) -> Trained:
    """What a learner gives of models, its arrays NumPy's. Raises InputError for what is not as the contract wants it."""
    if type(learner).__module__.startswith("datamodels."):
        return learner.train(models)
    with said_of(learner.name):
        found = learner.train(models)
        if not isinstance(found, Trained) or not isinstance(found.arrays, Mapping) or not isinstance(found.failures, Mapping):
            raise InputError(f"{learner.name} must give datamodels.learners.Trained, not {type(found).__name__}")
        arrays = {str(name): np.array(as_array(array, f"{learner.name} gave {name}")) for name, array in found.arrays.items()}
        for k, why in found.failures.items():
            if (
                isinstance(k, bool)
                or not isinstance(k, (int, np.integer))
                or not 0 <= k < len(models)
                or not isinstance(why, str)
            ):
                raise InputError(
                    f"{learner.name} gave a failure of {shown(repr(k), 80)}: there are places 0 to {len(models) - 1}"
                )
        return Trained(arrays, {int(k): shown(why, 300) for k, why in found.failures.items()})


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
        self.takes_labels = "labels" in _parameters(function)
        if self.takes_labels and (self.train_labels >= 0).all():
            self.classes = int(self.train_labels.max()) + 1
        looks = getattr(module, "features", None)
        if callable(looks):
            self.features = _features_by(looks, self)

    def train(self, models: Sequence[Model]) -> Trained:
        """What the function gives for each model; one at which it fails has failed, with its words.

        Raises InputError when it gives anything else than what the store wants. What the machine is to blame for, such as
        memory that does not suffice, comes through: no subset is given up for it.
        """
        if self.many is not None and not any(model.labels is not None for model in models):
            return self._together(self.many, models)
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


def as_array(value: Any, what: str) -> Array:
    """A NumPy array of what a person's code gives: numbers, lists, arrays, or tensors, also on a GPU or with a gradient.

    What a masked array masks is no number, and becomes NaN. Raises InputError, which begins with `what`, for anything else.
    """
    try:
        for step in ("detach", "cpu"):
            value = getattr(value, step)() if callable(getattr(value, step, None)) else value
        return np.asarray(_unmasked(value))
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # a person's class may raise anything
        if in_a_sentence(e) is not None:
            raise
        raise InputError(f"{what} as no array: {one_line(e, 200)}") from e


def _unmasked(value: Any) -> Any:
    """The same with NaN for what is masked, in lists of masked arrays too; `np.asarray` takes what lies under the mask."""
    if isinstance(value, (list, tuple)):
        return [_unmasked(each) for each in value]
    if not isinstance(value, np.ma.MaskedArray) or not np.ma.is_masked(value):
        return value
    return np.where(np.ma.getmaskarray(value), np.nan, np.ma.getdata(value))
