"""Rivals of the datamodel's order: asked for a smaller set, and believed only where fresh networks prove one."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest

from datamodels.brittleness import Effort, Search
from datamodels.brittleness.curve import Measured
from datamodels.brittleness.search import WRONG
from datamodels.brittleness.spread import Spread
from datamodels.errors import InputError
from datamodels.regress import Datamodels
from datamodels.regress.results import write
from datamodels.report import report
from datamodels.runs import page_folder, read_store, stage_folder, verdicts_folder
from datamodels.verify import recheck, verify_targets
from datamodels.verify.methods import rivals_named
from datamodels.verify.plan import Plan
from tests.verify.rule import N, Seen, T, by_the_rule, changed, result_of

BAD = range(8)
"""Targets of which the datamodel's weights say nothing that is true."""


@pytest.fixture
def wrong_weights(run, tmp_path):
    """Datamodels that are wrong about some targets, an engine by the true ones, and a file of the true weights as scores."""
    settings, data, models = run
    weights = models.weights.copy()
    weights[:, BAD] = np.random.default_rng(8).permutation(weights)[:, BAD]
    np.save(tmp_path / "truth.npy", models.weights)
    chosen = changed(settings, methods="datamodel", sizes="none", rivals=f"scores:{tmp_path}/truth.npy", max_size=40)
    return chosen, data, models, dataclasses.replace(models, weights=weights)


def by_target(settings):
    return {search["target"]: search for search in result_of(settings)["searches"]}


def test_the_smallest_set_of_all_orders_is_the_answer_and_the_datamodels_own_search_is_the_same(wrong_weights):
    settings, data, truth, models = wrong_weights
    alone = changed(settings, rivals="none", name="alone")
    verify_targets(alone, by_the_rule(data, truth), models, range(T))
    trained: list[Seen] = []
    line = verify_targets(settings, by_the_rule(data, truth, trained), models, range(T))
    own, found = by_target(alone), by_target(settings)
    better = []
    for target in range(T):
        first, rival = found[target]["orders"]
        assert (first["method"], rival["method"]) == ("datamodel", "scores:truth")
        assert (first["size"], first["models"], first["tried"]) == tuple(own[target][k] for k in ("size", "models", "tried"))
        assert own[target]["orders"] == []
        assert own[target]["along"] == "datamodel"
        sizes = [order["size"] or np.inf for order in (first, rival)]
        assert (found[target]["size"] or np.inf) == min(sizes)
        assert rival["tried"] < sizes[0]
        if sizes[1] < sizes[0]:
            better.append(target)
            assert found[target]["along"] == "scores:truth"
            order = np.argsort(-truth.weights[:, target], kind="stable")[: rival["size"]]
            assert found[target]["order"] == order.tolist()
            assert truth.weights[order, target].sum() >= 1 - 0.15  # as in test_run: noise may have a share in it
        else:
            same = ("size", "order", "probes", "verdict")
            assert [found[target][key] for key in same] == [own[target][key] for key in same]
    assert set(better) >= {target for target in BAD if own[target]["size"] is None or own[target]["size"] > 15}
    assert len(set(better) & set(BAD)) >= len(BAD) - 2
    assert f"{len(better)} of them by the order of scores:truth" in line
    # What was trained for the datamodel's own search is not trained again.
    keys = [seen.key for seen in trained]
    assert len(keys) == len(set(keys))
    removals = {removal["target"]: removal for removal in result_of(settings)["removals"]}
    for target, search in found.items():
        if search["size"] is not None:
            assert removals[target]["removed_indices"] == search["order"]
            assert removals[target]["control_size"] == min(search["size"], (data.train.labels == search["label"]).sum())
    table = list(csv.DictReader((verdicts_folder(settings) / "verify.csv").read_text().splitlines()))
    assert [row["along"] for row in table] == [search["along"] for search in result_of(settings)["searches"]]
    recheck(settings, by_the_rule(data, truth), verdicts_folder(settings) / "verify.json")
    told = json.loads((verdicts_folder(settings) / "recheck.json").read_text())
    assert told["holds"] >= 0.9 * len(told["verdicts"])


