"""What a learner of one's own gives, checked wherever it is asked for anything: each fault is one sentence that names it.

The contract says what is wanted. People's code gives something else now and then: another shape, a tensor, a masked array, NaN,
an array that it fills again for the next model, an exception, the end of the process. None of it may go further than here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import numpy as np

from datamodels.errors import InputError, in_a_sentence, one_line, shown
from datamodels.learners.contract import (
    Attributes,
    Features,
    Gradients,
    Learner,
    Model,
    Named,
    NamesClasses,
    Pictures,
    Relabels,
    SideBySide,
    Trained,
    offered,
)
from datamodels.own_code import said
from datamodels.subsets import Array, IndexArray

MOST_AT_ONCE = 1024
MOST_CLASSES = 2**20
MOST_RIDGES = 2
ROWS_AT_ONCE = 1024
LOGITS = "logits"
FEATURES = ("features_train", "features_test")
WANTED = ("name", "train_labels", "test_labels", "provenance", "models_at_once", "train")
METHODS = (
    *("train", "train_relabelled", "side_by_side", "features", "first_order", "attribute", "pictures", "names"),
    *("choose_groups", "give_back"),
)
"""Methods that a learner may have, most of them where it likes."""
NO_REASON = "no reason was given"

R = TypeVar("R")


def said_of(name: str) -> AbstractContextManager[None]:
    """Make an InputError of whatever a learner of a person's own raises, with its words, but not of Ctrl-C."""
    return said(f"the learner {name}")


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


# What a learner is.


def of_this_package(learner: Learner) -> bool:
    """Whether a learner is the built-in recipe, or a function's: what these raise, and give of models, is checked within."""
    return type(learner).__module__.startswith("datamodels.")


def refuse_incomplete(learner: Any, name: str) -> None:
    """Raise InputError where a learner lacks what the contract wants of it, or has something else in its place."""
    lacking = [each for each in WANTED if not hasattr(learner, each)]
    if lacking:
        raise InputError(f"the learner {name} has no {lacking[0]}; see datamodels/learners/contract.py")
    for method in METHODS:
        if hasattr(learner, method) and not callable(getattr(learner, method)):
            raise InputError(f"{method} of the learner {name} must be a method, not {type(getattr(learner, method)).__name__}")
    if not is_one_line(learner.name):
        raise InputError(f"name of the learner {name} must be one line of text, not {shown(repr(learner.name), 80)}")
    sides = [_labels_of(learner, side, name) for side in ("train_labels", "test_labels")]
    if (sides[0][0] < 0) != (sides[1][0] < 0):
        known, unknown = ("train", "test") if sides[1][0] < 0 else ("test", "train")
        told = f"the learner {name} knows its {known}_labels, and its {unknown}_labels are -1"
        raise InputError(f"{told}: both must be known, or neither")
    refuse_other_targets(getattr(learner, "train_targets", ()), sides[0], sides[1], f"train_targets of the learner {name}")
    most = int(max(labels.max() for labels in sides))
    at_once = learner.models_at_once
    if not is_whole(at_once) or not 1 <= at_once <= MOST_AT_ONCE:
        told = f"from 1 to {MOST_AT_ONCE}, not {shown(str(at_once), 80)}"
        raise InputError(f"models_at_once of the learner {name} must be {told}")
    if isinstance(learner, Relabels) and (not is_whole(learner.classes) or not most < learner.classes <= MOST_CLASSES):
        told = f"a whole number above every label, of which {most} is the largest, not {shown(repr(learner.classes), 80)}"
        raise InputError(f"classes of the learner {name} must be {told}")
    if isinstance(learner, NamesClasses):
        refuse_other_names(learner.class_names, most + 1, f"class_names of the learner {name}", at_least=True)


