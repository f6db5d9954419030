"""Whether the source of a run's data may have changed since: a look at files that are not read. What they hold then decides."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from datamodels.reading import digest
from datamodels.settings import DataSettings


def state_of(settings: DataSettings) -> str | None:
    """A digest that changes with the source: of its files' names, sizes and times, or of the text of the module of a function.

    None for the known data sets, which do not change, and where the source is no longer there: what was made of it still is.
    """
    if ":" in settings.dataset:
        return _of_module(settings.dataset.partition(":")[0])
    places = [Path(part) for part in settings.source.split(",")] if settings.dataset in ("folder", "beton", "arrays") else []
    if not places or not all(place.exists() for place in places):
        return None
    told = hashlib.sha256()
    for place in places:
        for file in sorted(_files(place)):
            status = file.stat()
            told.update(f"{os.fsencode(file.relative_to(place))!r} {status.st_size} {status.st_mtime_ns}\n".encode())
    return told.hexdigest()


def _files(place: Path) -> Iterator[Path]:
    """A file, or all files below a folder that are there."""
    if not place.is_dir():
        yield place
        return
    for folder, _, names in os.walk(place):
        yield from (path for name in names if (path := Path(folder, name)).is_file())


def _of_module(name: str) -> str | None:
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = importlib.util.find_spec(name)
        return None if found is None or found.origin is None else digest(Path(found.origin))
    except Exception:  # what is wrong with it is told when it is read
        return None
