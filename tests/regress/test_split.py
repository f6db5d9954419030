"""Several models on one mask: no mask stands on two sides of anything, and what they say is not counted twice."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodels.bench import samples
from datamodels.errors import InputError
from datamodels.regress import fit_datamodels
from datamodels.regress.prior import FLAT, covariates_named, estimate
from datamodels.regress.repeats import Repeats, repeats
from datamodels.regress.source import Source
from datamodels.regress.split import Parts, Subsets, split_models
from datamodels.settings import RegressSettings, parse
from datamodels.subsets import draw_masks
from tests.regress.test_path import store_of
from tests.regress.test_prior import moments_of

SETTINGS = RegressSettings(device="cpu", lams=20, heldout=0.3)
N, T = 40, 5


def repeated(subsets, each, noise=0.3, signal=0.0, seed=0):
    """Masks and margins of `each` models on every one of some subsets, in random order; margins belong to the subset."""
    rng = np.random.default_rng(seed)
    masks = draw_masks(seed, range(subsets), N, 0.5)
    weights = signal * rng.normal(size=(N, T))
    own = masks @ weights + rng.normal(size=(subsets, T))
    which = rng.permutation(np.repeat(np.arange(subsets), each))
    return masks[which], own[which] + noise * rng.normal(size=(len(which), T)), which


@pytest.mark.parametrize("prior", [None, FLAT])
def test_held_out_models_are_on_masks_that_nothing_has_seen(tmp_path, prior):
    # What a subset's margins have in common is drawn at random: of a new mask nothing can be known.
    masks, margins, which = repeated(100, 10)
    covariates = None if prior is None else covariates_named(prior, None, N, T)
    fit = fit_datamodels(store_of(tmp_path / "s", masks, margins), SETTINGS, covariates=covariates)
    assert abs(fit.metrics["lds"].mean()) < 0.25
    sides = [set(which[ids].tolist()) for ids in (fit.parts.fit, fit.parts.choice, fit.parts.heldout)]
    assert [len(side) for side in sides] == [56, 14, 30]
    assert len(set.union(*sides)) == 100
    # Nor is λ chosen by masks that were fitted: where there is nothing to know, nearly nothing is learnt.
    if prior is None:
        assert (fit.weights != 0).mean() < 0.2


@given(sizes=st.lists(st.integers(1, 9), min_size=75, max_size=90), seed=st.integers(0, 99))
def test_every_split_is_by_masks_and_of_all_models(sizes, seed):
    first = np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
    subsets = Subsets(np.arange(len(first)), first)
    parts = split_models(subsets, dataclasses.replace(SETTINGS, seed=seed))
    by_part = [parts.fit, parts.choice, parts.heldout]
    assert sorted(np.concatenate(by_part)) == list(range(len(first)))
    assert sum(len(np.unique(first[ids])) for ids in by_part) == len(sizes)
    assert all((np.diff(ids) > 0).all() for ids in by_part)


@given(data=st.data(), seed=st.integers(0, 99))
def test_the_draws_of_the_bench_are_by_masks_too(data, seed):
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=75, max_size=90))
    first = np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
    groups = Subsets(np.arange(len(first)), first).shuffled(np.random.default_rng(seed))
    m = data.draw(st.integers(20, len(first)))
    settings = parse(["--regress.seed", str(seed)])[0]
    parts = samples.drawn_parts(groups, m, np.zeros(0, np.int64), settings, 0)
    assert len(parts.fit) + len(parts.choice) == m
    assert not set(first[parts.fit].tolist()) & set(first[parts.choice].tolist())
    assert len(np.unique(np.concatenate([parts.fit, parts.choice]))) == m


def test_masks_are_told_apart_bit_by_bit(tmp_path):
    masks, margins, which = repeated(30, 3)
    masks[5] = masks[5] ^ (np.arange(N) == N - 1)
    which[5] = 30
    store = store_of(tmp_path / "s", masks, margins)
    subsets = Subsets.of(store, store.done)
    assert len(subsets) == 31
    assert [subsets.first[i] for i in range(90)] == [np.flatnonzero(which == which[i])[0] for i in range(90)]


def test_too_few_masks_are_refused_however_many_models(tmp_path, settings):
    masks, margins, _ = repeated(20, 30)
    with pytest.raises(InputError, match="600 finished models on 20 different subsets are too few: of 6 held-out"):
        fit_datamodels(store_of(tmp_path / "s", masks, margins), SETTINGS)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_the_noise_between_models_on_one_mask_is_found_in_tiles_of_any_size(tmp_path, monkeypatch, share):
    masks, margins, which = repeated(50, 8, noise=np.sqrt((1 - share) / share))
    store = store_of(tmp_path / "s", masks, margins)
    subsets = Subsets.of(store, store.done)
    found = repeats(Source(store, 0, T), subsets)
    oracle = np.mean([margins[which == g].var(0, ddof=1) for g in range(50)], 0)
    np.testing.assert_allclose(found.noise, oracle, rtol=1e-4)
    assert found.size == 8
    from datamodels.regress import repeats as module

    monkeypatch.setattr(module, "TILE_ROWS", 21)
    np.testing.assert_allclose(repeats(Source(store, 0, T), subsets).noise, oracle, rtol=0.25)
    np.testing.assert_allclose(found.effect(margins.var(0)), 1 + 7 * (1 - oracle / margins.var(0)), rtol=1e-3)


def test_the_prior_takes_repeated_models_for_what_they_are():
    """Weights of no size: the marginal estimates spread as the design effect says, and not as so many models on new masks."""
    spreads, left = [], []
    for seed in range(6):
        masks, margins, _ = repeated(80, 10, seed=seed)
        moments = moments_of(masks, margins)
        problem = moments.problem()
        u = problem.correlation / np.diag(problem.gram)[:, None] / np.sqrt(problem.variance)
        effect = Repeats(10.0, np.full(T, 0.09)).effect(problem.variance)
        spreads.append((u**2).mean() / (effect.mean() / (800 * 0.25)))
        flat = covariates_named(FLAT, None, N, T)
        assert flat is not None
        left.append(
            [
                # The prior's variance: of what is constant, any of the three terms of τ² may have it.
                estimate(flat, moments.problem, T, 800, r).at(slice(0, T), np.ones(T))[1].mean()
                for r in (Repeats(10.0, np.full(T, 0.09)), Repeats(1.0, np.zeros(T)))
            ]
        )
    assert np.mean(spreads) == pytest.approx(1, rel=0.15)
    known, naive = np.mean(left, 0)
    assert known < 0.25 * naive


def test_repeated_models_do_not_make_ridge_regression_overconfident(tmp_path):
    masks, margins, _ = repeated(120, 10, signal=0.15, seed=3)
    store = store_of(tmp_path / "s", masks, margins)
    flat = covariates_named(FLAT, None, N, T)
    one = Subsets.of(store, store.done)
    parts = split_models(one, SETTINGS)
    fit = fit_datamodels(store, SETTINGS, covariates=flat, parts=parts)
    # The same from the mean of each mask's models, one row a mask.
    rows = np.concatenate([parts.fit, parts.choice])
    firsts = np.unique(one.first[rows])
    means = np.stack([margins[one.first == f].mean(0) for f in firsts])
    alone = store_of(tmp_path / "means", np.concatenate([masks[firsts], masks[:10]]), np.concatenate([means, margins[:10]]))
    kept = Parts(np.arange(len(firsts)), np.zeros(0, np.int64), np.arange(len(firsts), len(firsts) + 10))
    oracle = fit_datamodels(alone, SETTINGS, covariates=flat, parts=kept)
    np.testing.assert_allclose(fit.weights, oracle.weights, atol=0.06)
    assert np.corrcoef(fit.weights.ravel(), oracle.weights.ravel())[0, 1] > 0.98
    np.testing.assert_allclose(fit.lam, oracle.lam, rtol=0.25)
