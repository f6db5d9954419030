"""The lasso against scikit-learn's, and against what must not change it."""

import numpy as np
import pytest
from sklearn.linear_model import Lasso

from datamodels.errors import InputError
from datamodels.regress import lasso
from datamodels.regress import moments as moments_module
from datamodels.regress.kernels import soft_threshold
from datamodels.regress.lasso import lipschitz, solve
from datamodels.regress.moments import Moments
from datamodels.subsets import pack

PROBLEMS = range(20)


def make(number):
    """A random problem: m > N and m < N, columns correlated or rare, sparse weights, some targets pure noise."""
    rng = np.random.default_rng(number)
    m, n, t = int(rng.integers(40, 200)), int(rng.integers(5, 80)), 3
    x = rng.random((m, n)) < rng.uniform(0.2, 0.8)
    if number % 4 == 1:
        x[:, 1::2] = x[:, 0::2][:, : x[:, 1::2].shape[1]] ^ (rng.random((m, n // 2)) < 0.1)
    if number % 4 == 2:
        x[:, ::3] &= rng.random((m, len(range(0, n, 3)))) < 0.1
    w = rng.normal(size=(n, t)) * (rng.random((n, t)) < 0.2)
    y = x @ w + rng.normal(size=(m, t)) + rng.normal(size=t)
    return x, y


def problem_of(x, y):
    moments = Moments(x.shape[1], y.shape[1], np)
    moments.add(pack(x), y)
    return moments.problem()


def objective(x, y, w, b, lam):
    return ((y - x @ w - b) ** 2).mean() / 2 + lam * np.abs(w).sum()


def solve_all(problem, lam, tolerance=1e-9):
    start = np.zeros(problem.correlation.shape)
    return solve(problem, lam, start, lipschitz(problem), tolerance)


@pytest.mark.parametrize("number", PROBLEMS)
def test_objective_equals_scikit_learns_and_the_gap_is_true(number):
    x, y = make(number)
    problem = problem_of(x, y)
    for ratio in (0.5, 0.1, 0.03):
        lam = problem.lam_max() * ratio
        for tolerance in (1e-4, 1e-8):
            solution = solve_all(problem, lam, tolerance)
            assert (solution.gap <= tolerance).all()
            bias = problem.bias(solution.weights)
            for t in range(y.shape[1]):
                oracle = Lasso(alpha=lam[t], tol=1e-10, max_iter=200_000).fit(x.astype(float), y[:, t])
                best = objective(x, y[:, t], oracle.coef_, oracle.intercept_, lam[t])
                mine = objective(x, y[:, t], solution.weights[:, t], bias[t], lam[t])
                assert mine - best <= tolerance * mine + 1e-9
                assert best - mine <= 1e-6 * best


def test_weights_equal_scikit_learns_where_they_are_unique():
    rng = np.random.default_rng(0)
    x = rng.random((500, 30)) < 0.5
    y = x @ rng.normal(size=(30, 4)) + rng.normal(size=(500, 4))
    problem = problem_of(x, y)
    lam = problem.lam_max() * np.array([0.5, 0.2, 0.1, 0.01])
    solution = solve_all(problem, lam, 1e-12)
    for t in range(4):
        oracle = Lasso(alpha=lam[t], tol=1e-12, max_iter=200_000).fit(x.astype(float), y[:, t])
        np.testing.assert_allclose(solution.weights[:, t], oracle.coef_, atol=1e-5)
        assert problem.bias(solution.weights)[t] == pytest.approx(oracle.intercept_, abs=1e-5)


def test_lam_max_is_where_the_first_weight_appears():
    problem = problem_of(*make(3))
    top = problem.lam_max()
    assert not solve_all(problem, top * 1.0001).weights.any()
    assert (np.count_nonzero(solve_all(problem, top * 0.98).weights, axis=0) >= 1).all()


def test_a_warm_start_and_the_company_of_other_targets_change_nothing():
    problem = problem_of(*make(0))
    lam = problem.lam_max() * 0.1
    cold = solve_all(problem, lam)
    start = np.random.default_rng(0).normal(size=cold.weights.shape)
    warm = solve(problem, lam, start, lipschitz(problem), 1e-9)
    np.testing.assert_allclose(warm.weights, cold.weights, atol=1e-3)
    again = solve(problem, lam, cold.weights.copy(), lipschitz(problem), 1e-9)
    assert again.steps == 0
    assert np.array_equal(again.weights, cold.weights)


def test_permuting_images_models_and_targets_permutes_the_solution():
    x, y = make(4)
    rng = np.random.default_rng(0)
    models, images, targets = (rng.permutation(k) for k in (*x.shape, y.shape[1]))
    problem, other = problem_of(x, y), problem_of(x[models][:, images], y[models][:, targets])
    lam = problem.lam_max() * 0.2
    first, second = solve_all(problem, lam, 1e-11), solve_all(other, lam[targets], 1e-11)
    np.testing.assert_allclose(second.weights, first.weights[images][:, targets], atol=1e-4)


def test_a_constant_target_gets_zero_weights_and_its_mean():
    x, y = make(5)
    y[:, 1] = 2.5
    problem = problem_of(x, y)
    solution = solve_all(problem, np.maximum(problem.lam_max() * 0.1, 1e-300))
    assert not solution.weights[:, 1].any()
    assert problem.bias(solution.weights)[1] == pytest.approx(2.5)
    assert np.isfinite(solution.weights).all()


def test_running_out_of_steps_is_an_error():
    problem = problem_of(*make(1))
    lam = problem.lam_max() * 1e-3
    with pytest.raises(InputError, match="duality gap above"):
        solve(problem, lam, np.zeros(problem.correlation.shape), lipschitz(problem), 1e-12, max_steps=5)


def test_moments_do_not_depend_on_the_tiles_and_equal_centred_products():
    x, y = make(7)
    whole = problem_of(x, y)
    parts = Moments(x.shape[1], y.shape[1], np)
    for rows in np.array_split(np.arange(len(x)), 7):
        parts.add(pack(x[rows]), y[rows])
    split = parts.problem()
    xc, yc = x - x.mean(0), y - y.mean(0)
    identity = np.eye(x.shape[1])
    np.testing.assert_allclose(whole.times(identity), xc.T @ xc / len(x), atol=1e-12)
    np.testing.assert_allclose(split.times(identity[:, 3]), whole.times(identity)[:, 3], atol=1e-12)
    for name, oracle in (("correlation", xc.T @ yc), ("variance", (yc**2).sum(0))):
        np.testing.assert_allclose(getattr(whole, name), oracle / len(x), atol=1e-12)
        np.testing.assert_allclose(getattr(split, name), getattr(whole, name), atol=1e-12)


def test_lipschitz_bounds_the_largest_eigenvalue_closely():
    problem = problem_of(*make(8))
    largest = np.linalg.eigvalsh(problem.times(np.eye(len(problem.mean_x))))[-1]
    assert largest <= lipschitz(problem) <= 1.1 * largest


def test_soft_threshold():
    assert soft_threshold(np.array([-3.0, -1, 0, 0.5, 2]), 1.0).tolist() == [-2, 0, 0, 0, 1]


def test_float32_that_does_not_come_to_its_gap_goes_on_in_float64(monkeypatch):
    x, y = make(0)
    moments = Moments(x.shape[1], y.shape[1], np, np.float32)
    moments.add(pack(x), y)
    problem = moments.problem()
    lam, start = problem.lam_max() * 0.1, np.zeros(problem.correlation.shape, np.float32)
    monkeypatch.setattr(lasso, "FLOAT32_STEPS", 4)
    solution = solve(problem, lam.astype(float), start, lipschitz(problem), 1e-10)
    assert solution.steps > 4
    for t in range(y.shape[1]):
        oracle = Lasso(alpha=lam[t], tol=1e-12, max_iter=200_000).fit(x.astype(float), y[:, t])
        np.testing.assert_allclose(solution.weights[:, t], oracle.coef_, atol=1e-4)
    monkeypatch.setattr(lasso, "FLOAT32_STEPS", 10**9)
    with pytest.raises(InputError, match="duality gap above"):
        solve(problem, lam.astype(float), start, lipschitz(problem), 1e-10, max_steps=2000)


@pytest.mark.parametrize("rows", [7, 1000])
def test_counts_in_float32_are_exact_and_centring_is_taken_back_to_the_last_bit(rows, monkeypatch):
    monkeypatch.setattr(moments_module, "GRAM_ROWS", rows)
    rng = np.random.default_rng(0)
    x, y = rng.random((4000, 40)) < rng.uniform(0.05, 0.95, 40), rng.normal(size=(4000, 2))
    moments = Moments(40, 2, np, np.float32)
    for part in np.array_split(np.arange(4000), 9):
        moments.add(pack(x[part]), y[part])
        problem = moments.problem()
    xc = x - x.mean(0)
    np.testing.assert_allclose(problem.gram, xc.T @ xc / 4000, atol=3e-8)
    assert np.array_equal(problem.gram, problem.gram.T)
    moments._uncentre()
    assert np.array_equal(np.triu(moments.xx), np.triu(x.T.astype(int) @ x.astype(int)))