def test_rivals_that_know_nothing_change_no_answer_and_cost_a_few_networks(run):
    settings, data, models = run
    alone = changed(settings, methods="datamodel", sizes="none", name="alone")
    asked = changed(alone, rivals="random,similarity", name="asked")
    for chosen in (alone, asked):
        verify_targets(chosen, by_the_rule(data, models), models, range(T))
    own, found = by_target(alone), by_target(asked)
    changes = [target for target in range(T) if found[target]["order"] != own[target]["order"]]
    assert len(changes) <= 2  # where some six images do, chance may put them first
    more = [
        found[target]["models"] - own[target]["models"] for target in range(T) if own[target]["size"] and target not in changes
    ]
    assert np.mean(more) <= 12
    assert all(len(found[target]["orders"]) == 3 for target in range(T) if (own[target]["size"] or 2) > 1)


def test_what_a_rivals_order_lacks_is_said_before_its_targets_networks_are_trained(run, monkeypatch):
    settings, data, models = run
    chosen = changed(settings, methods="datamodel", sizes="none", rivals="similarity")
    trained: list[Seen] = []
    engine = by_the_rule(data, models, trained)

    def features(models):
        raise InputError("no features today")

    monkeypatch.setattr(engine.learner, "features", features)
    with pytest.raises(InputError, match="no features today"):
        verify_targets(chosen, engine, models, range(T))
    assert len(trained) == chosen.verify.base_models


def test_where_the_datamodels_order_has_no_set_any_of_the_rivals_will_do(wrong_weights):
    settings, data, truth, models = wrong_weights
    none = dataclasses.replace(models, weights=np.minimum(models.weights, 0) - 0.01)
    verify_targets(settings, by_the_rule(data, truth), none, [9, 12])
    for search in result_of(settings)["searches"]:
        own, rival = search["orders"]
        assert own == {"method": "datamodel", "size": None, "tried": 0, "models": 0}
        assert search["size"] == rival["size"] > 1
        assert search["along"] == "scores:truth"


