"""Data sets of one's own code: what `module:function` gives, and `from_dataset` from Python. Two splits,
train and test.

Each of them is one of

* a data set that is indexed, as PyTorch's are: items (image, label), or dictionaries of them. An image is Pillow's, a tensor
  (C, H, W) as PyTorch has them, an array (H, W, C) as NumPy does, either also (H, W), or features (d,);
* PyTorch's TensorDataset of images and labels;
* a data set of Hugging Face's `datasets`, with columns image or img, and label, labels or fine_label;
* a pair of arrays or tensors, images (n, …) and labels (n,), which may also be a list.

Numbers are uint8, or floats, which become float32. Labels are whole numbers or text. The names of classes are those that the
data set has: `classes`, as torchvision's have, or those of its column of labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

from datamodels.data.arrays import MOST_CHANNELS, from_arrays
from datamodels.data.labels import numbered
from datamodels.data.pictures import Decoder, stacked
from datamodels.data.raw import Found, RawData, Rows
from datamodels.errors import InputError, shown
from datamodels.own_code import named_in, said
from datamodels.settings import DataSettings

Array = npt.NDArray[Any]

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels", "fine_label")


class _Split(NamedTuple):
    """One split as its owner has it: labels as they are, how to take images of some rows, the names of classes if known."""

    labels: Array
    take: Callable[[npt.NDArray[np.int64]], Array]
    class_names: Sequence[str] | None


def from_dataset(train: Any, test: Any, size: int = 0) -> RawData:
    """Any two data sets of the kinds above as plain arrays, pictures brought to `size` pixels a side unless that is 0.

    `from_dataset(train, test).save("mine.npz")` writes them, for `data: {dataset: arrays, source: mine.npz}`. Raises InputError
    for what is of no such kind, and with its words where a data set of one's own raises something.
    """
    found = _found(train, test, size, "from_dataset")
    if found.test is None:
        raise InputError("from_dataset: there is no test split")
    return RawData(found.train.taken(), found.test.taken(), found.class_names)


def read_own(settings: DataSettings) -> Found:
    """What the function named in `data.dataset` gives. Raises InputError as `from_dataset` does."""
    name = settings.dataset
    with said(f"data.dataset {name}"):
        function = named_in("data.dataset", name, "my_module:data")
        if not callable(function):
            raise InputError(f"data.dataset names {name}, which is no function")
        given = function()
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise InputError(f"data.dataset {name} must give a pair, (train, test), not {_kind(given)}")
    return _found(given[0], given[1], settings.size, name)


def _found(train: Any, test: Any, size: int, where: str) -> Found:
    with said(where):
        pairs = [_pair_of_arrays(split, f"{where}: {side}") for side, split in (("train", train), ("test", test))]
        if pairs[0] is not None and pairs[1] is not None:
            if size:
                raise InputError(f"{where}: data.size is for pictures, and these are arrays; bring them to a size yourself")
            (x_train, y_train), (x_test, y_test) = pairs[0], pairs[1]
            labels, names = _of_one_order(y_train, y_test, _class_names(train), _class_names(test))
            told = (where, "the images of train", "those of test")
            return from_arrays((x_train, labels[0], None), (x_test, labels[1], None), names, told)
        splits = [_split(split, size, f"{where}: {side}") for side, split in (("train", train), ("test", test))]
    a, b = splits
    labels, names = _of_one_order(a.labels, b.labels, a.class_names, b.class_names)
    first, second, known = numbered(*labels, where, names)
    train_rows, test_rows = (
        Rows(labels, _said(split.take, where)) for labels, split in zip((first, second), splits, strict=True)
    )
    return Found(train_rows, test_rows, known)


def _of_one_order(
    train: Array, test: Array, of_train: Sequence[str] | None, of_test: Sequence[str] | None
) -> tuple[tuple[Array, Array], Sequence[str] | None]:
    """Labels of both splits and the names of train's classes: labels as these names where test numbers its own otherwise."""
    if of_train is None or of_test is None or list(of_train) == list(of_test):
        return (train, test), of_train
    if not (_are_places(train, len(of_train)) and _are_places(test, len(of_test))):
        return (train, test), of_train
    return (np.array(of_train)[train], np.array(of_test)[test]), of_train


