"""LDS of any scores: SciPy's numbers, intervals that are what they say, models that nothing was fitted on."""

import dataclasses
import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr, ttest_1samp

from datamodels.errors import InputError
from datamodels.evaluate import evaluate
from datamodels.evaluate.correlations import Interval, drawn_masks, over_targets, resampled, some_targets, spearman
from datamodels.evaluate.evaluation import Judged
from datamodels.regress import Datamodels
from datamodels.regress.run import regress_store
from datamodels.settings import RegressSettings
from datamodels.subsets import draw_masks
from datamodels.verify.questions.random_subsets import Margins
from tests.regress.test_path import store_of
from tests.robustness.case import main_of

N, T, M = 30, 7, 60


def drawn(m=M, seed=0, noise=1.0):
    """Masks, weights, and margins of them with noise."""
    rng = np.random.default_rng(seed)
    masks, weights = draw_masks(seed, range(m), N, 0.5), rng.normal(size=(N, T))
    return masks, weights, (masks @ weights + noise * rng.normal(size=(m, T))).astype(np.float32)


def by_scipy(predicted, true):
    return np.array([spearmanr(predicted[:, k], true[:, k], nan_policy="omit").statistic for k in range(true.shape[1])])


def test_random_scores_have_scipys_numbers_ties_and_missing_margins_among_them(tmp_path):
    masks, _, margins = drawn()
    rng = np.random.default_rng(1)
    margins = np.round(margins)  # ties
    margins[rng.random(margins.shape) < 0.1] = np.nan
    scores = rng.integers(-3, 4, (N, T))
    found = evaluate(scores, store_of(tmp_path / "s", masks, margins))
    wanted = by_scipy(masks @ scores, margins.astype(float))
    np.testing.assert_allclose(found.scores[0].per_target, wanted, atol=1e-12)
    assert found.scores[0].lds == pytest.approx(wanted.mean())
    assert found.left_out == np.isnan(margins).sum() > 0
    assert f"{found.left_out} margins that are no numbers are left out" in found.table()
    assert found.on == "all that are finished"
    assert (found.masks, found.targets, found.ceiling) == (M, tuple(range(T)), None)
    assert "the ceiling that noise sets is unknown" in found.table()


def test_resampled_rows_have_the_correlation_of_rows_that_are_repeated():
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 9, (20, 3)).astype(float), rng.normal(size=(20, 3))
    b[3, 1] = np.nan
    counts = drawn_masks(20, 15, seed=4)
    assert (counts.sum(1) == 20).all()
    found = resampled(a, b, counts)
    for row, count in zip(found, counts.astype(int), strict=True):
        rows = np.repeat(np.arange(20), count)
        np.testing.assert_allclose(row, by_scipy(a[rows], b[rows]), atol=1e-12)
    np.testing.assert_allclose(resampled(a, b, np.ones((1, 20)))[0], spearman(a, b), atol=1e-12)


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        (np.ones((N, T)), "their scores are all alike, and every mask has equally many images, 15"),
        (np.full((N, T), 0.1), "their scores are all alike, and every mask has equally many images, 15"),
        (np.zeros((N, T)), "all their scores are 0"),
    ],
)
def test_scores_that_predict_the_same_for_every_mask_have_0_and_it_says_why(tmp_path, scores, why):
    masks, _, margins = drawn()
    found = evaluate(scores, store_of(tmp_path / "s", masks, margins))
    of = found.scores[0]
    assert (of.lds, of.constant, of.over_targets, of.over_models) == (0.0, T, Interval(0.0, 0.0), Interval(0.0, 0.0))
    assert f"scores: LDS 0 for {T} of {T} targets, whose predictions do not vary: {why}" in found.table()


