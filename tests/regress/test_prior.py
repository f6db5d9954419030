"""Weights with a prior: against dense linear algebra and ridge regression; a right prior helps, a wrong one costs nothing."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.linear_model import Lasso, Ridge

from datamodels.errors import InputError
from datamodels.regress import fit_datamodels
from datamodels.regress.moments import Moments
from datamodels.regress.prior import FLAT, Covariates, covariates_named, estimate, posterior_mean, ranks, shrunk_mean
from datamodels.regress.repeats import Repeats
from datamodels.regress.score import score
from datamodels.regress.split import Subsets, split_models
from datamodels.settings import RegressSettings
from datamodels.subsets import draw_masks, pack
from tests.regress.test_path import store_of

SETTINGS = RegressSettings(device="cpu")


def of_array(array):
    """Covariates from an array (F, N, T)."""
    return Covariates(tuple(f"a{f}" for f in range(len(array))), "digest", lambda targets: array[:, :, targets])


def moments_of(masks, margins, dtype=np.float64):
    moments = Moments(masks.shape[1], margins.shape[1], np, dtype)
    moments.add(pack(masks), margins)
    return moments


def problem_of(masks, margins, dtype=np.float64):
    return moments_of(masks, margins, dtype).problem()


def drawn(m, n=120, t=40, noise=2.0, seed=0, truth=(0.05, 0.3, 0.0), spread=(0.05, 0.5)):
    """Masks, margins, two covariates, and the weights: normal about a mean linear in the first covariate."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(2, n, t))
    mean = truth[0] + truth[1] * a[0] + truth[2] * a[1]
    weights = mean + np.sqrt(spread[0] ** 2 + (spread[1] * mean) ** 2) * rng.normal(size=(n, t))
    masks = draw_masks(seed, range(m), n, 0.5)
    return masks, masks @ weights + noise * rng.normal(size=(m, t)), a, weights


@given(seed=st.integers(0, 2**31), m=st.integers(5, 60), n=st.integers(2, 20), t=st.integers(1, 4))
def test_the_posterior_mean_is_that_of_dense_linear_algebra(seed, m, n, t):
    rng = np.random.default_rng(seed)
    masks, margins = rng.random((m, n)) < 0.5, rng.normal(size=(m, t))
    mean, square, noise = rng.normal(size=(n, t)), rng.exponential(size=(n, t)), rng.exponential(size=t) + 0.1
    square[rng.random((n, t)) < 0.2] = 0
    found = posterior_mean(problem_of(masks, margins), mean.copy(), np.sqrt(square), noise / m)
    x, y = masks - masks.mean(0), margins - margins.mean(0)
    for k in range(t):
        # Of the m models: cov(w, y) cov(y)⁻¹ (y − E y)
        prior = np.diag(square[:, k])
        gain = prior @ x.T @ np.linalg.inv(x @ prior @ x.T + noise[k] * np.eye(m))
        np.testing.assert_allclose(found[:, k], mean[:, k] + gain @ (y[:, k] - x @ mean[:, k]), atol=1e-3)


def test_a_flat_prior_is_ridge_regression(tmp_path):
    masks, margins, _, _ = drawn(300)
    store = store_of(tmp_path / "s", masks, margins)
    fit = fit_datamodels(store, SETTINGS, covariates=covariates_named(FLAT, None, 120, 40))
    parts = fit.parts
    rows = np.concatenate([parts.fit, parts.choice])
    known = fit.solver["prior"]
    assert known["basis"] == ["1"]
    for target in (0, 17):
        scale = margins[rows, target].astype(np.float32).std()
        mu, square = known["mean"][0] * scale, (known["spread"] @ np.array([1, abs(known["mean"][0]), known["mean"][0] ** 2]))
        ridge = Ridge(alpha=known["noise"] / square).fit(masks[rows], margins[rows, target] - masks[rows] @ np.full(120, mu))
        np.testing.assert_allclose(fit.weights[:, target], mu + ridge.coef_, atol=2e-3)
        # The mean of all weights moves into the intercept, for masks of one size cannot tell them apart.
        np.testing.assert_allclose(fit.bias[target], ridge.intercept_, atol=0.1)
    assert fit.lam[17] == pytest.approx(known["noise"] * margins[rows, 17].astype(np.float32).var() / len(rows), rel=1e-3)


