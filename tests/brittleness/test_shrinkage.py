"""Debiased and shrunk weights, on stores whose true weights are known."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from datamodels.brittleness import shrunk_weights
from datamodels.regress import fit_datamodels
from datamodels.settings import RegressSettings
from tests.regress.test_path import store_of

N, T = 120, 6


def made(folder, m, noise=1.0, seed=0):
    """A store, its true weights, and groups: a fifth of the images have weights around 0.15, the others around 0."""
    rng = np.random.default_rng(seed)
    group = rng.random((N, T)) < 0.2
    weights = np.where(group, 0.15, 0.0) + 0.05 * rng.normal(size=(N, T))
    masks = rng.random((m, N)) < 0.5
    margins = masks @ weights + noise * rng.normal(size=(m, T)) + rng.normal(size=T)
    return store_of(folder, masks, margins.astype(np.float32)), weights, group, masks, margins


@pytest.mark.parametrize("seed", range(3))
def test_they_are_nearer_to_the_truth_than_the_lassos(tmp_path, seed):
    store, truth, group, _, _ = made(tmp_path / "s", 700, seed=seed)
    lasso = fit_datamodels(store, RegressSettings(device="cpu", lams=30)).weights
    shrunk = shrunk_weights(store, range(T), lasso, group)
    assert shrunk.shape == (N, T)
    assert ((shrunk - truth) ** 2).mean() < 0.6 * ((lasso - truth) ** 2).mean()
    ranks = [[np.corrcoef(np.argsort(np.argsort(w[:, t])), truth[:, t])[0, 1] for t in range(T)] for w in (shrunk, lasso)]
    assert np.mean(ranks[0]) > np.mean(ranks[1])


def test_without_noise_and_with_many_models_they_are_least_squares(tmp_path):
    store, truth, group, masks, margins = made(tmp_path / "s", 2000, noise=1e-3)
    oracle = LinearRegression().fit(masks, margins).coef_.T
    # From least squares there is nothing to be put back, and hardly any noise to be taken out.
    np.testing.assert_allclose(shrunk_weights(store, range(T), oracle, group), oracle, atol=1e-3)
    np.testing.assert_allclose(oracle, truth, atol=1e-3)


def test_pure_noise_leaves_the_groups_means_only(tmp_path):
    rng = np.random.default_rng(0)
    masks, group = rng.random((400, N)) < 0.5, rng.random((N, T)) < 0.5
    store = store_of(tmp_path / "s", masks, rng.normal(size=(400, T)).astype(np.float32))
    shrunk = shrunk_weights(store, range(T), np.zeros((N, T)), group)
    raw = np.array(
        [[np.cov(masks[:, j], store.margins(store.done)[:, t], ddof=0)[0, 1] * 4 for t in range(T)] for j in range(N)]
    )
    assert shrunk.var() < 0.35 * raw.var()
    # Least in the mean of each group, which shrinking leaves where it is.
    for t in range(T):
        assert shrunk[group[:, t], t].mean() == pytest.approx(raw[group[:, t], t].mean(), abs=0.01)


def test_the_order_of_images_and_targets_and_one_group_alone_change_nothing(tmp_path):
    store, truth, group, masks, margins = made(tmp_path / "s", 300)
    shrunk = shrunk_weights(store, range(T), 0.5 * truth, group)
    images, targets = np.random.default_rng(1).permutation(N), [4, 1]
    other = store_of(tmp_path / "o", masks[:, images], margins.astype(np.float32))
    found = shrunk_weights(other, targets, 0.5 * truth[images][:, targets], group[images][:, targets])
    np.testing.assert_allclose(found, shrunk[images][:, targets], atol=1e-9)
    alone = shrunk_weights(store, [2], 0.5 * truth[:, 2:3], np.ones((N, 1), bool))
    assert np.isfinite(alone).all()


def test_an_image_in_all_masks_and_models_that_diverged_do_no_harm(tmp_path):
    _, truth, group, masks, margins = made(tmp_path / "s", 300)
    masks[:, 7] = True
    broken = margins.copy().astype(np.float32)
    broken[5] = np.nan
    with_nan = store_of(tmp_path / "n", masks, broken)
    without = store_of(tmp_path / "w", np.delete(masks, 5, 0), np.delete(broken, 5, 0))
    found, oracle = (shrunk_weights(s, range(T), truth, group) for s in (with_nan, without))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, oracle, atol=1e-9)


def test_how_much_an_image_apart_carries_is_nothing_to_the_others(tmp_path):
    _, truth, group, masks, margins = made(tmp_path / "s", 300)
    own, apart = [int(np.flatnonzero(group[:, t])[0]) for t in range(T)], np.zeros((N, T), bool)
    apart[own, range(T)] = True

    def shrunk(carries, apart):
        store = store_of(
            tmp_path / f"{len(list(tmp_path.iterdir()))}", masks, (margins + carries * masks[:, own]).astype(np.float32)
        )
        weights = 0.5 * truth
        weights[own, range(T)] += carries
        return shrunk_weights(store, range(T), weights, group, apart)

    (light, heavy), (_, unlike) = ([shrunk(carries, which) for carries in (0.0, 5.0)] for which in (apart, None))
    np.testing.assert_allclose(light[~apart], heavy[~apart], atol=1e-5)
    np.testing.assert_allclose(heavy[apart] - light[apart], 5, atol=1e-5)
    # Among the others it makes their group look wider than it is, and they keep their noise.
    assert all(unlike[group[:, t] & ~apart[:, t], t].std() > heavy[group[:, t] & ~apart[:, t], t].std() for t in range(T))
    np.testing.assert_allclose(shrunk(1.0, np.zeros((N, T), bool)), shrunk(1.0, None))