def _are_places(labels: Array, n: int) -> bool:
    """Whether labels are places in a list of so many names."""
    return labels.dtype.kind in "iu" and int(labels.min(initial=0)) >= 0 and int(labels.max(initial=0)) < n


def _said(take: Callable[[npt.NDArray[np.int64]], Array], where: str) -> Callable[[npt.NDArray[np.int64]], Array]:
    """The same, with an InputError for what a data set of one's own raises when an item is asked for."""

    def taken(rows: npt.NDArray[np.int64]) -> Array:
        with said(where):
            return take(rows)

    return taken


def _pair_of_arrays(split: Any, where: str) -> tuple[Array, Array] | None:
    """Images and labels where they are given as whole arrays; tensors of images come with the channels last then."""
    whole = isinstance(split, TensorDataset) and type(split).__getitem__ is TensorDataset.__getitem__
    parts = split.tensors if whole else split
    if not isinstance(parts, (tuple, list)) or len(parts) != 2 or not isinstance(parts[0], (np.ndarray, torch.Tensor)):
        return None
    images, labels = parts
    if isinstance(labels, (tuple, list)) and len(labels) == len(images):
        labels = _label_array(labels, where)
    if not isinstance(labels, (np.ndarray, torch.Tensor)):
        return None
    if not labels.ndim or not images.ndim:
        return None
    if isinstance(images, torch.Tensor):
        images = images.detach().cpu()
        images = _channels_last(images, images.shape[1:], where).numpy() if images.ndim == 4 else images.numpy()
    return images, labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else labels


def _channels_last(images: torch.Tensor, shape: Sequence[int], where: str) -> torch.Tensor:
    """Images (…, C, H, W) as (…, H, W, C). Raises InputError for those that look as if they were so already."""
    if shape[2] <= MOST_CHANNELS < min(shape[:2]):
        raise InputError(f"{where} has tensors {tuple(shape)}; tensors of images are (C, H, W), as by x.movedim(-1, -3)")
    return images.movedim(-3, -1)


def _split(split: Any, size: int, where: str) -> _Split:
    if isinstance(split, IterableDataset) or not hasattr(split, "__getitem__") or not hasattr(split, "__len__"):
        raise InputError(f"{where} is {_kind(split)}, which has no length or cannot be indexed; list(…) makes a list of it")
    if isinstance(split, (str, bytes, Mapping)) or not len(split):
        raise InputError(f"{where} is {_kind(split)} {'without items' if not len(split) else 'and no data set'}")
    if hasattr(split, "column_names") and hasattr(split, "features"):
        return _of_columns(split, size, where)
    labels, images = list[Any](), list[Any]()
    decoder = Decoder(size)
    for row in range(len(split)):  # once, and in order: what an item is may be random, and its label is not known before
        image, label = _item(split[row], f"{where}, item {row}")
        images.append(_pixels(image, decoder, f"{where}, item {row}"))
        labels.append(_plain_label(label))  # at once: it may be of a tensor that is used again
    decoder.tell(where)
    known = _label_array(labels, where)

    def take(rows: npt.NDArray[np.int64]) -> Array:
        return _finite(stacked(((f"{where}, item {row}", images[row]) for row in rows), len(rows)), rows, where)

    return _Split(known, take, _class_names(split))


def _item(item: Any, what: str) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        columns = [_column(list(item), names, what) for names in (IMAGE_COLUMNS, LABEL_COLUMNS)]
        return item[columns[0]], item[columns[1]]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise InputError(f"{what} is {_kind(item)}, not (image, label)")
    return item[0], item[1]


