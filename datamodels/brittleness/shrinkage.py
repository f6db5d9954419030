"""Weights for choosing sets: what the lasso leaves out put back, and noise taken out.

The lasso sets to 0 every weight that it cannot tell from 0, and shrinks the others. To choose sets of images it is better to
keep what little is known of each. One step back along the residuals r = y − Xŵ − b undoes the shrinkage (the debiased lasso:
Zhang & Zhang 2014, Javanmard & Montanari 2014, with the masks' independence for the inverse of XᵀX),

    u_j = ŵ_j + cov(x_j, r) / var(x_j),

with noise of variance σ² = var(r)/(m var(x_j)). The images of the target's class have a mean weight of their own, and so have
the others: within each of the two groups weights are taken for normal, with mean μ and variance τ² = var(u) − σ² by the method
of moments, and each u is moved to its posterior mean (James & Stein 1961, as empirical Bayes)

    μ + τ² / (τ² + σ²) · (u − μ).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datamodels.store import Store
from datamodels.subsets import Array, BoolArray

TILE_ROWS = 1024


def shrunk_weights(
    store: Store, targets: Sequence[int], weights: Array, group: BoolArray, apart: BoolArray | None = None
) -> Array:
    """The weights above, float64 (N, T'), of T' targets of a store.

    `weights` (N, T') are the lasso's, from this store; `group` bool (N, T') says which images are of the target's class, and
    `apart` which are of neither group: a target that is a training image carries itself as no other image does. These are
    debiased alone. One pass over the store's models; those that diverged do not count.
    """
    u, noise = _debiased(store, list(targets), weights.astype(np.float64))
    others = np.ones_like(group) if apart is None else ~apart
    result: Array = u.copy()
    for t in range(u.shape[1]):
        for members in (group[:, t] & others[:, t], ~group[:, t] & others[:, t]):
            if members.any():
                result[members, t] = _posterior(u[members, t], noise[t])
    return result


def _debiased(store: Store, targets: list[int], weights: Array) -> tuple[Array, Array]:
    """U (N, T'), and the variance σ² of its noise (T',), the masks' mean variance for each image's own."""
    n, t = weights.shape
    sums = {"x": np.zeros(n), "r": np.zeros(t), "rr": np.zeros(t), "xr": np.zeros((n, t))}
    m = 0
    for first in range(0, len(store.done), TILE_ROWS):
        ids = store.done[first : first + TILE_ROWS]
        x, y = store.masks(ids).astype(np.float64), store.margins(ids)[:, targets].astype(np.float64)
        finite = np.isfinite(y).all(1)
        x, y = x[finite], y[finite]
        r = y - x @ weights
        m += len(x)
        for name, part in {"x": x.sum(0), "r": r.sum(0), "rr": (r * r).sum(0), "xr": x.T @ r}.items():
            sums[name] += part
    mean_x, mean_r = sums["x"] / m, sums["r"] / m
    spread = mean_x * (1 - mean_x)
    # An image in all masks, or in none, has nothing to be put back.
    back = (sums["xr"] / m - mean_x[:, None] * mean_r) / np.where(spread > 0, spread, np.inf)[:, None]
    return weights + back, np.maximum(sums["rr"] / m - mean_r**2, 0) / (m * max(float(spread.mean()), 1e-300))


def _posterior(u: Array, noise: float) -> Array:
    mean = u.mean()
    between = max(0.0, float(u.var()) - noise)
    share = between / (between + noise) if between + noise > 0 else 1.0
    found: Array = mean + share * (u - mean)
    return found
