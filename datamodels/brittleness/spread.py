"""How much a margin varies from one training to the next: learned from all targets, for one of which there are few networks.

Variances of a few margins each are taken for draws around a common one: s² ~ s₀² F(d, d₀) (Smyth 2004, Stat. Appl. Genet. Mol.
Biol. 3, equations 5 to 9: "moderated t"). What is common, s₀², is worth d₀ degrees of freedom beside the d of one's own:

    s̃² = (d₀ s₀² + d s²) / (d₀ + d), and Student's t of it has d₀ + d degrees of freedom.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

from datamodels.subsets import Array, IndexArray

LEAST_COLUMNS, SHARE_OF_COLUMNS = 10, 0.5
MOST_DEGREES = 10.0
"""What is common on all of S never counts for more than as many networks of one's own: without R it may be otherwise."""


@dataclass(frozen=True)
class Spread:
    """The variance of a margin expected before any was seen, in logits², and how many degrees of freedom it is worth."""

    variance: float = 0.0
    degrees: float = 0.0

    def moderated(self, squares: float, degrees: float) -> tuple[float, float]:
        """The variance, with a sum of squares of one's own that has so many degrees, and the degrees of both together.

        NaN where there are none of either.
        """
        both = self.degrees + degrees
        return (self.degrees * self.variance + squares) / both if both else np.nan, both


def spread_at_the_edge(margins: Array) -> Spread:
    """The spread of margins (J, T) of J networks trained alike, by the targets that these have least clearly right or wrong.

    A margin near 0 varies more than one that is large: what is wanted is the spread where a prediction turns. Networks that
    diverged, with NaN, do not count; of fewer than 2 networks or targets nothing is known: 0 degrees.
    """
    values = margins[np.isfinite(margins).all(1)].astype(np.float64)
    if len(values) < 2:
        return Spread()
    found = spread_of(values[:, at_the_edge(values.mean(0))].var(0, ddof=1), len(values) - 1)
    # Targets vary together: a network is good or bad for many. So all of them tell of no more degrees than one may.
    return Spread(found.variance, min(found.degrees, len(values) - 1))


def at_the_edge(mean: Array) -> IndexArray:
    """The half of the targets, ten at least, whose mean margins (T,) are nearest to 0."""
    most = max(LEAST_COLUMNS, int(SHARE_OF_COLUMNS * len(mean)))
    return np.argsort(np.abs(mean), kind="stable")[:most]


def spread_of(variances: Array, degrees: int) -> Spread:
    """What is common to variances, each of which has so many degrees of freedom; 0 degrees for fewer than 2 above 0."""
    known = variances[variances > 0]
    if len(known) < 2:
        return Spread()
    logs = np.log(known) - digamma(degrees / 2) + np.log(degrees / 2)
    beyond = float(logs.var(ddof=1)) - float(polygamma(1, degrees / 2))
    d0 = min(2 * _inverse_trigamma(beyond), MOST_DEGREES) if beyond > 0 else MOST_DEGREES
    return Spread(float(np.exp(logs.mean() + digamma(d0 / 2) - np.log(d0 / 2))), d0)


def is_deterministic(margins: Array) -> bool:
    """Whether all networks of margins (J, T), two at least, say the very same of every target: one speaks for all then."""
    values = margins[np.isfinite(margins).all(1)]
    return len(values) > 1 and bool((values == values[0]).all())


def _inverse_trigamma(value: float) -> float:
    low, high = 1e-3, 1e6
    if value >= polygamma(1, low):
        return low
    return float(brentq(lambda x: polygamma(1, x) - value, low, high)) if value > polygamma(1, high) else high
