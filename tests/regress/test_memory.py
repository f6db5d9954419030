"""The plan of memory holds, and is not much too large: what is planned against what is held at most."""

import importlib
import pkgutil
import tracemalloc
from typing import Any

import numpy as np
import pytest

import datamodels.regress
from datamodels.regress import fit_datamodels, lasso
from datamodels.regress.memory import planned_bytes
from datamodels.settings import RegressSettings
from datamodels.subsets import draw_masks
from tests.regress.test_path import store_of
from tests.regress.test_prior import of_array

N, M, T = 300, 600, 48
SMALL = {
    "TILE_ROWS": 32,
    "GRAM_ROWS": 64,
    "WIDE_ROWS": 16,
    "ROWS_AT_ONCE": 32,
    "CHUNK_ROWS": 32,
    "BATCH_ROWS": 64,
    "BASIS_NUMBERS": 4 * N * 6,
}


def drawn(folder, n, m=M):
    """A store of N images, and covariates of its weights."""
    rng = np.random.default_rng(0)
    masks = draw_masks(0, range(m), n, 0.5)
    a = rng.normal(size=(2, n, T))
    weights = 0.3 * a[0] * (rng.random((n, T)) < 0.05)
    margins = masks @ weights + rng.normal(size=(m, T))
    return store_of(folder, masks, margins, "float16"), of_array(a)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("m") / "s", N)


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Large beside what Python itself takes."""
    return drawn(tmp_path_factory.mktemp("m") / "s", 4 * N, 10 * N)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Of fewer models than images."""
    return drawn(tmp_path_factory.mktemp("m") / "s", 4 * N, 240)


MODULES = [
    importlib.import_module(f"datamodels.regress.{module.name}")
    for module in pkgutil.iter_modules(datamodels.regress.__path__)
    if module.name != "__main__"
]


def make(monkeypatch, **sizes):
    """Set sizes wherever they are used."""
    for name, size in sizes.items():
        for module in MODULES:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, size)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """What is constant made small, so that what grows is seen."""
    make(monkeypatch, **SMALL)


CASES: dict[str, dict[str, Any]] = {
    "gram": {},
    "gram float64": {"gap": 1e-8},
    "gram standardise": {"standardise": True},
    "saga": {"solver": "saga"},
    "saga float64": {"solver": "saga", "gap": 9e-6},
    "mean": {"prior": "known"},
    "mean float64": {"prior": "known", "gap": 1e-8},
    "sparse": {"prior": "known", "sparse": True},
    "sparse float64": {"prior": "known", "sparse": True, "gap": 1e-8},
    "widened": {},
    "gram large tiles": {},
    "mean large tiles": {"prior": "known"},
    "saga large tiles": {"solver": "saga"},
}


def settings_of(name, block, device):
    settings = {"lams": 6, "lam_ratio": 0.3, "block": block, "device": device, **CASES[name]}
    if settings.get("solver") == "saga":
        settings |= {"lams": 2, "lam_ratio": 0.9, "gap": settings.get("gap", 1e-2)}
    return RegressSettings(**{key: value for key, value in settings.items() if key != "prior"}), "prior" in CASES[name]


@pytest.mark.parametrize("block", [16, pytest.param(48, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_the_plan_holds_on_a_gpu(known, strict, monkeypatch, name, block):
    if "large tiles" in name:
        make(monkeypatch, TILE_ROWS=200, BATCH_ROWS=200)
    if name == "widened":
        monkeypatch.setattr(lasso, "FLOAT32_STEPS", 0)
    store, covariates = known
    settings, prior = settings_of(name, block, "gpu")
    fit = fit_datamodels(store, settings, covariates=covariates if prior else None)
    peak, planned = strict.peak[0], fit.solver["planned_bytes"]
    assert planned == planned_bytes(N, M, T, block, settings, covariates=2 if prior else None)
    assert peak <= planned <= 1.3 * peak


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("gram", 16),
        *(pytest.param(name, 48, marks=pytest.mark.slow) for name in ("gram float64", "mean", "saga", "sparse")),
    ],
)
def test_the_plan_holds_on_the_processor(larger, name, block):
    settings, prior = settings_of(name, block, "cpu")
    peak, planned = held(larger[0], settings, larger[1] if prior else None)
    assert peak <= planned <= 1.3 * peak


@pytest.mark.parametrize(
    ("solver", "lam_ratio"),
    [pytest.param("path", 0.3, marks=pytest.mark.slow), ("path", 1e-3), pytest.param("gram", 1e-3, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("gap", [1e-4, pytest.param(1e-8, marks=pytest.mark.slow)])
def test_the_plan_of_exact_paths_holds_whatever_their_supports(wide, solver, lam_ratio, gap):
    settings = RegressSettings(lams=60, lam_ratio=lam_ratio, block=16, device="cpu", solver=solver, gap=gap)
    peak, planned = held(wide[0], settings, None)
    # Reckoned for as many images in a support as there are models; there may be few.
    assert peak <= planned


def held(store, settings, covariates):
    """The most memory that a regression holds on the processor, and what was planned."""
    fit_datamodels(store, settings, covariates=covariates)  # what is loaded on first use is no part of it
    tracemalloc.start()
    try:
        fit = fit_datamodels(store, settings, covariates=covariates)
        return tracemalloc.get_traced_memory()[1], fit.solver["planned_bytes"]
    finally:
        tracemalloc.stop()
