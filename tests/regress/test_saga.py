"""SAGA against the Gram solver and scikit-learn: other arithmetic, the same problem."""

import dataclasses
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from sklearn.linear_model import Lasso

from datamodels.errors import InputError
from datamodels.progress import no_advance
from datamodels.regress import fit_datamodels, saga, solvers
from datamodels.regress.memory import needs
from datamodels.regress.solvers import Gram, Saga, plan
from datamodels.regress.source import Source
from datamodels.settings import RegressSettings
from datamodels.store import Store
from tests.regress.test_lasso import PROBLEMS, make
from tests.regress.test_path import SETTINGS, planted, store_of


def source_of(folder, x, y):
    return Source(store_of(folder, x, y.astype(np.float32)), 0, y.shape[1])


def both(folder, x, y, **changed):
    """The two solvers' lassos of all targets."""
    source, chosen = source_of(folder, x, y), dataclasses.replace(RegressSettings(device="cpu", gap=1e-6), **changed)
    ids = np.arange(len(x))
    found = []
    for kind in (Gram, Saga):
        solver = kind(source, chosen, np.float64, np)
        solver.add(ids, no_advance)
        found.append(solver.lasso(slice(0, source.t)))
    return found


@pytest.mark.parametrize("number", [*PROBLEMS[::2], *(pytest.param(k, marks=pytest.mark.slow) for k in PROBLEMS[1::2])])
def test_both_solvers_find_one_minimum(tmp_path, number, monkeypatch):
    monkeypatch.setattr(saga, "BATCH_ROWS", 11)
    x, y = make(number)
    y = y.astype(np.float32).astype(float)
    gram, stream = both(tmp_path / "s", x, y, standardise=number % 2 == 0)
    np.testing.assert_allclose(stream.top, gram.top, rtol=1e-9)
    which, start = np.arange(3), np.zeros((x.shape[1], 3))
    for ratio in (0.5, 0.1):
        lam = gram.top * ratio
        found = [lasso.solve(which, lam, start.copy()) for lasso in (gram, stream)]
        penalty = gram.problem.penalty
        for t in which:
            p, q = (
                ((y[:, t] - x @ w[:, t] - lasso.bias(which, w)[t]) ** 2).mean() / 2
                + lam[t] * (penalty[:, 0] * np.abs(w[:, t])).sum()
                for w, lasso in zip(found, (gram, stream), strict=True)
            )
            assert p == pytest.approx(q, rel=1e-5)


def test_weights_agree_where_they_are_unique(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.random((600, 30)) < 0.5
    y = x @ rng.normal(size=(30, 4)) + rng.normal(size=(600, 4))
    y = y.astype(np.float32).astype(float)
    gram, stream = both(tmp_path / "s", x, y, gap=1e-10)
    which, lam, start = np.arange(4), gram.top * 0.1, np.zeros((30, 4))
    np.testing.assert_allclose(stream.solve(which, lam, start.copy()), gram.solve(which, lam, start), atol=1e-4)


def test_standardised_weights_are_scikit_learns_on_standardised_masks(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.random((300, 12)) < np.linspace(0.05, 0.6, 12)
    y = (x @ rng.normal(size=(12, 2)) + rng.normal(size=(300, 2))).astype(np.float32).astype(float)
    deviation = x.std(0)
    for lasso in both(tmp_path / "s", x, y, gap=1e-10, standardise=True):
        lam = lasso.top * 0.2
        weights = lasso.solve(np.arange(2), lam, np.zeros((12, 2)))
        for t in range(2):
            oracle = Lasso(alpha=lam[t], tol=1e-12, max_iter=100_000).fit((x - x.mean(0)) / deviation, y[:, t])
            np.testing.assert_allclose(weights[:, t], oracle.coef_ / deviation, atol=1e-4)


def test_a_whole_regression_by_either_solver_is_the_same(tmp_path):
    masks, margins, weights = planted()
    store = store_of(tmp_path / "s", masks, margins)
    exact = dataclasses.replace(SETTINGS, gap=1e-6, lam_ratio=0.02)
    gram, stream = (fit_datamodels(store, dataclasses.replace(exact, solver=name, block=4)) for name in ("gram", "saga"))
    np.testing.assert_allclose(stream.weights, gram.weights, atol=1e-3)
    np.testing.assert_allclose(stream.lam, gram.lam, rtol=1e-6)
    np.testing.assert_allclose(stream.metrics["lds"], gram.metrics["lds"], atol=1e-3)
    assert (gram.solver["solver"], stream.solver["solver"]) == ("gram", "saga")
    assert np.abs(stream.weights - weights).max() < 0.12


def test_float32_comes_to_its_gap_too_reckoned_from_the_data_in_float64(tmp_path):
    x, y = make(6)
    y = y.astype(np.float32)
    source, chosen = source_of(tmp_path / "s", x, y), RegressSettings(device="cpu")
    xc, yc = x - x.mean(0), y.astype(float) - y.astype(float).mean(0)
    for kind in (Gram, Saga):
        solver = kind(source, chosen, np.float32, np)
        solver.add(np.arange(len(x)), no_advance)
        lasso = solver.lasso(slice(0, 3))
        lam = lasso.top * 0.05
        w = lasso.solve(np.arange(3), lam, np.zeros((x.shape[1], 3), np.float32))
        assert w.dtype == np.float32
        r = yc - xc @ w.astype(float)
        primal = (r**2).mean(0) / 2 + lam * np.abs(w).sum(0)
        s = np.minimum(1, lam / (np.abs(xc.T @ r) / len(x)).max(0))
        dual = s * (yc * r).mean(0) - s**2 * (r**2).mean(0) / 2
        assert (primal - dual <= 1.1e-4 * primal).all()


def test_a_problem_that_is_not_solved_is_said_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(saga, "MOST_CHECKS", 2)
    _, stream = both(tmp_path / "s", *make(1), gap=1e-12)
    with pytest.raises(InputError, match="3 of 3 targets have a duality gap above 1e-12 after 8 passes over the models"):
        stream.solve(np.arange(3), stream.top * 1e-3, np.zeros((stream.stream.source.n, 3)))


def test_the_solver_is_chosen_by_what_fits_into_memory(tmp_path, monkeypatch):
    masks, margins, _ = planted()
    source = source_of(tmp_path / "s", masks, margins)
    large = Source(cast("Store", SimpleNamespace(meta=SimpleNamespace(num_train=50_000))), 0, 1000)

    def planned(room, of=large, **changed):
        monkeypatch.setattr(solvers, "free_memory", lambda xp: int(room))
        for name, shown in (("gram", "Gram"), ("saga", "Saga")):
            monkeypatch.setitem(solvers.SOLVERS, name, lambda *_, shown=shown: shown)
        settings = RegressSettings(**changed)
        found = plan(of, settings, needs(of.n, of.t, (216_000, 54_000, 30_000), settings, on_host=True), np)
        return cast(object, found.solver), found.block

    assert planned(80e9) == ("Gram", 256)
    assert planned(80e9, block=1000) == ("Gram", 1000)
    assert planned(80e9, source) == ("Gram", 6)
    solver, block = planned(12.6e9)
    assert solver == "Gram"
    assert 0 < block < 256
    assert planned(8e9)[0] == "Saga"
    assert planned(80e9, solver="saga") == ("Saga", 256)
    for refused in ({"solver": "gram"}, {"block": 1000}):
        with pytest.raises(InputError, match=r"regress.solver \w+ with \d+ targets at once needs [\d,]+ MB of memory"):
            planned(1e9, **refused)
