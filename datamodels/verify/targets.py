"""Which targets: files with one test index a line and # comments, indices, or random ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.durable import new_file
from datamodels.errors import InputError, shown
from datamodels.reading import Unreadable, is_there, read_text, whole_number


def read_targets(path: Path, num_targets: int) -> list[int]:
    """The test indices in a targets file, in its order.

    Raises InputError, naming the line, for a word, a duplicate or an index outside 0 … T-1, and for a file that is missing
    or lists nothing.
    """
    try:
        lines = read_text(path).splitlines()
    except Unreadable as e:
        raise InputError(f"cannot read the targets file {path}: it {e.why}") from e
    found: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.split("#", 1)[0].strip()
        if text:
            target = _index(text, num_targets, f"{path}, line {number}")
            if target in found:
                raise InputError(f"{path}, line {number}: target {target} stands on line {found[target]} already")
            found[target] = number
    if not found:
        raise InputError(f"{path} lists no targets; it takes one test index a line")
    return list(found)


def targets_named(wanted: str, num_targets: int, seed: int) -> list[int]:
    """What `--targets` names: a file, 'random:300' for so many drawn by the seed, or indices with commas between.

    Raises InputError for anything else, and as `read_targets`.
    """
    kind, colon, number = wanted.partition(":")
    if kind == "random" and colon:
        drawn = whole_number(number) or 0
        if not 0 < drawn <= num_targets:
            raise InputError(f"--targets {wanted}: there are 1 to {num_targets} targets to draw")
        return draw_targets(drawn, num_targets, seed)
    words = [word.strip() for word in wanted.split(",")]
    if all(word.isascii() and word.isdigit() for word in words) and not is_there(wanted):
        return list(dict.fromkeys(_index(word, num_targets, "--targets") for word in words))
    return read_targets(Path(wanted), num_targets)


def targets_given(wanted: Iterable[Any], num_targets: int) -> list[int]:
    """Test indices as a call gives them: whole numbers of Python's or NumPy's, in any iterable, in their order, each once.

    Raises InputError for anything else, such as a mask, and for none at all.
    """
    try:
        values = list(wanted)
    except TypeError as e:
        raise InputError(f"targets are test indices, as [7, 13], or text, as 'random:300', not {wanted!r}") from e
    for value in values:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
            raise InputError(f"targets: {value!r} is not a test index")
        if not 0 <= value < num_targets:
            raise InputError(f"targets: {value} is out of range; test indices run from 0 to {num_targets - 1}")
    if not values:
        raise InputError("targets: there are none")
    return list(dict.fromkeys(map(int, values)))


def write_targets(path: Path, targets: list[int]) -> None:
    """Write a targets file."""
    with new_file(path) as temporary:
        temporary.write_text("".join(f"{target}\n" for target in targets), encoding="utf-8")


def draw_targets(number: int, num_targets: int, seed: int) -> list[int]:
    """`number` different test indices drawn by a seed, in ascending order."""
    return sorted(np.random.default_rng(seed).choice(num_targets, number, replace=False).tolist())


def _index(text: str, num_targets: int, where: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"{where}: {shown(text, 80)!r} is not a test index")
    index = whole_number(text)
    if index is None or index >= num_targets:
        raise InputError(f"{where}: {shown(text, 80)} is out of range; test indices run from 0 to {num_targets - 1}")
    return index
