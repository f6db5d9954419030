"""Orders of the training images for one target, most important first, by several ideas of what matters."""

from __future__ import annotations

import numpy as np

from datamodels.subsets import Array, IndexArray
from datamodels.vectors import of_length_1


def by_weight(weights: Array, most: int) -> IndexArray:
    """The datamodel's own: images by weight (N,), largest first, those of positive weight, at most so many."""
    order = np.argsort(-weights, kind="stable")[:most]
    return order[weights[order] > 0].astype(np.int64)


def at_random(same_class: IndexArray, most: int, seed: int, target: int) -> IndexArray:
    """Images of the target's class, shuffled: a function of (seed, target)."""
    return np.random.default_rng([seed, target]).permutation(same_class)[:most]


def by_similarity(similarity: Array, same_class: IndexArray, most: int) -> IndexArray:
    """Images of the target's class by similarity (N,), the nearest first."""
    return same_class[np.argsort(-similarity[same_class], kind="stable")][:most]


def cosine(of: Array, to: Array) -> Array:
    """Cosine similarity of embeddings: (A, d) and (B, d) to (A, B)."""
    found: Array = of_length_1(of) @ of_length_1(to).T
    return found
