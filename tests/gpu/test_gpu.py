"""What only a GPU can show: kernels against their NumPy references, and the same mathematics on either device."""

import dataclasses
import importlib.util

import numpy as np
import pytest
import torch

from datamodels.regress import fit_datamodels
from datamodels.regress.arrays import to_numpy
from datamodels.regress.kernels import extrapolate, fista_step, gap_sums, saga_residuals, saga_step, unpacked
from datamodels.settings import GroupSettings, RegressSettings
from datamodels.subsets import draw_masks, pack
from datamodels.training import Trainer, choose_groups, device_named, first_order
from datamodels.training.group import Group
from tests.regress.test_path import planted, store_of
from tests.regress.test_prior import drawn, of_array


def _cupy_has_gpu():
    if importlib.util.find_spec("cupy") is None:
        return False
    import cupy

    return bool(cupy.cuda.is_available())


needs_cupy = pytest.mark.skipif(not _cupy_has_gpu(), reason="CuPy is not installed here or finds no GPU")
needs_torch = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU here")


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


@needs_torch
def test_first_order_attribution_is_the_same_on_either_device_in_float64(digits, recipe):
    masks = draw_masks(0, range(2), 60, 0.5)
    on = [
        first_order(Trainer(digits, recipe, device, dtype=torch.float64), masks, [(0, 0), (0, 1)], 64)
        for device in (torch.device("cpu"), device_named("0"))
    ]
    for name in ("gradients", "features_train", "features_test"):
        np.testing.assert_allclose(on[1][name], on[0][name], rtol=1e-3, atol=1e-4 * np.abs(on[0][name]).max())


@needs_torch
def test_a_model_is_the_same_on_either_device_in_float64(digits, recipe):
    masks, keys = draw_masks(0, range(4), 60, 0.5), [(0, i) for i in range(4)]
    margins = []
    for device in ("cpu", "0"):
        trainer = Trainer(digits, recipe, device_named(device), dtype=torch.float64)
        margins.append(trainer.margins(masks, keys))
    np.testing.assert_allclose(margins[1], margins[0], atol=1e-5)


@needs_torch
@pytest.mark.parametrize("per_kernel", [1, 3, 7])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_block_trained_twice_on_one_gpu_gives_bitwise_the_same_rows(digits, recipe, precision, per_kernel):
    masks, keys = draw_masks(0, range(7), 60, 0.5), [(0, i) for i in range(7)]
    recipe = dataclasses.replace(recipe, precision=precision)
    first, second = (Trainer(digits, recipe, device_named("0"), per_kernel).margins(masks, keys) for _ in range(2))
    assert np.isfinite(first).all()
    assert np.array_equal(first, second)


@needs_torch
@pytest.mark.parametrize("per_kernel", [1, 3])
def test_programs_on_streams_train_the_models_that_one_program_trains(digits, recipe, per_kernel):
    masks, keys = draw_masks(0, range(7), 60, 0.5), [(0, i) for i in range(7)]
    apart, together = (Trainer(digits, recipe, device_named("0"), g, torch.float64) for g in (per_kernel, None))
    np.testing.assert_allclose(apart.margins(masks, keys), together.margins(masks, keys), rtol=0, atol=1e-5)


@needs_torch
def test_a_replayed_graph_takes_the_steps_that_plain_calls_take(digits, recipe, monkeypatch):
    masks, keys = draw_masks(0, range(4), 60, 0.5), [(0, i) for i in range(4)]
    trainer = Trainer(digits, recipe, device_named("0"), 2, torch.float64)
    replayed = trainer.margins(masks, keys)
    monkeypatch.setattr(Group, "captured", lambda group: group.advance)
    np.testing.assert_allclose(trainer.margins(masks, keys), replayed, rtol=0, atol=1e-9)


@needs_torch
def test_groups_are_chosen_by_measuring_both_ways_of_sharing_a_gpu(digits, recipe):
    chosen, speeds = choose_groups(digits, recipe, GroupSettings(), device_named("0"))
    assert speeds[chosen] > 0
    assert {(2, 1), (2, 2)} <= {(g.models_at_once, g.models_per_kernel) for g in speeds}
