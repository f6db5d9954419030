"""What is asked, and of which images: orders, controls, random subsets, counterfactuals."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics.pairwise import cosine_similarity

from datamodels.errors import InputError
from datamodels.runs import stage_folder
from datamodels.training import Trainer
from datamodels.verify import methods, verify_targets
from datamodels.verify.kept import mean_logits, mean_similarity
from datamodels.verify.known import Examples, Targets
from datamodels.verify.methods import methods_named, sizes_named
from datamodels.verify.plan import Plan
from datamodels.verify.questions.random_subsets import ceiling
from datamodels.verify.questions.removals import Removal
from datamodels.verify.record import SearchRecord, read_verified
from datamodels.verify.retrain import Request
from datamodels.verify.summary import drop_correlations, median_size
from datamodels.worker import make_prior
from tests.conftest import built_in
from tests.verify.rule import NOISE, N, Seen, T, by_the_rule, changed, result_of

CPU = torch.device("cpu")


def test_random_subsets_are_judged_and_the_ceiling_is_where_a_right_prediction_ends(run):
    settings, data, models = run
    chosen = changed(settings, methods="none", sizes="none", subsets=150, subset_models=4)
    trained: list[Seen] = []
    line = verify_targets(chosen, by_the_rule(data, models, trained), models, [3])
    told = result_of(settings)["random_subsets"]
    masks = {request.packed for request in trained if request.repetition < 4} - {np.packbits(np.ones(N, bool)).tobytes()}
    assert len({m for m in masks if sum(map(int.bit_count, m)) == 30}) == 150
    kept = np.load(stage_folder(settings, "verify") / "random_subsets.npz")
    assert kept["predicted"].shape == (150, T)
    assert kept["halves"].shape == (2, 150, T)
    lds = [spearmanr(kept["predicted"][:, t], kept["halves"].mean(0)[:, t]).statistic for t in range(T)]
    assert told["lds"] == pytest.approx(np.mean(lds), abs=1e-9)
    # Models follow the datamodels, up to noise: what is reached is the ceiling.
    assert 0.5 < told["lds_ceiling"] < 1
    assert told["lds"] == pytest.approx(told["lds_ceiling"], abs=0.03)
    assert told["pooled"] == pytest.approx(told["pooled_ceiling"], abs=0.03)
    assert f"LDS {told['lds']:.3f} on 150 random subsets, at best {told['lds_ceiling']:.3f}" in line
    # Weights that say nothing reach nothing, under the same ceiling.
    shuffled = dataclasses.replace(models, weights=models.weights[:, ::-1].copy())
    again = changed(chosen, name="shuffled")
    verify_targets(again, by_the_rule(data, models), shuffled, [3])
    other = result_of(again)["random_subsets"]
    assert abs(other["lds"]) < 0.2
    assert other["lds_ceiling"] == told["lds_ceiling"]
    odd = changed(chosen, subset_models=3)
    with pytest.raises(InputError, match="must be even"):
        verify_targets(odd, by_the_rule(data, models), models, [3])


def test_the_ceiling_is_the_correlation_with_the_truth_itself():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200_000)
    for noise in (0.3, 1.0, 3.0):
        halves = truth + noise * rng.normal(size=(2, len(truth)))
        of_halves = np.corrcoef(halves[0], halves[1])[0, 1]
        assert ceiling(of_halves) == pytest.approx(np.corrcoef(truth, halves.mean(0))[0, 1], abs=0.01)
    assert ceiling(-0.2) == 0


def test_the_control_removes_other_images_of_the_targets_class_for_each_model(run, tmp_path):
    settings, data, models = run
    engine = built_in(settings, data)
    targets = Targets(Examples(engine.learner))
    orders = Plan.of(settings, engine.learner).orders(settings, engine, models, targets, [3], tmp_path)
    removal = Removal.of_size(orders, 3, 5)
    label, labels = int(data.test.labels[3]), data.train.labels.numpy()
    expected = min(5, int((labels == label).sum()))
    sets = []
    for request in removal.control:
        mask = np.unpackbits(np.frombuffer(request.packed, np.uint8), count=60, bitorder="little")
        removed = np.flatnonzero(mask == 0)
        assert len(removed) == removal.control_size == expected
        assert (labels[removed] == label).all()
        sets.append(tuple(removed))
    assert [request.repetition for request in removal.control] == list(range(16))
    assert len(set(sets)) > 1
    assert removal.control == Removal.of_size(orders, 3, 5).control


def test_counterfactuals_measure_what_the_weights_predict(run):
    settings, data, models = run
    chosen = changed(settings, methods="none", sizes="none", counterfactuals="4,15")
    trained: list[Seen] = []
    line = verify_targets(chosen, by_the_rule(data, models, trained), models, [3, 11])
    told = result_of(settings)["counterfactuals"]
    assert len(told) == 2 * 2 * (2 + 4)
    for one in told:
        weights, removed = models.weights[:, one["target"]].astype(float), one["indices"]
        assert one["size"] == len(set(removed))
        assert one["predicted_drop"] == pytest.approx(weights[removed].sum())
        # Margins follow the weights but for noise, the mean of 8 models and of 32.
        assert one["measured_drop"] == pytest.approx(one["predicted_drop"], abs=5 * NOISE * (1 / 8 + 1 / 32) ** 0.5)
        assert one["low"] < one["measured_drop"] < one["high"]
        rest = np.setdiff1d(np.arange(N), removed)
        if one["kind"] == "top":
            assert weights[removed].min() >= weights[rest].max()
        if one["kind"] == "bottom":
            assert weights[removed].max() <= weights[rest].min()
    random = {target: [c["indices"] for c in told if c["kind"] == "random" and c["target"] == target] for target in (3, 11)}
    assert random[3] == random[11]
    assert len({tuple(sorted(indices)) for indices in random[3]}) == 8
    # The random sets' models serve both targets.
    assert len(trained) == 32 + 8 * (2 * 2 * 2 + 2 * 4)
    oracle = pearsonr([c["predicted_drop"] for c in told], [c["measured_drop"] for c in told]).statistic
    records = read_verified(stage_folder(settings, "verify") / "verify.json", N, T, 10).counterfactuals
    assert drop_correlations(records)["all"] == pytest.approx(oracle)
    assert f"predicted and measured drops: all {oracle:.2f}, top" in line
    beyond = changed(chosen, counterfactuals="60")
    with pytest.raises(InputError, match=r"verify.counterfactuals takes sizes from 1 to 59"):
        verify_targets(beyond, by_the_rule(data, models), models, [3])


def test_the_median_counts_censored_searches_as_larger_than_all():
    def searches(*sizes):
        return [SearchRecord(0, 0, "random", None, "", size, 50, (), (), 1.0, 0, ()) for size in sizes]

    assert median_size(searches(3, None, 5)) == "5"
    assert median_size(searches(3, None, 5, 8)) == "6.5"
    assert median_size(searches(3, None, None)) == "> 50"


def test_relabelled_images_get_the_runner_up_or_the_class_that_is_given(run):
    settings, data, models = run
    chosen = changed(settings, methods="relabel", sizes="none")
    engine = by_the_rule(data, models)
    verify_targets(chosen, engine, models, [3, 7])
    logits = engine.learner.logits
    for search in result_of(chosen)["searches"]:
        others = [c for c in np.argsort(-logits[search["target"]]) if c != search["label"]]
        assert search["relabelled"] == others[0]
    given = changed(chosen, relabel_to=2, name="given")
    verify_targets(given, engine, models, [3, 7])
    assert all(s["relabelled"] == 2 or s["label"] == 2 for s in result_of(given)["searches"])
    beyond = changed(chosen, relabel_to=10)
    with pytest.raises(InputError, match=r"verify.relabel_to is 10, but the classes run from 0 to 9"):
        verify_targets(beyond, engine, models, [3])


def test_a_class_without_examples_is_no_runner_up(run):
    settings, data, models = run
    chosen = changed(settings, methods="relabel", sizes="none", name="gone")
    engine = by_the_rule(data, models)
    learner = engine.learner
    learner.logits[:, 9] = 100.0
    learner.train_labels = np.where(learner.train_labels == 9, 8, learner.train_labels)
    of_it = int(np.flatnonzero(learner.test_labels == 9)[0])
    verify_targets(chosen, engine, models, [3, 7, of_it])
    for search in result_of(chosen)["searches"]:
        others = [c for c in np.argsort(-learner.logits[search["target"]]) if c not in (search["label"], 9)]
        assert search["relabelled"] == others[0]
    assert str(of_it) in result_of(chosen)["base"]
    verify_targets(chosen, engine, models, [of_it])  # verdicts on it are read again
    learner.train_labels = np.full_like(learner.train_labels, learner.test_labels[3])
    with pytest.raises(InputError, match=r"relabel needs training examples of another class than target 3's, and there"):
        verify_targets(changed(chosen, name="alone"), engine, models, [3])
    learner.train_labels, learner.test_labels = (np.full_like(x, -1) for x in (learner.train_labels, learner.test_labels))
    with pytest.raises(InputError, match="the method relabel needs the classes of examples, and the rule does not know them"):
        verify_targets(changed(chosen, name="unknown"), engine, models, [3])


def test_candidates_of_the_class_are_of_the_class_and_by_weight(run):
    settings, data, models = run
    chosen = changed(settings, methods="datamodel", candidates="class", sizes="none")
    verify_targets(chosen, by_the_rule(data, models), models, list(range(8)))
    labels = data.train.labels.numpy()
    for search in result_of(settings)["searches"]:
        assert (labels[search["order"]] == search["label"]).all()
        weights = models.weights[search["order"], search["target"]]
        assert (np.diff(weights) <= 0).all()
        same_class = labels == search["label"]
        assert weights.max() == models.weights[same_class, search["target"]].max()
        assert search["tried"] <= same_class.sum()


def test_an_embedding_orders_by_cosine_within_the_class(run, tmp_path):
    settings, data, models = run
    trained: list[Seen] = []
    embedding = np.random.default_rng(0).normal(size=(N + T, 6))
    np.save(tmp_path / "embedding.npy", embedding)

    def chosen(file):
        return changed(settings, methods="embedding", embedding=str(file), sizes="none")

    verify_targets(chosen(tmp_path / "embedding.npy"), by_the_rule(data, models), models, [3])
    (search,) = result_of(settings)["searches"]
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    similarity = unit[:N] @ unit[N + 3]
    same_class = np.flatnonzero(data.train.labels.numpy() == int(data.test.labels[3]))
    assert search["order"] == sorted(same_class, key=lambda i: -similarity[i])[: len(search["order"])]
    np.save(tmp_path / "short.npy", embedding[:-1])
    wrong = {"none": "needs verify.embedding", tmp_path / "no.npy": "cannot read", tmp_path / "short.npy": "80 images"}
    for file, named in wrong.items():
        with pytest.raises(InputError, match=named):
            verify_targets(chosen(file), by_the_rule(data, models, trained), models, [5])
    assert not trained


def test_first_order_attribution_orders_within_the_class(run):
    settings, data, models = run
    chosen = changed(settings, methods="gradients", sizes="none")
    with pytest.raises(InputError, match=r"there are none in .*run the worker with --regress.prior gradients"):
        verify_targets(chosen, by_the_rule(data, models), models, [3])
    with_prior = dataclasses.replace(chosen, regress=dataclasses.replace(chosen.regress, prior="gradients"))
    make_prior(with_prior, built_in(with_prior, data))
    verify_targets(chosen, by_the_rule(data, models), models, [3])
    (search,) = result_of(settings)["searches"]
    scores = np.load(stage_folder(settings, "prior") / "gradients.npy")[-1, :, 3].astype(float)
    same_class = np.flatnonzero(data.train.labels.numpy() == int(data.test.labels[3]))
    assert search["order"] == sorted(same_class, key=lambda i: -scores[i])[: len(search["order"])]


def test_weights_with_a_prior_choose_images_as_they_are(run, monkeypatch):
    settings, data, models = run

    def never(*_):
        raise AssertionError

    monkeypatch.setattr(methods, "shrunk_weights", never)
    chosen = changed(settings, methods="datamodel", sizes="none")
    with_prior = dataclasses.replace(models, meta={**models.meta, "regress": {"prior": "gradients"}})
    verify_targets(chosen, by_the_rule(data, models), with_prior, [3])
    (search,) = result_of(settings)["searches"]
    assert search["order"] == np.argsort(-models.weights[:, 3], kind="stable")[: len(search["order"])].tolist()
    with pytest.raises(AssertionError):
        verify_targets(changed(chosen, name="lasso"), by_the_rule(data, models), models, [3])


def test_methods_and_sizes_are_checked(run, settings):
    _, data, models = run
    learner = by_the_rule(data, models).learner
    chosen = settings().verify
    assert sizes_named("verify.sizes", "20,5,20", 60) == [20, 5]
    assert sizes_named("verify.sizes", "none", 60) == []
    assert methods_named(dataclasses.replace(chosen, methods="random, datamodel"), learner) == ["random", "datamodel"]
    for bad in ("all", "0", "60", "5,", "-3"):
        with pytest.raises(InputError, match=r"verify.sizes takes"):
            sizes_named("verify.sizes", bad, 60)
    with pytest.raises(InputError, match=r"verify.methods takes some of datamodel, relabel"):
        methods_named(dataclasses.replace(chosen, methods="magic"), learner)
    bare = SimpleNamespace(name="bare", train_labels=learner.train_labels)
    lacking = {"relabel": "models of other labels", "similarity": "features", "trak": "networks that dattri can take apart"}
    for method, what in lacking.items():
        with pytest.raises(InputError, match=f"the method {method} needs {what}, and bare gives none"):
            methods_named(dataclasses.replace(chosen, methods=method), bare)


def test_similarity_and_logits_are_means_over_the_models(run):
    settings, data, _ = run
    learner = built_in(settings, data).learner
    models = [Request.of(np.ones(N, bool), r).model(1, learner) for r in range(6)]
    similarity, logits = mean_similarity(models, [3, 7], learner), mean_logits(models, learner)["logits"]
    trainer = Trainer(data, settings.training, CPU)
    each = [trainer.features_of(np.ones((1, N), bool), [model.key]) for model in models]
    np.testing.assert_allclose(logits, np.mean([one["logits"][0] for one in each], 0), atol=0.05)
    oracle = np.mean([cosine_similarity(one["features_test"][0][[3, 7]], one["features_train"][0]) for one in each], 0)
    np.testing.assert_allclose(similarity, oracle, atol=0.05)
    assert (similarity.shape, logits.shape) == ((2, N), (T, 10))


def test_scores_of_a_library_order_within_the_class_and_are_asked_for_once_a_target(run, monkeypatch):
    settings, data, models = run
    monkeypatch.setattr(methods, "require_dattri", lambda: None)
    scores, asked = np.random.default_rng(4).normal(size=(N, T)), []

    def attribute(method, models, targets):
        asked.append((method, len(models), list(targets)))
        return scores[:, targets]

    chosen = changed(settings, methods="trak", sizes="none")
    engine = by_the_rule(data, models)
    engine.learner.attribute = attribute
    for targets in ([3, 7], [11, 3]):
        verify_targets(chosen, engine, models, targets)
    assert asked == [("trak", 4, [3, 7]), ("trak", 4, [11])]
    labels = data.train.labels.numpy()
    searches = result_of(settings)["searches"]
    assert [search["target"] for search in searches] == [3, 7, 11]
    for search in searches:
        same_class = np.flatnonzero(labels == search["label"])
        by_score = sorted(same_class, key=lambda i: -scores[i, search["target"]])
        assert search["order"] == by_score[: len(search["order"])]
        assert search["probes"]
