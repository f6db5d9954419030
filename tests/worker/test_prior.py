"""The folder that a prior is made of: what is in it, made once, made anew under other settings, left to who is at it."""

import json
import pickle

import numpy as np
import pytest
import torch

from datamodels.data import load, prepare
from datamodels.durable import Lock
from datamodels.errors import InputError
from datamodels.regress import Datamodels
from datamodels.regress.prior import covariates_named
from datamodels.regress.run import regress
from datamodels.runs import stage_folder
from datamodels.subsets import draw_masks
from datamodels.training import Trainer, first_order
from datamodels.worker import make_prior, train_missing
from datamodels.worker.prior import _InOrder
from tests.conftest import built_in, trained

CPU = torch.device("cpu")


def prior_made(settings, data):
    make_prior(settings, built_in(settings, data))


@pytest.fixture
def data(settings):
    prepare(settings(), use_ffcv=False)
    return load(settings())


def test_it_holds_the_means_over_networks_that_no_store_has(settings, data):
    chosen = settings(regress__prior="gradients", prior__models=6)
    prior_made(chosen, data)
    folder = stage_folder(chosen, "prior")
    found = {file.stem: np.load(file) for file in folder.glob("*.npy")}
    assert found.keys() == {"gradients", "features_train", "features_test", "train_labels", "test_labels"}
    assert np.array_equal(found["train_labels"], data.train.labels)
    assert np.array_equal(found["test_labels"], data.test.labels)
    pair = [found[name].astype(float) for name in ("features_train", "features_test")]
    ids = [2**31 + k for k in range(6)]
    oracle = first_order(Trainer(data, chosen.training, CPU), draw_masks(0, ids, 60, 0.5), [(0, i) for i in ids], 64)
    assert found["features_train"].shape == (6, 60, 8)
    assert found["features_test"].shape == (6, 20, 8)
    # Trained in other groups: rounding only, which training amplifies.
    for name in ("features_train", "features_test"):
        np.testing.assert_allclose(np.linalg.norm(found[name].astype(float), axis=2), 1, atol=5e-3)
        assert np.corrcoef(found[name].ravel(), oracle[name].ravel())[0, 1] > 0.99
    covariates = covariates_named("similarity", folder, 60, 20)
    assert covariates is not None
    near = covariates.parts(slice(4, 9))[1]
    by_hand = [[np.mean([a[j] @ b[t] for a, b in zip(*pair, strict=True)]) for t in range(4, 9)] for j in range(60)]
    np.testing.assert_allclose(near, by_hand, atol=2e-3)
    for name in ("similarity", "gradients"):
        here = covariates_named(name, folder, 60, 20)
        assert here is not None
        elsewhere = pickle.loads(pickle.dumps(here))
        assert np.array_equal(elsewhere.parts(slice(4, 9)), here.parts(slice(4, 9)))
        assert len(here.parts(slice(4, 9))) == len(here.names) == (3 if name == "similarity" else 3 + len(found["gradients"]))
    np.testing.assert_allclose((found["gradients"].astype(float) ** 2).mean((1, 2)), 1, rtol=1e-2)
    for mine, its in zip(found["gradients"], oracle["gradients"], strict=True):
        assert np.corrcoef(mine.ravel(), its.ravel())[0, 1] > 0.95


def test_it_is_made_once_and_anew_under_other_settings(settings, data):
    chosen = settings(regress__prior="similarity", prior__models=2)
    folder = stage_folder(chosen, "prior")
    prior_made(settings(), data)
    assert not folder.exists()
    prior_made(chosen, data)
    stamp, content = (folder / "meta.json").stat().st_mtime_ns, np.load(folder / "gradients.npy")
    prior_made(chosen, data)
    assert (folder / "meta.json").stat().st_mtime_ns == stamp
    make_prior(
        settings(regress__prior="gradients", prior__models=3),
        built_in(settings(regress__prior="gradients", prior__models=3), data),
    )
    assert json.loads((folder / "meta.json").read_text())["prior"]["models"] == 3
    assert not np.array_equal(np.load(folder / "gradients.npy"), content)
    # The same settings give the same bytes, whatever was there.
    prior_made(chosen, data)
    assert np.array_equal(np.load(folder / "gradients.npy"), content)


