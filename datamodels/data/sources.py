"""The raw data sets, before anything is written: real images as uint8 (n, H, W, C) with integer labels."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from datamodels.errors import InputError
from datamodels.settings import DataSettings

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_ROW = 1 + 3 * 32 * 32
CIFAR10_ROWS_PER_FILE = 10_000


class RawSplit(NamedTuple):
    """Images uint8 (n, H, W, C) and their labels int64 (n,)."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


class RawData(NamedTuple):
    """Training and test images, and the names of the classes, one for each label."""

    train: RawSplit
    test: RawSplit
    class_names: tuple[str, ...]


def read_source(settings: DataSettings) -> RawData:
    """The images that the settings ask for, N training and T test images.

    Raises InputError when the data set does not hold so many, or its files are missing or damaged.
    """
    return {"digits": _digits, "cifar10": _cifar10}[settings.dataset](settings)


def _digits(settings: DataSettings) -> RawData:
    """scikit-learn's copy of the UCI handwritten digits: 1,797 grey images of 8×8 pixels, shuffled by the seed and split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Pixels count the dark cells of a 4×4 block, 0 … 16; spread them over the range of a byte, for looking at.
    images = np.minimum(digits.images * 16, 255).astype(np.uint8)[..., None]
    order = np.random.default_rng(settings.seed).permutation(len(images))
    n, t = settings.train_images, settings.test_images
    if n + t > len(images):
        raise InputError(f"digits has {len(images)} images; data.train_images + data.test_images = {n + t} is more than that")
    everything = RawSplit(images[order], digits.target[order].astype(np.int64))
    return RawData(_part(everything, 0, n), _part(everything, n, n + t), tuple(map(str, range(10))))


def _cifar10(settings: DataSettings) -> RawData:
    """CIFAR-10 in its official binary layout: the first N and T images of its training and test files."""
    folder = Path(settings.source)
    if (folder / "cifar-10-batches-bin").is_dir():
        folder = folder / "cifar-10-batches-bin"
    train = [_cifar10_file(folder / f"data_batch_{number}.bin") for number in range(1, 6)]
    test = _cifar10_file(folder / "test_batch.bin")
    together = RawSplit(np.concatenate([s.images for s in train]), np.concatenate([s.labels for s in train]))
    for name, split, size in (("train", together, settings.train_images), ("test", test, settings.test_images)):
        if size > len(split.labels):
            raise InputError(f"CIFAR-10 has {len(split.labels)} {name} images; data.{name}_images asks for {size}")
    return RawData(_part(together, 0, settings.train_images), _part(test, 0, settings.test_images), CIFAR10_CLASSES)


def _cifar10_file(file: Path) -> RawSplit:
    if not file.is_file():
        raise InputError(f"{file} is missing; data.source must name a folder with CIFAR-10's binary batches")
    size, expected = file.stat().st_size, CIFAR10_ROW * CIFAR10_ROWS_PER_FILE
    if size != expected:
        raise InputError(f"{file} has {size} bytes instead of {expected}: it is cut short or not a CIFAR-10 batch")
    rows = np.fromfile(file, np.uint8).reshape(-1, CIFAR10_ROW)
    if rows[:, 0].max() >= len(CIFAR10_CLASSES):
        raise InputError(f"{file} has a label above 9: it is not a CIFAR-10 batch")
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return RawSplit(np.ascontiguousarray(images), rows[:, 0].astype(np.int64))


def _part(split: RawSplit, start: int, stop: int) -> RawSplit:
    return RawSplit(split.images[start:stop], split.labels[start:stop])
