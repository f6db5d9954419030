"""Files of one's own that the nodes need: they travel as Ray's working folder, under the paths by which they are imported."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from datamodels.errors import InputError, in_a_sentence
from datamodels.settings import NO_FILES

HEEDED = (".gitignore", ".rayignore")
"""Ray would not send what such files name, data mostly; here all goes that is named."""


def sentence_on_a_node(e: BaseException) -> str | None:
    """`in_a_sentence`; and what a node lacks that was there where the command runs: a module, or a file that did not travel."""
    if isinstance(e, ModuleNotFoundError) and e.name:
        return f"there is no module {e.name} there; install it on the node, or name it by --ray.files where it is your own"
    if isinstance(e, FileNotFoundError) and isinstance(e.filename, str) and not Path(e.filename).is_absolute():
        return f"{e.filename} is not there; files that your own code reads travel to the nodes where --ray.files names them"
    return in_a_sentence(e)


@dataclass(frozen=True)
class Code:
    """Files, each under its path in the folder in which tasks run, which is first on their path of imports."""

    files: Mapping[str, Path] = field(default_factory=dict)

    def and_named(self, named: str) -> Code:
        """With what `ray.files` names besides: files and folders below this folder, with commas between.

        Raises InputError for what is not there, or lies elsewhere.
        """
        words = [] if named == NO_FILES else [word.strip() for word in named.split(",")]
        found = dict(self.files)
        for word in words:
            path = Path(word)
            if not path.exists():
                raise InputError(f"ray.files names {word}, which is not there")
            if path.is_absolute() or ".." in path.parts:
                raise InputError(f"ray.files names {word}; it must lie below the folder in which the command is run")
            if not (path.is_dir() or path.is_file()):
                raise InputError(f"ray.files names {word}, which is neither a file nor a folder")
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file() and file.name not in HEEDED:
                    found[file.as_posix()] = file
        return Code(found)

    @contextmanager
    def folder(self) -> Iterator[Path | None]:
        """A folder with just these files, while the block runs; None where there are none."""
        if not self.files:
            yield None
            return
        with TemporaryDirectory(prefix="datamodels-") as name:
            for within, file in self.files.items():
                to = Path(name, within)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, to)
            yield Path(name)