def _of_columns(split: Any, size: int, where: str) -> _Split:
    """A data set of Hugging Face's: the labels are a column, and images are decoded when they are asked for."""
    there = list(split.column_names)
    image, label = (_column(there, names, where) for names in (IMAGE_COLUMNS, LABEL_COLUMNS))
    known = getattr(split.features[label], "names", None)

    def images(rows: npt.NDArray[np.int64]) -> Iterator[tuple[str, Array]]:
        decoder = Decoder(size)
        for row in rows.tolist():
            what = f"{where}, item {row}"
            yield what, _pixels(split[row][image], decoder, what)
        decoder.tell(where)

    def take(rows: npt.NDArray[np.int64]) -> Array:
        return _finite(stacked(images(rows), len(rows)), rows, where)

    return _Split(
        _label_array(list(split[label]), where), take, None if known is None else [shown(name, 200) for name in known]
    )


def _column(there: Sequence[str], names: Sequence[str], what: str) -> str:
    found = next((name for name in names if name in there), None)
    if found is None:
        told = shown(", ".join(map(str, there)), 200)
        raise InputError(f"{what} has no {' or '.join(names)} (it has {told})")
    return found


def _pixels(image: Any, decoder: Decoder, what: str) -> Array:
    """An image as uint8 or float32 (H, W, C), or features float32 (d,)."""
    if isinstance(image, Image.Image):
        return decoder.pixels(image, what)
    if decoder.size:
        raise InputError(f"{what} is {_kind(image)}, and data.size is for Pillow's pictures; bring them to a size yourself")
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        array = (_channels_last(image, image.shape, what) if image.ndim == 3 else image).numpy()
    elif isinstance(image, (np.ndarray, list)):
        array = np.asarray(image)
    else:
        raise InputError(f"{what} is {_kind(image)}, and no picture, tensor or array")
    if array.ndim not in (1, 2, 3) or not array.size or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise InputError(f"{what} is {array.dtype} of shape {array.shape}; images are uint8 or floats, (C, H, W) or (H, W, C)")
    if array.ndim == 1 and array.dtype == np.uint8:
        raise InputError(f"{what} is uint8 of shape {array.shape}; features are floats")
    array = array[..., None] if array.ndim == 2 else array
    with np.errstate(over="ignore"):
        return array.astype(np.uint8 if array.dtype == np.uint8 else np.float32)


def _finite(images: Array, rows: npt.NDArray[np.int64], where: str) -> Array:
    if images.dtype == np.float32:
        fine = np.array([bool(np.isfinite(image).all()) for image in images])
        if not fine.all():
            raise InputError(f"{where}, item {rows[~fine][0]} has NaN or infinity, or a number beyond float32")
    return images


def _label_array(labels: Sequence[Any], where: str) -> Array:
    """Labels of items as one array. Raises InputError where they are of several kinds, or none that labels can be."""
    plain = [_plain_label(label) for label in labels]
    kinds = {str if isinstance(label, str) else int if isinstance(label, int) else type(label) for label in plain}
    if kinds not in ({int}, {str}):
        told = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise InputError(f"{where}: labels must be whole numbers or text, not {told}")
    if kinds == {int} and not all(-(2**63) <= label < 2**63 for label in plain):
        raise InputError(f"{where}: labels must have no more than 63 bits")
    return np.array(plain, np.int64 if kinds == {int} else np.str_)


def _plain_label(label: Any) -> Any:
    """A label of Python's own types where it is NumPy's or a tensor of one number."""
    if not isinstance(label, (np.generic, np.ndarray, torch.Tensor)):
        return label
    return label.item() if math.prod(label.shape) == 1 else label


def _class_names(split: Any) -> list[str] | None:
    """`classes` of a data set, or of the one that it is a part of, as torch.utils.data.Subset is."""
    for _ in range(8):
        names = getattr(split, "classes", None)
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return [shown(name, 200) for name in names]
        split = getattr(split, "dataset", None)
        if split is None:
            break
    return None


def _kind(value: Any) -> str:
    return f"of type {shown(type(value).__name__, 80)}"
