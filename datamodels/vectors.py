"""Lengths of vectors of any size, where a sum of squares would be beyond what floats can hold, or below."""

from __future__ import annotations

import numpy as np

from datamodels.subsets import Array


def of_length_1(vectors: Array) -> Array:
    """Vectors (…, d), finite, scaled to length 1, in float64; those of zeros stay what they are.

    Their largest number is brought near 1 first, by a power of two, which rounds nothing: squares neither overflow nor vanish.
    """
    vectors = np.asarray(vectors, np.float64)
    largest = np.abs(vectors).max(-1, keepdims=True)
    scaled = np.ldexp(vectors, -np.frexp(largest)[1])
    length: Array = np.linalg.norm(scaled, axis=-1, keepdims=True)
    units: Array = scaled / np.where(length > 0, length, 1.0)
    return units