def _labels_of(learner: Any, side: str, name: str) -> IndexArray:
    """Its labels, looked at twice: some are made anew each time."""
    labels: IndexArray
    labels, again = getattr(learner, side), getattr(learner, side)
    plain = isinstance(labels, np.ndarray) and not isinstance(labels, np.ma.MaskedArray)
    if not plain or labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
        raise InputError(f"{side} of the learner {name} must be a NumPy array (n,) of whole numbers, one for each example")
    if not isinstance(again, np.ndarray) or not np.array_equal(labels, again):
        raise InputError(f"{side} of the learner {name} must stay what they are, and change from one look to the next")
    known = labels.min() >= 0 and labels.max() < MOST_CLASSES
    if not known and (labels != -1).any():
        raise InputError(f"{side} of the learner {name} must be classes from 0 to {MOST_CLASSES - 1}, or all -1: not known")
    return labels


def refuse_other_targets(given: Any, train: IndexArray, test: IndexArray, what: str) -> None:
    """Raise InputError, which begins with `what`, unless the last targets of classes `test` (T,) are these of `train` (N,)."""
    plain = isinstance(given, (list, tuple, np.ndarray)) and all(is_whole(each) and 0 <= each < len(train) for each in given)
    if not plain or len(set(given)) < len(given) or len(given) >= len(test):
        told = f"different indices from 0 to {len(train) - 1}, fewer than the {len(test)} targets"
        raise InputError(f"{what} must be a list, tuple or array of {told}, not {shown(repr(given), 80)}")
    if len(given) and (train[list(given)] != test[-len(given) :]).any():
        raise InputError(f"{what} are the last {len(given)} targets, and these are of other classes")


def is_whole(number: Any) -> bool:
    """Whether something is a whole number of Python or NumPy, and no truth value."""
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)


def is_one_line(text: Any) -> bool:
    """Whether something is text that can be told within a line; what a terminal would obey is escaped when it is shown."""
    return isinstance(text, str) and len(text.splitlines()) == 1 and not text.isspace()


def refuse_other_names(names: Any, number: int, what: str, at_least: bool = False) -> None:
    """Raise InputError, which begins with `what`, where names are no list or tuple of so many texts of one line each.

    With `at_least` there may be more, and each is another one, for they name classes: `class:dog` must mean one of them.
    """
    if not isinstance(names, (list, tuple)) or not (len(names) >= number if at_least else len(names) == number):
        given = f"{len(names)}" if isinstance(names, (list, tuple)) else type(names).__name__
        least = "at least " * at_least
        raise InputError(f"{what} must be a list or tuple of {least}{number} names, not {given}")
    bad = next((name for name in names if not is_one_line(name)), None)
    if bad is not None or None in names:
        raise InputError(f"{what} must be texts of one line each, not {shown(repr(bad), 80)}")
    if at_least and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{what} must be different, and {shown(repr(twice), 80)} comes twice")


# What it gives of models.


def trained_by(learner: Learner, models: Sequence[Model]) -> Trained:
    """What a learner gives of models, its arrays NumPy's; those of other labels are for one that offers to relabel.

    Raises InputError for what is not as the contract wants it.
    """
    train = learner.train
    if any(model.labels is not None for model in models):
        train = offered(learner, Relabels, "relabelling").train_relabelled
    if of_this_package(learner):
        return train(models)
    with said_of(learner.name):
        found = train(models)
        if not isinstance(found, Trained) or not isinstance(found.arrays, Mapping) or not isinstance(found.failures, Mapping):
            raise InputError(f"{learner.name} must give datamodels.learners.Trained, not {type(found).__name__}")
        # Copies: it may fill the same arrays for the next models.
        arrays = {str(name): np.array(as_array(array, f"{learner.name} gave {name}")) for name, array in found.arrays.items()}
        return Trained(arrays, _failures(found.failures, len(models), learner.name))


def _failures(failures: Mapping[Any, Any], models: int, name: str) -> dict[int, str]:
    for k, why in failures.items():
        if not is_whole(k) or not 0 <= k < models or not isinstance(why, str):
            told = f"there are places 0 to {models - 1}, with a text for each"
            raise InputError(f"{name} gave a failure of {shown(repr(k), 80)}: {told}")
    return {int(k): shown(why, 300) if why.strip() else NO_REASON for k, why in failures.items()}


