"""A person's own code, named in a setting as module:name: found, called, and what it raises said in one line with its place."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datamodels.errors import InputError, in_a_sentence, one_line

PACKAGE = Path(__file__).parent


class FunctionError(Exception):
    """One's own code failed; in one line, with its words."""


def named_in(setting: str, name: str, example: str) -> Any:
    """What module:name in a setting names.

    Raises InputError when there is none, or its module ends the process; what else the module raises is not caught.
    """
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise InputError(f"{setting} takes module:function, such as {example}, not {name!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        if e.name is None or not f"{module_name}.".startswith(f"{e.name}."):
            raise
        raise InputError(f"{setting} names {name}, and there is no module {module_name} here") from e
    except (SystemExit, GeneratorExit) as e:  # as a script does at its end: the command would end as if all were well
        raise InputError(f"{setting} names {name}, and importing {module_name} raised {one_line(e)}{place_of(e)}") from e
    if not hasattr(module, attribute):
        raise InputError(f"{setting} names {name}, and {module_name} has no {attribute}")
    return getattr(module, attribute)


@contextmanager
def of_its_own(what: str) -> Iterator[None]:
    """Make a FunctionError of whatever a person's code raises, SystemExit too, but not of Ctrl-C and the machine's faults."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        if in_a_sentence(e) is not None:
            raise
        raise FunctionError(f"{what} {one_line(e)}{place_of(e)}") from e


@contextmanager
def said(what: str) -> Iterator[None]:
    """Make an InputError, which begins with `what`, of whatever a person's code raises; see `of_its_own`."""
    try:
        with of_its_own("raised"):
            yield
    except FunctionError as e:
        raise InputError(f"{what} {e}") from e


def place_of(e: BaseException) -> str:
    """The file and the line that raised an exception, outside of this package."""
    frames = [frame for frame in traceback.extract_tb(e.__traceback__) if not Path(frame.filename).is_relative_to(PACKAGE)]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
