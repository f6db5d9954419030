"""What decided a result, and refusing to mix results that different things decided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datamodels.errors import InputError


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """What differs between two nested mappings, each as 'section.name: old → new'."""
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from difference(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}: {a} → {b}"


def refuse_difference(folder: Path, made: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise InputError when a folder was made under other settings than those wanted, naming each that differs."""
    changed = list(difference(made, wanted))
    if changed:
        raise InputError(f"{folder} was made under other settings ({'; '.join(changed)}); use another run.dir, or delete it")