def logits_of(trained: Trained, learner: Learner) -> Array | None:
    """Logits (K, T, classes) of what training gave, None where there are none; finite where margins are.

    Raises InputError for what else stands there.
    """
    if LOGITS not in trained.arrays:
        return None
    margins, logits, most = trained.arrays["margins"], trained.arrays[LOGITS], int(learner.test_labels.max())
    if logits.ndim != 3 or logits.shape[:2] != margins.shape or logits.shape[2] <= max(most, 0):
        told = f"{len(margins)} models, {len(learner.test_labels)} targets and labels up to {most}"
        raise InputError(f"{learner.name} gave logits of shape {logits.shape}, not (K, T, classes) for {told}")
    _refuse_other_types(logits, "logits", learner.name)
    for k, (row, its) in enumerate(zip(logits, margins, strict=True)):
        if k not in trained.failures and np.isfinite(its).all() and not np.isfinite(row).all():
            raise InputError(f"{learner.name} gave logits that are not finite, beside margins that are")
    return logits


def features_of(learner: Learner, models: Sequence[Model], who: str) -> dict[str, Array]:
    """`features_train` (K, N, d) and `features_test` (K, T, d) of K models, finite, in float32 or float64.

    `who` needs them. Raises InputError where the learner offers none, or gives something else.
    """
    features = offered(learner, Features, who).features
    with said_of(learner.name):
        found = _mapping(features(models), FEATURES, "features", learner.name)
    return _pair(found, learner, len(models), range(len(models), len(models) + 1))


def first_order_of(learner: Learner, models: Sequence[Model], dimensions: int, who: str) -> dict[str, Array]:
    """`gradients` (2, N, T), sums over K models, and features (K', N, d), (K', T, d) of those that did not diverge.

    Raises InputError as `features_of` does.
    """
    first_order = offered(learner, Gradients, who).first_order
    with said_of(learner.name):
        found = _mapping(first_order(models, dimensions), ("gradients", *FEATURES), "first_order", learner.name)
    wanted = (MOST_RIDGES, len(learner.train_labels), len(learner.test_labels))
    gradients = _numbers(found["gradients"], "gradients", wanted, learner.name)
    return {"gradients": gradients, **_pair(found, learner, len(models), range(len(models) + 1))}


def attributed_by(learner: Learner, method: str, models: Sequence[Model], targets: Sequence[int]) -> Array:
    """Scores (N, targets) by one of dattri's methods, finite. Raises InputError as `features_of` does."""
    attribute = offered(learner, Attributes, f"the method {method}").attribute
    with said_of(learner.name):
        found = as_array(attribute(method, models, targets), f"{learner.name} gave scores")
    return np.array(_numbers(found, "scores", (len(learner.train_labels), len(targets)), learner.name))


def _mapping(found: Any, names: Sequence[str], method: str, name: str) -> dict[str, Array]:
    """The arrays of these names in what a method gave."""
    if not isinstance(found, Mapping) or not all(each in found for each in names):
        given = sorted(shown(str(each), 80) for each in found) if isinstance(found, Mapping) else type(found).__name__
        raise InputError(f"{method} of {name} must give a mapping with {', '.join(names)}, not {given}")
    return {each: as_array(found[each], f"{name} gave {each}") for each in names}


def _pair(found: Mapping[str, Array], learner: Learner, models: int, allowed: range) -> dict[str, Array]:
    """Features of training examples and of targets, of as many models and dimensions as each other."""
    sizes = (len(learner.train_labels), len(learner.test_labels))
    k, d = (found[FEATURES[0]].shape[axis] if found[FEATURES[0]].ndim == 3 else -1 for axis in (0, 2))
    if k not in allowed or d < 1:
        told = f"({models}, {sizes[0]}, d) for {models} models"
        raise InputError(f"{learner.name} gave {FEATURES[0]} of shape {found[FEATURES[0]].shape}, not {told}")
    return {name: _numbers(found[name], name, (k, size, d), learner.name) for name, size in zip(FEATURES, sizes, strict=True)}


def _numbers(array: Array, what: str, shape: tuple[int, ...], name: str) -> Array:
    """The same array, of this shape and finite; of small numbers, whose squares overflow, as float32."""
    if array.shape != shape:
        raise InputError(f"{name} gave {what} of shape {array.shape}, not {shape}")
    _refuse_other_types(array, what, name)
    if not all(np.isfinite(rows).all() for rows in _pieces(array)):
        raise InputError(f"{name} gave {what} that are not finite")
    if array.dtype.kind == "f" and array.dtype.itemsize >= 4:
        return array if array.dtype.itemsize <= 8 else array.astype(np.float64)
    return array.astype(np.float32 if array.dtype.itemsize <= 2 else np.float64)


