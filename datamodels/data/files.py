"""The data folder of a run: both splits on disk, what they were made from, and their digest.

data/meta.json                       settings, shapes, class names, format, digest
data/train.beton, test.beton         where FFCV is installed
data/train_images.npy, …_labels.npy  where it is not: the same images, uint8 (n, H, W, C), and labels, int64 (n,)
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodels.data import beton
from datamodels.data.sources import RawData, RawSplit, read_source
from datamodels.durable import is_there, new_folder, only_maker, read_json, real_place, save_array, tidy, write_json
from datamodels.errors import InputError
from datamodels.machine import megabytes
from datamodels.provenance import refuse_difference
from datamodels.reading import Each, Unreadable, read_npy, require
from datamodels.runs import stage_folder, stage_seconds
from datamodels.settings import Settings

FORMAT_VERSION = 1
SPLITS = ("train", "test")
FORMATS = ("beton", "npy")
META = {"format": str, "settings": dict, "sizes": Each(int), "class_names": [str], "digest": str}


@dataclass(frozen=True)
class Split:
    """Images uint8 (n, H, W, C) and labels int64 (n,) as tensors."""

    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Dataset:
    """A run's data: the training set S of N images, T test images, the classes' names, the digest of it all."""

    train: Split
    test: Split
    class_names: tuple[str, ...]
    digest: str


def prepare(settings: Settings, use_ffcv: bool | None = None, raw: RawData | None = None) -> str:
    """Write the run's data unless it is there, and say in one line what was done.

    `use_ffcv` chooses the format; by default FFCV where it is installed. `raw` is written in the place of what the source has,
    as with labels of one's own. Raises InputError when the folder was made under
    other settings or the source cannot be read; the folder then stays as it was.
    """
    path = stage_folder(settings, "data")
    if is_there(path):
        _read_meta(settings)
        tidy(path)
        return f"data: already in {path}"
    raw = raw or read_source(settings.data)
    with only_maker(path, f"data: waiting for another process that is writing {path}"):
        if is_there(path):
            _read_meta(settings)
            return f"data: already in {path}"
        with stage_seconds(settings, "data"):
            how = _write(settings, raw, path, use_ffcv)
    return f"data: {len(raw.train.labels)} training and {len(raw.test.labels)} test images in {path}, as {how}"


def _write(settings: Settings, raw: RawData, path: Path, use_ffcv: bool | None) -> str:
    """Write the folder; in words, in which format: by FFCV, and where it is not installed or cannot work as .npy files."""
    why_not = "since FFCV is not installed here"
    if beton.available() if use_ffcv is None else use_ffcv:
        try:
            _write_as(settings, raw, path, use_ffcv=True)
            return "FFCV .beton"
        except beton.CannotWriteError as e:
            why_not = f"since FFCV cannot work here: {e}"
    _write_as(settings, raw, path, use_ffcv=False)
    return f".npy files, {why_not}"


def _write_as(settings: Settings, raw: RawData, path: Path, use_ffcv: bool) -> None:
    _look_for_room(raw, path, use_ffcv)
    with new_folder(path) as temporary:
        for name, split in zip(SPLITS, raw[:2], strict=True):
            _write_split(temporary, name, split, use_ffcv)
        write_json(temporary / "meta.json", _meta(settings, raw, use_ffcv))


def _look_for_room(raw: RawData, path: Path, use_ffcv: bool) -> None:
    """Raise InputError where the images do not fit on the disk."""
    size = sum(beton.size_of(split) if use_ffcv else split.images.nbytes + split.labels.nbytes for split in raw[:2])
    free = shutil.disk_usage(real_place(path).parent).free
    if size > free:
        raise InputError(f"no room for the images in {path}: they take {megabytes(size)}, and {megabytes(free)} are free")


def load(settings: Settings) -> Dataset:
    """Read the run's data back, through FFCV where it was written by it.

    Raises InputError when the data is missing, was made under other settings, or is not what was written.
    """
    meta, path = _read_meta(settings), stage_folder(settings, "data")
    if meta["format"] == "beton" and not beton.available():
        raise InputError(f"{path} was written by FFCV, which is not installed here: install it, or delete the folder")
    try:
        train, test = (_read_split(path, name, meta) for name in SPLITS)
    except (OSError, ValueError, EOFError) as e:
        raise InputError(f"{path} cannot be read ({e}); delete it and run python -m datamodels.data again") from e
    if _digest(train, test) != meta["digest"]:
        raise InputError(
            f"the images in {path} are not those that were written; delete it and run python -m datamodels.data again"
        )
    labels = torch.cat([train.labels, test.labels])
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(meta["class_names"]):
        raise InputError(f"{path / 'meta.json'} is damaged: it names fewer classes than there are")
    return Dataset(train, test, tuple(meta["class_names"]), meta["digest"])


def _meta(settings: Settings, raw: RawData, use_ffcv: bool) -> dict[str, Any]:
    train, test = (Split(torch.from_numpy(s.images), torch.from_numpy(s.labels)) for s in raw[:2])
    return {
        "format_version": FORMAT_VERSION,
        "format": "beton" if use_ffcv else "npy",
        "settings": _deciding(settings),
        "sizes": {name: len(split.labels) for name, split in zip(SPLITS, (train, test), strict=True)},
        "class_names": list(raw.class_names),
        "digest": _digest(train, test),
    }


def _deciding(settings: Settings) -> dict[str, Any]:
    """The settings that decide the content; where the source lies, and how it is had, does not."""
    wanted = ("dataset", "train_images", "test_images", "seed", "pool")
    return {name: getattr(settings.data, name) for name in wanted}


def _read_meta(settings: Settings) -> dict[str, Any]:
    path = stage_folder(settings, "data")
    try:
        meta: dict[str, Any] = read_json(path / "meta.json")
        require(meta, {"format_version": int}, path / "meta.json")
        version = meta["format_version"]
        if version == FORMAT_VERSION:
            require(meta, META, path / "meta.json")
    except Unreadable as e:
        what = f"there is no data in {path}" + f": {e}" * (not e.missing)
        raise InputError(f"{what}; run python -m datamodels.data with the same config first") from e
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has format version {version}, this program reads version {FORMAT_VERSION}")
    refuse_difference(path, {"data": meta["settings"]}, {"data": _deciding(settings)})
    sizes = (settings.data.train_images, settings.data.test_images)
    if meta["sizes"] != dict(zip(SPLITS, sizes, strict=True)) or meta["format"] not in FORMATS:
        raise InputError(f"{path / 'meta.json'} is damaged: its sizes are not those of its settings, or its format is none")
    return meta


def _write_split(path: Path, name: str, split: RawSplit, use_ffcv: bool) -> None:
    if use_ffcv:
        beton.write(path / f"{name}.beton", split)
    else:
        save_array(path / f"{name}_images.npy", split.images)
        save_array(path / f"{name}_labels.npy", split.labels)


def _read_split(path: Path, name: str, meta: dict[str, Any]) -> Split:
    if meta["format"] == "beton":
        return Split(*beton.read(path / f"{name}.beton", meta["sizes"][name]))
    n = meta["sizes"][name]
    images = read_npy(path / f"{name}_images.npy", np.uint8, (n, None, None, None))
    return Split(torch.from_numpy(images), torch.from_numpy(read_npy(path / f"{name}_labels.npy", np.int64, (n,))))


def _digest(train: Split, test: Split) -> str:
    """SHA-256 of all images and labels, the same for either format."""
    sha = hashlib.sha256()
    for tensor in (train.images, train.labels, test.images, test.labels):
        sha.update(repr(tuple(tensor.shape)).encode())
        sha.update(np.ascontiguousarray(tensor.numpy()).data)
    return sha.hexdigest()
