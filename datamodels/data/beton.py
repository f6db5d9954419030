"""Splits as FFCV .beton files: written by its DatasetWriter, read back whole by its Loader.

FFCV feeds the models once, into tensors that stay on the device. Its Loader also augments, batch by batch, but compiles for
seconds in every process, draws unseeded, and is slower at these sizes than indexing resident tensors.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import Value
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from datamodels.data.headers import RGB, check_header, read_head
from datamodels.data.raw import RawSplit
from datamodels.durable import named

READ_BATCH = 2_000
PAGE = 2**23
"""Bytes of a page of a .beton file, FFCV's default."""
ROW_BYTES = 64
"""At least what FFCV keeps of a row in shared memory."""
SHARED_MEMORY = Path("/dev/shm")
_COMPILED: list[Any] = []
"""What Loaders have compiled, kept: FFCV changes types by which Numba knows it, and collecting it would raise an error."""


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


class CannotWriteError(Exception):
    """FFCV's writer cannot work here, whatever the disk: it needs shared memory. In words."""


def too_large(split: RawSplit) -> bool:
    """Whether an image has no room in a page of a .beton file."""
    return bool(split.images[0].nbytes > PAGE)


def size_of(split: RawSplit) -> int:
    """At least so many bytes a split takes as a .beton file: its header fills a page, and its images fill whole ones."""
    return (1 + -(-split.images.nbytes // PAGE)) * PAGE


def write(path: Path, split: RawSplit) -> None:
    """Write a split as a .beton file with the fields image, label and index.

    Images of bytes with three channels go in as FFCV's raw RGB images; others, floats and
    features as plain arrays. Raises CannotWriteError where there is
    no shared memory to be had, and OSError when the file cannot be written.
    """
    _look_for_shared_memory(len(split.labels))
    with torch_threads_kept():
        from ffcv.fields import IntField, NDArrayField, RGBImageField

        shape, dtype = split.images.shape[1:], split.images.dtype
        rgb = dtype == np.uint8 and shape[-1] == 3
        image = RGBImageField(write_mode="raw") if rgb else NDArrayField(dtype, shape)
        fields = {"image": image, "label": IntField(), "index": IntField()}
        with named(path):
            _writer_class()(str(path), fields, page_size=PAGE, num_workers=1).from_indexed_dataset(_Rows(split))


def _writer_class() -> Any:
    """FFCV's writer, at work in this process.

    Its own one leaves the work to a process of which it never asks whether it still lives: a full disk would hang it for ever.
    """
    from ffcv.memory_allocator import MemoryAllocator
    from ffcv.writer import DatasetWriter

    class Allocator(MemoryAllocator):  # type: ignore[misc]
        """Where the pages go; buffered, for a plain write may take a part only and say nothing of it."""

        def __enter__(self) -> None:
            self.fp = Path(self.fname).open("ab")

    class Writer(DatasetWriter):  # type: ignore[misc]
        """With the same steps as FFCV's, one after another."""

        def _write_common(self, num_samples: int, queue_content: Any, work_fn: Any, extra_worker_args: Any) -> None:
            self.num_samples = num_samples
            self.prepare()
            allocator = Allocator(self.fname, self.data_region_start, self.page_size)
            try:
                todo: SimpleQueue[Any] = SimpleQueue()
                allocations: SimpleQueue[Any] = SimpleQueue()
                for chunk in (*queue_content, None):
                    todo.put(chunk)
                work = (todo, self.metadata_sm, self.metadata_type, self.fields, allocator, Value("Q", 0), allocations)
                work_fn(*work, *extra_worker_args)
                self.finalize(allocations.get())
            finally:
                with suppress(OSError, AttributeError):  # what it still has to write has failed already
                    allocator.fp.close()
                self.metadata_sm.unlink()
                with suppress(BufferError):  # a failure's own frames still look at it
                    self.metadata_sm.close()

    return Writer


def _look_for_shared_memory(rows: int) -> None:
    """Raise CannotWriteError where FFCV's writer would find no semaphores, or no memory for what it keeps of each row."""
    try:
        Value("Q", 0)
        memory = SharedMemory(create=True, size=1)
    except OSError as e:
        raise CannotWriteError(f"no shared memory can be had ({e.strerror})") from e
    memory.close()
    memory.unlink()
    # Whoever touches shared memory that is full is killed.
    if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free < rows * ROW_BYTES:
        raise CannotWriteError(f"{SHARED_MEMORY} is full")


def read(path: Path, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All n images as `write` was given them, and labels, int64 (n,), of a .beton file, in the order in which they were
    written.

    Raises ValueError when the file is damaged, or holds other rows than 0 … n-1 in order.
    """
    check_header(path, n)
    with torch_threads_kept():
        # A batch larger than the file would yield nothing, silently.
        rows = loader(path, batch_size=min(n, READ_BATCH), num_workers=1)
        # FFCV hands out the same buffers again and again: copy each batch, to where it stays, before the next one is asked for.
        whole, at = list[torch.Tensor](), 0
        for batch in batches_of(rows):
            whole = whole or [torch.empty((n, *field.shape[1:]), dtype=field.dtype) for field in batch]
            for field, all_of_it in zip(batch, whole, strict=True):
                all_of_it[at : at + len(field)] = field
            at += len(batch[0])
    if at != n:
        raise ValueError(f"{path} gave {at} of {n} rows")
    images, labels, indices = whole
    if not torch.equal(indices.flatten(), torch.arange(n)):
        raise ValueError(f"{path} does not hold rows 0 to {n - 1} in order")
    return images, labels.flatten().long()


def read_without(path: Path, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `read`, without FFCV: the images lie as they are where the rows of the file, which are looked at first, say.

    Raises ValueError when the file is damaged, or holds other rows than 0 … n-1 in order.
    """
    check_header(path, n)
    fields = read_head(path).fields
    image = fields["image"]
    shape, dtype = image.shape, np.dtype(np.uint8) if image.dtype is None else image.dtype
    if image.kind == RGB:
        shape = (int(image.rows["height"][0]), int(image.rows["width"][0]), 3)
    if not np.array_equal(fields["index"].rows, np.arange(n)):
        raise ValueError(f"{path} does not hold rows 0 to {n - 1} in order")
    content, length = np.memmap(path, np.uint8, "r"), math.prod(shape) * dtype.itemsize
    images = np.empty((n, *shape), dtype)
    for row, start in zip(images, image.pointers.tolist(), strict=True):
        row[...] = content[start : start + length].view(dtype).reshape(shape)
    return torch.from_numpy(images), torch.from_numpy(fields["label"].rows.astype(np.int64))


def loader(path: Path, batch_size: int, num_workers: int, augmentation: Sequence[Any] = (), **options: Any) -> Any:
    """FFCV's Loader of (image, label, index) batches, in order and to the last row unless its `options` say otherwise.

    Images are (B, …), as they were written, after FFCV's own operations in `augmentation`.
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


def batches_of(rows: Any) -> Iterator[Any]:
    """The batches of a Loader, whose own iterator would wait for ever for a thread of its that has died.

    Raises RuntimeError then.
    """
    _COMPILED.append(rows.code)
    iterator = iter(rows)
    while True:
        while iterator.output_queue.empty():
            if not iterator.is_alive() and iterator.output_queue.empty():
                raise RuntimeError("FFCV's thread has died")
            time.sleep(0.001)
        try:
            yield next(iterator)
        except StopIteration:
            return


@contextmanager
def torch_threads_kept() -> Iterator[None]:
    """FFCV sets PyTorch's number of threads on import and in its Loader; put it back."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
