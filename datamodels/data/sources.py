"""The raw data sets, before anything is written: real images as uint8 (n, H, W, C) with integer labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from datamodels.data import cifar10
from datamodels.errors import InputError
from datamodels.settings import DataSettings


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
    """CIFAR-10's first N and T images of its training and test files, averaged over blocks of `data.pool` pixels a side."""
    train, test = (RawSplit(*split) for split in cifar10.read_cifar10(settings))
    for name, split, size in (("train", train, settings.train_images), ("test", test, settings.test_images)):
        if size > len(split.labels):
            raise InputError(f"CIFAR-10 has {len(split.labels)} {name} images; data.{name}_images asks for {size}")

    def pooled(split: RawSplit, size: int) -> RawSplit:
        return RawSplit(average_pool(split.images[:size], settings.pool), split.labels[:size])

    return RawData(pooled(train, settings.train_images), pooled(test, settings.test_images), cifar10.CLASSES)


def average_pool(images: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """Images (n, H, W, C) averaged over blocks of side × side pixels, rounded: (n, H/side, W/side, C).

    Raises InputError when H or W is no multiple of `side`.
    """
    n, height, width, channels = images.shape
    if height % side or width % side:
        raise InputError(f"data.pool must divide the images' {height} × {width} pixels, and {side} does not")
    blocks = images.reshape(n, height // side, side, width // side, side, channels)
    pooled: npt.NDArray[np.uint8] = np.rint(blocks.mean((2, 4))).astype(np.uint8)
    return pooled


def _part(split: RawSplit, start: int, stop: int) -> RawSplit:
    return RawSplit(split.images[start:stop], split.labels[start:stop])
