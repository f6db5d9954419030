"""The datamodel's counterfactuals put to the test: predicted against measured drops of the margin for sets of three kinds.

For each size in `verify.counterfactuals` the images of the largest weights are removed from each target (top), those of the
smallest, whose removal should raise the margin (bottom), and random ones of all of S (random), which are the same for all
targets: one training answers for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodels.settings import VerifySettings
from datamodels.store.layout import Array
from datamodels.subsets import IndexArray, mask_without
from datamodels.verify.judge import Outcome, judge
from datamodels.verify.retrain import Retrained
from datamodels.verify.subject import Request

TOP, RANDOM, BOTTOM = "top", "random", "bottom"
KINDS = (TOP, RANDOM, BOTTOM)
RANDOM_SETS = 4
"""For each size."""


@dataclass(frozen=True)
class Counterfactual:
    """Some images to be removed, and the drop of one target's margin that its weights predict, in logits."""

    target: int
    kind: str
    indices: IndexArray
    predicted_drop: float
    requests: list[Request]

    def measured(self, base: Outcome, found: Retrained) -> dict[str, Any]:
        """What came of it, from the mean margin on all of S, `base`."""
        outcome = judge(*found.of(self.requests, self.target))
        return {
            "target": self.target,
            "kind": self.kind,
            "size": len(self.indices),
            "indices": self.indices.tolist(),
            "predicted_drop": self.predicted_drop,
            "measured_drop": base.mean_margin - outcome.mean_margin,
            "low": base.mean_margin - outcome.high,
            "high": base.mean_margin - outcome.low,
            "models": outcome.models,
        }


def counterfactuals(settings: VerifySettings, weights: dict[int, Array], sizes: list[int]) -> list[Counterfactual]:
    """The sets to be removed, for targets whose weights (N,) are given, with `verify.models` models each."""
    found = []
    for target, of_target in weights.items():
        n, order = len(of_target), np.argsort(-of_target, kind="stable").astype(np.int64)
        for size in sizes:
            sets = [(TOP, order[:size]), (BOTTOM, order[-size:])]
            sets += [(RANDOM, random_images(settings.seed, size, draw, n)) for draw in range(RANDOM_SETS)]
            for kind, indices in sets:
                mask = mask_without(n, indices)
                requests = [Request.of(mask, repetition) for repetition in range(settings.models)]
                found.append(Counterfactual(target, kind, indices, float(of_target[indices].sum()), requests))
    return found


def random_images(seed: int, size: int, draw: int, n: int) -> IndexArray:
    """Images of any class, a function of (seed, size, draw)."""
    return np.random.default_rng([seed, size, draw]).permutation(n)[:size]