def test_masks_of_other_sizes_make_equal_scores_predict_and_images_that_never_vary_do_not(tmp_path):
    rng = np.random.default_rng(3)
    masks = rng.random((M, N)) < 0.5
    masks[:, 0] = True
    margins = masks.sum(1, keepdims=True) + 0.1 * rng.normal(size=(M, T))
    store = store_of(tmp_path / "s", masks, margins)
    assert evaluate(np.ones((N, T)), store).scores[0].lds > 0.99
    only = np.zeros((N, T))
    only[0] = 1
    found = evaluate(only, store)
    assert found.scores[0].why == "on every mask the scores of its images have one sum"
    assert found.scores[0].lds == 0


def test_the_order_of_models_and_the_scale_of_scores_change_nothing(tmp_path):
    masks, weights, margins = drawn()
    store = store_of(tmp_path / "s", masks, margins)
    one = evaluate(weights, store)
    shuffled = np.random.default_rng(0).permutation(M)
    np.testing.assert_allclose(evaluate(weights, store, models=shuffled).scores[0].per_target, one.scores[0].per_target)
    np.testing.assert_allclose(evaluate(7 * weights, store).scores[0].per_target, one.scores[0].per_target)
    assert evaluate(-weights, store).scores[0].lds == pytest.approx(-one.scores[0].lds)
    assert evaluate(weights, store, seed=0) == one
    assert evaluate(weights, store, seed=1) != one


def test_the_interval_over_models_holds_the_lds_of_very_many_about_as_often_as_it_says(tmp_path):
    masks, weights, margins = drawn(4000, noise=3.0)
    store = store_of(tmp_path / "s", masks, margins)
    truth = by_scipy(masks @ weights, margins).mean()
    parts = [evaluate(weights, store, models=np.arange(50 * k, 50 * k + 50), resamples=200).scores[0] for k in range(80)]
    held = np.mean([part.over_models.low <= truth <= part.over_models.high for part in parts])
    assert 0.85 <= held <= 1
    spread = np.std([part.lds for part in parts])
    width = np.mean([part.over_models.high - part.over_models.low for part in parts])
    assert width == pytest.approx(3.92 * spread, rel=0.25)


def test_the_interval_over_targets_is_that_of_a_mean(tmp_path):
    masks, weights, margins = drawn()
    weights[:, ::2] = np.random.default_rng(1).normal(size=weights[:, ::2].shape)
    of = evaluate(weights, store_of(tmp_path / "s", masks, margins), resamples=4000).scores[0]
    # Of few targets Student's t, of many the bootstrap.
    assert T < 10
    oracle = ttest_1samp(of.per_target, 0).confidence_interval(0.95)
    assert of.over_targets.low == pytest.approx(max(oracle.low, -1))
    assert of.over_targets.high == pytest.approx(min(oracle.high, 1))
    many = np.random.default_rng(2).normal(0.3, 0.2, 40)
    found = over_targets(many, 4000, 0)
    assert found.high - found.low == pytest.approx(3.92 * np.std(many) / np.sqrt(40), rel=0.1)
    assert found.low < many.mean() < found.high
    assert over_targets(many[:1], 9, 0) == Interval(-1.0, 1.0)


def test_many_targets_are_resampled_in_part_and_evenly():
    assert np.array_equal(some_targets(100, 50, 1000), np.arange(100))
    some = some_targets(10_000, 1000, 1000)
    assert (some[0], some[-1]) == (0, 9999)
    assert len(some) < 300
    assert np.ptp(np.diff(some)) <= 1


def test_repeated_trainings_give_the_ceiling_that_a_verification_gives(tmp_path):
    subsets, k = 40, 4
    once, weights, _ = drawn(subsets)
    rng = np.random.default_rng(8)
    masks = np.concatenate([once] * k)
    margins = (masks @ weights + 3 * rng.normal(size=(len(masks), T))).astype(np.float32)
    found = evaluate(weights, store_of(tmp_path / "s", masks, margins))
    halves = margins.astype(float).reshape(2, 2, subsets, T).mean(1)
    wanted = Margins(once @ weights, halves).record()
    assert (found.masks, len(found.models)) == (subsets, subsets * k)
    assert found.scores[0].lds == pytest.approx(wanted.lds)
    assert found.ceiling == pytest.approx(wanted.lds_ceiling)
    assert f"at best {wanted.lds_ceiling:.3f}, by the noise" in found.table()


