"""How linear datamodels do on models that they were not fitted to: predictions, errors, rank correlations."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from datamodels.regress.arrays import row_tiles, to_numpy
from datamodels.regress.kernels import unpacked
from datamodels.regress.source import TILE_ROWS
from datamodels.subsets import Array

FloatArray = npt.NDArray[np.float64]


def predict(weights: Any, bias: Any, packed: Any, xp: Any) -> FloatArray:
    """Margins (m, T), on the host, predicted for packed masks (m, ⌈N/8⌉): 1_S'·w + b."""
    tiles = row_tiles(len(packed), TILE_ROWS)
    return np.concatenate([to_numpy(_of_tile(weights, packed[rows], xp) + bias) for rows in tiles])


def score(predicted: FloatArray, true: Array) -> dict[str, FloatArray]:
    """LDS, R² and mean squared error of each target, (T,) each, over m models: `predicted` and `true` are (m, T).

    LDS is Spearman's rank correlation, 0 for a target whose prediction never changes. R² is 0 for one that is constant.
    """
    true = true.astype(np.float64)
    error, spread = ((true - predicted) ** 2).mean(0), true.var(0)
    r2 = 1 - np.divide(error, spread, out=np.ones_like(error), where=spread > 0)
    return {"lds": _correlation(rankdata(predicted, axis=0), rankdata(true, axis=0)), "r2": r2, "mse": error}


def _correlation(a: FloatArray, b: FloatArray) -> FloatArray:
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    correlation: FloatArray = np.divide((a * b).sum(0), scale, out=np.zeros(a.shape[1]), where=scale > 0)
    return correlation


def error_of(weights: Any, bias: Any, packed: Any, truth: Any, xp: Any) -> Any:
    """Mean squared error (T,), on the device, of weights (N, T) and biases on models of packed masks and margins `truth`."""
    total = xp.zeros(weights.shape[1])
    for rows in row_tiles(len(packed), TILE_ROWS):
        total += ((_of_tile(weights, packed[rows], xp) + bias - truth[rows]) ** 2).sum(0)
    return total / len(packed)


def _of_tile(weights: Any, packed: Any, xp: Any) -> Any:
    """1_S'·w for a tile of masks; as a function of its own it has let go of one tile's numbers when the next come."""
    return unpacked(packed, len(weights), xp, weights.dtype) @ weights
