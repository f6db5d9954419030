"""The data sets, before anything is written: what they hold, cut to what the settings ask for, and checked.

A reader for each kind gives rows of labels and names, and takes images when it is told of which rows (`raw.Found`). What they
share lies here: which classes, how many, pooling, what is refused and what is said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from difflib import get_close_matches

import numpy as np

from datamodels.data.raw import Found, Images, Labels, RawData, RawSplit, Rows
from datamodels.errors import InputError, shown
from datamodels.progress import say
from datamodels.reading import whole_number
from datamodels.settings import ALL, NO_SOURCE, NO_TARGETS, DataSettings

FOR_TRAIN, FOR_TEST, FOR_TARGETS = 1, 2, 3
"""Beside `data.seed`: what is drawn."""
NAMED_FILES = {
    "folder": "the folder with train/ and test/",
    "beton": "a folder with train.beton and test.beton, or the two files with a comma between",
    "arrays": "an .npz file, or a folder of .npy files",
}
"""Kinds whose place must be named, and what lies there."""
FIRST_ONES = ("digits", "cifar10", "cifar100")
"""Data sets in no order of classes: a part of them are their first images."""


def read_source(settings: DataSettings) -> RawData:
    """The images that the settings ask for, N training and T test images.

    Raises InputError when the data set does not hold so many, or such classes, or its files are missing or damaged.
    """
    found = _of_classes(_reader(settings)(settings), settings)
    train, test = (_pooled(rows.taken(), settings.pool) for rows in _both_named(*_cut(found, settings)))
    data = RawData(*_of_one_kind(train, test), found.class_names)
    _tell(data)
    return data


def _reader(settings: DataSettings) -> Callable[[DataSettings], Found]:
    """The reader of a kind. Raises InputError for settings that it has no use for, or lacks."""
    kind, own = settings.dataset, ":" in settings.dataset
    if kind in NAMED_FILES and settings.source == NO_SOURCE:
        raise InputError(f"data.source must name {NAMED_FILES[kind]}, as data.dataset is {kind}")
    if settings.size and not (own or kind in ("folder", "beton")):
        raise InputError(f"data.size is for pictures in files, and those of {kind} have one size; data.pool makes them smaller")
    if own:
        from datamodels.data.own import read_own

        return read_own
    return READERS[kind]


def _digits(settings: DataSettings) -> Found:
    """scikit-learn's copy of the UCI handwritten digits: 1,797 grey images of 8×8 pixels, shuffled by the seed, not split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Pixels count the dark cells of a 4×4 block, 0 … 16; spread them over the range of a byte, for looking at.
    images = np.minimum(digits.images * 16, 255).astype(np.uint8)[..., None]
    order = np.random.default_rng(settings.seed).permutation(len(images))
    return Found(Rows.of(images[order], digits.target[order].astype(np.int64)), None, tuple(map(str, range(10))))


def _cifar(settings: DataSettings) -> Found:
    from datamodels.data.cifar import CIFAR10, CIFAR100, read_cifar

    return read_cifar(settings, CIFAR10 if settings.dataset == "cifar10" else CIFAR100)


def _folder(settings: DataSettings) -> Found:
    from datamodels.data.folder import read_folder

    return read_folder(settings)


def _beton(settings: DataSettings) -> Found:
    from datamodels.data.existing import read_beton

    return read_beton(settings)


def _arrays(settings: DataSettings) -> Found:
    from datamodels.data.arrays import read_arrays

    return read_arrays(settings)


READERS = {"digits": _digits, "cifar10": _cifar, "cifar100": _cifar, "folder": _folder, "beton": _beton, "arrays": _arrays}


def _of_classes(found: Found, settings: DataSettings) -> Found:
    """The rows of the classes that are wanted, numbered as these are; all unless `data.classes` says otherwise."""
    names = found.class_names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two classes have the name {shown(twice, 80)}")
    if settings.classes != ALL:
        found = _restricted(found, settings.classes)
    if len(found.class_names) < 2 or len(np.unique(found.train.labels)) < 2:
        raise InputError(f"all images are of one class, {found.class_names[0]}, and there is nothing to tell apart")
    lacking = () if found.test is None else np.setdiff1d(found.test.labels, found.train.labels).tolist()
    if lacking:
        raise InputError(f"test has images of the class {found.class_names[lacking[0]]}, of which train has none")
    return found