@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_ceiling_is_the_lds_of_the_true_means(tmp_path, k):
    once, weights, _ = drawn(600)
    rng = np.random.default_rng(k)
    masks = np.concatenate([once] * k)
    margins = masks @ weights + 4 * rng.normal(size=(len(masks), T))
    found = evaluate(weights, store_of(tmp_path / "s", masks, margins), resamples=10)
    assert found.ceiling == pytest.approx(found.scores[0].lds, abs=0.02)
    some = Judged.of(store_of(tmp_path / "few", masks[:605], margins[:605]), np.arange(605), list(range(T)))
    assert some.ceiling() is None


def fitted(tmp_path):
    """A store, and weights that were fitted on it."""
    masks, _, margins = drawn(200)
    store = store_of(tmp_path / "store", masks, margins)
    regress_store(store.folder, tmp_path / "weights", RegressSettings(device="cpu", lams=20))
    return store, Datamodels.load(tmp_path / "weights")


def test_scores_stand_beside_weights_on_the_models_that_these_were_not_fitted_on(tmp_path, monkeypatch, capsys):
    store, weights = fitted(tmp_path)
    noise = np.random.default_rng(99).normal(size=(N, T)).astype(np.float32)
    labels = np.array(["a", "b", "a", "b", "a", "a", "c"])
    found = evaluate({"noise": noise, "same": weights.weights}, store, weights, labels=labels)
    assert found.models == tuple(weights.heldout.tolist())
    assert found.on == "those held out from the weights"
    own, other, same = found.scores
    np.testing.assert_allclose(own.per_target, weights.metrics["per_target"]["lds"], atol=1e-9)
    np.testing.assert_allclose(
        other.per_target, by_scipy(store.masks(weights.heldout) @ noise.astype(float), store.margins(weights.heldout))
    )
    assert own.apart is None
    assert other.apart is not None
    assert same.apart is not None
    assert other.apart.lds == pytest.approx(other.lds - own.lds)
    assert other.apart.over_targets.high < 0
    assert other.apart.over_models.high < 0
    assert same.apart.over_models == same.apart.over_targets == Interval(0, 0)
    for name in "abc":
        assert own.by_class[name] == pytest.approx(np.mean(np.array(own.per_target)[labels == name]))
    # The same by the command, the file of scores in its place, and as JSON.
    np.save(tmp_path / "noise.npy", noise)
    line = ("--store", store.folder, "--weights", tmp_path / "weights", "--scores", tmp_path / "noise.npy")
    monkeypatch.setattr(sys, "argv", [])
    capsys.readouterr()
    main_of("evaluate", *line, "--json", tmp_path / "found.json")()
    plain = evaluate({"noise": noise}, store.folder, weights)
    assert capsys.readouterr().out.strip() == plain.table()
    assert json.loads((tmp_path / "found.json").read_text()) == [json.loads(json.dumps(plain.to_json()))]
    assert json.loads((tmp_path / "found.json").read_text())[0]["scores"][1]["per_target"] == list(other.per_target)
    main_of("evaluate", "--store", store.folder, "--scores", f"x={tmp_path / 'noise.npy'}", "--models", "20:60")()
    assert capsys.readouterr().out.strip() == evaluate({"x": noise}, store, models=range(20, 60)).table()


def test_models_that_weights_may_have_been_fitted_on_are_refused(tmp_path):
    store, weights = fitted(tmp_path)
    seen = np.setdiff1d(store.done, weights.heldout)
    with pytest.raises(InputError, match=f"fitted on model {seen[0]}, or chosen by it; 20 models were held out"):
        evaluate(weights, store, models=[*weights.heldout, seen[0]])
    masks, _, margins = drawn(60, seed=5)
    other = store_of(tmp_path / "other", masks, margins)
    with pytest.raises(InputError, match="fitted on another store"):
        evaluate(weights, other)
    assert len(evaluate(weights, other, models=other.done).models) == 60
    meta = weights.meta.copy()
    meta["store_digest"] = None
    imported = dataclasses.replace(weights, heldout=weights.heldout[:0], metrics={}, meta=meta)
    alone = evaluate(imported, store)
    assert len(alone.models) == 200
    assert alone.on == "all that are finished, though imported weights do not say on which they were fitted"
    assert evaluate(imported, store, weights).models == tuple(weights.heldout.tolist())


