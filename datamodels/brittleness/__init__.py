"""From weights to the sets R of training images whose removal should flip a prediction."""

from datamodels.brittleness.supports import Support, largest_weights, smallest_support

__all__ = ["Support", "largest_weights", "smallest_support"]
