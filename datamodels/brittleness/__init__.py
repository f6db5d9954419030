"""From weights to sets R: orders of the training images, the sets that weights suggest, and the search for the smallest."""

from datamodels.brittleness.orders import at_random, by_similarity, by_weight, cosine
from datamodels.brittleness.search import Search
from datamodels.brittleness.shrinkage import shrunk_weights
from datamodels.brittleness.supports import Support, largest_weights, smallest_support, support, support_of

__all__ = [
    "Search",
    "Support",
    "at_random",
    "by_similarity",
    "by_weight",
    "cosine",
    "largest_weights",
    "shrunk_weights",
    "smallest_support",
    "support",
    "support_of",
]
