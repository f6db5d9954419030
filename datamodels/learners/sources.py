"""The source files of one's own code, by which a changed one is found: rows of two versions are not to be mixed."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from datamodels.errors import InputError
from datamodels.reading import digest

PACKAGE = "datamodels"
"""This package's own code is no part of a learner, though it may lie beside it; its version stands in what it makes."""
CHANGED = "give --worker.trust_changed_code true to go on all the same, or another run.dir"


def sources_of(module_name: str) -> dict[str, str]:
    """SHA-256 of a module's file, and of the modules beside it that it imports: see `files_of`."""
    return {name: digest(file) for name, file in files_of(module_name).items()}


def files_of(module_name: str) -> dict[str, Path]:
    """A module's file, and those of the modules beside it that it imports, directly or not, by path from its folder.

    Beside it: in the folder from which the module, or the package that it belongs to, was imported. Imports are found by
    reading, also those within functions; what is imported by a name made at run time is not. A module without a file has none.
    """
    file = getattr(sys.modules.get(module_name), "__file__", None)
    if file is None or not Path(file).is_file():
        return {}
    path = Path(file).resolve()
    root = path.parents[module_name.count(".") + (path.name == "__init__.py")]
    found, waiting = set[Path](), [path]
    while waiting:
        source = waiting.pop()
        if source not in found:
            found.add(source)
            names = [name for name in _imports(source, root) if name.partition(".")[0] != PACKAGE]
            waiting += [each for name in names for each in _files(root, name)]
    return {source.relative_to(root).as_posix(): source for source in sorted(found)}


@functools.cache
def imported_sources(module_name: str) -> Mapping[str, str]:
    """As `sources_of`, as they were when this was first asked, after the import: what this process runs stays that."""
    return sources_of(module_name)


def refuse_changed(made: Mapping[str, str], now: Mapping[str, str], folder: Path | str) -> None:
    """Raise InputError, which names a file, where sources are not those with which something was begun."""
    for name in sorted(made.keys() | now.keys()):
        if made.get(name) != now.get(name):
            what = "is new" if name not in made else "is no longer imported" if name not in now else "has changed"
            raise InputError(f"{name} {what} since {folder} was made with it; {CHANGED}")


def _imports(source: Path, root: Path) -> Iterator[str]:
    """The names that a file imports, with dots between, those of modules' members among them."""
    try:
        tree = ast.parse(source.read_bytes())
    except (SyntaxError, ValueError):  # no Python: a compiled module
        return
    package = source.parent.relative_to(root).parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *((node.module,) if node.module else ())))
            yield module
            yield from (f"{module}.{alias.name}".lstrip(".") for alias in node.names)


def _files(root: Path, name: str) -> Iterator[Path]:
    """The files in the folder that an import reads: the module's own, and those of the packages that it lies in."""
    parts = [part for part in name.split(".") if part]
    for k in range(1, len(parts) + 1):
        for candidate in (root.joinpath(*parts[:k], "__init__.py"), root.joinpath(*parts[: k - 1], f"{parts[k - 1]}.py")):
            if candidate.is_file():
                yield candidate.resolve()
