"""The front door: `datamodels COMMAND …`, and `python -m datamodels COMMAND …` just as well. It imports nothing slow."""

from __future__ import annotations

import os
import runpy
import sys
from difflib import get_close_matches
from pathlib import Path

from datamodels import __version__
from datamodels.commands import COMMANDS, DEMO, ROAD, SCRIPT, Command, before_libraries
from datamodels.errors import InputError, run_command, shown, tell_in_a_sentence_before_a_command
from datamodels.help import columns, wrapped
from datamodels.resources import purpose, shipped_configs

DEMO_CONFIG = "digits"


def main() -> None:
    """The console script."""
    _find_own_code_as_python_m_does()
    tell_in_a_sentence_before_a_command()
    start(SCRIPT)


def start(called: str) -> None:
    """Run the command that the arguments name, `called` being how they begin; where they name none, tell what there is.

    Arguments that begin with a flag, as `-C digits`, are those of the whole road. What there is is told with exit code 0:
    nothing was asked for, and nothing has failed.
    """
    first, rest = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if first in ("-h", "--help"):
        run_command(lambda: print(overview(called)))
    elif first == "--version":
        run_command(lambda: print(f"{SCRIPT} {__version__}"))
    elif first.startswith("-"):
        _run(COMMANDS[ROAD], called, [first, *rest])
    elif first in COMMANDS:
        _run(COMMANDS[first], called, ["-C", DEMO_CONFIG, *rest] if first == DEMO else rest)
    else:
        run_command(lambda: _refuse(first, called))


def overview(called: str) -> str:
    """What there is: a first step, the commands, the shipped configs."""
    paragraphs = [
        f"{SCRIPT} {__version__}: which training images made my network say this?",
        f"A first step, from data to a page to look at: {called} {DEMO}",
        f"Commands ({called} COMMAND --help tells more):\n" + columns((each.name, each.about) for each in COMMANDS.values()),
        "Configs that are shipped (-C NAME; one of your own: -C FILE.yaml):\n"
        + columns((name, purpose(file)) for name, file in shipped_configs().items()),
        f"The whole road on one of them: {called} {ROAD} -C NAME, or {called} -C NAME. It can be stopped, and goes on where it "
        "was when it is called again.",
    ]
    return "\n\n".join(each if "\n" in each else wrapped(each, 0) for each in paragraphs)


def _run(command: Command, called: str, argv: list[str]) -> None:
    sys.argv = [f"{called} {command.name}", *argv]
    before_libraries(command.name)
    if command.own:
        runpy.run_module(command.module, run_name="__main__")
    else:
        run_command(lambda: _road(command))


def _road(command: Command) -> None:
    from datamodels.road import road

    road(command)


def _refuse(name: str, called: str) -> None:
    meant = get_close_matches(name, COMMANDS, 1)
    hint = f"; did you mean {meant[0]}?" if meant else ""
    told = shown(name, 80) or "of no name"
    raise InputError(f"there is no command {told}{hint} ({called} --help lists them)")


def _find_own_code_as_python_m_does() -> None:
    """Let `module:name` be found from the current folder: Python has put the script's own folder in its place."""
    if sys.path and sys.path[0] == str(Path(sys.argv[0]).resolve().parent):
        sys.path[0] = os.getcwd()  # noqa: PTH109
