"""CIFAR-10 (Krizhevsky 2009) from its official files, in either layout, packed or unpacked.

Binary batches: rows of 1 + 3,072 bytes, the label and then the red, green and blue planes of a 32×32 image, row by row.
Pickled batches: dictionaries with b"data", uint8 (10000, 3072) of the same planes, and b"labels". Five batches of 10,000
images train, one tests.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodels.data.download import download, file_md5
from datamodels.errors import InputError
from datamodels.settings import DataSettings

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCH = "test_batch"
IMAGES_PER_BATCH = 10_000
PIXELS = 3 * 32 * 32
FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
ARCHIVES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Reader = Callable[[str], "bytes | None"]
"""The content of a file of the data set by its name, None where there is no such file."""


def read_cifar10(settings: DataSettings) -> tuple[tuple[Images, Labels], tuple[Images, Labels]]:
    """All training and all test images, uint8 (n, 32, 32, 3), with labels int64 (n,).

    Downloads the archive when `data.source` holds none and `data.download` allows it. Raises InputError when something is
    missing, cut short, altered or of another shape.
    """
    with _opened(settings) as read:
        parts = [_batch(read, name, settings.source) for name in (*TRAIN_BATCHES, TEST_BATCH)]
    train = np.concatenate([images for images, _ in parts[:-1]]), np.concatenate([labels for _, labels in parts[:-1]])
    return train, parts[-1]


@contextmanager
def _opened(settings: DataSettings) -> Iterator[Reader]:
    """A reader of the source's files, after its MD5 has been checked."""
    source = Path(settings.source)
    folder = _unpacked(source)
    if folder is not None:
        if settings.verify_md5:
            raise InputError(
                f"{folder} is unpacked, and only archives have an MD5 to check; name the archive, or set data.verify_md5 false"
            )
        yield lambda name: (folder / name).read_bytes() if (folder / name).is_file() else None
        return
    archive = _archive(source, settings)
    if settings.verify_md5:
        _check_md5(archive, (settings.md5, settings.md5_python))
    try:
        with tarfile.open(archive) as tar:
            members = {Path(member.name).name: member for member in tar if member.isfile()}
            yield lambda name: _member(tar, members.get(name))
    except (tarfile.TarError, EOFError, OSError, zlib.error) as e:
        raise InputError(f"{archive} is cut short or no tar archive: {e}") from e


def _unpacked(source: Path) -> Path | None:
    """The folder with the batches, if there is one."""
    names = (TEST_BATCH, f"{TEST_BATCH}.bin", TRAIN_BATCHES[0], f"{TRAIN_BATCHES[0]}.bin")
    found = (source / sub for sub in FOLDERS if any((source / sub / name).is_file() for name in names))
    return next(found, None)


def _archive(source: Path, settings: DataSettings) -> Path:
    """The archive at or in `source`; downloaded into it when there is none."""
    if source.is_file():
        return source
    found = next((source / name for name in ARCHIVES if (source / name).is_file()), None)
    if found is not None:
        return found
    if not settings.download:
        raise InputError(f"{source} holds neither CIFAR-10's batches nor its archive, and data.download is false")
    return download(settings.url, source / ARCHIVES[0], settings.md5)


def _check_md5(archive: Path, known: tuple[str, ...]) -> None:
    found = file_md5(archive)
    if found not in known:
        raise InputError(
            f"{archive} has MD5 {found}, not one of the official archives': it is altered or cut short "
            "(data.verify_md5 false reads it all the same)"
        )


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> bytes | None:
    file = tar.extractfile(member) if member is not None else None
    return file.read() if file is not None else None


def _batch(read: Reader, name: str, source: str) -> tuple[Images, Labels]:
    binary = read(f"{name}.bin")
    if binary is not None:
        return _binary_batch(binary, f"{name}.bin in {source}")
    pickled = read(name)
    if pickled is None:
        raise InputError(f"{name} is missing in {source}")
    return _pickled_batch(pickled, f"{name} in {source}")


def _binary_batch(content: bytes, where: str) -> tuple[Images, Labels]:
    expected = IMAGES_PER_BATCH * (1 + PIXELS)
    if len(content) != expected:
        raise InputError(f"{where} has {len(content)} bytes instead of {expected}: it is cut short or not a CIFAR-10 batch")
    rows = np.frombuffer(content, np.uint8).reshape(IMAGES_PER_BATCH, 1 + PIXELS)
    return _images(rows[:, 1:], rows[:, 0].astype(np.int64), where)


def _pickled_batch(content: bytes, where: str) -> tuple[Images, Labels]:
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        data, labels = batch[b"data"], np.array(batch[b"labels"])
    except InputError as e:
        raise InputError(f"{where} is refused: {e}") from e
    except Exception as e:  # damaged pickles raise whatever their bytes happen to ask for
        raise InputError(f"{where} is cut short or not a CIFAR-10 batch: {type(e).__name__} {e}") from e
    shape = (IMAGES_PER_BATCH, PIXELS)
    fits = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape == shape
    if not fits or labels.shape != shape[:1] or labels.dtype.kind != "i":
        raise InputError(f"{where} does not hold {shape[0]} images of {shape[1]} bytes and their labels")
    return _images(data, labels.astype(np.int64), where)


def _images(planes: Images, labels: Labels, where: str) -> tuple[Images, Labels]:
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        raise InputError(f"{where} has labels outside 0 to 9: it is not a CIFAR-10 batch")
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


class _ArraysOnly(pickle.Unpickler):
    """Unpickles lists, dictionaries, strings, numbers and NumPy arrays, and nothing else: nothing that a file could call."""

    ADMITTED = frozenset(
        (f"numpy{core}.{module}", name)
        for core in (".core", "._core")
        for module, name in (("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
    ) | {("numpy", "ndarray"), ("numpy", "dtype")}

    def find_class(self, module: str, name: str) -> Any:
        """The few functions that rebuild an array; InputError for any other."""
        if (module, name) not in self.ADMITTED:
            raise InputError(f"its pickle asks for {module}.{name}, which no batch of images needs")
        return super().find_class(module, name)
