"""The whole regression on the strict stand-in for CuPy: what it gives on NumPy, with nothing moved or waited for unasked."""

from functools import partial

import numpy as np
import pytest

from datamodels.errors import InputError
from datamodels.regress import fit_datamodels, lasso, provenance
from datamodels.regress import path as path_module
from datamodels.regress.arrays import on_device
from datamodels.regress.source import Source
from datamodels.regress.unfinished import Unfinished
from datamodels.settings import RegressSettings
from tests.regress.checks import check_fit
from tests.regress.test_path import SETTINGS, planted, store_of
from tests.regress.test_prior import drawn, of_array
from tests.standins.strict_cupy import OutOfMemoryError, Refused


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    masks, margins, _ = planted(m=400)
    return store_of(tmp_path_factory.mktemp("s") / "s", masks, margins, "float16")


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A store, and covariates of its weights."""
    masks, margins, a, _ = drawn(250, n=60, t=12)
    return store_of(tmp_path_factory.mktemp("p") / "s", masks, margins), of_array(a)


# At a gap of 1e-4 weights are what they are within it; at 1e-8 they agree closely.
EITHER = pytest.mark.parametrize(("gap", "atol"), [(1e-4, 0.02), (1e-8, 2e-4)])


def quiet(cupy):
    """Nothing was transferred or waited for but by `.get()`, and everything is given back."""
    assert not cupy.log, cupy.log
    assert cupy.gets > 0
    assert cupy.held[0] == cupy.live[0] == 0


@EITHER
@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("block", [0, 4])
def test_gram(store, strict, gap, atol, standardise, block):
    check_fit(store, RegressSettings(lams=12, gap=gap, solver="gram", standardise=standardise, block=block), atol=atol)
    quiet(strict)


@pytest.mark.parametrize(("gap", "atol"), [(1e-4, 0.02), pytest.param(9e-6, 5e-3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("standardise", [False, True])
def test_saga(store, strict, gap, atol, standardise):
    chosen = RegressSettings(lams=4, lam_ratio=0.05, gap=gap, solver="saga", standardise=standardise, block=4)
    fit = check_fit(store, chosen, atol=atol)
    assert fit.solver["number_format"] == ("float32" if gap == 1e-4 else "float64")
    quiet(strict)


@EITHER
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("targets", ["all", "1:7"])
def test_a_prior(known, strict, gap, atol, sparse, targets):
    store, covariates = known
    chosen = RegressSettings(lams=12, gap=gap, sparse=sparse, targets=targets, block=5, standardise=sparse)
    check_fit(store, chosen, covariates, atol=atol)
    quiet(strict)


def test_what_float32_does_not_solve_goes_on_in_float64(store, strict, monkeypatch):
    monkeypatch.setattr(lasso, "FLOAT32_STEPS", 3)
    fit = check_fit(store, RegressSettings(lams=8), atol=0.02)
    assert fit.solver["number_format"] == "float32"
    quiet(strict)


def test_what_is_unfinished_is_gone_on_with(store, strict, tmp_path, monkeypatch):
    chosen = RegressSettings(lams=8, block=4, device="gpu")
    whole, work = fit_datamodels(store, chosen), path_module.Run.refit
    keep = partial(Unfinished, tmp_path / "kept", provenance(store, chosen))

    def crashing(run, block, *rest):
        if block.start:
            raise KeyboardInterrupt
        return work(run, block, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(path_module.Run, "refit", crashing)
        with pytest.raises(KeyboardInterrupt):
            fit_datamodels(store, chosen, unfinished=keep())
    assert sorted(path.stem for path in (tmp_path / "kept").glob("*.npz")) == ["chosen-0-4", "chosen-4-6", "fitted-0-4"]
    again = fit_datamodels(store, chosen, unfinished=keep())
    assert np.array_equal(again.weights, whole.weights)
    quiet(strict)


def test_margins_and_masks_are_sent_as_they_are_stored_and_masks_once_for_a_block(store, strict):
    fit_datamodels(store, RegressSettings(lams=40, device="gpu", lam_ratio=0.01))
    parts = fit_datamodels(store, SETTINGS).parts
    m, (n, t) = len(store.done), (store.meta.num_train, store.meta.num_targets)
    twice = m + len(parts.choice)  # those that choose are taken in as well
    # float16 and bits; beside them the start of the refit, and a few numbers for each λ.
    rest = 4 * n * t + 8 * n + 40 * 6 * 8 * t * 8
    assert strict.uploaded <= twice * (2 * t + -(-n // 8)) + rest
    assert strict.uploaded >= m * -(-n // 8)


def test_a_margin_that_is_not_a_number_is_found_on_the_device(tmp_path, strict):
    masks, margins, _ = planted(m=300)
    margins[77, 2] = np.nan
    bad = store_of(tmp_path / "s", masks, margins)
    for solver in ("gram", "saga"):
        with pytest.raises(InputError, match="model 77 "):
            fit_datamodels(bad, RegressSettings(device="gpu", solver=solver, lams=2))
    assert strict.held[0] == strict.live[0] == 0


def test_arrays_come_to_the_device_in_c_order(store, strict):
    source, ids = Source(store, 0, 6), np.array([3, 9, 4])
    for array in (np.eye(3)[:, [2, 0]], np.ones((4, 3)).T, np.ones((3, 8))[:, ::2], strict.asarray(np.ones((4, 3)).T)):
        assert on_device(array, strict).flags.c_contiguous
        assert on_device(array, strict, np.float32).flags.c_contiguous
    for columns in (slice(1, 4), np.array([0, 3])):
        assert source.margins(ids, columns, strict).flags.c_contiguous


def test_the_stand_in_is_as_strict_as_cupy(strict):
    fortran, host = np.asfortranarray(np.ones((3, 2))), np.ones((3, 2))
    there = strict.asarray(fortran)
    assert there.flags.f_contiguous
    assert there.astype(np.float32).flags.f_contiguous
    assert strict.empty_like(there).flags.f_contiguous
    assert strict.asarray(fortran, order="C").flags.c_contiguous
    for mixed in (lambda: there + host, lambda: host @ there.T, lambda: np.add(host, there), lambda: strict.take(host, there)):
        with pytest.raises(Refused):
            mixed()
    with pytest.raises(Refused):
        np.asarray(there)
    with pytest.raises(TypeError):
        strict.zeros(3, casting="no")
    with pytest.raises(AttributeError):
        strict.no_such_function  # noqa: B018
    assert not strict.log
    there[np.array([0, 1])]
    assert bool((there > 0).all())
    assert strict.log == {"index from the host": 1, "bool()": 1}
    live = strict.live[0]
    more = strict.zeros((100, 10))
    assert strict.live[0] - live == 8000
    view = more[2:, 1:]
    del more
    assert strict.live[0] - live == 8000
    del view
    assert strict.live[0] == live
    strict.capacity = strict.held[0]
    with pytest.raises(OutOfMemoryError):
        strict.zeros(10**6)