def _restricted(found: Found, wanted: str) -> Found:
    chosen = [name.strip() for name in wanted.split(",")]
    for name in chosen:
        if name not in found.class_names:
            near = get_close_matches(name, found.class_names, 3, 0.5) or found.class_names[:5]
            raise InputError(f"data.classes: there is no class {shown(name, 80)!r}; there are {', '.join(near)}")
    if len(set(chosen)) < max(2, len(chosen)):
        raise InputError(f"data.classes must be two classes or more, each once, not {shown(wanted, 80)!r}")
    new = np.full(len(found.class_names), -1)
    new[[found.class_names.index(name) for name in chosen]] = np.arange(len(chosen))

    def of(rows: Rows, side: str) -> Rows:
        kept = np.flatnonzero(new[rows.labels] >= 0)
        if not len(kept):
            raise InputError(f"data.classes: {side} has no images of {', '.join(chosen)}")
        some = (rows if found.test is None else _with_names(rows, side, kept)).some(kept)
        return Rows(new[some.labels], some.take, some.names)

    return Found(of(found.train, "train"), None if found.test is None else of(found.test, "test"), tuple(chosen))


def _with_names(rows: Rows, side: str, chosen: Labels) -> Rows:
    """Rows that tell where they stood, if not by a name of theirs, where those chosen are not the first ones."""
    if rows.names is not None or np.array_equal(chosen, np.arange(len(chosen))):
        return rows
    return Rows(rows.labels, rows.take, [f"{side} row {row}" for row in range(len(rows.labels))])


def _both_named(train: Rows, test: Rows) -> tuple[Rows, Rows]:
    """Both with names where one has: names are shown of both or of none, and a row among those cut out is known by its name."""
    if (train.names is None) == (test.names is None):
        return train, test
    sides = (("train", train), ("test", test))
    first, second = (
        Rows(rows.labels, rows.take, rows.names or [f"{side} row {row}" for row in range(len(rows.labels))])
        for side, rows in sides
    )
    return first, second


def _cut(found: Found, settings: DataSettings) -> tuple[Rows, Rows]:
    """As many rows of each split as are wanted."""
    if found.test is None:
        return _divided(found.train, settings)
    train = _part(found.train, "train", settings.train_images, settings)
    if len(train.labels) < 2:
        raise InputError(f"the training set has {len(train.labels)} image, and must have two or more")
    return train, _part(found.test, "test", settings.test_images, settings)


def _part(rows: Rows, side: str, wanted: int, settings: DataSettings) -> Rows:
    """Of files and arrays, which may be sorted by class, some that are drawn by `data.seed`, in their order."""
    there = len(rows.labels)
    if wanted > there:
        name = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}.get(settings.dataset, "the data set")
        raise InputError(f"{name} has {there} {side} images; data.{side}_images asks for {wanted} (0 takes all)")
    if wanted in (0, there):
        return rows
    if settings.dataset in FIRST_ONES:
        return rows.some(np.arange(wanted))
    rng = np.random.default_rng((settings.seed, FOR_TRAIN if side == "train" else FOR_TEST))
    chosen = np.sort(rng.choice(there, wanted, replace=False))
    return _with_names(rows, side, chosen).some(chosen)


