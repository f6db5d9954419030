"""A set removed from one target, beside a control: does the margin fall by more than for as many random images of its class?

The control removes other images for each of its models, so that its mean is over the choice of images as well. Controls of one
class and size serve every target of that class. To repair, images of other classes are removed than the target's: then the
control has as many of each of their classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from datamodels.brittleness import Support, largest_weights, smallest_support, support_of
from datamodels.brittleness.judging import FLIPPED, HELD, NOTHING_KNOWN, Outcome, judge
from datamodels.brittleness.spread import Spread
from datamodels.subsets import IndexArray, mask_without
from datamodels.verify.methods import Orders
from datamodels.verify.questions import Listed
from datamodels.verify.record import SUPPORT, RemovalRecord
from datamodels.verify.retrain import Request, Retrained

NOTHING: IndexArray = np.zeros(0, np.int64)


class Removal(Listed):
    """The images `indices`, removed in the models `removed`, and a control; without models there is nothing to find out.

    `rule` is 'support' for what a search has found, or a fixed size in digits.
    """

    def __init__(
        self,
        orders: Orders,
        target: int,
        rule: str,
        indices: IndexArray,
        removed: list[Request],
        spread: Spread = NOTHING_KNOWN,
    ) -> None:
        self.orders, self.target, self.rule, self.indices, self.removed = orders, target, rule, indices, removed
        number = max(len(removed), orders.settings.most_models // 3, 2)
        self.control, self.control_size = _control(orders, target, indices, number) if removed else ([], 0)
        self.spread = spread
        self.after: Outcome | None = None
        self.of_control: Outcome | None = None
        super().__init__([*removed, *self.control])

    @classmethod
    def of_size(cls, orders: Orders, target: int, size: int) -> Removal:
        """A fixed number of images, those of the largest weights, or to repair the smallest."""
        indices = largest_weights(orders.towards(target), 0.0, size).indices
        indices = indices[~np.isin(indices, orders.targets.itself(target))]
        mask = mask_without(orders.n, indices)
        removed = [Request.of(mask, repetition) for repetition in range(max(2, 2 * orders.settings.most_models // 3))]
        return cls(orders, target, str(size), indices, removed)

    @classmethod
    def of_search(
        cls, orders: Orders, target: int, base: float, spread: Spread, found: IndexArray | None, judged: list[Request]
    ) -> Removal:
        """The set that a search has found, by the models that prove it; without one, what weights alone suggest."""
        if found is None:
            wanted = smallest_support(orders.towards(target), base, 0.0, orders.settings.max_size)
            return cls(orders, target, SUPPORT, wanted.indices, [])
        return cls(orders, target, SUPPORT, found, judged, spread)

    def judge(self, found: Retrained) -> None:
        """The margin after, and that of the control."""
        members = self.orders.targets.members(self.target)
        self.after = judge(*found.of(self.removed, members), spread=self.spread)
        self.of_control = judge(*found.of(self.control, members))

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
            flipped=right and _is(self.after, FLIPPED),
            control_flipped=right and _is(self.of_control, FLIPPED),
            repaired=not right and _is(self.after, HELD),
            control_repaired=not right and _is(self.of_control, HELD),
        )


def _is(outcome: Outcome | None, verdict: str) -> bool:
    return outcome is not None and outcome.verdict == verdict


def _control(orders: Orders, target: int, indices: IndexArray, number: int) -> tuple[list[Request], int]:
    """So many models, and how many images each lacks."""
    itself, wanted = orders.targets.itself(target), list(_wanted(orders, target, indices))

    def images(repetition: int) -> IndexArray:
        parts = (control_images(orders.settings.seed, *part, repetition, itself) for part in wanted)
        return np.concatenate(list(parts))

    sets = [images(repetition) for repetition in range(number)]
    models = [Request.of(mask_without(orders.n, of), repetition) for repetition, of in enumerate(sets)]
    return models, len(sets[0])


def _wanted(orders: Orders, target: int, indices: IndexArray) -> Iterator[tuple[int, IndexArray, int]]:
    """Of which classes a control is: each with the training images that are of it, and how many of these."""
    labels = orders.learner.train_labels
    if orders.repairs:
        for label, size in zip(*np.unique(labels[indices], return_counts=True), strict=True):
            yield int(label), np.flatnonzero(labels == label), int(size)
    else:
        yield orders.label(target), np.flatnonzero(orders.targets.same_class(target)), len(indices)


def control_images(
    seed: int, label: int, same_class: IndexArray, size: int, repetition: int, itself: IndexArray = NOTHING
) -> IndexArray:
    """Random images of one class, a function of (seed, class, size, repetition) alone, but for a target that is one itself."""
    size = min(size, len(same_class))
    order = np.random.default_rng([seed, abs(label), size, repetition]).permutation(same_class)
    return order[~np.isin(order, itself)][:size]