def test_the_prior_is_found_by_its_moments():
    masks, margins, a, weights = drawn(4000, n=200, t=60)
    scale = margins.std(0).mean()
    prior = estimate(of_array(a), moments_of(masks, margins).problem, 60, 4000, Repeats(1.0, np.zeros(60)))
    # Masks of one size leave the mean of all weights out of sight: the constant is not to be had.
    by_term = dict(zip(prior.covariates.terms, prior.mean, strict=True))
    assert by_term["a0"] * scale == pytest.approx(0.3, rel=0.1)
    assert abs(by_term["a1"] * scale) < 0.01
    mean, square = prior.at(slice(0, 60), margins.std(0))
    rest = weights - mean - (weights - mean).mean(0)
    for part in (np.abs(a[0]) < 0.3, np.abs(a[0]) > 1.5):
        assert (rest[part] ** 2).mean() == pytest.approx(square[part].mean(), rel=0.35)
    assert prior.noise == pytest.approx(2.0**2 / margins.var(0).mean(), rel=0.15)


def fits(tmp_path, masks, margins, covariates):
    store = store_of(tmp_path / "s", masks, margins)
    settings = dataclasses.replace(SETTINGS, heldout=400 / len(masks), lams=20)
    return {name: fit_datamodels(store, settings, covariates=found) for name, found in covariates.items()}


def test_a_prior_that_is_right_helps_and_one_of_noise_costs_nothing(tmp_path):
    masks, margins, a, weights = drawn(520)
    noise = np.random.default_rng(5).normal(size=a.shape)
    flat = covariates_named(FLAT, None, 120, 40)
    found = fits(tmp_path, masks, margins, {"lasso": None, "flat": flat, "right": of_array(a), "noise": of_array(noise)})
    lds = {name: fit.metrics["lds"].mean() for name, fit in found.items()}
    assert lds["right"] > max(lds["lasso"], lds["flat"]) + 0.1
    assert lds["noise"] > lds["flat"] - 0.01
    error = {name: ((fit.weights - weights) ** 2).mean() for name, fit in found.items()}
    assert error["right"] < 0.5 * error["flat"]


@pytest.mark.parametrize("sparse", [False, True])
def test_the_held_out_models_have_no_part_in_it(tmp_path, sparse):
    masks, margins, a, _ = drawn(300)
    settings = dataclasses.replace(SETTINGS, sparse=sparse, lams=10)
    heldout = split_models(Subsets(np.arange(300), np.arange(300)), settings).heldout
    changed = margins.copy()
    changed[heldout] = 1e3
    first, second = (
        fit_datamodels(store_of(tmp_path / name, masks, y), settings, covariates=of_array(a))
        for name, y in (("a", margins), ("b", changed))
    )
    assert np.array_equal(first.weights, second.weights)


def test_sparse_weights_are_the_lasso_on_columns_scaled_by_what_the_prior_expects(tmp_path):
    masks, margins, a, _ = drawn(500)
    store = store_of(tmp_path / "s", masks, margins)
    settings = dataclasses.replace(SETTINGS, sparse=True, gap=1e-8, lams=20)
    fit = fit_datamodels(store, settings, covariates=of_array(a))
    known = fit.solver["prior"]
    mean = known["mean"] @ of_array(a).basis(slice(0, 40)).reshape(len(known["mean"]), -1)
    size = np.sqrt(mean**2 + known["spread"] @ np.array([np.ones_like(mean), abs(mean), mean**2])).reshape(120, 40)
    rows = np.concatenate([fit.parts.fit, fit.parts.choice])
    for target in (0, 17):
        by_size = size[:, target] / np.exp(np.log(size[:, target]).mean())
        y = margins[rows, target].astype(np.float32)
        oracle = Lasso(fit.lam[target], tol=1e-10, max_iter=10**5).fit(masks[rows] * by_size, y)
        np.testing.assert_allclose(fit.weights[:, target], oracle.coef_ * by_size, atol=1e-3)
        assert 0 < (fit.weights[:, target] != 0).sum() < 110
    assert fit.bias[17] == pytest.approx(oracle.intercept_, abs=1e-2)


