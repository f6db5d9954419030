"""Damages to the head, the rows and the table of an FFCV file, each of which once made its reader leave the file's bounds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.data.headers import ALLOCATION, FIELD, FIELDS, HEADER, RGB_SAMPLE
from tests.robustness.damage import Damage

ROWS = HEADER.itemsize + len(FIELDS) * FIELD.itemsize
NUMBERS = {"zero": 0, "one": 1, "odd": 12_345, "31 bits": 2**31 - 1, "32 bits": 2**32, "63 bits": 2**63, "all bits": 2**64 - 1}


def _overwritten(at: int, value: bytes) -> Damage:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at : at + len(value)] = value
        path.write_bytes(content)

    return damage


def _number(dtype: np.dtype[Any], name: str, start: int) -> Iterator[tuple[str, Damage]]:
    """A field of a record that begins at a place, with each of the numbers in the place of what it has."""
    kind, offset = dtype.fields[name][:2]  # type: ignore[index]
    for told, value in NUMBERS.items():
        yield (
            f"{name} {told}",
            _overwritten(start + offset, (value % 2 ** (8 * kind.itemsize)).to_bytes(kind.itemsize, "little")),
        )


def _table(name: str, row: int) -> Iterator[tuple[str, Damage]]:
    offset = ALLOCATION.fields[name][1]  # type: ignore[index]
    for told, value in NUMBERS.items():

        def damage(path: Path, value: int = value) -> None:
            start = int.from_bytes(path.read_bytes()[16:24], "little") + row * ALLOCATION.itemsize + offset
            _overwritten(start, value.to_bytes(8, "little"))(path)

        yield f"{name} of row {row} {told}", damage


def damages(rgb: bool) -> dict[str, Damage]:
    """All damages of one kind of file by name, such as change what is read; the last rows' numbers as well as the first's."""
    found: list[tuple[str, Damage]] = []
    for name in ("version", "num_fields", "page_size", "num_samples", "alloc_table_ptr"):
        found += _number(HEADER, name, 0)
    for k, field in enumerate(FIELDS):
        start = HEADER.itemsize + k * FIELD.itemsize
        kinds = {0, 1, 2, 3, 4, 5, 6, 7, 255} - {(2 if rgb else 4) if k == 0 else 1}
        found += [(f"type {kind} of {field.decode()}", _overwritten(start, bytes([kind]))) for kind in sorted(kinds)]
        found.append((f"another name for {field.decode()}", _overwritten(start + 1, b"other\0")))
    found += _rgb() if rgb else _arrays()
    for row in (0, 7):
        for name in ("sample_id", "ptr", "size"):
            found += _table(name, row)
    # Where the number is the one that belongs there.
    same = ("sample_id of row 0 zero", "mode one", "channels one", "a fourth size zero")
    return {name: damage for name, damage in found if name not in same}


def _rgb() -> Iterator[tuple[str, Damage]]:
    for name in ("mode", "width", "height", "data_ptr"):
        yield from _number(RGB_SAMPLE, name, ROWS)


def _arrays() -> Iterator[tuple[str, Damage]]:
    arguments = HEADER.itemsize + 17
    places = {"height": 0, "channels": 16, "a fourth size": 24, "length of the type": 256, "data_ptr": ROWS - arguments}
    for place, offset in places.items():
        for told, value in NUMBERS.items():
            yield f"{place} {told}", _overwritten(arguments + offset, value.to_bytes(8, "little"))
    for kind in (b'[["", "|O"]]', b'[["", "<f8"]]', b"[" * 14, b'[["","|u1"],'):
        yield f"type {kind.decode()}", _overwritten(arguments + 264, kind)
