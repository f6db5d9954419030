"""NumPy or CuPy by one handle, `xp`: which it is, how much memory it has, and back to host memory."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from datamodels.errors import InputError, one_line
from datamodels.machine import free_host_memory
from datamodels.progress import say

FINEST_FLOAT32_GAP = 1e-5
"""Relative duality gaps below this need float64."""


def array_module(device: str) -> Any:
    """NumPy for 'cpu', CuPy for 'gpu'; for 'auto' CuPy where it is installed, can be imported, and finds a GPU.

    Raises InputError for 'gpu' where there is none.
    """
    if device != "cpu" and importlib.util.find_spec("cupy") is not None:
        try:
            import cupy
        except (OSError, ImportError) as e:  # its folder in a home that cannot be written, or a library that is not there
            if device == "gpu":
                raise InputError(f"regress.device is gpu, and CuPy cannot be imported here ({one_line(e)}); use cpu") from e
            say(f"regress: on the processor, since CuPy cannot be imported here ({one_line(e)})")
            return np
        if cupy.cuda.is_available():
            return cupy
    if device == "gpu":
        raise InputError("regress.device is gpu, but CuPy is not installed here or finds no GPU; use auto or cpu")
    return np


def number_format(gap: float) -> type[np.floating[Any]]:
    """float32, twice as fast and half as large, where the wanted duality gap allows it; else float64."""
    return np.float32 if gap >= FINEST_FLOAT32_GAP else np.float64


def free_memory(xp: Any) -> int:
    """Bytes that arrays of this module can still take."""
    if xp is np:
        return free_host_memory()
    return int(xp.cuda.runtime.memGetInfo()[0] + xp.get_default_memory_pool().free_bytes())


def to_numpy(array: Any) -> Any:
    """The array in host memory."""
    return array if isinstance(array, np.ndarray) else array.get()