def test_a_prior_helps_the_lasso_too_and_one_of_noise_costs_it_nothing(tmp_path):
    masks, margins, a, _ = drawn(520, truth=(0.0, 0.05, 0.0), spread=(0.0, 5.0))
    noise = np.random.default_rng(5).normal(size=a.shape)
    settings = dataclasses.replace(SETTINGS, heldout=0.4, lams=20, sparse=True)
    store = store_of(tmp_path / "s", masks, margins)
    given_ = {"lasso": None, "right": of_array(a), "noise": of_array(noise)}
    found = {name: fit_datamodels(store, settings, covariates=c) for name, c in given_.items()}
    lds = {name: fit.metrics["lds"].mean() for name, fit in found.items()}
    assert lds["right"] > lds["lasso"] + 0.02
    assert lds["noise"] > lds["lasso"] - 0.01
    # Where nothing tells images apart, the factors are 1: the lasso itself.
    flat = fit_datamodels(store, settings, covariates=covariates_named(FLAT, None, 120, 40))
    np.testing.assert_allclose(flat.weights, found["lasso"].weights, atol=2e-3)


def test_blocks_of_targets_change_nothing_and_ranges_of_targets_have_their_own_covariates(tmp_path):
    masks, margins, a, _ = drawn(300)
    store = store_of(tmp_path / "s", masks, margins)
    whole = fit_datamodels(store, SETTINGS, covariates=of_array(a))
    by_blocks = fit_datamodels(store, dataclasses.replace(SETTINGS, block=7), covariates=of_array(a))
    np.testing.assert_allclose(by_blocks.weights, whole.weights, atol=1e-5)
    part = fit_datamodels(store, dataclasses.replace(SETTINGS, targets="9:30"), covariates=of_array(a))
    alone = store_of(tmp_path / "part", masks, margins[:, 9:30])
    oracle = fit_datamodels(alone, SETTINGS, covariates=of_array(a[:, :, 9:30]))
    np.testing.assert_allclose(part.weights, oracle.weights, atol=1e-5)


def test_images_in_every_mask_and_targets_of_one_margin_have_zero_weights(tmp_path):
    masks, margins, a, _ = drawn(300)
    masks[:, 3], masks[:, 8], margins[:, 5] = True, False, 2.5
    fit = fit_datamodels(store_of(tmp_path / "s", masks, margins), SETTINGS, covariates=of_array(a))
    assert not fit.weights[[3, 8]].any()
    assert not fit.weights[:, 5].any()
    assert fit.bias[5] == 2.5
    assert np.isfinite(fit.weights).all()
    assert fit.weights[0, 0]


@given(seed=st.integers(0, 2**31), n=st.integers(1, 30), t=st.integers(1, 4))
def test_ranks_are_within_the_class_and_among_the_others(seed, n, t):
    rng = np.random.default_rng(seed)
    similarity, same = rng.permutation(n * t).reshape(n, t) / 7, rng.random((n, t)) < 0.3
    found = ranks(similarity, same)
    for k in range(t):
        for part in (same[:, k], ~same[:, k]):
            assert np.array_equal(found[part, k], rankdata(-similarity[part, k]) - 1)


def test_covariates_of_ones_own_come_from_a_file(tmp_path):
    masks, margins, a, _ = drawn(300)
    np.save(tmp_path / "a.npy", a)
    named = covariates_named(str(tmp_path / "a.npy"), None, 120, 40)
    assert named is not None
    store = store_of(tmp_path / "s", masks, margins)
    found, oracle = (fit_datamodels(store, SETTINGS, covariates=c) for c in (named, of_array(a)))
    assert np.array_equal(found.weights, oracle.weights)
    np.save(tmp_path / "b.npy", a + 1)
    other = covariates_named(str(tmp_path / "b.npy"), None, 120, 40)
    assert other is not None
    assert named.digest != other.digest
    assert covariates_named("none", None, 120, 40) is None


def test_covariates_of_a_mean_are_the_means_of_covariates(tmp_path):
    _, _, a, _ = drawn(30)
    np.save(tmp_path / "a.npy", a)
    some = np.r_[3, 7, 30:40, 11:20]
    for covariates in (covariates_named(str(tmp_path / "a.npy"), None, 120, 40), covariates_named(FLAT, None, 120, 40)):
        assert covariates is not None
        found = covariates.mean_over(some).parts(slice(0, 1))
        np.testing.assert_allclose(found, covariates.parts(slice(0, 40))[:, :, some].mean(2, keepdims=True), atol=1e-12)
        assert found.shape == (len(covariates.names), 120, 1)
        assert covariates.mean_over(some).basis(slice(0, 1)).shape == (len(covariates.terms), 120, 1)


