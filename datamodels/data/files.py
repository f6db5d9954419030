"""The data folder of a run: both splits on disk, what they were made from, and their digest.

data/meta.json                       settings, shapes, class names, format, digest
data/train.beton, test.beton         where FFCV is installed, and an image fits into a page of its files
data/train_images.npy, …_labels.npy  where not: the same images, uint8 or float32 (n, H, W, C), or features, float32 (n, d), and
                                     labels, int64 (n,)
data/names.json                      names of the images, where they have some, with a checksum: no model depends on them

Format version 2 has float32 or names; what has neither is of version 1, as it was before.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodels.data import beton
from datamodels.data.changes import state_of
from datamodels.data.raw import RawData, RawSplit
from datamodels.data.sources import NAMED_FILES, read_source, train_targets
from datamodels.durable import is_there, new_folder, only_maker, read_json, real_place, save_array, tidy, write_json
from datamodels.errors import InputError
from datamodels.machine import megabytes
from datamodels.progress import step
from datamodels.provenance import refuse_difference
from datamodels.reading import Each, Unreadable, open_npy, read_npy, require
from datamodels.runs import stage_folder, stage_seconds
from datamodels.seals import read_sealed, write_sealed
from datamodels.settings import ALL, DataSettings, Settings

FORMAT_VERSION = 2
SPLITS = ("train", "test")
FORMATS = ("beton", "npy")
META = {"format": str, "settings": dict, "sizes": Each(int), "class_names": [str], "digest": str}
META_2 = {**META, "images": str, "names": bool}
NAMES = "names.json"
STATE = "source_state"
DTYPES = {"uint8": np.uint8, "float32": np.float32}
ALWAYS = ("dataset", "train_images", "test_images", "seed", "pool")
WHERE_SET = ("size", "classes", "image_field", "label_field")
"""Settings that decide the content, and those of them that came later: they are named where they are not as they were
before."""
WHOLE = {name: {"train_images": 50_000, "test_images": 10_000} for name in ("cifar10", "cifar100")}
"""How many images all of a known data set are: runs of before name them, for they were the default."""


@dataclass(frozen=True)
class Split:
    """Images uint8 or float32 (n, H, W, C), or features float32 (n, d), and labels int64 (n,) as tensors.

    `names` are n texts of one line each, as dog/0001.png, or None where the data set has none.
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Dataset:
    """A run's data: the training set S of N images, the targets, the classes' names, the digest of what was written.

    The targets, `test`, are the test images and behind them the training images `train_targets`, in that order.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]
    digest: str
    train_targets: tuple[int, ...] = ()

    @property
    def has_pictures(self) -> bool:
        """Whether the images can be looked at; features cannot."""
        return self.train.images.ndim == 4


def prepare(settings: Settings, use_ffcv: bool | None = None, raw: RawData | None = None) -> str:
    """Write the run's data unless it is there, and say in one line what was done.

    `use_ffcv` chooses the format; by default FFCV where it is installed. `raw` is written in the place of what the source has,
    as with labels of one's own. Raises InputError when the folder was made under other settings, or of what the source was
    before, or the source cannot be read; the folder then stays as it was.
    """
    path, state = stage_folder(settings, "data"), None if raw else state_of(settings.data)
    if is_there(path):
        _refuse_changed(settings, state)
        tidy(path)
        return f"data: already in {path}"
    if raw is None:
        with step("data: reading the source"):
            raw = read_source(settings.data)
    with only_maker(path, f"data: waiting for another process that is writing {path}"):
        if is_there(path):
            _refuse_changed(settings, state)
            return f"data: already in {path}"
        train_targets(settings.data, len(raw.train.labels), raw.train.names)
        with stage_seconds(settings, "data"), step("data: writing the images"):
            how = _write(settings, raw, path, use_ffcv, state)
    return f"data: {len(raw.train.labels)} training and {len(raw.test.labels)} test images in {path}, as {how}"


def _refuse_changed(settings: Settings, now: str | None) -> None:
    """Raise InputError where a source of one's own does not give what the folder was made of; one that is gone is not missed.

    Where only its state is another, as when files were copied, the new state is kept.
    """
    meta, path = _read_meta(settings), stage_folder(settings, "data")
    if now is None or meta.get(STATE, now) == now:
        return
    raw = read_source(settings.data)
    again = _meta(settings, raw, use_ffcv=meta["format"] == "beton")
    same = all(meta.get(key) == again.get(key) for key in ("digest", "class_names", "names"))
    sides = zip(SPLITS, raw[:2], strict=True)
    if not same or (_has_names(raw) and any(_names(path, meta, side) != split.names for side, split in sides)):
        told = f"the source of {path}, data.dataset and data.source, has changed since the images were read"
        raise InputError(f"{told}; use another run.dir, or delete the run's folders")
    write_json(path / "meta.json", {**meta, STATE: now})


def _write(settings: Settings, raw: RawData, path: Path, use_ffcv: bool | None, state: str | None) -> str:
    """Write the folder; in words, in which format: by FFCV, and where it is not installed or cannot work as .npy files."""
    why_not = "since FFCV is not installed here"
    if beton.too_large(raw.train):
        why_not = "since FFCV's files have no room for so large an image"
    elif beton.available() if use_ffcv is None else use_ffcv:
        try:
            _write_as(settings, raw, path, True, state)
            return "FFCV .beton"
        except beton.CannotWriteError as e:
            why_not = f"since FFCV cannot work here: {e}"
    _write_as(settings, raw, path, False, state)
    return f".npy files, {why_not}"


def _write_as(settings: Settings, raw: RawData, path: Path, use_ffcv: bool, state: str | None) -> None:
    _look_for_room(raw, path, use_ffcv)
    with new_folder(path) as temporary:
        for name, split in zip(SPLITS, raw[:2], strict=True):
            _write_split(temporary, name, split, use_ffcv)
        if _has_names(raw):
            write_sealed(temporary / NAMES, {name: split.names for name, split in zip(SPLITS, raw[:2], strict=True)})
        more = {} if state is None else {STATE: state}
        write_json(temporary / "meta.json", {**_meta(settings, raw, use_ffcv), **more})


def _look_for_room(raw: RawData, path: Path, use_ffcv: bool) -> None:
    """Raise InputError where the images do not fit on the disk."""
    size = sum(beton.size_of(split) if use_ffcv else split.images.nbytes + split.labels.nbytes for split in raw[:2])
    free = shutil.disk_usage(real_place(path).parent).free
    if size > free:
        raise InputError(f"no room for the images in {path}: they take {megabytes(size)}, and {megabytes(free)} are free")


def load(settings: Settings) -> Dataset:
    """Read the run's data back, through FFCV where it was written by it and that is installed.

    Raises InputError when the data is missing, was made under other settings, or is not what was written.
    """
    meta, path = _read_meta(settings), stage_folder(settings, "data")
    with step("data: reading the images"):
        train, test = _read_splits(path, meta)
    return _dataset(train, test, meta, train_targets(settings.data, len(train.labels), train.names))


def look(path: Path, chosen: tuple[int, ...] = ()) -> Dataset:
    """Read the data in a folder, under whatever settings it was made, with the training images that are targets as well.

    Raises InputError when there is none, or it is not what was written, or has no such training images.
    """
    meta = _read_meta_of(path)
    if not meta["sizes"].keys() == set(SPLITS) or meta["format"] not in FORMATS or meta.get("images", "uint8") not in DTYPES:
        raise InputError(f"{path / 'meta.json'} is damaged: it has no sizes of two splits, or its format is none")
    train, test = _read_splits(path, meta)
    if not all(0 <= image < len(train.labels) for image in chosen):
        raise InputError(f"the run has targets that are training images beyond the {len(train.labels)} in {path}")
    return _dataset(train, test, meta, chosen)


def _dataset(train: Split, test: Split, meta: dict[str, Any], chosen: tuple[int, ...]) -> Dataset:
    return Dataset(train, _with_train_targets(train, test, chosen), tuple(meta["class_names"]), meta["digest"], chosen)


def _read_splits(path: Path, meta: dict[str, Any]) -> tuple[Split, Split]:
    """Both splits, once they are what was written."""
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
    if meta.get("names"):
        train, test = (
            replace(split, names=_names(path, meta, name)) for name, split in zip(SPLITS, (train, test), strict=True)
        )
    return train, test


def _with_train_targets(train: Split, test: Split, chosen: tuple[int, ...]) -> Split:
    """The test images, and behind them the training images that are targets as well."""
    if not chosen:
        return test
    rows, names = list(chosen), None
    if train.names is not None and test.names is not None:
        names = (*test.names, *(train.names[row] for row in rows))
    return Split(torch.cat([test.images, train.images[rows]]), torch.cat([test.labels, train.labels[rows]]), names)


def _has_names(raw: RawData) -> bool:
    return raw.train.names is not None or raw.test.names is not None


def _names(path: Path, meta: dict[str, Any], side: str) -> tuple[str, ...] | None:
    """The names of a split's images. Raises InputError where they are not those that were written."""
    try:
        content = read_sealed(path / NAMES)
        require(content, dict.fromkeys(SPLITS, ([str], None)), path / NAMES)
    except Unreadable as e:
        raise InputError(f"{e}; delete {path} and run python -m datamodels.data again") from e
    names: list[str] | None = content[side]
    if names is not None and len(names) != meta["sizes"][side]:
        raise InputError(f"{path / NAMES} is damaged: it has other than {meta['sizes'][side]} names of {side} images")
    return None if names is None else tuple(names)


