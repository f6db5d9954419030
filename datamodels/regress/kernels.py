"""The hot loops beyond matrix products: each as NumPy, the reference, and as the CUDA kernel that CuPy launches instead.

The sources lie in kernels/. Matrices are (rows, T) in C order, so that neighbouring threads take neighbouring targets; a sum
over rows comes back from the kernels as one partial sum for each chunk of rows, which are then added here. The penalty's
factors are (rows, 1), the same for all targets, or (rows, T).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from datamodels.resources import KERNELS
from datamodels.subsets import ByteArray, unpack

THREADS = 128
BLOCKS = 4096
CHUNK_ROWS = 256
REALS = {"f": "float", "d": "double"}


def unpacked(packed: ByteArray, n: int, xp: Any) -> Any:
    """Masks as numbers on xp's device: uint8 (m, ⌈N/8⌉) to float32 (m, N) of zeros and ones."""
    if xp is np:
        return unpack(packed, n).astype(np.float32)
    source, out = xp.asarray(packed), xp.empty((len(packed), n), np.float32)
    sizes = (np.int64(len(packed)), np.int64(n), np.int64(packed.shape[1]))
    _kernel("unpack_bits", np.float32)((BLOCKS,), (THREADS,), (source, out, *sizes))
    return out


def soft_threshold(x: Any, by: Any) -> Any:
    """The proximal operator of by·‖·‖₁: towards zero by `by`, and zero within it."""
    return np.sign(x) * np.maximum(np.abs(x) - by, 0)


def fista_step(v: Any, gv: Any, c: Any, w: Any, lam: Any, penalty: Any, step: float, xp: Any) -> tuple[Any, Any]:
    """A proximal gradient step from v, and whether the momentum that led from w to v points uphill.

    v, G v, c and w are (N, T), lam (T,), penalty (N, 1 or T). Returns the new weights (N, T) and (v − new)·(new − w), (T,).
    """
    lam, penalty = lam.astype(v.dtype), penalty.astype(v.dtype)
    if xp is np:
        new = soft_threshold(v + (c - gv) * v.dtype.type(step), penalty * (lam * v.dtype.type(step)))
        return new, ((v - new) * (new - w)).sum(0)
    new, uphill = xp.empty_like(v), _partial_sums(v, xp)
    _by_columns("fista_step", v, (v, gv, c, w, lam, *_factors(penalty), v.dtype.type(step), new, uphill))
    return new, uphill.sum(0)


def extrapolate(new: Any, old: Any, beta: Any, xp: Any) -> Any:
    """New + beta·(new − old), for matrices (N, T) and beta (T,)."""
    beta = beta.astype(new.dtype)
    if xp is np:
        return new + beta * (new - old)
    out = xp.empty_like(new)
    _by_columns("extrapolate", new, (new, old, beta, out))
    return out


def gap_sums(c: Any, w: Any, gw: Any, penalty: Any, xp: Any) -> tuple[Any, Any, Any, Any]:
    """What the duality gap is made of, each (T,) in float64: c·w, w·Gw, Σ p|w|, and the largest |c − Gw|/p.

    c, w and G w are (N, T), the penalty factors p (N, 1 or T).
    """
    penalty = penalty.astype(w.dtype)
    if xp is np:
        sums = ((part).sum(0, dtype=np.float64) for part in (c * w, w * gw, penalty * np.abs(w)))
        cw, wgw, norm = sums
        return cw, wgw, norm, (np.abs(c - gw) / penalty).max(0).astype(np.float64)
    cw, wgw, norm, steepest = (_partial_sums(w, xp) for _ in range(4))
    _by_columns("gap_sums", w, (c, w, gw, *_factors(penalty), cw, wgw, norm, steepest))
    return cw.sum(0), wgw.sum(0), norm.sum(0), steepest.max(0)


def saga_residuals(y: Any, fitted: Any, table: Any, xp: Any) -> Any:
    """Put the residuals y − fitted of one batch, (b, T), into their rows of the table, and return by how much they changed."""
    if xp is np:
        residuals = y - fitted
        change = residuals - table
        table[...] = residuals
        return change
    change = xp.empty_like(table)
    _by_columns("saga_residuals", table, (y, fitted, table, change))
    return change


def saga_step(w: Any, mean: Any, change: Any, m: int, batches: int, lam: Any, penalty: Any, step: float, xp: Any) -> None:
    """One proximal step of SAGA, in place.

    w (N, T) are the weights, `mean` (N, T) the table's average of Xᵀr over the m models, `change` (N, T) what a batch adds to
    its sum. The step follows mean + batches·change/m; afterwards `mean` holds mean + change/m. lam (T,), penalty (N, 1 or T).
    """
    real = w.dtype.type
    lam, penalty = lam.astype(w.dtype), penalty.astype(w.dtype)
    if xp is np:
        change = change / real(m)
        w[...] = soft_threshold(w + real(step) * (mean + real(batches) * change), penalty * (lam * real(step)))
        mean += change
        return
    _by_columns("saga_step", w, (w, mean, change, real(m), real(batches), lam, *_factors(penalty), real(step)))


def _factors(penalty: Any) -> tuple[Any, np.int64]:
    return penalty, np.int64(penalty.shape[1])


def _partial_sums(like: Any, xp: Any) -> Any:
    return xp.empty((_chunks(len(like)), like.shape[1]), np.float64)


def _chunks(rows: int) -> int:
    return -(-rows // CHUNK_ROWS)


def _by_columns(name: str, like: Any, arguments: tuple[Any, ...]) -> None:
    """Launch a kernel over a matrix (rows, T): a thread takes one target and a chunk of rows.

    Raises ValueError for an array that does not lie in C order, which the kernel would read as another one.
    """
    if not all(argument.flags.c_contiguous for argument in arguments if getattr(argument, "ndim", 0)):
        raise ValueError(f"{name} takes arrays in C order")
    rows, columns = like.shape
    grid = (-(-columns // THREADS), _chunks(rows))
    sizes = (np.int64(rows), np.int64(columns), np.int64(CHUNK_ROWS))
    _kernel(name, like.dtype)(grid, (THREADS,), (*arguments, *sizes))


@cache
def _kernel(name: str, dtype: Any) -> Any:
    import cupy

    source = (KERNELS / f"{name}.cu").read_text(encoding="utf-8")
    return cupy.RawKernel(source, name, (f"-DREAL={REALS[np.dtype(dtype).char]}",))
