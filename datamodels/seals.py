"""Seals: JSON with a checksum of itself, and folders whose meta.json has the checksum of every file in them.

A seal finds what a disk, a copy or a hand has changed. It is no signature: who can write can seal anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from datamodels.durable import write_json
from datamodels.errors import InputError
from datamodels.reading import Each, digest, read_json, require

SEAL, FILES, META = "sha256", "files", "meta.json"


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with a checksum of itself, whole or not at all."""
    write_json(path, {**content, SEAL: seal_of(content)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Read JSON with a checksum of itself. Raises Unreadable when it is missing, InputError when it is not what was written."""
    return unsealed(read_json(path), path)


def unsealed(content: Any, path: Path) -> dict[str, Any]:
    """Content as read, without its seal. Raises InputError when that is not the content's."""
    require(content, {SEAL: str}, path)
    rest: dict[str, Any] = {key: value for key, value in content.items() if key != SEAL}
    if content[SEAL] != seal_of(rest):
        raise InputError(f"{path} is damaged: it does not have its checksum")
    return rest


def seal_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of JSON content, however it is laid out: keys in order, no white space."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def seal_folder(folder: Path, meta: Mapping[str, Any]) -> None:
    """Write a folder's meta.json, with the SHA-256 of each other file in it, and of itself."""
    names = sorted(path.name for path in folder.iterdir() if path.name != META)
    write_sealed(folder / META, {**meta, FILES: {name: digest(folder / name) for name in names}})


def read_sealed_folder(folder: Path, names: Collection[str] | None = None) -> dict[str, Any]:
    """The meta.json of a sealed folder, once every file, or each of those named, has the checksum that it had.

    Raises Unreadable when a file is missing, InputError when one is not what was written.
    """
    meta = read_sealed(folder / META)
    require(meta, {FILES: Each(str)}, folder / META)
    sums = meta.pop(FILES)
    for name in sorted(sums if names is None else names):
        if name != Path(name).name or name not in sums:
            raise InputError(f"{folder / META} is damaged: it has no checksum of a file {name!r}")
        if digest(folder / name) != sums[name]:
            raise InputError(f"{folder / name} is damaged: it does not have the checksum that {META} tells of")
    return meta
