"""What readers of data sets give: labels, names, and images as plain arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from datamodels.durable import write_arrays
from datamodels.errors import InputError

Images = npt.NDArray[Any]
"""uint8 (n, H, W, C), float32 (n, H, W, C), or float32 (n, d): features."""
Labels = npt.NDArray[np.int64]
TRAIN, TEST = ("train",), ("test", "val", "valid")
"""Names of the splits in files and folders of people's own; of several the first that there is is read."""


class RawSplit(NamedTuple):
    """Images, their labels int64 (n,), and n names of one line each, or None."""

    images: Images
    labels: Labels
    names: tuple[str, ...] | None = None


class RawData(NamedTuple):
    """Training and test images, and the names of the classes, one for each label."""

    train: RawSplit
    test: RawSplit
    class_names: tuple[str, ...]

    def save(self, path: str | Path) -> None:
        """Write everything as an .npz file, which `data: {dataset: arrays, source: …}` reads.

        Raises InputError where there is no folder for it, and OSError where it cannot be written.
        """
        if not Path(path).parent.is_dir():
            raise InputError(f"{path} cannot be written: there is no folder {Path(path).parent}")
        arrays: dict[str, npt.NDArray[Any]] = {"class_names": np.array(self.class_names)}
        for side, split in (("train", self.train), ("test", self.test)):
            arrays |= {f"{side}_images": split.images, f"{side}_labels": split.labels}
            if split.names is not None:
                arrays[f"{side}_names"] = np.array(split.names)
        write_arrays(Path(path), arrays)


@dataclass(frozen=True)
class Rows:
    """All rows of a split before any image of it is taken: labels int64 (n,), names, and `take`, the images of some rows."""

    labels: Labels
    take: Callable[[npt.NDArray[np.int64]], Images]
    names: Sequence[str] | None = None

    @classmethod
    def of(cls, images: Images, labels: Labels, names: Sequence[str] | None = None) -> Rows:
        """Rows of images that are in memory, or mapped to it."""
        return cls(labels, lambda rows: images if _are_all(rows, len(images)) else images[rows], names)

    def some(self, rows: npt.NDArray[np.int64]) -> Rows:
        """Some of the rows, in this order."""
        names = None if self.names is None else [self.names[row] for row in rows]
        return Rows(self.labels[rows], lambda chosen: self.take(rows[chosen]), names)

    def taken(self) -> RawSplit:
        """All of them, with their images."""
        images = self.take(np.arange(len(self.labels)))
        return RawSplit(images, self.labels, None if self.names is None else tuple(self.names))


class Found(NamedTuple):
    """What a reader finds: training and test rows, or rows that are not split yet and None, and the names of the classes."""

    train: Rows
    test: Rows | None
    class_names: tuple[str, ...]


def _are_all(rows: npt.NDArray[np.int64], n: int) -> bool:
    return len(rows) == n and bool((rows == np.arange(n)).all())