def _meta(settings: Settings, raw: RawData, use_ffcv: bool) -> dict[str, Any]:
    train, test = (Split(torch.from_numpy(s.images), torch.from_numpy(s.labels)) for s in raw[:2])
    names, kind = _has_names(raw), str(raw.train.images.dtype)
    more = {"images": kind, "names": names} if names or kind != "uint8" else {}
    return {
        "format_version": FORMAT_VERSION if more else 1,
        "format": "beton" if use_ffcv else "npy",
        "settings": _deciding(settings),
        "sizes": {name: len(split.labels) for name, split in zip(SPLITS, (train, test), strict=True)},
        "class_names": list(raw.class_names),
        "digest": _digest(train, test),
        **more,
    }


def _deciding(settings: Settings) -> dict[str, Any]:
    """The settings that decide the content. Where a known data set lies, and how it is had, does not; for others it does."""
    data = settings.data
    found = {name: getattr(data, name) for name in ALWAYS}
    if data.classes == ALL and data.dataset in WHOLE:
        found |= {name: found[name] or size for name, size in WHOLE[data.dataset].items()}
    found |= {name: getattr(data, name) for name in WHERE_SET if getattr(data, name) != getattr(DataSettings, name)}
    if data.dataset in NAMED_FILES:
        found["source"] = ",".join(os.path.abspath(part) for part in data.source.split(","))  # noqa: PTH100 (links as they are)
    return found


