"""The random projection: inner products in the mean and their variance, and the same signs for everyone."""

import numpy as np
import pytest
import torch

from datamodels.training import sketch as module
from datamodels.training.sketch import Sketch, sketch

CPU = torch.device("cpu")
SIZES = (700, 64, 130, 5)


def projected(vectors, dimensions):
    """The vectors (B, Σ P_l) through a sketch, layer by layer."""
    drawn = Sketch(SIZES, dimensions, CPU, torch.float64)
    total = torch.zeros(len(vectors), dimensions, dtype=torch.float64)
    for layer, part in enumerate(torch.split(vectors, list(SIZES), dim=1)):
        drawn.add(total, part, layer)
    return total.numpy()


@pytest.mark.parametrize("dimensions", [16, 64, 100, 1024])
def test_inner_products_are_kept_in_the_mean_with_the_variance_of_dense_signs(dimensions, monkeypatch):
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, sum(SIZES), generator=rng, dtype=torch.float64)
    y += 0.5 * x
    found = []
    for seed in range(400):
        monkeypatch.setattr(module, "SEED", seed)
        a, b = projected(torch.stack([x, y]), dimensions)
        found.append(a @ b)
    exact, variance = float(x @ y), float((x @ x) * (y @ y) + (x @ y) ** 2) / dimensions
    assert abs(np.mean(found) - exact) < 4 * (variance / 400) ** 0.5
    assert np.var(found) < 1.3 * variance
    if dimensions < min(SIZES[:1]):
        assert np.var(found) > 0.5 * variance


def test_every_number_goes_with_one_sign_into_one_bucket_and_layers_share_the_buckets():
    whole = np.array([*projected(torch.eye(sum(SIZES), dtype=torch.float64), 100)])
    assert (np.abs(whole).sum(1) == 1).all()
    assert set(np.unique(whole)) == {-1, 0, 1}
    assert 0.4 < (whole.sum(1) > 0).mean() < 0.6
    # 100 numbers in a row never meet; the buckets are filled evenly but for the ends of the layers.
    assert (np.abs(whole[:100]).sum(0) == 1).all()
    assert np.abs(whole).sum(0).max() <= sum(-(-size // 100) for size in SIZES)


def test_it_is_drawn_once_and_from_sizes_and_dimensions_alone():
    first = sketch(SIZES, 64, CPU, torch.float32)
    assert sketch(SIZES, 64, CPU, torch.float32) is first
    torch.manual_seed(123)
    again = Sketch(SIZES, 64, CPU, torch.float32)
    for mine, its in zip(first.layers, again.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, its, strict=True))
