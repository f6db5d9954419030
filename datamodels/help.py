"""What `--help` prints: plain text of at most 80 columns, whatever it is printed into."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Iterable
from typing import Any, NamedTuple

from datamodels.errors import shown

WIDTH = 80
LONGEST_VALUE = 40


class Shown(NamedTuple):
    """A setting as help shows it."""

    name: str
    value: str
    doc: str
    admitted: str


def width() -> int:
    """Columns of a line: 80, on a narrower terminal fewer."""
    return max(40, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


class Lines(argparse.HelpFormatter):
    """argparse's layout in `width` columns; an epilog, which has lines of its own, stays as it is."""

    def __init__(self, prog: str, **more: Any) -> None:
        super().__init__(prog, **{**more, "width": width()})

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def columns(rows: Iterable[tuple[str, str]], most: int = 14) -> str:
    """Names and what they mean, in two columns."""
    pairs = list(rows)
    left = min(most, max(len(name) for name, _ in pairs))
    return "\n".join(wrapped(f"  {name:{left}}  {text}", 4 + left) for name, text in pairs)


def settings_in_words(config: str, sections: Iterable[tuple[str, list[Shown]]]) -> str:
    """Settings by section, each with its value under `config`, what it is, and what it may be.

    `sections` has for each section the sentence that tells what it is about, and its settings.
    """
    start = f"Settings, with the values of {config}. Each is a flag; or `section: {{name: value}}` in a YAML file for -C."
    lines = [wrapped(start, 0)]
    for about, settings in sections:
        lines += ["", wrapped(about, 0)]
        for each in settings:
            told = f"{each.doc} ({each.admitted})" if each.admitted else each.doc
            lines += [f"  --{each.name} {shown(each.value, LONGEST_VALUE)}", wrapped(f"      {told}", 6)]
    return "\n".join(lines)


def wrapped(text: str, indent: int) -> str:
    """A text broken into lines, all but the first indented."""
    return textwrap.fill(text, width(), subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False)