def _read_meta(settings: Settings) -> dict[str, Any]:
    """The meta.json of a run's data. Raises InputError where it was made under other settings."""
    path = stage_folder(settings, "data")
    meta = _read_meta_of(path)
    refuse_difference(path, {"data": meta["settings"]}, {"data": _deciding(settings)})
    wanted = zip(SPLITS, (settings.data.train_images, settings.data.test_images), strict=True)
    sizes = meta["sizes"]
    fits = sizes.keys() == set(SPLITS) and all(sizes[name] == size or (not size and sizes[name] > 0) for name, size in wanted)
    if not fits or meta["format"] not in FORMATS or meta.get("images", "uint8") not in DTYPES:
        raise InputError(f"{path / 'meta.json'} is damaged: its sizes are not those of its settings, or its format is none")
    return meta


def _read_meta_of(path: Path) -> dict[str, Any]:
    """The meta.json of a folder of data, of a version that is known."""
    try:
        meta: dict[str, Any] = read_json(path / "meta.json")
        require(meta, {"format_version": int}, path / "meta.json")
        version = meta["format_version"]
        if 1 <= version <= FORMAT_VERSION:
            require(meta, META if version == 1 else META_2, path / "meta.json")
    except Unreadable as e:
        what = f"there is no data in {path}" + f": {e}" * (not e.missing)
        raise InputError(f"{what}; run python -m datamodels.data with the same config first") from e
    if not 1 <= version <= FORMAT_VERSION:
        raise InputError(f"{path} has format version {version}, this program reads versions 1 to {FORMAT_VERSION}")
    return meta


def _write_split(path: Path, name: str, split: RawSplit, use_ffcv: bool) -> None:
    if use_ffcv:
        beton.write(path / f"{name}.beton", split)
    else:
        save_array(path / f"{name}_images.npy", split.images)
        save_array(path / f"{name}_labels.npy", split.labels)


def _read_split(path: Path, name: str, meta: dict[str, Any]) -> Split:
    if meta["format"] == "beton":
        read = beton.read if beton.available() else beton.read_without
        return Split(*read(path / f"{name}.beton", meta["sizes"][name]))
    n, file = meta["sizes"][name], path / f"{name}_images.npy"
    shape = (n, None) if meta.get("images") == "float32" and open_npy(file).ndim == 2 else (n, None, None, None)
    images = read_npy(file, DTYPES[meta.get("images", "uint8")], shape)
    return Split(torch.from_numpy(images), torch.from_numpy(read_npy(path / f"{name}_labels.npy", np.int64, (n,))))


def _digest(train: Split, test: Split) -> str:
    """SHA-256 of all images and labels, the same for either format."""
    sha = hashlib.sha256()
    for tensor in (train.images, train.labels, test.images, test.labels):
        sha.update(repr(tuple(tensor.shape)).encode())
        sha.update(np.ascontiguousarray(tensor.numpy()).data)
    return sha.hexdigest()
