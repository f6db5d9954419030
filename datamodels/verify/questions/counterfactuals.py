"""The datamodel's counterfactuals put to the test: predicted against measured drops of the margin for sets of three kinds.

For each size in `verify.counterfactuals` the images of the largest weights are removed from each target (top), those of the
smallest, whose removal should raise the margin (bottom), and random ones of all of S (random), which are the same for all
targets: one training answers for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datamodels.brittleness.judging import drop_of
from datamodels.settings import VerifySettings
from datamodels.subsets import Array, IndexArray, mask_without
from datamodels.verify.methods import Orders
from datamodels.verify.questions import Listed
from datamodels.verify.record import BOTTOM, RANDOM, TOP, CounterfactualRecord
from datamodels.verify.retrain import Request, Retrained

RANDOM_SETS = 4
"""For each size."""


class Counterfactual(Listed):
    """Some images removed: the drop of one target's margin that its weights predict, in logits, and the measured one."""

    def __init__(self, orders: Orders, target: int, kind: str, indices: IndexArray) -> None:
        self.target, self.kind, self.indices = target, kind, indices
        self.members = orders.targets.members(target)
        self.predicted_drop = float(orders.weights(target)[indices].sum())
        mask = mask_without(orders.n, indices)
        super().__init__([Request.of(mask, repetition) for repetition in range(models_of(orders.settings))])

    def judge(self, found: Retrained) -> None:
        """The margins after."""
        self.after = found.of(self.requests, self.members)[0]

    def record(self, before: Array) -> CounterfactualRecord:
        """What came of it, from the margins before, of models trained on all of S."""
        drop, low, high = drop_of(before, self.after)
        return CounterfactualRecord(
            target=self.target,
            kind=self.kind,
            size=len(self.indices),
            indices=tuple(self.indices.tolist()),
            predicted_drop=self.predicted_drop,
            measured_drop=drop,
            low=low,
            high=high,
            models=int(np.isfinite(self.after).sum()),
        )


def models_of(settings: VerifySettings) -> int:
    """How many models judge a counterfactual: a third of those of the last look at what a search has found."""
    return max(2, settings.most_models // 3)


def counterfactuals(orders: Orders, targets: Sequence[int], sizes: Sequence[int]) -> list[Counterfactual]:
    """The sets to be removed, for each target and size."""
    return [
        Counterfactual(orders, target, kind, indices)
        for target in targets
        for size in sizes
        for kind, indices in _sets(orders, target, size)
    ]


def _sets(orders: Orders, target: int, size: int) -> list[tuple[str, IndexArray]]:
    order, itself = np.argsort(-orders.weights(target), kind="stable").astype(np.int64), orders.targets.itself(target)
    order = order[~np.isin(order, itself)]
    drawn = (random_images(orders.settings.seed, size, draw, orders.n, itself) for draw in range(RANDOM_SETS))
    at_random = [(RANDOM, images) for images in drawn]
    return [(TOP, order[:size]), (BOTTOM, order[-size:]), *at_random]


def random_images(seed: int, size: int, draw: int, n: int, itself: IndexArray) -> IndexArray:
    """Images of any class, a function of (seed, size, draw), but for a target that is one itself."""
    order = np.random.default_rng([seed, size, draw]).permutation(n)
    return order[~np.isin(order, itself)][:size]
