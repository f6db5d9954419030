"""NumPy or CuPy by one handle, `xp`: which it is and on which GPU, how arrays come to its device and back, and its memory.

Nothing but `count_gpus` asks CUDA anything before `computing` is entered, so that a command can still set
CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from datamodels.errors import InputError, of_memory, one_line
from datamodels.machine import free_host_memory, held_beside
from datamodels.progress import say

FINEST_FLOAT32_GAP = 1e-5
"""Relative duality gaps below this need float64."""
ROWS_AT_ONCE = 1024
"""Rows that are moved or compared together where a matrix as a whole is not to be had twice."""


@contextmanager
def computing(device: str, gpu: str | None = None) -> Iterator[Any]:
    """NumPy, or CuPy with its GPU made current, while the block runs; the GPU's memory is given back when it ends.

    `device` is `regress.device`, `gpu` what `--gpu` says: a number, cpu, or None for the GPU that is current. 'auto' follows
    it; without CuPy, or where that finds no GPU, it says so and takes the processor. What the block still holds when it ends
    by an error is let go too.

    Raises InputError where the two contradict each other, there is no such GPU, or memory runs out within.
    """
    xp, number = _chosen(device, gpu)
    on_one = nullcontext() if xp is np or number is None else xp.cuda.Device(number)
    with on_one:
        try:
            yield xp
        except (MemoryError, RuntimeError) as e:
            _let_go(e, xp)
            if of_memory(e):
                where = "this machine" if xp is np else "the GPU"
                less = "a smaller regress.block, fewer regress.targets or regress.solver saga take less"
                raise InputError(f"the memory of {where} is full; {less}") from e
            raise
        except BaseException as e:
            _let_go(e, xp)
            raise
        finally:
            give_back(xp)


def refuse_contradiction(device: str, gpu: str | None) -> None:
    """Raise InputError where `--gpu` is none, or says something else than `regress.device`; this asks CUDA nothing."""
    if gpu not in (None, "cpu") and not (gpu.isascii() and gpu.isdigit()):
        raise InputError(f"--gpu must be cpu or the number of a GPU, not {gpu!r}")
    if device == "gpu" and gpu == "cpu":
        raise InputError("--gpu is cpu, but regress.device is gpu; give one of them")


def count_gpus(device: str) -> int:
    """How many GPUs CuPy finds, for `regress.device`. Raises InputError where CuPy cannot be imported, and must."""
    cupy = None if device == "cpu" else _cupy(device)
    return 0 if cupy is None else int(cupy.cuda.runtime.getDeviceCount())


def _chosen(device: str, gpu: str | None) -> tuple[Any, int | None]:
    """The module, and the number of the GPU where one is named."""
    refuse_contradiction(device, gpu)
    if device == "cpu" or gpu == "cpu":
        return np, None
    cupy = _cupy(device)
    if cupy is None:
        if device == "gpu":
            raise InputError("the regression is to use a GPU, but CuPy is not installed here or finds none; use auto or cpu")
        if gpu is not None:
            say("regress: CuPy is not installed here or finds no GPU; computing on the processor")
        return np, None
    if gpu is not None and int(gpu) >= (there := cupy.cuda.runtime.getDeviceCount()):
        raise InputError(f"there is no GPU {gpu} here: CuPy finds {there}")
    return cupy, None if gpu is None else int(gpu)


def _cupy(device: str) -> Any:
    """CuPy where it is installed, can be imported and finds a GPU, or None. Raises InputError where it cannot, and must."""
    if "cupy" not in sys.modules and importlib.util.find_spec("cupy") is None:
        return None
    try:
        import cupy
    except (OSError, ImportError) as e:  # its folder in a home that cannot be written, or a library that is not there
        if device == "gpu":
            raise InputError(f"regress.device is gpu, and CuPy cannot be imported here ({one_line(e)}); use cpu") from e
        say(f"regress: on the processor, since CuPy cannot be imported here ({one_line(e)})")
        return None
    return cupy if cupy.cuda.is_available() else None


def _let_go(error: BaseException, xp: Any) -> None:
    """Empty the frames through which an error came: they hold the arrays of a GPU that were in work."""
    if xp is np:
        return
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        traceback.clear_frames(at.__traceback__)
        at = at.__cause__ or at.__context__


def give_back(xp: Any) -> None:
    """Give memory that CuPy keeps for later back to the current GPU; other programs, and PyTorch, find it then."""
    if xp is not np:
        gc.collect()
        xp.get_default_memory_pool().free_all_blocks()
        xp.get_default_pinned_memory_pool().free_all_blocks()


def number_format(gap: float) -> type[np.floating[Any]]:
    """float32, twice as fast and half as large, where the wanted duality gap allows it; else float64."""
    return np.float32 if gap >= FINEST_FLOAT32_GAP else np.float64


def free_memory(xp: Any) -> int:
    """Bytes that arrays of this module can still take."""
    if xp is np:
        return free_host_memory()
    return int(xp.cuda.runtime.memGetInfo()[0] + xp.get_default_memory_pool().free_bytes())


def held_memory(xp: Any) -> int:
    """Bytes that others hold of the device's memory: on the processor those of the same parent, on a GPU whoever it is."""
    return held_beside() if xp is np else max(0, int(xp.cuda.runtime.memGetInfo()[1]) - free_memory(xp))


def on_device(array: Any, xp: Any, dtype: Any = None) -> Any:
    """An array on xp's device, in C order, which kernels take; its numbers are converted there, not on the host.

    All arrays come to a device by this: CuPy keeps Fortran order, such as that of SciPy's `toarray()`, in whatever it does.
    """
    held = xp.asarray(array, order="C")
    return held if dtype is None else held.astype(dtype, copy=False)


def to_numpy(array: Any) -> Any:
    """The array in host memory; from a GPU this waits until it is reckoned."""
    return array if isinstance(array, (np.ndarray, np.generic)) else array.get()


def keep_columns(matrix: Any, keep: Any, xp: Any) -> Any:
    """Some columns of a matrix (rows, T), by ascending index, in its own memory: what it held is lost."""
    rows, kept = len(matrix), len(keep)
    flat = matrix.reshape(-1)
    # A row goes to where it was, or further up: nothing is written over that is still to be read.
    for part in row_tiles(rows, ROWS_AT_ONCE):
        flat[part.start * kept : part.stop * kept] = xp.take(matrix[part], keep, axis=1).reshape(-1)
    return flat[: rows * kept].reshape(rows, kept)


def put_columns(into: Any, which: Any, values: Any, columns: Any, xp: Any) -> None:
    """Columns `columns` of one matrix take the places `which` in another, both indices on xp's device."""
    for part in row_tiles(len(into), ROWS_AT_ONCE):
        into[part][:, which] = xp.take(values[part], columns, axis=1)


def row_tiles(rows: int, at_once: int) -> Iterator[slice]:
    """Slices of so many rows each, and of what is left."""
    for start in range(0, rows, at_once):
        yield slice(start, min(start + at_once, rows))
