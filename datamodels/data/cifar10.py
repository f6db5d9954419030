"""CIFAR-10 (Krizhevsky 2009) from its official files, in either layout, packed or unpacked.

Binary batches: rows of 1 + 3,072 bytes, the label and then the red, green and blue planes of a 32×32 image, row by row.
Pickled batches: dictionaries with b"data", uint8 (10000, 3072) of the same planes, and b"labels". Five batches of 10,000
images train, one tests.
"""

from __future__ import annotations

import gzip
import io
import pickle
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from datamodels.data.download import download, file_md5
from datamodels.errors import InputError, shown
from datamodels.reading import open_file, read_bytes
from datamodels.settings import DataSettings

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCH = "test_batch"
IMAGES_PER_BATCH = 10_000
PIXELS = 3 * 32 * 32
FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
GZIP = b"\x1f\x8b"
MOST_BYTES = 2**25
"""Of one batch: 30,730,000 in the binary layout, a little more with its file names in the other."""
MOST_UNPACKED = 2**28
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
    """A reader of the source's files, after its MD5 has been checked.

    Where both lie in a folder, as torchvision leaves them, it is the archive that has an MD5 to check.
    """
    source = Path(settings.source)
    folder, packed = _unpacked(source), _found_archive(source)
    if folder is not None and not (settings.verify_md5 and packed is not None):
        if settings.verify_md5:
            raise InputError(
                f"{folder} is unpacked, and only archives have an MD5 to check; name the archive, or set data.verify_md5 false"
            )
        yield lambda name: read_bytes(folder / name, MOST_BYTES) if (folder / name).exists() else None
        return
    archive = packed or _downloaded(source, settings)
    if settings.verify_md5:
        _check_md5(archive, (settings.md5, settings.md5_python))
    try:
        with _tar(archive) as tar:
            members = {Path(member.name).name: member for member in tar if member.isfile()}
            yield lambda name: _member(tar, members.get(name))
    except InputError:
        raise
    except Exception as e:  # damaged archives raise whatever their bytes lead to
        raise InputError(f"{archive} is cut short or no tar archive: {e}") from e


@contextmanager
def _tar(archive: Path) -> Iterator[tarfile.TarFile]:
    """A tar archive, packed by gzip or not, that does not unpack to much more than the data set."""
    with open_file(archive) as file:
        packed = file.read(2) == GZIP
        file.seek(0)
        if not packed:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                yield tar
            return
        with gzip.GzipFile(fileobj=file) as unpacked, tarfile.open(fileobj=_Bounded(unpacked), mode="r:") as tar:
            yield tar


class _Bounded(io.RawIOBase):
    """What a gzip file unpacks to, up to a bound."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self.file = file

    def read(self, size: int = -1) -> bytes:
        """As of any file. Raises InputError beyond the bound."""
        self._check(self.file.tell() + max(size, 0))
        return self.file.read(size if size >= 0 else MOST_UNPACKED)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file. Raises InputError beyond the bound."""
        self._check(offset)
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        """As of any file."""
        return self.file.tell()

    def _check(self, end: int) -> None:
        if end > MOST_UNPACKED:
            raise InputError(f"the archive unpacks to more than {MOST_UNPACKED} bytes, and CIFAR-10 has fewer")


def _unpacked(source: Path) -> Path | None:
    """The folder with the batches, if there is one."""
    names = (TEST_BATCH, f"{TEST_BATCH}.bin", TRAIN_BATCHES[0], f"{TRAIN_BATCHES[0]}.bin")
    found = (source / sub for sub in FOLDERS if any((source / sub / name).is_file() for name in names))
    return next(found, None)


def _found_archive(source: Path) -> Path | None:
    """The archive at or in `source`, if there is one."""
    if source.exists() and not source.is_dir():
        return source
    return next((source / name for name in ARCHIVES if (source / name).exists()), None)


def _downloaded(source: Path, settings: DataSettings) -> Path:
    """The archive, downloaded into `source`."""
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
    if member is not None and not 0 <= member.size <= MOST_BYTES:
        raise InputError(f"{shown(member.name, 80)} in the archive has {member.size} bytes, which is no batch of images")
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
        data, labels = _plain(batch[b"data"]), np.array(_plain(batch[b"labels"]))
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


class _DType:
    """Stands for `numpy.dtype` in a pickle: plain numbers only."""

    def __init__(self, name: Any, *_: Any) -> None:
        name = name.decode("ascii") if isinstance(name, bytes) else name
        if not isinstance(name, str) or not re.fullmatch("[biu][1248]", name):
            raise InputError(f"its pickle has an array of {name!r:.80}, which no batch of images needs")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        """Takes the byte order."""
        order: Any = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise InputError("its pickle has an array of no byte order")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for an array in a pickle, and for the functions that make one; its bytes are read here, not by NumPy's own."""

    def __init__(self, *arguments: Any) -> None:
        # _frombuffer(buffer, dtype, shape, order) has everything; _reconstruct(ndarray, (0,), b"b") leaves it to the state.
        self.content = arguments if len(arguments) == 4 else None

    def __setstate__(self, state: Any) -> None:
        """Takes (version, shape, dtype, whether in Fortran's order, bytes)."""
        _, shape, dtype, fortran, content = state
        self.content = (content, dtype, shape, "F" if fortran else "C")

    def array(self) -> npt.NDArray[Any]:
        """The array itself. Raises an exception of some kind where it is none."""
        if self.content is None or not isinstance(self.content[1], _DType):
            raise InputError("its pickle has an array without content")
        content, dtype, shape, order = self.content
        found: npt.NDArray[Any] = np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if order in ("F", b"F") else "C")
        return found


def _plain(content: Any) -> Any:
    return content.array() if isinstance(content, _Array) else content


class _ArraysOnly(pickle._Unpickler):
    """Unpickles lists, dictionaries, strings, numbers and arrays, and nothing else: nothing that a file could call.

    The unpickler written in Python: the one in C takes memory for whatever number of remembered objects a file names. Nor do
    NumPy's own functions come in, which build a type out of what a pickle says, and follow it.
    """

    ADMITTED: ClassVar[dict[tuple[str, str], type]] = {
        **{
            (f"numpy{core}.{module}", name): _Array
            for core in (".core", "._core")
            for module, name in (("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
        },
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
    }
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """What stands for the few functions that rebuild an array; InputError for any other."""
        if (module, name) not in self.ADMITTED:
            raise InputError(f"its pickle asks for {module}.{name}, which no batch of images needs")
        return self.ADMITTED[module, name]

    def load_bytearray8(self) -> None:
        """An array's bytes, as protocol 5 has them: read, and no memory taken by the length that the file tells."""
        unpickler: Any = self
        unpickler.append(bytearray(unpickler.read(int.from_bytes(unpickler.read(8), "little"))))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
