"""What only a GPU can show: kernels against their NumPy references, and the same mathematics on either device."""

import dataclasses
import importlib.util

import numpy as np
import pytest

from datamodels.regress import fit_datamodels
from datamodels.regress.arrays import to_numpy
from datamodels.regress.kernels import extrapolate, fista_step, gap_sums, saga_residuals, saga_step, unpacked
from datamodels.settings import RegressSettings
from datamodels.subsets import pack
from tests.regress.test_path import planted, store_of
from tests.regress.test_prior import drawn, of_array


def _cupy_has_gpu():
    if importlib.util.find_spec("cupy") is None:
        return False
    import cupy

    return bool(cupy.cuda.is_available())


needs_cupy = pytest.mark.skipif(not _cupy_has_gpu(), reason="CuPy is not installed here or finds no GPU")


@needs_cupy
@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (300, 1001), (5, 50_000)])
def test_unpacking_equals_numpys(shape):
    masks = np.random.default_rng(0).random(shape) < 0.5
    import cupy

    assert np.array_equal(unpacked(pack(masks), shape[1], cupy).get(), unpacked(pack(masks), shape[1], np))


@needs_cupy
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (257, 3), (1000, 300), (50_000, 33)])
@pytest.mark.parametrize("factors", [1, None])  # of the penalty: for all targets, or for each
def test_kernels_do_on_a_gpu_what_their_references_do(shape, dtype, factors):
    import cupy

    rng = np.random.default_rng(0)
    a, b, c, d = (rng.normal(size=shape).astype(dtype) for _ in range(4))
    lam, penalty, beta = rng.random(shape[1]), 0.1 + rng.random((shape[0], factors or shape[1])), rng.random(shape[1])
    results = []
    for xp in (np, cupy):
        on = [xp.asarray(array) for array in (a, b, c, d, lam, penalty, beta)]
        w, mean, table = on[0].copy(), on[1].copy(), on[3].copy()
        changed = saga_residuals(on[2], on[1], table, xp)
        saga_step(w, mean, on[2], 40, 5, on[4], on[5], 0.3, xp)
        steps = fista_step(on[0], on[1], on[2], on[3], on[4], on[5], 0.7, xp)
        sums = gap_sums(on[0], on[1], on[2], on[5], xp)
        results.append([to_numpy(x) for x in (w, mean, table, changed, *steps, extrapolate(on[0], on[1], on[6], xp), *sums)])
    tolerance = 1e-4 if dtype == np.float32 else 1e-10
    for reference, kernel in zip(*results, strict=True):
        np.testing.assert_allclose(kernel, reference, rtol=tolerance, atol=tolerance * shape[0])


@needs_cupy
@pytest.mark.parametrize("solver", ["gram", "saga"])
@pytest.mark.parametrize("gap", [1e-4, 1e-8])
def test_the_regression_is_the_same_on_either_device(tmp_path, solver, gap):
    masks, margins, _ = planted()
    store = store_of(tmp_path / "s", masks, margins)
    chosen = RegressSettings(lams=30, gap=gap, solver=solver)
    on = {device: fit_datamodels(store, dataclasses.replace(chosen, device=device)) for device in ("cpu", "gpu")}
    if gap == 1e-4:
        np.testing.assert_allclose(on["gpu"].metrics["lds"], on["cpu"].metrics["lds"], atol=0.01)
        return
    np.testing.assert_allclose(on["gpu"].weights, on["cpu"].weights, atol=1e-4)
    np.testing.assert_allclose(on["gpu"].lam, on["cpu"].lam)


@needs_cupy
@pytest.mark.parametrize("gap", [1e-4, 1e-8])
def test_weights_with_a_prior_are_the_same_on_either_device(tmp_path, gap):
    masks, margins, a, _ = drawn(300)
    store, chosen = store_of(tmp_path / "s", masks, margins), RegressSettings(gap=gap)
    on = {
        device: fit_datamodels(store, dataclasses.replace(chosen, device=device), covariates=of_array(a))
        for device in ("cpu", "gpu")
    }
    np.testing.assert_allclose(on["gpu"].weights, on["cpu"].weights, atol=1e-3)
    np.testing.assert_allclose(on["gpu"].lam, on["cpu"].lam, rtol=1e-3)
