"""Labels of any kind, as their owner has them, to the numbers 0 … classes-1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodels.data.raw import Labels
from datamodels.errors import InputError, shown

Array = npt.NDArray[Any]


def numbered(
    train: Array, test: Array, where: str, names: Sequence[str] | None = None
) -> tuple[Labels, Labels, tuple[str, ...]]:
    """Labels int64 of both splits from 0 on, and the names of the classes.

    Labels (n,) or (n, 1), whole numbers or text, are numbered by their sorted values in train, and these are the names. With
    `names` whole numbers that are places in it stay as they are, text is looked up in it, and other numbers are as many as the
    names. Raises InputError, which begins with `where`, for labels of other kinds, and those of test that train has not.
    """
    train, test = (_plain(labels, f"{where}: the {side} labels") for side, labels in (("train", train), ("test", test)))
    if (train.dtype.kind == "U") != (test.dtype.kind == "U"):
        raise InputError(f"{where}: the labels of train and test must both be whole numbers, or both text")
    if not len(train) or not len(test):
        raise InputError(f"{where}: {'test' if len(train) else 'train'} has no rows")
    if names is not None and train.dtype.kind == "U":
        return _looked_up(train, test, names, where)
    if names is not None and min(train.min(), test.min()) >= 0 and max(train.max(), test.max()) < len(names):
        return train.astype(np.int64), test.astype(np.int64), tuple(names)
    values = np.unique(train)
    unknown = np.setdiff1d(test, values)
    if len(unknown):
        raise InputError(f"{where}: test has the label {_told(unknown[0])}, which no row of train has")
    if values.dtype.kind != "U" and values[0] < 0:
        raise InputError(f"{where}: the label {values[0]} is negative; labels are whole numbers from 0 on, or text")
    if names is not None and len(names) != len(values):
        raise InputError(f"{where}: there are {len(names)} names of classes and {len(values)} different labels")
    found = tuple(names) if names is not None else tuple(_told(value) for value in values)
    return np.searchsorted(values, train).astype(np.int64), np.searchsorted(values, test).astype(np.int64), found


def _looked_up(train: Array, test: Array, names: Sequence[str], where: str) -> tuple[Labels, Labels, tuple[str, ...]]:
    place = {name: k for k, name in enumerate(names)}
    lacking = [str(label) for label in np.unique(np.concatenate([train, test])) if str(label) not in place]
    if lacking:
        raise InputError(f"{where}: the label {shown(lacking[0], 80)} is none of the names of classes")
    first, second = (np.array([place[str(label)] for label in labels], np.int64) for labels in (train, test))
    return first, second, tuple(names)


def _plain(labels: Array, what: str) -> Array:
    """Labels (n,) of a type that can be sorted: whole numbers, or text as U."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InputError(f"{what} have shape {labels.shape}, and must be one for each row, (n,)")
    if labels.dtype.kind == "S":
        return np.array([bytes(label).decode("utf-8", "backslashreplace") for label in labels], np.str_)
    if labels.dtype.kind not in "biuU":
        told = "objects" if labels.dtype.kind == "O" else str(labels.dtype)
        raise InputError(f"{what} are {told}, and must be whole numbers or text")
    if labels.dtype.kind == "u" and labels.max(initial=0) >= 2**63:
        raise InputError(f"{what} go up to {labels.max()}, beyond 63 bits")
    return labels if labels.dtype.kind == "U" else labels.astype(np.int64)


def _told(value: Any) -> str:
    """A label as a class's name."""
    return shown(str(value), 200)
