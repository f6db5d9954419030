"""Images of any numbers and channels as pictures to look at."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from datamodels.subsets import Array

WHITE = 255


def span(splits: Iterable[Array]) -> tuple[float, float]:
    """The least and the largest number of all images, (n, H, W, C) each."""
    ends = [(float(images.min()), float(images.max())) for images in splits if images.size]
    return min(low for low, _ in ends), max(high for _, high in ends)


def as_pictures(images: Array, ends: tuple[float, float]) -> Array:
    """Images (k, H, W, C) as uint8 (k, H, W, 1 or 3), floats by the range of all images, so that pictures can be compared.

    Of two channels, grey and transparency mostly, the first is shown, of four and more the first three.
    """
    shown = images[..., : 3 if images.shape[-1] >= 3 else 1]
    if shown.dtype == np.uint8:
        return shown
    low, high = ends
    scaled = (shown.astype(np.float64) - low) / ((high - low) or 1.0)
    return np.rint(WHITE * scaled).astype(np.uint8)
