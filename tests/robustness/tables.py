"""How cases are made of damages: for each damage copies of some of the material, one file of them damaged, and read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datamodels.errors import InputError
from datamodels.reading import Maybe, require
from datamodels.seals import read_sealed, seal_folder
from tests.robustness.case import GONE_ON, SENTENCE, Call, Case, main_of
from tests.robustness.damage import (
    OTHER_CONTENT,
    OTHER_KINDS,
    VALUES,
    Damage,
    flipped,
    of_form,
    put,
    written,
)
from tests.robustness.material import copied, run_flags

EITHER = (SENTENCE, GONE_ON)
DEEP, FEW = 3, ("null", "a text", "true")
"""Places so deep get these values only, which differ from any that may stand there."""
FUZZ = 30
"""Seeds of random damages to each binary format."""
Read = Callable[[Path], Call]
After = Callable[[Path, Path], None]


def damaged(
    reader: str,
    names: tuple[str, ...],
    file: str,
    damages: dict[str, Damage],
    read: Read,
    expected: tuple[str, ...] = (SENTENCE,),
    after: After | None = None,
    sealed: str | None = None,
) -> Iterator[Case]:
    """One case for each damage: the names are copied, the file damaged, the folder `sealed` sealed anew, and read."""
    for name, damage in damages.items():

        def make(material: Path, folder: Path, damage: Damage = damage) -> Call:
            copied(material, folder, *names)
            damage(folder / file)
            if sealed is not None:
                meta = read_sealed(folder / sealed / "meta.json")
                seal_folder(folder / sealed, {key: value for key, value in meta.items() if key != "files"})
            return read(folder)

        yield Case(reader, name, make, expected, after)


def whole_text() -> dict[str, Damage]:
    """Damages of which nothing is left that could be meant."""
    return {**OTHER_KINDS, **OTHER_CONTENT}


def verifies(*more: str) -> Read:
    return lambda folder: main_of("verify", *run_flags(folder), *more, "--gpu", "cpu")


def values_under(key: str, form: Any) -> dict[str, Damage]:
    """As `_values`, of what stands under a key."""
    return {name: damage for name, damage in values({key: form}, False).items() if not name.endswith("left out")}


def all_written(contents: dict[str, bytes]) -> dict[str, Damage]:
    return {name: written(content) for name, content in contents.items()}


def random_bytes(count: int, first: int = 0, last: int | None = None) -> dict[str, Damage]:
    return {f"random bytes, {seed}": flipped(seed, first, last) for seed in range(count)}


def values(form: Any, fitting: bool) -> dict[str, Damage]:
    """Each value of JSON of a form left out, and replaced by others; `fitting` are those that the form allows."""
    found: dict[str, Damage] = {}
    for place, part in of_form(form):
        told = ".".join(map(str, place))
        tried = VALUES if len(place) < DEEP else {name: VALUES[name] for name in FEW}
        found |= {f"{told} {name}": put(place, v) for name, v in tried.items() if _fits(v, part) == fitting}
        if not fitting and not isinstance(place[-1], int) and not isinstance(part, Maybe):
            found[f"{told} left out"] = put(place)
    return found


def _fits(value: Any, form: Any) -> bool:
    try:
        require(value, form, Path())
    except InputError:
        return False
    return True