@pytest.mark.parametrize("power", [-1000, -300, -40, 40, 300, 1020])
def test_covariates_may_be_in_any_unit(tmp_path, power):
    masks, margins, a, _ = drawn(300)
    store = store_of(tmp_path / "s", masks, margins)
    np.save(tmp_path / "a.npy", np.stack([np.ldexp(a[0], power), a[1]]))
    named = covariates_named(str(tmp_path / "a.npy"), None, 120, 40)
    found, oracle = (fit_datamodels(store, SETTINGS, covariates=c) for c in (named, of_array(a)))
    np.testing.assert_allclose(found.weights, oracle.weights, atol=1e-4)
    assert found.solver["prior"]["covariates"][0].startswith("covariate 0 / ")
    assert found.solver["prior"]["covariates"][1] == "covariate 1"


def test_what_makes_no_prior_is_refused(tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros((120, 40)))
    np.save(tmp_path / "nan.npy", np.full((1, 120, 40), np.nan))
    (tmp_path / "text.npy").write_text("none")
    wrong = {
        str(tmp_path / "flat.npy"): "numbers of shape",
        str(tmp_path / "text.npy"): "cannot be read",
        "gradient": "regress.prior is none, flat",
        "gradients": "of a run; for a store of any origin",
    }
    for name, told in wrong.items():
        with pytest.raises(InputError, match=told):
            covariates_named(name, None, 120, 40)
    with pytest.raises(InputError, match=r"there is no .*run the worker with --regress.prior similarity"):
        covariates_named("similarity", tmp_path, 120, 40)
    with pytest.raises(InputError, match="not finite"):
        covariates_named(str(tmp_path / "nan.npy"), None, 120, 40)
    masks, margins, a, _ = drawn(300)
    store = store_of(tmp_path / "s", masks, margins)
    with pytest.raises(InputError, match="cannot be saga"):
        fit_datamodels(store, dataclasses.replace(SETTINGS, solver="saga"), covariates=of_array(a))


@pytest.mark.parametrize("f", [1, 3, 10, 30, 40])
@pytest.mark.parametrize(
    ("n", "t", "m"),
    [(10, 2, 30), (20, 1, 100), (37, 5, 100), (37, 5, 600), (100, 20, 30), pytest.param(200, 25, 100, marks=pytest.mark.slow)],
)
def test_covariates_of_noise_cost_nothing_however_many_they_are(n, t, m, f):
    gained = []
    for seed in range(4):
        rng = np.random.default_rng([n, t, m, f, seed])
        masks = draw_masks(seed, range(m + 400), n, 0.5)
        weights = rng.normal(size=(n, t)) * (rng.random((n, t)) < 0.3) + 0.1
        margins = masks @ weights + rng.normal(size=(m + 400, t))
        moments = moments_of(masks[:m], margins[:m])
        lds = []
        for covariates in (of_array(np.empty((0, n, t))), of_array(rng.normal(size=(f, n, t)))):
            prior = estimate(covariates, moments.problem, t, m, Repeats(1.0, np.zeros(t)))
            problem = moments.problem()
            scale = np.sqrt(problem.variance)
            mean, square = prior.at(slice(0, t), scale)
            found = posterior_mean(problem, mean, np.sqrt(square), prior.noise * scale**2 / m)
            lds.append(score(masks[m:] @ found + problem.bias(found), margins[m:])["lds"].mean())
        gained.append(lds[1] - lds[0])
    assert np.mean(gained) > -0.01


def test_a_mean_that_the_covariates_know_is_hardly_shrunk():
    rng = np.random.default_rng(0)
    basis = np.stack([np.ones(4000), *rng.normal(size=(5, 4000))])
    beta = np.array([0.1, 0.5, -0.3, 0.0, 0.2, 0.4])
    u = beta @ basis + rng.normal(size=4000)
    exact = np.linalg.lstsq(basis.T, u, rcond=None)[0]
    found, taken = shrunk_mean(basis @ basis.T, basis @ u, float(u @ u), 4000, 5)
    np.testing.assert_allclose(found[1:], exact[1:], rtol=0.01, atol=0.01)
    assert 5.9 < taken <= 6
    none, taken = shrunk_mean(basis @ basis.T, basis @ rng.normal(size=4000), 4000.0, 4000, 5)
    assert not none[1:].any()
    assert taken == 1
