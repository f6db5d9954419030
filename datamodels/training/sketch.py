"""A random projection of gradients that costs one addition a number: the count sketch.

Each of P numbers goes with a random sign into one of D buckets, which are summed (Charikar, Chen & Farach-Colton 2002; as
feature hashing Weinberger, Dasgupta, Langford, Smola & Attenberg 2009). Inner products are kept in the mean, over signs and
buckets, with variance

    Var ⟨Sx, Sy⟩ ≤ (|x|²|y|² + ⟨x, y⟩²) / D,

which is that of a dense matrix of random signs, for D times less work. It asks only that any two numbers share a bucket with
probability at most 1/D: the row is cut into pieces of D numbers, and each piece laid over the buckets with a random rotation,
so that it is read in order. All layers share the buckets, so that none needs a share of D of its own: a layer with large
gradients has as much of it as they take.

Factors for each layer (LoGra, Choe et al. 2024) take still fewer operations where layers are wide. But the gradient of one
image is nearly an outer product, and inner products of such have a variance of up to 1/r_in + 1/r_out of their squares, with
D = r_in r_out numbers a layer.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

SEED = 0


class Sketch:
    """Random signs and buckets for vectors that come layer by layer, (B, P_l) each, of the sizes P_l = `sizes`.

    They follow from the sizes and D = `dimensions` alone, drawn on the host: the same for all networks, images and devices.
    """

    def __init__(self, sizes: tuple[int, ...], dimensions: int, device: torch.device, dtype: torch.dtype) -> None:
        self.dimensions = dimensions
        self.layers = [_drawn(layer, size, dimensions, device, dtype) for layer, size in enumerate(sizes)]

    def add(self, total: Tensor, vectors: Tensor, layer: int) -> None:
        """Add to the projections (B, D) what the vectors (B, P_l) of one layer contribute."""
        source, signs = self.layers[layer]
        signed = vectors.index_select(1, source).mul_(signs)
        total += signed.view(len(vectors), -1, self.dimensions).sum(1)


@functools.lru_cache(maxsize=8)
def sketch(sizes: tuple[int, ...], dimensions: int, device: torch.device, dtype: torch.dtype) -> Sketch:
    """The sketch of these sizes, drawn once in a process."""
    return Sketch(sizes, dimensions, device, dtype)


def _drawn(layer: int, size: int, dimensions: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """For each bucket of each piece the number that goes into it and its sign, which is 0 where the last piece is short."""
    rng = np.random.default_rng([SEED, layer])
    pieces = -(-size // dimensions)
    turned = (np.arange(dimensions) + rng.integers(0, dimensions, (pieces, 1))) % dimensions
    source = (turned + np.arange(pieces)[:, None] * dimensions).ravel()
    signs = np.where(source < size, rng.choice([-1.0, 1.0], source.size), 0)
    return torch.from_numpy(np.minimum(source, size - 1)).to(device), torch.from_numpy(signs).to(device, dtype)
