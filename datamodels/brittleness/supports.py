"""Supports: which training images to remove for one target, by its datamodel g(S') = 1_S'·w + b.

A linear datamodel makes min |R| s.t. g(S∖R) ≤ C easy: each removed image takes its own weight away, so the smallest set is the
largest weights, as many as it takes (Ilyas et al. 2022, section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datamodels.subsets import IndexArray


@dataclass(frozen=True)
class Support:
    """A set R to remove for one target.

    `indices` are R's training images, largest weight first, `weights` their weights (margin per image). `predicted` is
    g(S∖R) in logits, `predicted_before` g(S), and `reaches` whether g(S∖R) ≤ C.
    """

    indices: IndexArray
    weights: npt.NDArray[np.float64]
    predicted_before: float
    predicted: float
    reaches: bool


def smallest_support(weights: npt.NDArray[np.floating], bias: float, threshold: float, max_size: int) -> Support:
    """The fewest largest positive weights whose removal brings g(S∖R) to `threshold` or below.

    `weights` is (N,). Where no set of at most `max_size` images does it, R is the best there is: as many positive weights as
    there are, up to `max_size` and perhaps none, and `reaches` is False. A target that g has wrong without any removal gets its
    one largest weight, if that is positive.
    """
    order = np.argsort(-weights, kind="stable")[:max_size]
    order = order[weights[order] > 0]
    before = float(weights.sum(dtype=np.float64)) + bias
    enough = np.flatnonzero(before - np.cumsum(weights[order], dtype=np.float64) <= threshold)
    size = int(enough[0]) + 1 if len(enough) else len(order)
    return _support(weights, bias, order[:size], threshold)


def largest_weights(weights: npt.NDArray[np.floating], bias: float, threshold: float, size: int) -> Support:
    """The `size` images with the largest weights, whatever their sign; `threshold` only decides `reaches`."""
    return _support(weights, bias, np.argsort(-weights, kind="stable")[:size], threshold)


def _support(weights: npt.NDArray[np.floating], bias: float, indices: IndexArray, threshold: float) -> Support:
    values = weights[indices].astype(np.float64)
    before = float(weights.sum(dtype=np.float64)) + bias
    after = before - float(values.sum())
    return Support(indices, values, before, after, after <= threshold)
