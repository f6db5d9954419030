"""What a page reads, as scripts: a page opened from disk may load scripts beside it, and may fetch nothing.

Each file is one call, `DM.put(name, content)`, of JSON in ASCII; arrays stand in it as base64 of their little-endian bytes.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.subsets import Array

TYPES = {"f4": np.float32, "u4": np.uint32, "i4": np.int32, "u2": np.uint16, "u1": np.uint8}
"""The arrays that the page's script knows."""
DIGITS = 5
"""Significant ones of a number in JSON."""


def packed(array: Array, kind: str) -> dict[str, str]:
    """An array as the page's script unpacks it, in one of `TYPES`; its shape is known to whoever reads it."""
    flat = np.ascontiguousarray(array, np.dtype(TYPES[kind]).newbyteorder("<"))
    return {"type": kind, "base64": base64.b64encode(flat.tobytes()).decode("ascii")}


def plain(value: Any) -> Any:
    """Content as JSON has it: numbers of few digits, None for those that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def write_script(folder: Path, name: str, content: Any) -> None:
    """Write NAME.js, which puts the content where the page finds it by that name."""
    text = json.dumps(plain(content), allow_nan=False, separators=(",", ":"))
    (folder / f"{name}.js").write_text(f"DM.put({json.dumps(name)},{text});\n", encoding="ascii")


def blocks(n: int, size: int) -> Sequence[tuple[int, int]]:
    """First and last (exclusive) of blocks of so many."""
    return [(first, min(first + size, n)) for first in range(0, n, size)]
