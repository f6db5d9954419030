"""Weights of blocks of targets, as the sparse columns in which they are kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy.sparse import csc_matrix

from datamodels.regress.unfinished import Kept
from datamodels.subsets import Array


def sparse_columns(weights: Array) -> Kept:
    """Weights (N, T) by columns: the non-zero ones, their rows, and how many each column has."""
    columns = csc_matrix(weights)
    return {"data": columns.data, "rows": columns.indices, "counts": np.diff(columns.indptr)}


def side_by_side(blocks: Iterable[Kept]) -> Kept:
    """What was found of several blocks, as of one."""
    found = list(blocks)
    return {name: np.concatenate([block[name] for block in found]) for name in found[0]}


def matrix(n: int, kept: Kept) -> Any:
    """The weights that were kept by columns, a sparse matrix (N, T)."""
    ends = np.concatenate([[0], np.cumsum(kept["counts"])])
    return csc_matrix((kept["data"], kept["rows"], ends), shape=(n, len(kept["counts"])))
