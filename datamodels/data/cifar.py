"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their official files, in either layout, packed or unpacked.

Binary batches: rows of the label's byte, for CIFAR-100 the coarse and the fine label's, and 3,072 bytes, the red, green and
blue planes of a 32×32 image, row by row. Pickled batches: dictionaries with b"data", uint8 (n, 3072) of the same planes, and
b"labels", for CIFAR-100 b"fine_labels". CIFAR-10 has five batches of 10,000 images to train on and one to test on; CIFAR-100
one of 50,000 and one of 10,000, and it is its fine labels, 100 classes, that are read.
"""

from __future__ import annotations

import gzip
import io
import pickle
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from datamodels.data.download import PART, download, file_md5
from datamodels.data.raw import Found, Rows
from datamodels.errors import InputError, one_line, shown
from datamodels.reading import open_file, read_bytes
from datamodels.settings import NO_SOURCE, OFFICIAL, DataSettings

SITE = "https://www.cs.toronto.edu/~kriz/"
PIXELS = 3 * 32 * 32
GZIP = b"\x1f\x8b"
MOST_UNPACKED = 2**28

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Reader = Callable[[str], "bytes | None"]
"""The content of a file of the data set by its name, None where there is no such file."""


@dataclass(frozen=True)
class Spec:
    """One of the two data sets: its batches and how many images each has, where labels stand, its official archives."""

    name: str
    classes: tuple[str, ...]
    train: Mapping[str, int]
    test: Mapping[str, int]
    label_bytes: int
    label_key: bytes
    folders: tuple[str, str]
    archives: tuple[str, str]
    md5s: tuple[str, str]
    """Of the binary archive, and of the pickled one."""

    def most_bytes(self, images: int) -> int:
        """Of a batch in either layout: the pickled one has file names and a second label as well."""
        return images * (PIXELS + 256) + 2**16


CIFAR10 = Spec(
    "CIFAR-10",
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    {f"data_batch_{number}": 10_000 for number in range(1, 6)},
    {"test_batch": 10_000},
    1,
    b"labels",
    ("cifar-10-batches-bin", "cifar-10-batches-py"),
    ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"),
    ("c32a1d4ab5d03f1284b67883e8d87530", "c58f30108f718f92721af3b95e74349a"),
)
FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree
wolf woman worm
"""
CIFAR100 = Spec(
    "CIFAR-100",
    tuple(FINE.split()),
    {"train": 50_000},
    {"test": 10_000},
    2,
    b"fine_labels",
    ("cifar-100-binary", "cifar-100-python"),
    ("cifar-100-binary.tar.gz", "cifar-100-python.tar.gz"),
    ("03b5dce01913d631647c71ecec9e9cb8", "eb9058c3a382ffc7106e4002c42a8d85"),
)


def read_cifar(settings: DataSettings, spec: Spec) -> Found:
    """All training and all test images, uint8 (n, 32, 32, 3), with labels int64 (n,).

    Downloads the archive when `data.source` holds nothing and `data.download` allows it. Raises InputError when something is
    missing, cut short, altered or of another shape, or another thing lies where the archive should come.
    """
    source = Path(f"data/{settings.dataset}" if settings.source == NO_SOURCE else settings.source)
    with _opened(source, settings, spec) as read:
        train, test = (_split(read, part, source, spec) for part in (spec.train, spec.test))
    return Found(train, test, spec.classes)


def _split(read: Reader, part: Mapping[str, int], source: Path, spec: Spec) -> Rows:
    batches = [_batch(read, name, count, source, spec) for name, count in part.items()]
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return Rows.of(images, labels)


@contextmanager
def _opened(source: Path, settings: DataSettings, spec: Spec) -> Iterator[Reader]:
    """A reader of the source's files, after its MD5 has been checked.

    Where both lie in a folder, as torchvision leaves them, it is the archive that has an MD5 to check.
    """
    folder, packed = _unpacked(source, spec), _found_archive(source, spec)
    most = spec.most_bytes(max(*spec.train.values(), *spec.test.values()))
    if folder is not None and not (settings.verify_md5 and packed is not None):
        if settings.verify_md5:
            raise InputError(
                f"{folder} is unpacked, and only archives have an MD5 to check; name the archive, or set data.verify_md5 false"
            )
        yield lambda name: read_bytes(folder / name, most) if (folder / name).exists() else None
        return
    known = _official(settings, spec)
    archive = packed or _downloaded(source, settings, spec, known[0])
    if settings.verify_md5:
        _check_md5(archive, known)
    try:
        with _tar(archive) as tar:
            members = {Path(member.name).name: member for member in tar if member.isfile()}
            yield lambda name: _member(tar, members.get(name), most)
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
            raise InputError(f"the archive unpacks to more than {MOST_UNPACKED} bytes, and the data set has fewer")


