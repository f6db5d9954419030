"""A set removed from one target, beside a control: does the margin fall by more than for as many random images of its class?

The control removes other images for each of its models, so that its mean is over the choice of images as well. Controls of one
class and size serve every target of that class.
"""

from __future__ import annotations

import numpy as np

from datamodels.brittleness import Search, Support, largest_weights, smallest_support, support_of
from datamodels.brittleness.judging import FLIPPED, Outcome, judge
from datamodels.subsets import IndexArray, mask_without
from datamodels.verify.methods import Orders
from datamodels.verify.questions import Listed
from datamodels.verify.record import SUPPORT, RemovalRecord
from datamodels.verify.retrain import Request, Retrained


class Removal(Listed):
    """The images `indices`, removed in the models `removed`, and a control; without models there is nothing to find out.

    `rule` is 'support' for what a search has found, or a fixed size in digits.
    """

    def __init__(self, orders: Orders, target: int, rule: str, indices: IndexArray, removed: list[Request]) -> None:
        self.orders, self.target, self.rule, self.indices, self.removed = orders, target, rule, indices, removed
        self.control, self.control_size = _control(orders, target, len(indices), removed) if removed else ([], 0)
        self.after: Outcome | None = None
        self.of_control: Outcome | None = None
        super().__init__([*removed, *self.control])

    @classmethod
    def of_size(cls, orders: Orders, target: int, size: int) -> Removal:
        """A fixed number of images, those of the largest weights."""
        indices = largest_weights(orders.weights(target), 0.0, size).indices
        mask = mask_without(orders.n, indices)
        removed = [Request.of(mask, repetition) for repetition in range(2 * orders.settings.models)]
        return cls(orders, target, str(size), indices, removed)

    @classmethod
    def of_search(cls, orders: Orders, target: int, search: Search, judged: list[Request] | None) -> Removal:
        """The set that a search has found, by the models by which it was judged; without any, what weights alone suggest."""
        if judged is None:
            wanted = smallest_support(orders.weights(target), search.base, 0.0, orders.settings.max_size)
            return cls(orders, target, SUPPORT, wanted.indices, [])
        return cls(orders, target, SUPPORT, search.order[: search.high], judged)

    def judge(self, found: Retrained) -> None:
        """The margin after, and that of the control."""
        self.after = judge(*found.of(self.removed, self.target))
        self.of_control = judge(*found.of(self.control, self.target))

    def record(self, before: Outcome) -> RemovalRecord:
        """What came of it, with the margin before."""
        support: Support = support_of(self.orders.weights(self.target), before.mean_margin, self.indices)
        right, label = before.mean_margin > 0, self.orders.label(self.target)
        return RemovalRecord(
            target=self.target,
            label=label if label >= 0 else None,
            rule=self.rule,
            size=len(support.indices),
            control_size=self.control_size,
            removed_indices=tuple(support.indices.tolist()),
            removed_weights=tuple(support.weights.tolist()),
            predicted_before=support.predicted_before,
            predicted_after=support.predicted,
            before=before,
            after=self.after,
            control=self.of_control,
            right_before=right,
            flipped=right and _flipped(self.after),
            control_flipped=right and _flipped(self.of_control),
        )


def _flipped(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.verdict == FLIPPED


def _control(orders: Orders, target: int, size: int, removed: list[Request]) -> tuple[list[Request], int]:
    """A model for each of those removed, and how many images each lacks."""
    label = orders.label(target)
    same_class = np.flatnonzero(orders.learner.train_labels == label)
    size = min(size, len(same_class))
    sets = [control_images(orders.settings.seed, label, same_class, size, request.repetition) for request in removed]
    models = [
        Request.of(mask_without(orders.n, images), request.repetition) for images, request in zip(sets, removed, strict=True)
    ]
    return models, size


def control_images(seed: int, label: int, same_class: IndexArray, size: int, repetition: int) -> IndexArray:
    """Random images of one class, a function of (seed, class, size, repetition) alone."""
    return np.random.default_rng([seed, abs(label), size, repetition]).permutation(same_class)[:size]
