"""Supports: which training images to remove for one target, by its datamodel g(S') = 1_S'·w + b.

A linear datamodel makes min |R| s.t. g(S∖R) ≤ C easy: each removed image takes its own weight away, so the smallest set is the
largest weights, as many as it takes (Ilyas et al. 2022, section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datamodels.brittleness.orders import by_weight
from datamodels.subsets import IndexArray


@dataclass(frozen=True)
class Support:
    """A set R to remove for one target.

    `indices` are R's training images, largest weight first, `weights` their weights (margin per image). `predicted` is the
    margin on S∖R in logits, `predicted_before` that on S, and `reaches` whether the former is at most C.
    """

    indices: IndexArray
    weights: npt.NDArray[np.float64]
    predicted_before: float
    predicted: float
    reaches: bool


def smallest_support(weights: npt.NDArray[np.floating], base: float, threshold: float = 0.0, max_size: int = 100) -> Support:
    """The fewest largest positive weights whose removal brings the margin from `base` to `threshold` or below.

    `weights` is (N,); `base` is the mean margin of networks trained on all of S, best measured, or g(S) = Σw + b. Where no set
    of at most `max_size` images does it, R is the best there is: as many positive weights as there are, up to `max_size` and
    perhaps none, and `reaches` is False. A target that is wrong without any removal gets its one largest weight, if that is
    positive.

    >>> smallest_support(np.array([0.1, 0.5, -1.0, 0.4]), base=0.8).indices
    array([1, 3])
    """
    order = by_weight(weights, max_size)
    enough = np.flatnonzero(base - np.cumsum(weights[order], dtype=np.float64) <= threshold)
    return support_of(weights, base, order[: int(enough[0]) + 1 if len(enough) else len(order)], threshold)


def support(weights: npt.NDArray[np.floating], bias: float, max_size: int = 100) -> Support:
    """The set R to remove by the datamodel alone, of g(S) = Σw + b: `smallest_support` from there to a margin of 0.

    >>> found = support(np.array([0.1, 0.5, -1.0, 0.4]), bias=0.8)
    >>> found.indices, found.reaches
    (array([1, 3]), True)
    """
    return smallest_support(weights, float(weights.sum(dtype=np.float64)) + bias, max_size=max_size)


def largest_weights(weights: npt.NDArray[np.floating], base: float, size: int) -> Support:
    """The `size` images with the largest weights, whatever their sign; `reaches` says whether the margin is at most 0 then."""
    return support_of(weights, base, np.argsort(-weights, kind="stable")[:size])


def support_of(weights: npt.NDArray[np.floating], base: float, indices: IndexArray, threshold: float = 0.0) -> Support:
    """What the weights say of removing just these images."""
    values = weights[indices].astype(np.float64)
    after = base - float(values.sum())
    return Support(indices, values, base, after, after <= threshold)
