"""What must be so of an array module beside NumPy: run on the strict stand-in everywhere, on CuPy where there is a GPU."""

import dataclasses

import numpy as np

from datamodels.regress import fit_datamodels
from datamodels.regress.arrays import on_device, to_numpy
from datamodels.regress.kernels import extrapolate, fista_step, gap_sums, saga_residuals, saga_step, unpacked
from datamodels.subsets import pack


def check_unpacking(xp, shape, dtype):
    """Masks unpacked there are NumPy's."""
    masks = np.random.default_rng(0).random(shape) < 0.5
    assert np.array_equal(to_numpy(unpacked(pack(masks), shape[1], xp, dtype)), masks)


def check_kernels(xp, shape, dtype, factors, seed=0):
    """All kernels do what their NumPy references do; `factors` is how many columns the penalty has."""
    rng = np.random.default_rng(seed)
    a, b, c, d = (rng.normal(size=shape).astype(dtype) for _ in range(4))
    lam, beta = rng.random(shape[1]), rng.random(shape[1])
    penalty = (0.1 + rng.random((shape[0], factors))).astype(dtype)
    results = []
    for module in (np, xp):
        of = [on_device(array.copy(), module) for array in (a, b, c, d, lam, penalty, beta)]
        w, mean, table, v, old = of[0].copy(), of[1].copy(), of[3].copy(), of[0].copy(), of[1].copy()
        changed = saga_residuals(of[2], of[1], table, module)
        saga_step(w, mean, of[2], 40, 5, of[4], of[5], 0.3, module)
        uphill = fista_step(v, of[1], of[2], of[3], of[4], of[5], 0.7, module)
        extrapolate(of[0], old, of[6], module)
        some = module.where(of[1] > 0.5, of[1], module.zeros_like(of[1]))
        sums = gap_sums(of[0], some, of[2], of[5], module)
        results.append([to_numpy(x) for x in (v, w, mean, table, changed, uphill, old, *sums)])
    tolerance = 1e-4 if dtype == np.float32 else 1e-10
    for reference, kernel in zip(*results, strict=True):
        np.testing.assert_allclose(kernel, reference, rtol=tolerance, atol=tolerance * shape[0])
    # Exactly zero where the reference is: sparsity is part of the result.
    assert np.array_equal(results[0][0] == 0, results[1][0] == 0)


def check_fit(store, settings, covariates=None, atol=1e-4, **given):
    """A regression on the GPU gives the weights, λ and metrics that it gives on the processor. Returns the GPU's."""
    there, here = (
        fit_datamodels(store, dataclasses.replace(settings, device=device), covariates=covariates, **kept)
        for device, kept in (("gpu", given), ("cpu", {}))
    )
    np.testing.assert_allclose(there.lam, here.lam, rtol=1e-4)
    np.testing.assert_allclose(there.weights, here.weights, atol=atol)
    np.testing.assert_allclose(there.bias, here.bias, atol=10 * atol)
    for name in ("lds", "r2", "mse"):
        np.testing.assert_allclose(there.metrics[name], here.metrics[name], atol=10 * atol)
    assert there.solver["block"] <= here.solver["block"]
    for name in ("solver", "number_format"):
        assert there.solver[name] == here.solver[name]
    return there
