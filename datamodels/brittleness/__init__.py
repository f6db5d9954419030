"""From weights to sets R: orders of the training images, sets that weights suggest, the search for the smallest, judging."""

from datamodels.brittleness.judging import Outcome, beyond_doubt, judge
from datamodels.brittleness.orders import at_random, by_similarity, by_weight, cosine
from datamodels.brittleness.search import Effort, Search
from datamodels.brittleness.shrinkage import shrunk_weights
from datamodels.brittleness.supports import Support, largest_weights, smallest_support, support, support_of

__all__ = [
    "Effort",
    "Outcome",
    "Search",
    "Support",
    "at_random",
    "beyond_doubt",
    "by_similarity",
    "by_weight",
    "cosine",
    "judge",
    "largest_weights",
    "shrunk_weights",
    "smallest_support",
    "support",
    "support_of",
]
