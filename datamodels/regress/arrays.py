"""NumPy or CuPy by one handle, `xp`, and the kernel that CuPy needs beyond what it brings."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import numpy as np

from datamodels.errors import InputError
from datamodels.resources import KERNELS
from datamodels.subsets import ByteArray, unpack

THREADS = 256
BLOCKS = 4096


def array_module(device: str) -> Any:
    """NumPy for 'cpu', CuPy for 'gpu'; for 'auto' CuPy where it is installed and finds a GPU.

    Raises InputError for 'gpu' where there is none.
    """
    if device != "cpu" and importlib.util.find_spec("cupy") is not None:
        import cupy

        if cupy.cuda.is_available():
            return cupy
    if device == "gpu":
        raise InputError("regress.device is gpu, but CuPy is not installed here or finds no GPU; use auto or cpu")
    return np


def to_numpy(array: Any) -> Any:
    """The array in host memory."""
    return array if isinstance(array, np.ndarray) else array.get()


def unpacked(packed: ByteArray, n: int, xp: Any) -> Any:
    """Masks as numbers on xp's device: uint8 (m, ⌈N/8⌉) to float32 (m, N) of zeros and ones."""
    if xp is np:
        return unpack(packed, n).astype(np.float32)
    return unpack_on_gpu(packed, n)


def unpack_on_gpu(packed: ByteArray, n: int) -> Any:
    """`unpacked` by the CUDA kernel: the bits travel to the device, not the numbers."""
    import cupy

    source, out = cupy.asarray(packed), cupy.empty((len(packed), n), cupy.float32)
    sizes = (np.int64(len(packed)), np.int64(n), np.int64(packed.shape[1]))
    _kernel("unpack_bits")((BLOCKS,), (THREADS,), (source, out, *sizes))
    return out


@cache
def _kernel(name: str) -> Any:
    import cupy

    return cupy.RawKernel((KERNELS / f"{name}.cu").read_text(encoding="utf-8"), name)