def _divided(rows: Rows, settings: DataSettings) -> tuple[Rows, Rows]:
    """The first N and the next T of rows that are not split: what is left open is the rest, or a fifth of them for testing."""
    there, n, t = len(rows.labels), settings.train_images, settings.test_images
    if n + t > there or there in (n, t):
        raise InputError(
            f"{settings.dataset} has {there} images; data.train_images + data.test_images = {n + t} is more than that"
        )
    t = t or (there - n if n else there // 5)
    n = n or there - t
    if n < 2:
        raise InputError(f"the training set has {n} image, and must have two or more")
    return rows.some(np.arange(n)), rows.some(np.arange(n, n + t))


def train_targets(settings: DataSettings, n: int, names: Sequence[str] | None = None) -> tuple[int, ...]:
    """The training images that are targets as well, of N, by `data.train_targets`. Raises InputError for what is none.

    `names` are those of the training images, where they have any: they may be listed as well as indices.
    """
    wanted = settings.train_targets
    if wanted == NO_TARGETS:
        return ()
    if wanted == ALL:
        return tuple(range(n))
    kind, _, number = wanted.partition(":")
    if kind == "random":
        count = whole_number(number)
        if count is None or not 1 <= count <= n:
            raise InputError(f"data.train_targets: random:… takes a number from 1 to {n}, not {shown(number, 40)!r}")
        rng = np.random.default_rng((settings.seed, FOR_TARGETS))
        return tuple(np.sort(rng.choice(n, count, replace=False)).tolist())
    numbers = {name: k for k, name in enumerate(names or ())}
    found = [numbers.get(word, whole_number(word)) for word in map(str.strip, wanted.split(","))]
    chosen = [index for index in found if index is not None and index < n]
    if len(chosen) < len(found) or len(set(chosen)) < len(chosen):
        or_names = f", or names, as {shown(names[0], 80)}," if names else ""
        raise InputError(
            f"data.train_targets must be {NO_TARGETS}, {ALL}, random:50, or different indices from 0 to {n - 1}{or_names} with "
            f"commas between, not {shown(wanted, 80)!r}"
        )
    return tuple(chosen)


def _pooled(split: RawSplit, side: int) -> RawSplit:
    if side > 1 and split.images.ndim != 4:
        raise InputError("data.pool averages blocks of pixels, and there are none in features")
    return split if side == 1 else split._replace(images=average_pool(split.images, side))


def average_pool(images: Images, side: int) -> Images:
    """Images (n, H, W, C) averaged over blocks of side × side pixels, bytes rounded: (n, H/side, W/side, C).

    Raises InputError when H or W is no multiple of `side`.
    """
    n, height, width, channels = images.shape
    if height % side or width % side:
        raise InputError(f"data.pool must divide the images' {height} × {width} pixels, and {side} does not")
    blocks = images.reshape(n, height // side, side, width // side, side, channels).mean((2, 4))
    pooled: Images = (np.rint(blocks) if images.dtype == np.uint8 else blocks).astype(images.dtype)
    return pooled


def _of_one_kind(train: RawSplit, test: RawSplit) -> tuple[RawSplit, RawSplit]:
    """Both splits with the same channels: grey pictures get three where the others have them. Raises InputError otherwise."""
    shapes = [split.images.shape[1:] for split in (train, test)]
    if shapes[0] == shapes[1] and train.images.dtype == test.images.dtype:
        return train, test
    sides = [shape[:2] for shape in shapes if len(shape) == 3]
    pictures = train.images.dtype == test.images.dtype == np.uint8
    if pictures and sides[0] == sides[1] and {shape[2] for shape in shapes} == {1, 3}:
        grey, coloured = ("train", "test") if shapes[0][2] == 1 else ("test", "train")
        say(f"data: the {grey} images are grey and the {coloured} images coloured: grey ones get three equal channels")
        both = [s._replace(images=np.repeat(s.images, 3, 3)) if s.images.shape[3] == 1 else s for s in (train, test)]
        return both[0], both[1]
    told = [f"{split.images.dtype} {' × '.join(map(str, split.images.shape[1:]))}" for split in (train, test)]
    hint = "; set data.size, to which pictures are brought" * pictures
    raise InputError(f"the training images are {told[0]}, and the test images {told[1]}{hint}")


def _tell(data: RawData) -> None:
    """Say what an owner would want to know of the data, and go on."""
    lacking = np.setdiff1d(data.test.labels, data.train.labels)
    if len(lacking):
        told = ", ".join(data.class_names[label] for label in lacking[:5])
        say(f"data: {len(lacking)} classes of test images have no training image: {told}{' …' * (len(lacking) > 5)}")
    first = {_content(image): row for row, image in reversed(list(enumerate(data.train.images)))}
    twins = [(first[key], row) for row, image in enumerate(data.test.images) if (key := _content(image)) in first]
    if twins:
        pair = [
            f"{side} image {row}{'' if split.names is None else f' ({split.names[row]})'}"
            for side, split, row in (("test", data.test, twins[0][1]), ("training", data.train, twins[0][0]))
        ]
        say(f"data: {len(twins)} test images are training images too, pixel for pixel, the first {pair[0]}, which is {pair[1]}")


def _content(image: Images) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