def _pieces(array: Array) -> Iterator[Array]:
    """An array by some of its rows at a time: it may be gigabytes, and what is found of it takes as much again."""
    if array.ndim <= 2:
        yield from (array[k : k + ROWS_AT_ONCE] for k in range(0, len(array), ROWS_AT_ONCE))
    else:
        for part in array:
            yield from _pieces(part)


def _refuse_other_types(array: Array, what: str, name: str) -> None:
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} gave {what} of type {array.dtype}, not real numbers")


# What it shows of its examples.


def pictures_of(learner: Learner, of_train: bool, indices: Sequence[int]) -> Array | None:
    """Pictures uint8 (len(indices), H, W, 1 or 3); None where the learner has none.

    Raises InputError for something else in their place.
    """
    if not isinstance(learner, Pictures):
        return None
    with said_of(learner.name):
        # A copy: it may fill the same array for the next ones.
        found = np.array(as_array(learner.pictures(of_train, list(indices)), f"{learner.name} gave pictures"))
    fits = found.ndim == 4 and len(found) == len(indices) and found.shape[3] in (1, 3) and 0 not in found.shape[1:]
    if not fits or found.dtype != np.uint8:
        wanted = f"uint8 ({len(indices)}, height, width, 1 or 3)"
        raise InputError(f"{learner.name} gave pictures of {found.dtype} {found.shape}, not {wanted}")
    return found


def class_names_of(learner: Learner) -> Sequence[str]:
    """What its classes are called; none where they have no names."""
    return learner.class_names if isinstance(learner, NamesClasses) else ()


def names_of(learner: Learner, of_train: bool, indices: Sequence[int]) -> list[str] | None:
    """Names of training examples or targets as they are, one line each; None where the learner has none.

    They come from others' file systems: whoever shows them escapes them. Raises InputError for something else in their place.
    """
    if not isinstance(learner, Named):
        return None
    with said_of(learner.name):
        found = learner.names(of_train, list(indices))
    refuse_other_names(found, len(indices), f"the names that {learner.name} gave")
    return list(found)


def named(learner: Learner, of_train: bool, index: int) -> str:
    """What an example is called, to be shown in a line: its name, or `no. 17` where it has none."""
    names = names_of(learner, of_train, [index])
    return f"no. {index}" if names is None else shown(names[0])


# How it likes to be called.


def side_by_side(learner: Learner) -> Callable[[Sequence[int], Callable[[int], None]], None]:
    """How a learner likes to be called with several items: in its own way, or one after another.

    Raises InputError where its own way fails, or leaves items out; what the work itself raises comes through as it is.
    """
    if not isinstance(learner, SideBySide):
        return _in_turn
    if of_this_package(learner):
        return learner.side_by_side

    def checked(items: Sequence[int], work: Callable[[int], None]) -> None:
        begun, raised = set[int](), list[BaseException]()

        def noted(item: int) -> None:
            if item not in items:
                raise InputError(f"side_by_side of {learner.name} worked on {shown(repr(item), 80)}, none of its items")
            begun.add(item)
            try:
                work(item)
            except BaseException as e:
                raised.append(e)
                raise

        try:
            with said_of(learner.name):
                learner.side_by_side(items, noted)
        finally:
            if raised:
                raise raised[0]
        if not begun.issuperset(items):
            raise InputError(f"side_by_side of {learner.name} left {len(set(items) - begun)} of {len(items)} items out")

    return checked


def _in_turn(items: Sequence[int], work: Callable[[int], None]) -> None:
    for item in items:
        work(item)


def asked_of(learner: Learner, method: str, *arguments: Any) -> Any:
    """What a learner's own method gives, None where it has none. Raises InputError where it fails."""
    its = getattr(learner, method, None)
    if not callable(its):
        return None
    if of_this_package(learner):
        return its(*arguments)
    with said_of(learner.name):
        return its(*arguments)