def test_who_is_at_it_is_left_to_it_and_networks_that_diverge_are_an_error(settings, data, capsys):
    chosen = settings(regress__prior="gradients")
    other = Lock(stage_folder(chosen, "prior").with_name(".prior.lock"))
    assert other.take()
    prior_made(chosen, data)
    other.release(remove=True)
    assert "prior: another worker is making" in capsys.readouterr().err
    assert not stage_folder(chosen, "prior").exists()
    with pytest.raises(InputError, match="all 4 networks of the prior diverged"):
        make_prior(
            settings(regress__prior="gradients", training__peak_lr=1e9),
            built_in(settings(regress__prior="gradients", training__peak_lr=1e9), data),
        )
    assert not stage_folder(chosen, "prior").exists()


def test_regression_wants_it_and_does_its_work_again_when_it_has_changed(settings, data):
    changed = {"store__num_models": 60, "prior__models": 2}
    trained(settings(**changed), data)
    chosen = settings(regress__prior="gradients", **changed)
    with pytest.raises(InputError, match=r"there is no .*run the worker with --regress.prior gradients"):
        regress(chosen)
    prior_made(chosen, data)
    folder = stage_folder(chosen, "regress")
    regress(chosen)
    first = Datamodels.load(folder)
    assert first.metrics["solved_by"]["prior"]["covariates"][0] == "same class"
    assert len(first.metrics["solved_by"]["prior"]["mean"]) == len(first.metrics["solved_by"]["prior"]["basis"]) == 1 + 5 + 15
    more = settings(regress__prior="gradients", **{**changed, "prior__models": 4})
    prior_made(more, data)
    regress(more)
    second = Datamodels.load(folder)
    assert first.meta["prior_digest"] != second.meta["prior_digest"]
    assert not np.array_equal(first.weights, second.weights)


def test_it_is_made_in_bfloat16_and_of_projected_gradients(settings, data, monkeypatch):
    monkeypatch.setattr("datamodels.training.gradients.MOST_PRODUCTS", 0)
    found = []
    for precision in ("float32", "bfloat16"):
        chosen = settings(regress__prior="gradients", prior__dimensions=256, training__precision=precision, training__epochs=8)
        prior_made(chosen, data)
        found.append(np.load(stage_folder(chosen, "prior") / "gradients.npy").astype(float))
        assert np.isfinite(found[-1]).all()
        np.testing.assert_allclose((found[-1] ** 2).mean((1, 2)), 1, rtol=1e-2)
    # Of other networks, for training amplifies the rounding, but such as do the same.
    assert np.corrcoef(found[0].ravel(), found[1].ravel())[0, 1] > 0.5


def test_a_worker_makes_it_but_not_for_a_store_of_other_settings(settings, data):
    chosen = settings(regress__prior="gradients", prior__models=2)
    trained(chosen, data)
    made = (stage_folder(chosen, "prior") / "meta.json").read_text()
    with pytest.raises(InputError, match="made under other settings"):
        train_missing(
            settings(regress__prior="gradients", prior__models=2, training__epochs=4),
            built_in(settings(regress__prior="gradients", prior__models=2, training__epochs=4), data),
        )
    assert (stage_folder(chosen, "prior") / "meta.json").read_text() == made


def test_scores_are_added_in_the_order_of_the_groups():
    rng = np.random.default_rng(0)
    parts = [
        {
            "gradients": rng.normal(size=(2, 5, 3)).astype(np.float32),
            "features_train": np.full((1, 5, 2), k),
            "features_test": np.ones(1),
        }
        for k in range(5)
    ]
    forth, mixed = _InOrder(), _InOrder()
    for number in range(5):
        forth.add(number, parts[number])
    for number in (3, 1, 0, 4, 2):
        mixed.add(number, parts[number])
    assert forth.scores is not None
    assert mixed.scores is not None
    assert np.array_equal(forth.scores, mixed.scores)
    np.testing.assert_allclose(mixed.scores, sum(part["gradients"] for part in parts), atol=1e-5)
    assert [part["features_train"][0, 0, 0] for part in mixed.features] == [0, 1, 2, 3, 4]
    assert not mixed.waiting
