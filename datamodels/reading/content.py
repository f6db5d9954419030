"""JSON, whole numbers in text, and whether content has the form that it should have."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from datamodels.errors import shown
from datamodels.reading.files import Unreadable, read_text

MOST_BYTES = 2**28
MOST_VALUES = 2**24
MOST_DEPTH = 32
MOST_DIGITS = 40
"""Of a number in JSON; Python takes seconds for one of a million digits."""
WHOLE = re.compile(r"[0-9]{1,18}", re.ASCII)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


def read_json(path: Path, most_values: int = MOST_VALUES) -> Any:
    """The content of a JSON file: no NaN, no number out of range, no key twice, nothing deeper than a few levels.

    Raises Unreadable.
    """
    text = read_text(path, MOST_BYTES)
    if sum(text.count(mark) for mark in ",[{") > most_values:
        raise Unreadable(path, f"has more than {most_values} values")
    if _depth(text) > MOST_DEPTH:
        raise Unreadable(path, f"is nested more than {MOST_DEPTH} levels deep")
    try:
        content = json.loads(
            text, parse_int=_int, parse_float=_float, parse_constant=_constant, object_pairs_hook=_without_twins
        )
        if "\\u" in text:  # half of a surrogate pair is no text, but for bytes of a file's name that are not UTF-8
            json.dumps(content, ensure_ascii=False).encode(errors="surrogateescape")
    except (ValueError, RecursionError) as e:
        raise Unreadable(path, f"is not JSON: {shown(str(e), 200)}") from e
    return content


def whole_number(text: str) -> int | None:
    """The whole number ≥ 0 that a text gives in plain digits, fewer than 19 of them; None for any other text."""
    return int(text) if WHOLE.fullmatch(text) else None


@dataclass(frozen=True)
class Each:
    """An object of any keys whose values all have one form."""

    form: Any


@dataclass(frozen=True)
class Maybe:
    """What may be missing under a key, and else has a form."""

    form: Any


@dataclass(frozen=True)
class Between:
    """A whole number from `low` to `high`."""

    low: int
    high: int


def require(content: Any, form: Any, path: Path) -> None:
    """Raise Unreadable unless content has a form.

    A form is a type (int is no bool, float is also int), None, a tuple of forms of which one must fit, a list of the one form
    that all items have, a dictionary of the keys that must be there, but for those of `Maybe`, `Each`, or `Between`.
    """
    where = _misfit(content, form)
    if where is not None:
        raise Unreadable(path, f"is damaged: {shown(where.lstrip('.')) or 'what it holds'} is not what it should be")


def _misfit(value: Any, form: Any, where: str = "") -> str | None:
    """Where a value first departs from a form; None where it does not."""
    if isinstance(form, tuple):
        found = [_misfit(value, one, where) for one in form]
        return None if None in found else max((place for place in found if place), key=len, default=where)
    if isinstance(form, list):
        return _first(list(enumerate(value)), lambda _: form[0], where) if isinstance(value, list) else where
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return where
        lacking = sorted(key for key, part in form.items() if key not in value and not isinstance(part, Maybe))
        if lacking:
            return f"{where}.{lacking[0]}"
        return _first([(key, value[key]) for key in form if key in value], lambda key: form[key], where)
    if isinstance(form, Maybe):
        return _misfit(value, form.form, where)
    if isinstance(form, Each):
        return _first(list(value.items()), lambda _: form.form, where) if isinstance(value, dict) else where
    return None if _is(value, form) else where


def _is(value: Any, form: Any) -> bool:
    if form is None:
        return value is None
    if isinstance(form, Between):
        return isinstance(value, int) and not isinstance(value, bool) and form.low <= value <= form.high
    if form in (int, float):
        return isinstance(value, (int, form)) and not isinstance(value, bool)
    return isinstance(value, form)


def _first(items: list[tuple[Any, Any]], form_of: Any, where: str) -> str | None:
    found = (_misfit(value, form_of(key), f"{where}.{key}") for key, value in items)
    return next((place for place in found if place is not None), None)


def _depth(text: str) -> int:
    """The deepest nesting; brackets in strings are left out where they would make a difference."""
    found = _brackets(text)
    return found if found <= MOST_DEPTH else _brackets(_STRING.sub("", text))


def _brackets(text: str) -> int:
    codes = np.frombuffer(text.encode(errors="replace"), np.uint8)
    codes = codes[np.isin(codes, np.frombuffer(b"[]{}", np.uint8))]
    steps = np.where(np.isin(codes, np.frombuffer(b"[{", np.uint8)), 1, -1)
    return int(np.cumsum(steps).max(initial=0))


def _int(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {shown(text, 40)} is out of range")
    return number


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} comes twice")
    return found
