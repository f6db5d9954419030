"""A folder of pictures: SOURCE/train and SOURCE/test (or val, valid), in each a folder for each class, at any depth below it.

A picture's name is its path below the split's folder, as dog/0001.png. Classes and pictures come in the order of their names'
characters, whatever the file system's. Hidden files, and those whose suffix is of no format that is read, are left out and
counted.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from datamodels.data.pictures import Decoder, stacked, suffixes
from datamodels.data.raw import TEST, TRAIN, Found, Images, Labels, Rows
from datamodels.errors import InputError, shown
from datamodels.progress import progress, say
from datamodels.settings import DataSettings


def read_folder(settings: DataSettings) -> Found:
    """All pictures of both splits; they are decoded when they are taken.

    Raises InputError where folders are missing, empty or of other classes; taking raises it for a picture that cannot be read.
    """
    root = Path(settings.source)
    if not root.is_dir():
        raise InputError(f"{root} {'is a file, not a folder' if root.exists() else 'is missing'}; data.source names the folder")
    train, test = _split_folder(root, TRAIN), _split_folder(root, TEST)
    classes = _classes(train)
    for name in _classes(test):
        if name not in classes:
            raise InputError(f"{test} has a class {shown(name, 80)!r}, of which {train} has no folder")
    return Found(_rows(train, classes, settings), _rows(test, classes, settings), tuple(shown(name, 200) for name in classes))


def _split_folder(root: Path, names: tuple[str, ...]) -> Path:
    there = [name for name in names if (root / name).is_dir()]
    if not there:
        found = ", ".join(shown(path.name, 40) for path in sorted(root.iterdir())[:5])
        raise InputError(f"{root} has no folder {' or '.join(names)} (it has {found or 'nothing'})")
    if len(there) > 1:
        say(f"data: {root} has the folders {' and '.join(there)}, of which {there[0]} is read")
    return root / there[0]


def _classes(split: Path) -> list[str]:
    """The names of the folders in one."""
    found = sorted(entry.name for entry in os.scandir(split) if not entry.name.startswith(".") and _is_folder(entry.path))
    if not found:
        raise InputError(f"{split} has no folders, and should have one for each class")
    return found


def _is_folder(path: str) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 (False also for links that lead in a circle)


def _rows(split: Path, classes: list[str], settings: DataSettings) -> Rows:
    files, labels, left_out = list[str](), list[int](), 0
    left_out += sum(not _is_folder(entry.path) for entry in os.scandir(split))
    for label, name in enumerate(classes):
        found, others = _pictures(split / name)
        files += [f"{name}/{path}" for path in found]
        labels += [label] * len(found)
        left_out += others
        if not found and split.name in TRAIN:
            raise InputError(f"{split / shown(name, 80)} has no pictures")
    if not files:
        raise InputError(f"{split} has no pictures")
    if left_out:
        say(f"data: {left_out} files in {split} are hidden, in no class's folder, or no pictures by their names, and left out")
    decoder, known = Decoder(settings.size), np.array(labels, np.int64)

    def take(rows: Labels) -> Images:
        with progress(f"data: {split.name}", "pictures", len(rows)) as advance:

            def read(row: int) -> Images:
                advance()
                return decoder.read(split / files[row])

            images = stacked(((shown(files[row], 200), read(row)) for row in rows), len(rows))
        decoder.tell(str(split))
        return images

    return Rows(known, take, [shown(name) for name in files])


def _pictures(folder: Path) -> tuple[list[str], int]:
    """Paths of the pictures below a folder, in order, and how many other files there are. Each folder is entered once."""
    found, others, entered = list[str](), 0, set[tuple[int, int]]()

    def enter(place: Path, below: str) -> None:
        nonlocal others
        status = place.stat()
        if (status.st_dev, status.st_ino) in entered:
            return
        entered.add((status.st_dev, status.st_ino))
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                others += 1
            elif _is_folder(entry.path):
                enter(Path(entry.path), f"{below}{entry.name}/")
            elif Path(entry.name).suffix.lower() in suffixes():
                found.append(below + entry.name)
            else:
                others += 1

    enter(folder, "")
    return sorted(found), others
