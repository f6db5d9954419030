"""The hot loops beyond matrix products: each as NumPy, the reference, and as the CUDA kernel that CuPy launches instead.

The sources lie in kernels/. Matrices are (rows, T) in C order, so that neighbouring threads take neighbouring targets; a sum
over rows comes back from the kernels as one partial sum for each chunk of rows, which are then added here. NumPy goes by the
same chunks, which spares it matrices of what is reckoned on the way. Where a result takes an argument's place, it spares one
too. The penalty's factors are (rows, 1), the same for all targets, or (rows, T).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from datamodels.regress.arrays import on_device, row_tiles
from datamodels.resources import KERNELS
from datamodels.subsets import unpack

THREADS = 128
BLOCKS = 4096
CHUNK_ROWS = 256
REALS = {"f": "float", "d": "double"}


def unpacked(packed: Any, n: int, xp: Any, dtype: Any = np.float32) -> Any:
    """Masks as numbers on xp's device: uint8 (m, ⌈N/8⌉), on the host or there, to float32 or 64 (m, N) of zeros and ones."""
    if xp is np:
        return unpack(packed, n).astype(dtype)
    source, out = on_device(packed, xp), xp.empty((len(packed), n), dtype)
    sizes = (np.int64(len(packed)), np.int64(n), np.int64(packed.shape[1]))
    _kernel(xp, "unpack_bits", np.dtype(dtype))((BLOCKS,), (THREADS,), (source, out, *sizes))
    return out


def soft_threshold(x: Any, by: Any) -> Any:
    """The proximal operator of by·‖·‖₁: towards zero by `by`, and zero within it."""
    return np.sign(x) * np.maximum(np.abs(x) - by, 0)


def fista_step(v: Any, gv: Any, c: Any, w: Any, lam: Any, penalty: Any, step: float, xp: Any) -> Any:
    """A proximal gradient step from v, which gives way to the new weights, and whether the momentum points uphill.

    v, G v, c and w are (N, T), lam (T,), penalty (N, 1 or T) in their number format. Returns (v − new)·(new − w), float64 (T,),
    for v as it was, to which momentum led from w.
    """
    real = v.dtype.type
    lam = lam.astype(v.dtype)
    if xp is np:
        total = np.zeros(v.shape[1])
        for rows in row_tiles(len(v), CHUNK_ROWS):
            new = soft_threshold(v[rows] + (c[rows] - gv[rows]) * real(step), penalty[rows] * (lam * real(step)))
            total += ((v[rows] - new) * (new - w[rows])).sum(0)
            v[rows] = new
        return total
    uphill = _partial_sums(v, xp)
    _by_columns(xp, "fista_step", v, (v, gv, c, w, lam, *_factors(penalty), real(step), uphill))
    return uphill.sum(0)


def extrapolate(new: Any, old: Any, beta: Any, xp: Any) -> None:
    """`old` gives way to new + beta·(new − old), for matrices (N, T) and beta (T,)."""
    beta = beta.astype(new.dtype)
    if xp is np:
        for rows in row_tiles(len(new), CHUNK_ROWS):
            old[rows] = new[rows] + beta * (new[rows] - old[rows])
        return
    _by_columns(xp, "extrapolate", new, (new, old, beta))


def gap_sums(c: Any, w: Any, gw: Any, penalty: Any, xp: Any) -> tuple[Any, Any, Any, Any]:
    """What the duality gap is made of, each (T,) in float64: c·w, w·Gw, Σ p|w|, and the largest |c − Gw|/p.

    c, w and G w are (N, T), the penalty factors p (N, 1 or T), all in one number format.
    """
    if xp is np:
        cw, wgw, norm, steepest = (np.zeros(w.shape[1]) for _ in range(4))
        for rows in row_tiles(len(w), CHUNK_ROWS):
            cw += (c[rows] * w[rows]).sum(0, dtype=np.float64)
            wgw += (w[rows] * gw[rows]).sum(0, dtype=np.float64)
            norm += (penalty[rows] * np.abs(w[rows])).sum(0, dtype=np.float64)
            np.maximum(steepest, (np.abs(c[rows] - gw[rows]) / penalty[rows]).max(0), out=steepest)
        return cw, wgw, norm, steepest
    cw, wgw, norm, steepest = (_partial_sums(w, xp) for _ in range(4))
    _by_columns(xp, "gap_sums", w, (c, w, gw, *_factors(penalty), cw, wgw, norm, steepest))
    return cw.sum(0), wgw.sum(0), norm.sum(0), steepest.max(0)


def saga_residuals(y: Any, fitted: Any, table: Any, xp: Any) -> Any:
    """Put the residuals y − fitted of one batch, (b, T), into their rows of the table, and return by how much they changed."""
    if xp is np:
        residuals = y - fitted
        change = residuals - table
        table[...] = residuals
        return change
    change = xp.empty_like(table)
    _by_columns(xp, "saga_residuals", table, (y, fitted, table, change))
    return change


def saga_step(w: Any, mean: Any, change: Any, m: int, batches: int, lam: Any, penalty: Any, step: float, xp: Any) -> None:
    """One proximal step of SAGA, in place.

    w (N, T) are the weights, `mean` (N, T) the table's average of Xᵀr over the m models, `change` (N, T) what a batch adds to
    its sum. The step follows mean + batches·change/m; afterwards `mean` holds mean + change/m. lam (T,), penalty (N, 1 or T) in
    the weights' number format.
    """
    real = w.dtype.type
    lam = lam.astype(w.dtype)
    if xp is np:
        for rows in row_tiles(len(w), CHUNK_ROWS):
            part = change[rows] / real(m)
            moved = w[rows] + real(step) * (mean[rows] + real(batches) * part)
            w[rows] = soft_threshold(moved, penalty[rows] * (lam * real(step)))
            mean[rows] += part
        return
    _by_columns(xp, "saga_step", w, (w, mean, change, real(m), real(batches), lam, *_factors(penalty), real(step)))


def _factors(penalty: Any) -> tuple[Any, np.int64]:
    return penalty, np.int64(penalty.shape[1])


def _partial_sums(like: Any, xp: Any) -> Any:
    return xp.empty((_chunks(len(like)), like.shape[1]), np.float64)


def _chunks(rows: int) -> int:
    return -(-rows // CHUNK_ROWS)


def _by_columns(xp: Any, name: str, like: Any, arguments: tuple[Any, ...]) -> None:
    """Launch a kernel over a matrix (rows, T): a thread takes one target and a chunk of rows.

    Raises ValueError for an array that does not lie in C order, which the kernel would read as another one.
    """
    if not all(argument.flags.c_contiguous for argument in arguments if getattr(argument, "ndim", 0)):
        raise ValueError(f"{name} takes arrays in C order")
    rows, columns = like.shape
    grid = (-(-columns // THREADS), _chunks(rows))
    sizes = (np.int64(rows), np.int64(columns), np.int64(CHUNK_ROWS))
    _kernel(xp, name, like.dtype)(grid, (THREADS,), (*arguments, *sizes))


@cache
def _kernel(xp: Any, name: str, dtype: Any) -> Any:
    source = (KERNELS / f"{name}.cu").read_text(encoding="utf-8")
    return xp.RawKernel(source, name, (f"-DREAL={REALS[np.dtype(dtype).char]}",))
