"""Nodes of a cluster, and what must be the same on all of them: versions, and this package's own files."""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import datamodels
from datamodels.resources import KERNELS

GPU = "GPU"
OWN_FILES = "the files of datamodels"
SAME = ("torch", "numpy")
"""Packages of which another version rounds otherwise, and a row must not depend on where it was made."""


class Node(NamedTuple):
    """One node: Ray's name for it, and one for people, its host with its address."""

    id: str
    name: str


def fitting(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many tasks of so many cores and GPUs fit at once on a node with these resources."""
    wanted = {"CPU": cpus, GPU: gpus}
    # Ray hands out ten-thousandths.
    return min(int(resources.get(name, 0) / share + 1e-4) for name, share in wanted.items() if share > 0)


@functools.cache
def versions() -> Mapping[str, str]:
    """What decides rows beside settings and data, as this process has it: versions, and the SHA-256 of this package's files."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2]), "datamodels": datamodels.__version__}
    return {**found, **{name: _version(name) for name in SAME}, OWN_FILES: _digest_of_package()}


def difference(here: Mapping[str, str], there: Mapping[str, str]) -> str | None:
    """In what a node differs from this process, for a sentence that begins with its name; None where in nothing."""
    for name, mine in here.items():
        other = there.get(name, "no version")
        if other != mine:
            of_files = f"has other files of datamodels {here['datamodels']}"
            return of_files if name == OWN_FILES else f"has {name} {other}, not {mine}"
    return None


def _version(package: str) -> str:
    """The version, without what tells builds for several kinds of GPU, or for none, apart: a cluster may have all of them."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return "missing"


def _digest_of_package() -> str:
    root, whole = Path(datamodels.__file__).parent, hashlib.sha256()
    for folder, pattern in ((root, "*.py"), (KERNELS, "*.cu*")):
        for file in sorted(folder.rglob(pattern)):
            whole.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return whole.hexdigest()
