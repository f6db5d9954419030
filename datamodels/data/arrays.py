"""NumPy arrays: an .npz file, as `np.savez` or `np.savez_compressed` writes it, or a folder of .npy files of the same names.

Four arrays, images and labels of each split. Their names join the split's (train; test, or val, valid) and what it is, with _
between, in either order: x, X, images, features or data; y, labels, label, targets or target. So x_train, y_train, x_test,
y_test, or train_images, train_labels, test_images, test_labels. Three more, if there: class_names, train_names and test_names
(n,) of text.

Images are uint8, or floats, which become float32: (n, H, W), (n, H, W, C), or floats (n, d), features. Labels: see `labels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodels.data.labels import numbered
from datamodels.data.raw import TEST, TRAIN, Found, Images, Labels, Rows
from datamodels.errors import InputError, shown
from datamodels.machine import free_host_memory
from datamodels.reading import npz_members, open_npy, read_npz
from datamodels.settings import DataSettings

Array = npt.NDArray[Any]

IMAGES, LABELS = ("x", "X", "images", "features", "data"), ("y", "labels", "label", "targets", "target")
CLASS_NAMES = "class_names"
MOST_CHANNELS = 4
"""Of images whose channels come first in memory, for knowing them by it."""
BLOCK = 2**24
"""Numbers that are looked at together."""


def read_arrays(settings: DataSettings) -> Found:
    """All rows of both splits. Raises InputError where an array is missing, damaged, or of another kind."""
    source = Path(settings.source)
    if source.is_dir():
        there = sorted(path.stem for path in source.glob("*.npy"))
        chosen = _chosen(there, f"{source} has no .npy file" if not there else str(source))
        arrays = {name: open_npy(source / f"{name}.npy") for name in chosen.values()}
    else:
        chosen = _chosen(npz_members(source), str(source))
        arrays = read_npz(source, only=list(chosen.values()), most=free_host_memory())
    found = {what: arrays[name] for what, name in chosen.items()}
    names = {what: _text(found[what], f"{source}: {chosen[what]}") for what in found if what.endswith("names")}
    train, test = ((found[f"{side}_images"], found[f"{side}_labels"], names.get(f"{side}_names")) for side in ("train", "test"))
    return from_arrays(train, test, names.get(CLASS_NAMES), (str(source), chosen["train_images"], chosen["test_images"]))


Side = tuple[Array, Array, "Sequence[str] | None"]
"""Images, labels, names."""


def from_arrays(train: Side, test: Side, class_names: Sequence[str] | None, where: tuple[str, str, str]) -> Found:
    """Rows of arrays; `where` they come from, and what the arrays of images are called. Raises InputError."""
    for what, (images, labels, names) in zip(where[1:], (train, test), strict=True):
        check_images(images, f"{where[0]}: {what}")
        for other, size in (("labels", len(labels) if labels.ndim else 0), ("names", len(images if names is None else names))):
            if size != len(images):
                raise InputError(f"{where[0]}: {what} has {len(images)} rows, and there are {size} {other} of them")
    shapes = [images.shape[1:] + (1,) * (images.ndim == 3) for images, _, _ in (train, test)]
    if shapes[0] != shapes[1] or (train[0].dtype.kind == "f") != (test[0].dtype.kind == "f"):
        raise InputError(
            f"{where[0]}: the rows of train are {train[0].dtype} {shapes[0]}, and those of test {test[0].dtype} {shapes[1]}"
        )
    first, second, known = numbered(train[1], test[1], where[0], class_names)
    first_rows, second_rows = (
        Rows(labels, _taker(images, f"{where[0]}: {what}"), names)
        for what, (images, _, names), labels in zip(where[1:], (train, test), (first, second), strict=True)
    )
    return Found(first_rows, second_rows, known)


def _chosen(there: Sequence[str], where: str) -> dict[str, str]:
    """The names of the arrays that are read, by what each is."""
    found = {}
    for side, sides in (("train", TRAIN), ("test", TEST)):
        for what, whats in (("images", IMAGES), ("labels", LABELS)):
            found[f"{side}_{what}"] = _one_of(there, sides, whats, where)
    more = [CLASS_NAMES, "train_names", "test_names"]
    return found | {name: name for name in more if name in there}


def _one_of(there: Sequence[str], sides: Sequence[str], whats: Sequence[str], where: str) -> str:
    """The one array of such a name; of sides the first of which there is any."""
    for side in sides:
        found = [name for what in whats for name in (f"{side}_{what}", f"{what}_{side}") if name in there]
        if len(found) > 1:
            raise InputError(f"{where} has both {found[0]} and {found[1]}; only one of them can be meant")
        if found:
            return found[0]
    told = ", ".join(shown(name, 40) for name in there[:8]) or "nothing"
    raise InputError(f"{where} has no array {sides[0]}_{whats[2 if whats is IMAGES else 1]}, or of a like name; it has {told}")


def _text(array: Array, what: str) -> list[str]:
    if array.ndim != 1 or array.dtype.kind not in "SU":
        raise InputError(f"{what} must be text (n,), not {array.dtype} of shape {array.shape}")
    if (array == array.dtype.type()).any():
        raise InputError(f"{what} has an empty text in row {int(np.argmax(array == array.dtype.type()))}")
    return [shown(bytes(e).decode("utf-8", "backslashreplace") if array.dtype.kind == "S" else str(e), 200) for e in array]


def check_images(images: Array, what: str) -> None:
    """Raise InputError for arrays that are neither images nor features."""
    kind, shape = images.dtype, images.shape
    if images.ndim == 4 and shape[1] <= MOST_CHANNELS < min(shape[2:]):
        raise InputError(
            f"{what} has shape {shape}, with the channels first; transpose it to (n, H, W, C), as by x.transpose(0, 2, 3, 1)"
        )
    if images.ndim not in (2, 3, 4) or 0 in shape[1:]:
        raise InputError(f"{what} has shape {shape}, and must be images (n, H, W) or (n, H, W, C), or features (n, d)")
    if kind.kind == "b":
        raise InputError(f"{what} is bool; images are uint8 from 0 to 255, as by 255 * x.astype('uint8'), or floats")
    if kind.kind != "f" and kind != np.uint8:
        raise InputError(f"{what} is {kind}; images are uint8 from 0 to 255, or floats, and features are floats")
    if images.ndim == 2 and kind == np.uint8:
        raise InputError(f"{what} is uint8 of shape {shape}; images are (n, H, W) or (n, H, W, C), and features are floats")


def _taker(images: Array, what: str) -> Any:
    """What takes rows of an array as images: a channel where there is none, floats as float32 and finite."""

    def take(rows: Labels) -> Images:
        shape = (len(rows), *images.shape[1:], *(1,) * (images.ndim == 3))
        whole = len(rows) == len(images) and bool((rows == np.arange(len(rows))).all())
        if images.dtype in (np.uint8, np.float32) and whole:
            found = np.require(images, images.dtype.newbyteorder("="), ["C", "W"]).reshape(shape)
        else:
            found = np.empty(shape, np.uint8 if images.dtype == np.uint8 else np.float32)
            for part in _parts(found):
                with np.errstate(over="ignore"):
                    found[part] = images[rows[part]].reshape(found[part].shape)
        if found.dtype == np.float32:
            refuse_not_finite(found, rows, what)
        return found

    return take


def _parts(array: Array) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, array[0].size)) if len(array) else 1
    return (slice(start, start + step) for start in range(0, len(array), step))


def refuse_not_finite(images: Array, rows: Labels, what: str) -> None:
    """Raise InputError for images, those of some rows, that are no numbers, or too large for float32; in blocks."""
    for part in _parts(images):
        fine = np.isfinite(images[part]).reshape(len(images[part]), -1).all(1)
        if not fine.all():
            bad = rows[part][~fine][0]
            raise InputError(f"{what} has NaN or infinity, or a number beyond float32, in row {bad}")
