"""What a setting may be: kinds of values, each checked in the text of a YAML file or a flag, and fields that declare them."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from dataclasses import field
from typing import Any

from fastargs.validation import Checker

TAKEN = ("data", "store", "prior", "regress", "regress-behaviours")
"""Names of folders within a run that are not of verifications."""
FOLDER_NAME = re.compile(r"(?!report)[a-z0-9][a-z0-9_-]{0,63}", re.ASCII)
LONGEST_TEXT = 4096
UNSEEN = ("Cc", "Cs")
"""Categories of Unicode: control characters, and halves of surrogate pairs, for which Python takes bytes that are no text."""
LONGEST_NUMBER = 40
MOST_WHOLE = 2**63 - 1
WHOLE = re.compile(r"[+-]?[0-9]+", re.ASCII)
REAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)


class Number(Checker):  # type: ignore[misc]
    """An int or float within bounds, in the text of a YAML file or a flag.

    Plain decimal digits and no others, nothing that YAML 1.1 or Python would make of `1_000`, `010`, `1:30` or `٣`. Unlike
    fastargs' own checkers it does not round, and takes neither NaN nor infinity.
    """

    def __init__(self, kind: type[int] | type[float], low: float, high: float, open_ends: bool = False) -> None:
        self.kind, self.low, self.high, self.open_ends = kind, low, high, open_ends

    def check(self, value: str | float) -> int | float:
        """The number itself, or ValueError. Defaults are numbers, and what is given is text."""
        text = str(value)
        if len(text) > LONGEST_NUMBER or not (WHOLE if self.kind is int else REAL).fullmatch(text):
            raise ValueError
        number = self.kind(text)
        inside = self.low < number < self.high if self.open_ends else self.low <= number <= self.high
        if not inside or not math.isfinite(number) or (self.kind is int and number > MOST_WHOLE):
            raise ValueError
        return number

    def help(self) -> str:
        """What is admitted, in words."""
        name = "a whole number" if self.kind is int else "a number"
        if self.open_ends:
            return f"{name} between {self.low:g} and {self.high:g}, both excluded"
        if self.high < float("inf"):
            low, high = (f"{end:d}" if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
            return f"{name} from {low} to {high}"
        return f"{name} ≥ {self.low:g}" + (" and below 2^63" if self.kind is int else ", not infinite")


class Switch(Checker):  # type: ignore[misc]
    """true or false, or what else YAML has for them; fastargs' own takes any text for true."""

    def check(self, value: str | bool) -> bool:
        """The boolean itself, or KeyError."""
        words = {True: ("true", "yes", "on"), False: ("false", "no", "off")}
        return {word: found for found, named in words.items() for word in named}[str(value).lower()]

    def help(self) -> str:
        """What is admitted, in words."""
        return "true or false"


class Choice(Checker):  # type: ignore[misc]
    """One of a few words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def check(self, value: str) -> str:
        """The word itself, or ValueError."""
        if value not in self.words:
            raise ValueError
        return value

    def help(self) -> str:
        """What is admitted, in words."""
        return " or ".join(self.words)


class OwnOr(Choice):
    """One of a few words, or something of one's own as module:name."""

    def check(self, value: str) -> str:
        """The text itself, or ValueError."""
        module, colon, name = Text().check(value).partition(":")
        return value if colon and module and name else super().check(value)

    def help(self) -> str:
        """What is admitted, in words."""
        return f"{super().help()} or module:name"


class Text(Checker):  # type: ignore[misc]
    """A text that is not empty, of characters that can be written to a file and seen."""

    def check(self, value: str) -> str:
        """The text itself, or ValueError."""
        if not value or len(value) > LONGEST_TEXT or any(unicodedata.category(c) in UNSEEN for c in value):
            raise ValueError
        if not_encoded(value):
            raise ValueError
        return value

    def help(self) -> str:
        """What is admitted, in words."""
        return "a text, not empty and without control characters"


def not_encoded(value: str) -> bool:
    """Whether a text has characters, or came from bytes, that the locale's encoding does not have: no file can be named so."""
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return True
    return any(unicodedata.category(c) == "Cs" for c in value)


class FolderName(Checker):  # type: ignore[misc]
    """The name of a folder within a run, of which none of another stage is in the way."""

    def check(self, value: str) -> str:
        """The name itself, or ValueError."""
        if not FOLDER_NAME.fullmatch(value) or value in TAKEN:
            raise ValueError
        return value

    def help(self) -> str:
        """What is admitted, in words."""
        return f"a plain name of a-z, 0-9, - and _, not {', '.join(TAKEN)}, or one that begins with report"


def setting(checker: Checker, default: Any, doc: str) -> Any:
    """A dataclass field that fastargs can fill."""
    return field(default=default, metadata={"checker": checker, "doc": doc})


def count(default: int, doc: str, low: int = 1, *, high: int) -> Any:
    """A whole number of something from `low` to `high`: more of it no machine would do, or find room for."""
    return setting(Number(int, low, high), default, doc)


def seed_of(default: int, doc: str) -> Any:
    """A seed: a whole number ≥ 0, however large."""
    return setting(Number(int, 0, float("inf")), default, doc)


def real(default: float, doc: str, low: float = 0.0, high: float = float("inf"), open_ends: bool = False) -> Any:
    """A real number within bounds."""
    return setting(Number(float, low, high, open_ends), default, doc)


def switch(default: bool, doc: str) -> Any:
    """A setting that is true or false."""
    return setting(Switch(), default, doc)