class CrashError(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("share", [0.4, 0.7, 0.9])
def test_a_verification_with_rivals_that_was_cut_off_goes_on_with_the_same_networks(wrong_weights, share, monkeypatch):
    settings, data, truth, models = wrong_weights
    whole = changed(settings, name="whole")
    all_of: list[Seen] = []
    verify_targets(whole, by_the_rule(data, truth, all_of), models, range(4))
    shutil.rmtree(stage_folder(settings, "verify") / "store")
    before: list[Seen] = []
    engine = by_the_rule(data, truth, before)
    train = engine.learner.train

    def crashing(models):
        if len(before) >= share * len(all_of):
            raise CrashError
        return train(models)

    monkeypatch.setattr(engine.learner, "train", crashing)
    with pytest.raises(CrashError):
        verify_targets(settings, engine, models, range(4))
    after: list[Seen] = []
    verify_targets(settings, by_the_rule(data, truth, after), models, range(4))
    assert not {seen.key for seen in before} & {seen.key for seen in after}
    assert result_of(settings)["searches"] == result_of(whole)["searches"]


def test_what_a_search_in_its_own_right_has_found_counts_where_it_is_proved_beside_the_other(wrong_weights):
    settings, data, truth, models = wrong_weights
    both = changed(settings, methods=f"datamodel,{settings.verify.rivals}")
    alone = changed(both, rivals="none", name="alone")
    for chosen in (alone, both):
        verify_targets(chosen, by_the_rule(data, truth), models, range(T))
    of = {(search["target"], search["method"]): search for search in result_of(alone)["searches"]}
    smaller, weak = [], []
    for search in result_of(both)["searches"]:
        if search["method"] != "datamodel":
            assert search == of[search["target"], search["method"]]
            continue
        first, rival = (of[search["target"], method] for method in ("datamodel", "scores:truth"))
        assert [order["size"] for order in search["orders"]] == [first["size"], rival["size"]]
        assert search["models"] == first["models"]
        if (rival["size"] or np.inf) >= (first["size"] or np.inf):
            assert search == {**first, "orders": search["orders"]}
        elif search["along"] == "datamodel":
            weak.append(search["target"])
            assert search == {**first, "orders": search["orders"]}
        else:
            smaller.append(search["target"])
            assert (search["order"], search["size"]) == (rival["order"], rival["size"])
            theirs, ours = (next(p for p in s["probes"] if p["size"] == s["size"]) for s in (rival, search))
            # By the same networks, at the level of an attempt after the other's.
            assert ours["mean_margin"] == theirs["mean_margin"]
            assert theirs["high"] < ours["high"] <= 0
    assert len(set(smaller) & set(BAD)) >= len(BAD) - 3
    assert len(weak) <= 3


def searched(search, truth, rng):
    """The search to its end, where a set of so many images has a true margin (K,)."""
    heard: dict[tuple[int, bool], np.ndarray] = {}
    while (step := search.step) is not None:
        before = heard.get((step.size, step.fresh), np.zeros(0))
        new = truth[step.size - 1] + rng.normal(0, 0.5, step.networks - len(before))
        heard[step.size, step.fresh] = np.append(before, new)
        search.learn(heard[step.size, step.fresh])
    return search


@pytest.mark.parametrize("in_their_own_right", [False, True])
def test_all_orders_together_are_wrong_no_more_often_than_one_is_allowed_to_be(in_their_own_right):
    """Margins along three orders level off just above 0: whatever is called flipped is wrong."""
    drops, cases, wrong = 0.25 * np.arange(1, 31), 300, 0
    truth = np.maximum(2 - drops, 0.02)
    for seed in range(cases):
        rng, made, is_wrong = np.random.default_rng(seed), 0, False
        first = Search(drops, Measured(2.0, 0.01), Spread(0.25, 10), Effort.of(2, 24, 1.1))
        for number in range(3):
            if in_their_own_right or not number:
                search = searched(Search(drops, first.base, Spread(0.25, 10), first.effort), truth, rng)
                is_wrong |= search.proves_after(made)
                made += search.attempts
            else:
                search = searched(first.along(drops, made), truth, rng)
                is_wrong |= search.high is not None
                assert search.attempts >= made
                made = search.attempts
        wrong += is_wrong
    assert wrong / cases <= WRONG + 3 * (WRONG / cases) ** 0.5


def test_a_search_that_found_one_image_asks_no_rival_in_vain(run):
    settings, data, models = run
    weights = models.weights.copy()
    weights[5, 3] = 4.0
    rule = dataclasses.replace(models, weights=weights, bias=1 - weights.sum(0))
    chosen = changed(settings, methods="datamodel", sizes="none", rivals="random")
    verify_targets(chosen, by_the_rule(data, rule), rule, [3])
    search = by_target(chosen)[3]
    assert search["order"] == [5]
    assert search["orders"][1] == {"method": "random", "size": None, "tried": 0, "models": 0}


def test_the_page_says_in_whose_order_a_set_is(wrong_weights):
    settings, data, truth, planted = wrong_weights
    folder, heldout = stage_folder(settings, "regress"), read_store(settings).done
    metrics = {"mean": {"lds": 0.5, "nonzeros": 9.0}, "per_target": {"lds": [0.5] * T}, "models_heldout": len(heldout)}
    write(folder, planted.weights, planted.bias, planted.lam, heldout, metrics, {"format_version": 3, **planted.meta})
    engine, models = by_the_rule(data, truth), Datamodels.load(folder)
    verify_targets(settings, engine, models, [0, 1, 2, 15])
    report(settings, engine.learner)
    page = (page_folder(settings) / "index.html").read_text(encoding="utf-8")
    summary = json.loads((page_folder(settings) / "summary.json").read_text())["by_method"]["datamodel"]
    found = by_target(settings)
    answers = sum(search["along"] == "scores:truth" for search in found.values())
    assert summary["orders"]["scores:truth"]["answers"] == answers > 0
    assert summary["orders"]["datamodel"]["sizes"] == {str(t): found[t]["orders"][0]["size"] for t in found}
    assert f"{answers} by another order: by truth" in page
    report(changed(settings, rivals="none"), engine.learner)  # the settings are those of the verdicts
    assert (page_folder(settings) / "index.html").read_text(encoding="utf-8") == page
    assert f"rivals: scores:{settings.verify.rivals.removeprefix('scores:')}" in page
    assert page.count("removed, by datamodel, by another order: by truth</td>") == answers
    assert "and along those of its rivals: by truth." in page


def test_rivals_are_methods_that_remove_and_have_an_answer_to_beat(run, tmp_path):
    settings, data, models = run
    learner = by_the_rule(data, models).learner
    chosen = settings.verify

    def named(rivals, methods=("datamodel",), **more):
        return rivals_named(dataclasses.replace(chosen, rivals=rivals, **more), learner, methods)

    assert named("none") == []
    assert named("similarity, random,similarity") == ["similarity", "random"]
    assert named("similarity", ("random",)) == []
    for bad in ("magic", "datamodel", "relabel", "similarity,", ""):
        with pytest.raises(InputError, match=r"verify.rivals takes some of random, similarity"):
            named(bad)
    with pytest.raises(InputError, match=r"needs verify.embedding"):
        named("embedding")
    np.save(tmp_path / "a.npy", np.zeros((N, T)))
    named_alike = changed(settings, methods=f"datamodel,scores:b={tmp_path}/a.npy", rivals=f"scores:b={tmp_path}/c.npy")
    np.save(tmp_path / "c.npy", np.ones((N, T)))
    with pytest.raises(InputError, match="two files of scores are called b"):
        Plan.of(named_alike, learner)
    chosen_so = changed(settings, methods="datamodel", rivals=f"scores:b={tmp_path}/a.npy")
    plan = Plan.of(chosen_so, learner)
    assert plan.orders_of == ["datamodel", "scores:b"]
    assert "scores:b" in plan.inputs(chosen_so, models)


def test_scores_that_lack_a_target_are_refused_before_anything_is_made(wrong_weights, tmp_path):
    settings, data, truth, models = wrong_weights
    np.save(tmp_path / "nan.npy", np.where(np.arange(T) == 4, np.nan, truth.weights))
    trained: list[Seen] = []
    for more in (
        {"rivals": f"scores:{tmp_path}/nan.npy"},
        {"methods": f"datamodel,scores:{tmp_path}/nan.npy", "rivals": "none"},
    ):
        with pytest.raises(InputError, match=r"scores:nan has a score for target 4 that is not a finite number"):
            verify_targets(changed(settings, name="bad", **more), by_the_rule(data, truth, trained), models, [3, 4])
        assert not verdicts_folder(changed(settings, name="bad")).exists()
        verify_targets(changed(settings, name=f"of-{len(more)}", **more), by_the_rule(data, truth), models, [3])
    assert not trained


def test_gradients_that_the_run_does_not_make_are_refused_before_its_models(run):
    settings, data, models = run
    learner = by_the_rule(data, models).learner
    for more in ({"methods": "datamodel", "rivals": "gradients"}, {"methods": "gradients"}):
        with pytest.raises(InputError, match=r"run the worker with --regress\.prior gradients"):
            Plan.of(changed(settings, **more), learner)
    with_prior = dataclasses.replace(settings, regress=dataclasses.replace(settings.regress, prior="gradients"))
    Plan.of(changed(with_prior, methods="gradients"), learner)


def test_rivals_that_have_nothing_to_beat_are_left_out_and_it_is_said(run, tmp_path, capsys):
    settings, data, models = run
    chosen = changed(settings, methods="random", rivals=f"scores:{tmp_path}/a.npy", sizes="none")
    np.save(tmp_path / "a.npy", np.full((N, T), np.nan))
    verify_targets(chosen, by_the_rule(data, models), models, [3])
    told = f"verify.rivals (scores:{tmp_path}/a.npy) are asked beside the method datamodel only, and left out"
    assert capsys.readouterr().err.count(told) == 1
    np.save(tmp_path / "a.npy", np.zeros((N, T)))  # nothing hangs on it
    verify_targets(chosen, by_the_rule(data, models), models, [5])


def test_methods_and_rivals_written_otherwise_are_the_same_setting(run):
    settings, data, models = run
    verify_targets(changed(settings, rivals="random, similarity", sizes="none"), by_the_rule(data, models), models, [3])
    verify_targets(
        changed(settings, methods=" datamodel, relabel,random ,similarity", rivals="random,similarity,random", sizes="none"),
        by_the_rule(data, models),
        models,
        [5],
    )
    with pytest.raises(InputError, match=r"made under another setting \(verify\.rivals"):
        verify_targets(changed(settings, rivals="similarity,random", sizes="none"), by_the_rule(data, models), models, [7])
