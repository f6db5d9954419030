"""Splits as FFCV .beton files: written by its DatasetWriter, read back whole by its Loader.

FFCV feeds the models once, into tensors that stay on the device. Its Loader also augments, batch by batch, but compiles for
seconds in every process, draws unseeded, and is slower at these sizes than indexing resident tensors.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodels.data.headers import check_header
from datamodels.data.sources import RawSplit

READ_BATCH = 2_000


def available() -> bool:
    """Whether FFCV can be imported here."""
    return importlib.util.find_spec("ffcv") is not None


class _Rows:
    """A split as FFCV's writer wants it: indexable, one (image, label, index) tuple a row."""

    def __init__(self, split: RawSplit) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, i: int) -> tuple[Any, int, int]:
        return self.split.images[i], int(self.split.labels[i]), int(i)


def write(path: Path, split: RawSplit) -> None:
    """Write a split, images uint8 (n, H, W, C), as a .beton file with the fields image, label and index.

    Images of three channels go in as FFCV's raw RGB images, others as plain byte arrays.
    """
    with torch_threads_kept():
        from ffcv.fields import IntField, NDArrayField, RGBImageField
        from ffcv.writer import DatasetWriter

        shape = split.images.shape[1:]
        image = RGBImageField(write_mode="raw") if shape[2] == 3 else NDArrayField(np.dtype(np.uint8), shape)
        fields = {"image": image, "label": IntField(), "index": IntField()}
        with _silent_stderr():
            DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(_Rows(split), chunksize=1000)


def read(path: Path, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All n images, uint8 (n, H, W, C), and labels, int64 (n,), of a .beton file, in the order in which they were written.

    Raises ValueError when the file is damaged, or holds other rows than 0 … n-1 in order.
    """
    check_header(path, n)
    with torch_threads_kept():
        # A batch larger than the file would yield nothing, silently.
        rows = loader(path, batch_size=min(n, READ_BATCH), num_workers=1)
        # FFCV hands out the same buffers again and again: copy each batch before the next one is asked for.
        batches = [tuple(field.clone() for field in batch) for batch in rows]
    images, labels, indices = (torch.cat(parts) for parts in zip(*batches, strict=True))
    if not torch.equal(indices.flatten(), torch.arange(n)):
        raise ValueError(f"{path} does not hold rows 0 to {n - 1} in order")
    return images, labels.flatten().long()


def loader(path: Path, batch_size: int, num_workers: int, augmentation: Sequence[Any] = (), **options: Any) -> Any:
    """FFCV's Loader of (image, label, index) batches, in order and to the last row unless its `options` say otherwise.

    Images are uint8 (B, H, W, C) after FFCV's own operations in `augmentation`.
    """
    from ffcv.fields.decoders import IntDecoder, NDArrayDecoder, SimpleRGBImageDecoder
    from ffcv.fields.rgb_image import RGBImageField
    from ffcv.loader import Loader, OrderOption
    from ffcv.reader import Reader
    from ffcv.transforms import ToTensor

    rgb = isinstance(Reader(str(path)).handlers["image"], RGBImageField)
    pipelines = {
        "image": [SimpleRGBImageDecoder() if rgb else NDArrayDecoder(), *augmentation, ToTensor()],
        "label": [IntDecoder(), ToTensor()],
        "index": [IntDecoder(), ToTensor()],
    }
    options = {"order": OrderOption.SEQUENTIAL, "drop_last": False, "os_cache": True, **options}
    return Loader(str(path), batch_size=batch_size, num_workers=num_workers, pipelines=pipelines, **options)


@contextmanager
def torch_threads_kept() -> Iterator[None]:
    """FFCV sets PyTorch's number of threads on import and in its Loader; put it back."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """FFCV's writer draws a bar of its own on stderr, for work that takes a second here."""
    saved = os.dup(2)
    with Path(os.devnull).open("w") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
