"""The regression on a GPU against NumPy: on CuPy where there is a GPU, on its strict stand-in everywhere."""

import dataclasses

import numpy as np
import pytest

from datamodels.regress import fit_datamodels, lasso
from datamodels.regress.arrays import computing, free_memory
from datamodels.settings import RegressSettings
from tests.regress.checks import check_fit, check_kernels, check_unpacking
from tests.regress.test_path import planted, store_of
from tests.regress.test_prior import drawn, of_array


@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (300, 1001), (5, 50_000)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unpacking_equals_numpys(xp_gpu, shape, dtype):
    check_unpacking(xp_gpu, shape, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (257, 3), (1000, 300), (50_000, 33)])
@pytest.mark.parametrize("factors", [1, None])  # of the penalty: for all targets, or for each
def test_kernels_do_on_a_gpu_what_their_references_do(xp_gpu, shape, dtype, factors):
    check_kernels(xp_gpu, shape, dtype, factors or shape[1])


SOLVED = [("gram", 1e-4, 0.02, 0), ("gram", 1e-8, 1e-4, 4), ("saga", 1e-4, 0.02, 4)]


@pytest.mark.parametrize(("solver", "gap", "atol", "block"), SOLVED)
def test_the_regression_is_the_same_on_either_device(xp_gpu, tmp_path, solver, gap, atol, block):
    masks, margins, _ = planted(m=500)
    store = store_of(tmp_path / "s", masks, margins, "float16")
    check_fit(store, RegressSettings(lams=4, lam_ratio=0.1, gap=gap, solver=solver, block=block), atol=atol)


@pytest.mark.parametrize(("gap", "atol"), [(1e-4, 0.02), (1e-8, 1e-4)])
@pytest.mark.parametrize("sparse", [False, True])
def test_weights_with_a_prior_are_the_same_on_either_device(xp_gpu, tmp_path, gap, atol, sparse):
    masks, margins, a, _ = drawn(300)
    store = store_of(tmp_path / "s", masks, margins)
    check_fit(store, RegressSettings(gap=gap, sparse=sparse, lams=10, block=16), of_array(a), atol=atol)


def test_float32_goes_on_in_float64(xp_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(lasso, "FLOAT32_STEPS", 3)
    masks, margins, _ = planted(m=500)
    check_fit(store_of(tmp_path / "s", masks, margins), RegressSettings(lams=8), atol=0.02)


def test_memory_comes_back(xp_gpu, tmp_path):
    masks, margins, _ = planted(m=500)
    store = store_of(tmp_path / "s", masks, margins)
    with computing("gpu") as xp:
        before = free_memory(xp)
        fit = fit_datamodels(store, dataclasses.replace(RegressSettings(lams=5), device="gpu"), gpu="0")
        assert xp.get_default_memory_pool().total_bytes() == 0
        # What CUDA's libraries keep for themselves does not come back.
        assert free_memory(xp) >= before - 2**30
    assert fit.solver["planned_bytes"] > 0
