"""The mean margin of networks trained without the first k images of an order, as a function of k, from those seen so far.

A Gaussian process, with what the weights predict as its mean (Rasmussen & Williams 2006, chapter 2):

    m(k) = b − θ d(k) + ε(k),    θ ~ N(f, s²),    ε a Brownian motion in t(k)

with b the measured margin on all of S, d(k) the drop that weights predict for the removal of k images, θ the factor by which it
is off, and ε what no factor mends. Its time t is the largest drop predicted so far, in units of b, and never stands still.
Networks of one set so tell of its neighbours: sets of one order differ by a few images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from datamodels.subsets import Array

WANDERING = 0.3
"""The standard deviation of ε where the whole of b is predicted to be gone, in units of b."""
DRIFT = 0.1
"""The least speed of t, against that of an order that takes b away evenly."""
JITTER = 1e-9


class Measured(NamedTuple):
    """A mean margin, in logits, and the variance of that mean."""

    mean: float
    variance: float

    @classmethod
    def of(cls, margins: Array) -> Measured:
        """By margins (J,) of which two at least are finite."""
        values = margins[np.isfinite(margins)].astype(np.float64)
        return cls(float(values.mean()), float(values.var(ddof=1)) / len(values))


class Factor(NamedTuple):
    """What is believed of θ: its mean, and the standard deviation of it from target to target."""

    mean: float
    spread: float


class Curve:
    """What is believed of the mean margins of sets 1, 2, …, K; `drops` (K,) is d."""

    def __init__(self, drops: Array, base: Measured, factor: Factor) -> None:
        self.drops, self.base, self.factor = drops, base, factor
        reached = np.maximum.accumulate(np.maximum(drops, 0))
        enough = np.flatnonzero(reached >= base.mean)
        at_base = int(enough[0]) + 1 if len(enough) else len(drops)
        self.time = np.maximum(reached / base.mean, DRIFT * np.arange(1, len(drops) + 1) / at_base)
        self.before = base.mean - factor.mean * drops

    def given(self, sizes: Array, means: Array, variances: Array) -> tuple[Array, Array]:
        """Mean and variance (K,) of each m(k), given measured means of some sets, with the variances of these means."""
        prior = self._covariance(np.arange(len(self.drops)))
        if not len(sizes):
            return self.before, prior
        seen = sizes - 1
        across = self._covariance(np.arange(len(self.drops)), seen)
        noise = np.diag(variances + JITTER * self.base.mean**2)
        weights = np.linalg.solve(self._covariance(seen, seen) + noise, across.T).T
        mean = self.before + weights @ (means - self.before[seen])
        return mean, np.maximum(prior - (weights * across).sum(1), JITTER * self.base.mean**2)

    def _covariance(self, a: Array, b: Array | None = None) -> Array:
        """Between the margins of some sets and others, by their places; without others the variances of these."""
        of_factor, wander = self.factor.spread**2, (WANDERING * self.base.mean) ** 2
        drops, time = self.drops, self.time
        if b is None:
            return self.base.variance + of_factor * drops[a] ** 2 + wander * time[a]
        both: Array = self.base.variance + of_factor * np.outer(drops[a], drops[b])
        return both + wander * np.minimum.outer(time[a], time[b])