def test_only_targets_that_all_have_count(tmp_path):
    store, weights = fitted(tmp_path)
    np.savez(tmp_path / "a.npz", scores=weights.weights[:, [5, 2]], targets=np.array([5, 2]))
    np.savez(tmp_path / "b.npz", scores=weights.weights[:, [1]], targets=np.array([1]))
    found = evaluate([tmp_path / "a.npz"], store, weights)
    assert found.targets == (2, 5)
    assert found.scores[0].per_target == found.scores[1].per_target
    with pytest.raises(InputError, match="no target that all of weights, a, b have scores for"):
        evaluate([tmp_path / "a.npz", tmp_path / "b.npz"], store, weights)


def test_what_makes_no_sense_is_refused_in_a_sentence(tmp_path, monkeypatch, capsys):
    masks, weights, margins = drawn()
    store = store_of(tmp_path / "s", masks, margins)
    file = tmp_path / "a.npy"
    np.save(file, weights)
    refusals = {
        "must be numbers": lambda: evaluate(weights[:, :2], store),
        "too few; 10 masks are the fewest": lambda: evaluate(weights, store, models=range(9)),
        "each once": lambda: evaluate(weights, store, models=[1, 1]),
        "not among the finished": lambda: evaluate(weights, store, models=range(50, 70)),
        "classes of the 7 targets": lambda: evaluate(weights, store, labels=["a"]),
        "two sets of scores are called weights": lambda: evaluate({"weights": weights}, store, fitted(tmp_path)[1]),
        "two files of scores are called a": lambda: evaluate([file, file], store),
        "not a finite number": lambda: evaluate(weights * np.nan, store),
    }
    for told, call in refusals.items():
        with pytest.raises(InputError, match=told):
            call()
    lines = {
        "go together with --store": ("--models", "1:20"),
        "give --scores FILE, --weights DIR, or both": ("--store", store.folder),
        "takes two numbers, as 320:400": ("--store", store.folder, "--scores", file, "--models", "3"),
    }
    for told, line in lines.items():
        monkeypatch.setattr(sys, "argv", [])
        with pytest.raises(SystemExit):
            main_of("evaluate", *line)()
        assert told in capsys.readouterr().err


def test_the_name_can_be_called_whichever_way_it_was_come_by():
    code = "import sys, datamodels; assert callable(datamodels.evaluate); from datamodels.evaluate import Evaluation; "
    code += "from datamodels import evaluate; assert callable(evaluate); assert 'torch' not in sys.modules; "
    code += "datamodels.evaluate(1, 'nothing')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "InputError: there is no store in nothing" in done.stderr, done.stderr
    assert callable(importlib.import_module("datamodels.evaluate"))


def test_files_of_dattri_and_trak_have_the_lds_of_their_numbers(tmp_path):
    masks, weights, margins = drawn()
    store = store_of(tmp_path / "s", masks, margins)
    weights = weights.astype(np.float32)
    torch.save(torch.tensor(weights), tmp_path / "dattri.pt")
    mapped = np.lib.format.open_memmap(tmp_path / "trak.mmap", "w+", np.float32, (N, T))
    mapped[:] = weights
    mapped.flush()
    found = evaluate([tmp_path / "dattri.pt", tmp_path / "trak.mmap"], store)
    plain = evaluate(weights, store).scores[0].per_target
    assert [of.name for of in found.scores] == ["dattri", "trak"]
    assert found.scores[0].per_target == found.scores[1].per_target == plain
