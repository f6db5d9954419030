"""A run's data, and the files of CIFAR-10."""

from __future__ import annotations

import bz2
import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path

from datamodels.data import beton, load
from datamodels.data.files import look
from datamodels.errors import InputError
from tests.robustness import betons
from tests.robustness.case import Case, main_of
from tests.robustness.damage import (
    FILES,
    HEADERS,
    pickles,
    text_of_json,
)
from tests.robustness.material import settings_of
from tests.robustness.tables import (
    EITHER,
    FUZZ,
    Read,
    all_written,
    damaged,
    random_bytes,
    values,
)

FORMAT_OF_DATA = {"format": str, "settings": dict, "sizes": {"train": int, "test": int}, "class_names": [str], "digest": str}


def data_cases() -> Iterator[Case]:
    loaded: Read = lambda folder: lambda: load(settings_of(folder))  # noqa: E731
    for file in ("meta.json", "train_images.npy", "test_labels.npy"):
        yield from damaged(f"data {file}", ("run/data",), f"run/data/{file}", FILES, loaded)
        if file.endswith(".npy"):
            more = {**all_written(HEADERS), **random_bytes(6, 128)}
            yield from damaged(f"data {file} content", ("run/data",), f"run/data/{file}", more, loaded)
    yield from damaged("data meta.json text", ("run/data",), "run/data/meta.json", text_of_json(), loaded)
    yield from damaged("data meta.json values", ("run/data",), "run/data/meta.json", values(FORMAT_OF_DATA, False), loaded)
    fitting = {name: damage for name, damage in values(FORMAT_OF_DATA, True).items() if not name.startswith("class_names.0")}
    yield from damaged("data meta.json other values", ("run/data",), "run/data/meta.json", fitting, loaded)
    looked: Read = lambda folder: lambda: look(folder / "run" / "data")  # noqa: E731
    damages = {**FILES, **text_of_json(), **values(FORMAT_OF_DATA, False)}
    yield from damaged("data looked at", ("run/data",), "run/data/meta.json", damages, looked)
    if beton.available():
        for name, rgb in (("grey", False), ("rgb", True)):
            file = f"{name}.beton"
            reads = _beton_reader(file)
            yield from damaged(f".beton {name}", (file,), file, {**FILES, **betons.damages(rgb)}, reads)
            yield from damaged(f".beton {name} random", (file,), file, random_bytes(2 * FUZZ, 0, 3200), reads, EITHER)
    unpacked = ("--data.dataset", "cifar10", "--data.source", "batches", "--data.verify_md5", "false", "--run.dir", "r")
    source: Read = lambda folder: main_of("data", *unpacked)  # noqa: E731
    for file in ("data_batch_1", "data_batch_1.bin"):
        names = (f"batches/{file}",)
        there = {name: damage for name, damage in FILES.items() if name not in ("missing", "a link to nothing")}
        yield from damaged(f"CIFAR-10 {file}", names, f"batches/{file}", {**there, **random_bytes(10)}, source)
    yield from damaged("CIFAR-10 pickles", ("batches/data_batch_1",), "batches/data_batch_1", all_written(pickles()), source)
    archive = "batches/cifar-10-python.tar.gz"
    there = {name: damage for name, damage in FILES.items() if name not in ("missing", "a link to nothing")}
    yield from damaged("CIFAR-10 archive", (archive,), archive, {**there, **all_written(_tars()), **random_bytes(FUZZ)}, source)


def _beton_reader(file: str) -> Read:
    return lambda folder: lambda: _read_beton(folder / file)


def _read_beton(path: Path) -> None:
    """Read a file as a run's data are read where FFCV is not installed: the head is looked at as before FFCV reads it, which
    would compile for seconds.
    """
    try:
        beton.read_without(path, 12)
    except (ValueError, OSError) as e:
        raise InputError(str(e)) from e


def _tars() -> dict[str, bytes]:
    """Archives that are more than they look."""

    def tar(name: str, size: int, kind: bytes = tarfile.REGTYPE, content: bytes = b"", link: str = "") -> bytes:
        info = tarfile.TarInfo(name)
        info.size, info.type, info.linkname = size, kind, link
        return gzip.compress(info.tobuf() + content)

    zeros = gzip.compress(bytes(2**20))
    return {
        "a bomb": tar("data_batch_1", 2**33) + zeros * 600,
        "a member of gigabytes": tar("data_batch_1", 2**34),
        "a negative member": tar("data_batch_1", 5).replace(b"\x00", b"\x00"),
        "a link": tar("data_batch_1", 0, tarfile.SYMTYPE, link="/etc/passwd"),
        "a hard link": tar("data_batch_1", 0, tarfile.LNKTYPE, link="data_batch_1"),
        "a device": tar("data_batch_1", 0, tarfile.CHRTYPE),
        "a pipe": tar("data_batch_1", 0, tarfile.FIFOTYPE),
        "sparse": tar("data_batch_1", 2**20, tarfile.GNUTYPE_SPARSE),
        "a long header": tar("x", 2**33, tarfile.XHDTYPE),
        "a long name": tar("x", 2**33, tarfile.GNUTYPE_LONGNAME),
        "another packing": bz2.compress(bytes(1000)),
        "members without end": gzip.compress(tarfile.TarInfo("x").tobuf() * 20_000),
    }
