"""Dataclasses as JSON and back, by the types of their fields: what a record is declared to be is what is written and read.

A field is a str, bool, float, an int with its bounds (`Annotated[int, Between(0, 9)]`), a record, any of them or None, a tuple
of any number of one kind, a dictionary from whole numbers to one kind, or a mapping that is taken as it is. The fields of a
record in an `Annotated[Record, FLAT]` field stand among those of the record that has it. A field with a default may be missing
in what is read: an earlier version did not write it.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union

from datamodels.reading import Each, Maybe, Unreadable, require, whole_number

T = TypeVar("T")


FLAT = "flat"
"""Marks a field whose record's fields stand beside its own in JSON."""


def to_json(value: object) -> Any:
    """A record, or what may be in one, as JSON content; the order is that of the fields."""
    if _is_record(value):
        kind: Any = type(value)
        content: dict[str, Any] = {}
        for name, _, is_flat in _parts(kind):
            part = to_json(getattr(value, name))
            content |= part if is_flat else {name: part}
        return content
    if isinstance(value, Mapping):
        return {str(key): to_json(part) for key, part in value.items()}
    return [to_json(part) for part in value] if isinstance(value, (list, tuple)) else value


def read(kind: type[T], content: Any, path: Path) -> T:
    """The record of that kind that JSON content holds. Raises Unreadable, naming the file, where it holds none."""
    of: Any = kind
    require(content, form_of(of), path)
    found: T = _made(of, content, path)
    return found


@functools.cache
def form_of(kind: Any) -> Any:
    """The form, as `reading.require` takes it, that content for a type must have."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return args[1]
    if origin in (Union, types.UnionType):
        return tuple(None if one is types.NoneType else form_of(one) for one in args)
    if origin is tuple:
        return [form_of(args[0])]
    if origin is dict:
        return Each(form_of(args[1]))
    if _is_record(kind):
        form: dict[str, Any] = {}
        for name, part, is_flat in _parts(kind):
            of_part = Maybe(form_of(part)) if name in _optional(kind) else form_of(part)
            form |= form_of(part) if is_flat else {name: of_part}
        return form
    return dict if kind is dict or origin is Mapping else kind


def _made(kind: Any, content: Any, path: Path) -> Any:
    """What content of the form of a type stands for."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return None if content is None else _made(args[0], content, path)
    if origin is tuple:
        return tuple(_made(args[0], part, path) for part in content)
    if origin is dict:
        return {_key(key, path): _made(args[1], part, path) for key, part in content.items()}
    if _is_record(kind):
        there = [part for part in _parts(kind) if part[0] in content or part[0] not in _optional(kind)]
        return kind(**{name: _made(part, content if is_flat else content[name], path) for name, part, is_flat in there})
    return float(content) if kind is float else content


def _is_record(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind)


def _key(text: str, path: Path) -> int:
    number = whole_number(text)
    if number is None or str(number) != text:
        raise Unreadable(path, f"is damaged: {text!r} is no number of a target")
    return number


@functools.cache
def _optional(kind: Any) -> frozenset[str]:
    """The fields of a record that have a default."""
    return frozenset(field.name for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING)


@functools.cache
def _parts(kind: Any) -> list[tuple[str, Any, bool]]:
    """Name and type of each field of a record, and whether it is flat."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        is_flat = typing.get_origin(hint) is Annotated and typing.get_args(hint)[1] == FLAT
        found.append((field.name, typing.get_args(hint)[0] if is_flat else hint, is_flat))
    return found