def _unpacked(source: Path, spec: Spec) -> Path | None:
    """The folder with the batches, if there is one."""
    batches = (*spec.test, *spec.train)
    names = [f"{name}{suffix}" for name in batches for suffix in ("", ".bin")]
    found = (source / sub for sub in ("", *spec.folders) if any((source / sub / name).is_file() for name in names))
    return next(found, None)


def _found_archive(source: Path, spec: Spec) -> Path | None:
    """The archive at or in `source`, if there is one."""
    if source.exists() and not source.is_dir():
        return source
    return next((source / name for name in spec.archives if (source / name).exists()), None)


def _official(settings: DataSettings, spec: Spec) -> tuple[str, str]:
    """The MD5s of the binary archive and of the pickled one, as set or the official ones."""
    binary, pickled = (
        official if given == OFFICIAL else given
        for given, official in zip((settings.md5, settings.md5_python), spec.md5s, strict=True)
    )
    return binary, pickled


def _downloaded(source: Path, settings: DataSettings, spec: Spec, md5: str) -> Path:
    """The archive, downloaded into `source`, which must be new, or hold nothing but a part of it."""
    nothing = f"{source} holds neither {spec.name}'s batches nor its archive"
    if not settings.download:
        raise InputError(f"{nothing}, and data.download is false")
    archive = spec.archives[0]
    there = sorted(path.name for path in source.iterdir()) if source.exists() else []
    others = [name for name in there if name != archive + PART and not name.startswith(".")]
    if others:
        raise InputError(
            f"{nothing}, but {shown(others[0], 80)}{' and more' * (len(others) > 1)}, and nothing is downloaded to where other "
            "things lie; name a new folder as data.source, or as data.dataset what kind of data set it is"
        )
    return download(SITE + archive if settings.url == OFFICIAL else settings.url, source / archive, md5)


def _check_md5(archive: Path, known: tuple[str, ...]) -> None:
    found = file_md5(archive)
    if found not in known:
        raise InputError(
            f"{archive} has MD5 {found}, not one of the official archives': it is altered or cut short "
            "(data.verify_md5 false reads it all the same)"
        )


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo | None, most: int) -> bytes | None:
    if member is not None and not 0 <= member.size <= most:
        raise InputError(f"{shown(member.name, 80)} in the archive has {member.size} bytes, which is no batch of images")
    file = tar.extractfile(member) if member is not None else None
    return file.read() if file is not None else None


def _batch(read: Reader, name: str, count: int, source: Path, spec: Spec) -> tuple[Images, Labels]:
    binary = read(f"{name}.bin")
    if binary is not None:
        return _binary_batch(binary, count, f"{name}.bin in {source}", spec)
    pickled = read(name)
    if pickled is None:
        raise InputError(f"{name} is missing in {source}")
    return _pickled_batch(pickled, count, f"{name} in {source}", spec)


def _binary_batch(content: bytes, count: int, where: str, spec: Spec) -> tuple[Images, Labels]:
    width = spec.label_bytes + PIXELS
    if len(content) != count * width:
        raise InputError(
            f"{where} has {len(content)} bytes instead of {count * width}: it is cut short or not a {spec.name} batch"
        )
    rows = np.frombuffer(content, np.uint8).reshape(count, width)
    return _images(rows[:, spec.label_bytes :], rows[:, spec.label_bytes - 1].astype(np.int64), where, spec)


def _pickled_batch(content: bytes, count: int, where: str, spec: Spec) -> tuple[Images, Labels]:
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        data, labels = _plain(batch[b"data"]), np.array(_plain(batch[spec.label_key]))
    except InputError as e:
        raise InputError(f"{where} is refused: {e}") from e
    except Exception as e:  # damaged pickles raise whatever their bytes happen to ask for
        raise InputError(f"{where} is cut short or not a {spec.name} batch: {one_line(e)}") from e
    shape = (count, PIXELS)
    fits = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape == shape
    if not fits or labels.shape != shape[:1] or labels.dtype.kind != "i":
        raise InputError(f"{where} does not hold {shape[0]} images of {shape[1]} bytes and their labels")
    return _images(data, labels.astype(np.int64), where, spec)


def _images(planes: Images, labels: Labels, where: str, spec: Spec) -> tuple[Images, Labels]:
    if labels.min() < 0 or labels.max() >= len(spec.classes):
        raise InputError(f"{where} has labels outside 0 to {len(spec.classes) - 1}: it is not a {spec.name} batch")
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
