"""Supports: which training images to remove for one target, by its datamodel g(S') = 1_S'·w + b.

A linear datamodel makes min |R| s.t. g(S∖R) ≤ C easy: each removed image takes its own weight away, so the smallest set is the
largest weights, as many as it takes (Ilyas et al. 2022, section 4.1).

How many it takes depends on the margin on all of S that they are taken from. Weights and bias are fitted to models that see a
share α of S. To say g(S) is to extrapolate from there to all of S, where margins have levelled off otherwise than along a line:
the set may then be several times too small, or too large. `verify.measured.support` takes what networks on all of S say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from datamodels.brittleness.judging import Outcome
from datamodels.brittleness.orders import by_weight
from datamodels.subsets import IndexArray

GIVEN, MEASURED, EXTRAPOLATED = "given", "measured", "extrapolated"
NAMED = 3
"""So many images are named where a support is told in a sentence."""


@dataclass(frozen=True)
class Extrapolation:
    """How far g(S) = Σw + b has been off: `median_off` is the median of g(S) less the measured mean margin, in logits, over so
    many `targets` about which networks trained on all of S have been asked.
    """

    median_off: float
    targets: int


@dataclass(frozen=True)
class Needed:
    """How many times as many images retraining has needed: the median, over so many searched `targets`, of the smallest proved
    |R| over the size that weights name from the same kind of margin before; infinite where most were not flipped.
    """

    median_times: float
    targets: int


@dataclass(frozen=True, repr=False)
class Support:
    """A set R to remove for one target.

    `indices` are R's training images, largest weight first, `weights` their weights (margin per image). `predicted` is the
    margin on S∖R in logits, `predicted_before` that on S, and `reaches` whether the former is at most C.

    `base` says where `predicted_before` is from. 'measured': it is the mean margin of networks trained on all of S, which are
    `measured`. 'extrapolated': it is g(S), and `extrapolation` says how far that has been off elsewhere, None where that is not
    known. 'given': whoever asked gave it. `verified` is the smallest set of which retraining has proved that the prediction
    flips without it, None where none is known; `needed` says how such sets compare with those named by weights, None where
    none was searched.
    """

    indices: IndexArray
    weights: npt.NDArray[np.float64]
    predicted_before: float
    predicted: float
    reaches: bool
    base: str = GIVEN
    measured: Outcome | None = None
    extrapolation: Extrapolation | None = None
    verified: IndexArray | None = None
    needed: Needed | None = None

    def __repr__(self) -> str:
        return f"<Support: {self._what}{self._from}{self._proved}>"

    @property
    def _what(self) -> str:
        before, after = f"{self.predicted_before:.2f}", f"{self.predicted:.2f}"
        if self.predicted_before <= 0:
            return f"the margin is {before} without any removal"
        if not len(self.indices):
            return f"no image has a positive weight, and the margin stays {before}"
        named = ", ".join(map(str, self.indices[:NAMED].tolist())) + ", …" * (len(self.indices) > NAMED)
        images = f"{len(self.indices)} image{'s' * (len(self.indices) > 1)} ({named})"
        return f"{images} should bring the margin from {before} to {after}{'' if self.reaches else ', which is not enough'}"

    @property
    def _from(self) -> str:
        if self.base == MEASURED and self.measured is not None:
            return f"; the margin before is measured, by {self.measured.models} networks trained on all of S"
        if self.base != EXTRAPOLATED:
            return ""
        told = "; the margin before is extrapolated to all of S, from models that saw a share of it"
        if self.extrapolation is None:
            return f"{told}, and how far off that is was not measured"
        off, targets = self.extrapolation.median_off, self.extrapolation.targets
        how = f"{abs(off):.2f} too {'high' if off > 0 else 'low'}"
        return f"{told}, which in the median of {targets} measured target{'s' * (targets > 1)} was {how}"

    @property
    def _proved(self) -> str:
        if self.verified is not None:
            return f"; retraining has proved {len(self.verified)} to flip it"
        if self.needed is None:
            return ""
        times, targets = self.needed.median_times, self.needed.targets
        how = f"{times:.1f} times as many" if np.isfinite(times) else "more than could be found"
        return f"; in the median of {targets} searched target{'s' * (targets > 1)} retraining needed {how}"


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
    """The set R to remove by the datamodel alone: `smallest_support` from g(S) = Σw + b to a margin of 0.

    That extrapolates, from the models' share α of S to all of it (see above): the set is a first guess, not an answer.

    >>> found = support(np.array([0.1, 0.5, -1.0, 0.4]), bias=0.8)
    >>> found.indices, found.reaches, found.base
    (array([1, 3]), True, 'extrapolated')
    >>> found
    <Support: 2 images (1, 3) should bring the margin from 0.80 to -0.10; the margin before is extrapolated to all of S, from \
models that saw a share of it, and how far off that is was not measured>
    """
    found = smallest_support(weights, on_all(weights, bias), max_size=max_size)
    return replace(found, base=EXTRAPOLATED)


def on_all(weights: npt.NDArray[np.floating], bias: float) -> float:
    """g(S) = Σw + b, the margin that a datamodel predicts for models trained on all of S, of which it has seen none."""
    return float(weights.sum(dtype=np.float64)) + bias


def largest_weights(weights: npt.NDArray[np.floating], base: float, size: int) -> Support:
    """The `size` images with the largest weights, whatever their sign; `reaches` says whether the margin is at most 0 then."""
    return support_of(weights, base, np.argsort(-weights, kind="stable")[:size])


def support_of(weights: npt.NDArray[np.floating], base: float, indices: IndexArray, threshold: float = 0.0) -> Support:
    """What the weights say of removing just these images."""
    values = weights[indices].astype(np.float64)
    after = base - float(values.sum())
    return Support(indices, values, base, after, after <= threshold)
