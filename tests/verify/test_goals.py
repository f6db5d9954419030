"""Sets that repair, training images as targets, and behaviours, on a rule of which the smallest sets are known."""

import csv
import dataclasses
import itertools
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from datamodels.brittleness import Effort, Search
from datamodels.brittleness.curve import Measured
from datamodels.data import Split
from datamodels.errors import InputError
from datamodels.regress import Datamodels, fit_datamodels
from datamodels.regress.behaviours import MeanMargins, behaviour
from datamodels.regress.prior import covariates_named
from datamodels.regress.run import regress
from datamodels.regress.split import Subsets, joined, split_models
from datamodels.report import report
from datamodels.report.gallery import Gallery
from datamodels.runs import page_folder, read_store, stage_folder, verdicts_folder
from datamodels.seals import write_sealed
from datamodels.store import Store
from datamodels.subsets import mask_without
from datamodels.verify import recheck, verify, verify_targets
from datamodels.verify.known import Behaviour, Examples
from datamodels.verify.questions.removals import control_images
from datamodels.verify.questions.searches import Before, SearchQuestion
from datamodels.verify.record import read_verified
from datamodels.verify.targets import targets_given
from datamodels.worker import engine_of, train_missing
from tests.conftest import SMALL, built_in
from tests.regress.test_path import store_of
from tests.verify.additive import ENEMIES, NOISE, RIGHT, TESTS, TRAIN_TARGETS, WRONG, Additive, N, T, enemies, smallest
from tests.verify.rule import changed, result_of

RULE = Additive()
MORE = {
    "worker__main": "tests.verify.additive:Additive",
    "data__train_images": N,
    "data__test_images": TESTS,
    "store__num_models": 300,
    "store__margin_dtype": "float32",
    "verify__models": 8,
    "verify__most_models": 32,
    "verify__base_models": 16,
    "verify__ratio": 1.0,
    "verify__sizes": "none",
    "verify__methods": "datamodel",
}


@pytest.fixture
def own(settings):
    """A run of the rule with its weights: settings, engine, datamodels."""
    chosen = settings(**MORE)
    engine = engine_of(chosen, None)
    train_missing(chosen, engine)
    regress(chosen)
    return chosen, engine, Datamodels.load(stage_folder(chosen, "regress"))


def verified(own, asked, **verify):
    """What verify.json holds, and the line, after a verification under some settings."""
    settings, engine, models = own
    chosen = changed(settings, **verify)
    line = verify_targets(chosen, engine, models, targets_given(asked, Examples(engine.learner)))
    return result_of(chosen), line


def missing(search):
    return mask_without(N, search["order"][: search["size"]])


def test_the_smallest_sets_that_repair_are_those_that_trying_all_finds(own):
    settings, engine, _ = own
    told, line = verified(own, range(T - 2), goal="repair", methods="datamodel,relabel")
    assert {(s["target"], s["method"]) for s in told["searches"]} == {(t, m) for t in WRONG for m in ("datamodel", "relabel")}
    for search in told["searches"]:
        target, goes = search["target"], -RULE.weights[:, search["target"]]
        of_label = goes * np.where(RULE.train_labels == RULE.test_labels[target], 0, 2)
        relabel = search["method"] == "relabel"
        assert search["size"] == smallest(of_label if relabel else goes, 1.0)
        assert search["verdict"] == "repaired"
        assert search["relabelled"] == (RULE.test_labels[target] if relabel else None)
        if target not in (0, 4):
            assert search["order"] == enemies(target)[: search["size"]].tolist()
        assert search["base_margin"] == pytest.approx(-1, abs=0.2)
        found = next(probe for probe in search["probes"] if probe["size"] == search["size"])
        assert found["low"] > 0
        assert found["predicted_drop"] == pytest.approx(-goes[search["order"]].sum(), abs=0.1)
        assert all(probe["verdict"] != "held" for probe in search["probes"] if probe["size"] < search["size"])
    assert "datamodel repairs 6 of 6 predictions, median |R| 2" in line
    table = list(csv.DictReader((verdicts_folder(settings) / "verify.csv").read_text().splitlines()))
    assert [row["verdict"] for row in table] == ["repaired"] * 12 + ["not wrong before"] * 10
    # Both kinds hold with networks that no search has seen, and a set that is too small does not.
    file = verdicts_folder(settings) / "verify.json"
    line = "recheck: 12 of 12 repaired verdicts hold with 32 new models each, 12 of them beyond doubt, in"
    assert recheck(settings, engine, file).startswith(line)
    for search in told["searches"]:
        search["size"] = 1
    write_sealed(file, {key: value for key, value in told.items() if key != "sha256"})
    # One image relabelled is enough for each of them, one removed for none but 4.
    line = recheck(settings, engine, file)
    assert "recheck: 7 of 12 repaired verdicts hold" in line
    assert ", not 0 by datamodel, 1 by datamodel, 2 by datamodel, 3 by datamodel, 5 by datamodel, in" in line


def test_what_a_set_does_to_other_predictions_is_what_the_rule_says(own):
    told, line = verified(own, [0, 1, 7, 9], goal="repair")
    first, second = told["searches"]
    assert (first["breaks"], first["repairs"]) == ([9], [4])
    assert (second["breaks"], second["repairs"]) == ([], [])
    assert "and breaks 1 and repairs 1 others" in line
    flips, _ = verified(own, [7, 9], goal="flip", name="flips")
    for search in flips["searches"]:
        now = RULE.mean(missing(search))
        was_right, wrong = RULE.on_all > 0, now <= 0
        assert set(search["breaks"]) <= set(np.flatnonzero(was_right & wrong)) - {search["target"]}
        assert set(search["breaks"]) >= set(np.flatnonzero(was_right & (now < -5 * NOISE))) - {search["target"]}
        assert set(search["repairs"]) <= set(np.flatnonzero(~was_right & ~wrong))


def test_a_control_of_a_repair_is_of_the_classes_that_were_taken(own):
    settings, _, _ = own
    told, _ = verified(own, [2], goal="repair", sizes="3")
    store = Store(stage_folder(settings, "verify") / "store")
    lacking = [frozenset(np.flatnonzero(~mask)) for mask in store.masks(store.done)]
    for removal in told["removals"]:
        removed = removal["removed_indices"]
        of_class = np.flatnonzero(RULE.train_labels == 3)
        assert (RULE.train_labels[removed] == 3).all()
        assert removal["control_size"] == len(removed)
        controls = [control_images(1, 3, of_class, len(removed), k) for k in range(removal["control"]["models"])]
        assert all(frozenset(images) in lacking for images in controls)
        means = [RULE.mean(mask_without(N, images))[2] for images in controls]
        assert removal["control"]["mean_margin"] == pytest.approx(np.mean(means), abs=5 * NOISE / len(controls) ** 0.5)
        assert not removal["right_before"]
        assert not removal["flipped"]
        assert removal["repaired"] == (RULE.mean(mask_without(N, removed))[2] > 0)
        assert not removal["control_repaired"]


@pytest.mark.parametrize("method", ["random", "similarity"])
def test_to_repair_other_orders_take_the_class_that_networks_call_it(own, method):
    told, _ = verified(own, [1], goal="repair", methods=method)
    (search,) = told["searches"]
    assert (RULE.train_labels[search["order"]] == 2).all()
    assert search["verdict"] == "repaired"
    of_class, _ = verified(own, [1], goal="repair", candidates="class", name="of-class")
    assert (RULE.train_labels[of_class["searches"][0]["order"]] == 2).all()


def test_a_training_image_is_in_no_set_of_its_own_by_any_method(own):
    settings, _, _ = own
    methods = "datamodel,relabel,random,similarity"
    embedding = stage_folder(settings, "embedding.npy")
    seen = RULE.features([0])
    np.save(embedding, np.concatenate([seen["features_train"][0], seen["features_test"][0][:TESTS]]))
    more = {"methods": f"{methods},embedding", "embedding": str(embedding), "sizes": "4", "counterfactuals": "5"}
    told, _ = verified(own, ["train:7", "train:38", 7], **more)
    assert [search["target"] for search in told["searches"][:10:5]] == [TESTS, TESTS + 1]
    for search in told["searches"]:
        column = search["target"] - TESTS
        itself = {TRAIN_TARGETS[column]} if column >= 0 else set()
        assert not itself & set(search["order"])
        goes = RULE.weights[:, search["target"]] * (2 if search["method"] == "relabel" else 1)
        if search["method"] in ("datamodel", "relabel"):
            assert search["size"] == smallest(goes, 1.0, itself)
    for kind, indices in (("removals", "removed_indices"), ("counterfactuals", "indices")):
        for record in told[kind]:
            assert record["target"] < TESTS or TRAIN_TARGETS[record["target"] - TESTS] not in record[indices]
            assert len(record[indices]) == record["size"]
    store = Store(stage_folder(settings, "verify") / "store")
    controls = [r for r in told["removals"] if r["target"] == TESTS and r["rule"] == "4"]
    masks = {row.tobytes() for row in store.packed(store.done)}
    same_class = np.flatnonzero(RULE.train_labels == RULE.test_labels[TESTS])
    images = [control_images(1, 3, same_class, 4, k, np.array([7])) for k in range(controls[0]["control"]["models"])]
    assert all(7 not in of and np.packbits(mask_without(N, of), bitorder="little").tobytes() in masks for of in images)
    table = list(csv.DictReader((verdicts_folder(settings) / "verify.csv").read_text().splitlines()))
    assert {row["target"]: row["name"] for row in table} == {"16": "train:7", "17": "train:38", "7": ""}
    with pytest.raises(InputError, match=r"training image 8 is no target: .* data\.train_targets"):
        verified(own, ["train:8"])


def test_a_behaviour_is_regressed_on_its_mean_margin_as_another_solver_does(own):
    settings, _, models = own
    targets = [8, 2, 13]
    found, mean = behaviour(settings, models, targets)
    store = read_store(settings)
    parts = split_models(Subsets.of(store, store.done), settings.regress)
    ids = joined([parts.fit, parts.choice])
    y = store.margins(ids).astype(np.float64)[:, targets].mean(1)
    oracle = Lasso(alpha=float(found.lam[0]), tol=1e-10, max_iter=10**6).fit(store.masks(ids).astype(np.float64), y)
    np.testing.assert_allclose(found.weights[:, 0], oracle.coef_, atol=2e-3)
    assert found.bias[0] == pytest.approx(oracle.intercept_, abs=5e-3)
    # It is made once, kept, and made anew where anything that decides it has changed.
    (folder,) = stage_folder(settings, "regress-behaviours").iterdir()
    before = (folder / "meta.json").stat().st_mtime_ns
    behaviour(settings, models, [13, 8, 2])
    assert (folder / "meta.json").stat().st_mtime_ns == before
    other = dataclasses.replace(models, meta={**models.meta, "regress": {**models.meta["regress"], "seed": 5}})
    assert behaviour(settings, other, targets)[0].meta["regress"]["seed"] == 5
    assert (folder / "meta.json").stat().st_mtime_ns != before
    (folder / "bias.npy").write_bytes(b"")
    again, margins = behaviour(settings, models, [13, 8, 2])  # to the bit, in whatever order they are named
    assert np.array_equal(again.weights, found.weights)
    assert np.array_equal(margins.margins(store.done), mean.margins(store.done))


def test_a_behaviours_prior_is_the_mean_of_its_targets_priors(settings, tmp_path):
    chosen = settings(**{**MORE, "store__num_models": 120}, regress__prior="similarity", prior__models=4)
    engine = engine_of(chosen, None)
    train_missing(chosen, engine)
    regress(chosen)
    models, store, targets = Datamodels.load(stage_folder(chosen, "regress")), read_store(chosen), [2, 8, 13]
    found, _ = behaviour(chosen, models, targets)
    known = covariates_named("similarity", stage_folder(chosen, "prior"), N, T)
    assert known is not None
    np.save(tmp_path / "own.npy", known.parts(slice(0, T))[:, :, targets].mean(2, keepdims=True))
    mean = store.margins(store.done).astype(np.float64)[:, targets].mean(1, keepdims=True).astype(np.float32)
    own = covariates_named(str(tmp_path / "own.npy"), None, N, 1)
    oracle = fit_datamodels(store_of(tmp_path / "own", store.masks(store.done), mean), chosen.regress, covariates=own)
    np.testing.assert_allclose(found.weights, oracle.weights, atol=1e-4)
    assert found.metrics["mean"]["lds"] == pytest.approx(oracle.metrics["lds"].mean(), abs=1e-3)
    stale = dataclasses.replace(models, meta={**models.meta, "prior_digest": "another"})
    with pytest.raises(InputError, match=r"the prior that regress\.prior similarity names is not that of the weights"):
        behaviour(chosen, stale, [3, 4])


def test_the_mean_of_one_target_is_its_margin(own):
    settings, _, models = own
    store = read_store(settings)
    mean = MeanMargins(store, [7])
    assert np.array_equal(mean.margins(store.done), store.margins(store.done)[:, 7:8])
    assert mean.digest() == store.digest()
    found, _ = behaviour(settings, models, [7])
    np.testing.assert_allclose(found.weights[:, 0], models.weights[:, 7], atol=2e-3)


def test_behaviours_are_searched_and_judged_as_one(own):
    settings, engine, _ = own
    asked = ["class:cow", "boats: 6, train:38", 7, "class:cow"]
    told, line = verified(own, asked)
    boats, cows = [6, TESTS + 1], [2, 6, 10, 14]
    assert told["behaviours"] == [
        {"name": "class:cow", "number": T, "targets": cows},
        {"name": "boats", "number": T + 1, "targets": boats},
    ]
    assert "3 targets" in line
    store = Store(stage_folder(settings, "verify") / "store")
    on_all = store.done[store.masks(store.done).all(1)]
    for number, members in ((T, cows), (T + 1, boats), (7, [7])):
        means = store.margins(on_all).astype(np.float64)[:, members].mean(1)
        base = told["base"][str(number)]
        assert base["mean_margin"] == pytest.approx(means.mean(), abs=1e-6)
        assert base["correct"] == (means > 0).mean()
        assert base["label"] == {T: 2, T + 1: 2, 7: 3}[number]
        search = next(search for search in told["searches"] if search["target"] == number)
        wanted = RULE.on_all[members].mean()
        without = {TRAIN_TARGETS[k - TESTS] for k in members if k >= TESTS}
        assert search["size"] == smallest(RULE.weights[:, members].mean(1), wanted, without)
        assert not set(search["breaks"] + search["repairs"]) & set(members)
    table = list(csv.DictReader((verdicts_folder(settings) / "verify.csv").read_text().splitlines()))
    assert [row["name"] for row in table] == ["class:cow", "boats", ""]
    # A name stands for the targets that it had; others are added after.
    with pytest.raises(InputError, match="the behaviour boats is known, of 2 targets"):
        verified(own, ["boats: 6, 7"])
    more, _ = verified(own, ["more: 8, 9", "class:cow"])
    assert more["behaviours"][:2] == told["behaviours"]
    assert more["behaviours"][2] == {"name": "more", "number": T + 2, "targets": [8, 9]}
    assert more["searches"][: len(told["searches"])] == told["searches"]
    mixed = next(search for search in more["searches"] if search["target"] == T + 2)
    assert mixed["label"] == -1
    assert "verdicts hold" in recheck(settings, engine, verdicts_folder(settings) / "verify.json")


def test_what_networks_mistake_is_a_behaviour_that_can_be_repaired(own):
    told, _ = verified(own, ["mistaken:ant:bee", "mistaken:bee:cow"], goal="repair", methods="datamodel,relabel")
    assert [(b["name"], b["targets"]) for b in told["behaviours"]] == [
        ("mistaken:ant:bee", [0, 4]),
        ("mistaken:bee:cow", [1, 5]),
    ]
    for search in told["searches"]:
        members = told["behaviours"][search["target"] - T]["targets"]
        goes = -RULE.weights[:, members].mean(1) * (2 if search["method"] == "relabel" else 1)
        assert search["verdict"] == "repaired"
        assert search["size"] == smallest(goes * (RULE.train_labels != search["label"]), 1.0)
    with pytest.raises(InputError, match="mistaken:ant:cow: no test image of class ant is called cow by networks"):
        verified(own, ["mistaken:ant:cow"], goal="repair", methods="datamodel,relabel")


def test_repairs_of_what_has_no_class_are_refused_before_anything_is_trained(own):
    settings, engine, _ = own
    with pytest.raises(InputError, match=r"mixed has not one; set verify\.relabel_to"):
        verified(own, ["mixed: 0, 1"], goal="repair", methods="relabel")
    assert not (stage_folder(settings, "verify") / "store").exists()
    told, _ = verified(own, ["mixed: 0, 1"], goal="repair", methods="relabel", relabel_to=0)
    assert [search["relabelled"] for search in told["searches"]] == [0]
    train = engine.learner.train
    engine.learner.train = lambda models: dataclasses.replace(t := train(models), arrays={"margins": t.arrays["margins"]})
    with pytest.raises(InputError, match="which class networks take a target for, or nearly, is told by logits"):
        verified(own, [0], goal="repair", methods="random", name="random", seed=3)


class CrashError(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("after", [3, 120])
def test_what_was_cut_off_ends_as_what_was_not(own, tmp_path, after):
    settings, engine, _ = own
    asked, how = ["class:dog", 1, "train:38", "mistaken:ant:bee"], {"goal": "repair", "methods": "datamodel,relabel,random"}
    train, seen = engine.learner.train, itertools.count(1)

    def crashing(models):
        if next(seen) * len(models) > after:
            raise CrashError
        return train(models)

    engine.learner.train = engine.learner.train_relabelled = crashing
    with pytest.raises(CrashError):
        verified(own, asked, **how)
    engine.learner.train = engine.learner.train_relabelled = train
    told, _ = verified(own, asked, **how)
    whole = dataclasses.replace(settings, run=dataclasses.replace(settings.run, dir=str(tmp_path / "whole")))
    for of in (train_missing, lambda settings, _: regress(settings)):
        of(whole, engine)
    once, _ = verified((whole, engine, Datamodels.load(stage_folder(whole, "regress"))), asked, **how)
    assert told == once


def test_verdicts_of_the_version_before_are_read_and_added_to(own):
    settings, _, _ = own
    told, _ = verified(own, [7, 8])
    file = verdicts_folder(settings) / "verify.json"
    new = {"breaks", "repairs", "behaviours", "repaired", "control_repaired", "goal"}

    def before(value):
        if isinstance(value, dict):
            return {key: before(part) for key, part in value.items() if key not in new}
        return [before(part) for part in value] if isinstance(value, list) else value

    old = before(told)
    write_sealed(file, old)
    found = read_verified(file, N, T, 4)
    assert (found.goal, found.behaviours, found.searches[0].breaks) == ("flip", (), None)
    more, _ = verified(own, [9, "class:dog"])
    assert before(more)["searches"][:2] == old["searches"]
    assert [search["target"] for search in more["searches"]] == [7, 8, 9, T]
    with pytest.raises(InputError, match=r"another setting \(verify.goal: flip → repair\); give --verify.name"):
        verified(own, [1], goal="repair")


def test_a_call_takes_texts_and_numbers(own):
    settings, _, _ = own
    given = {key.replace(".", "__"): value for key, value in SMALL.items()} | MORE | {"run__dir": settings.run.dir}
    found = verify("configs/digits.yaml", [7, "train:38", "class:dog"], gpu=None, **given)
    assert set(found.base) == {7, TESTS + 1, T}
    assert found.behaviours[0].targets == (3, 7, 11, 15)
    assert all(isinstance(search.breaks, tuple) for search in found.searches if search.size)


def test_a_margin_of_zero_is_called_repaired_in_at_most_one_case_in_forty():
    rng, cases = np.random.default_rng(2), 300
    targets = SimpleNamespace(members=lambda target: (target,))
    orders: Any = SimpleNamespace(n=4, repairs=True, sign=-1, targets=targets, weights=lambda target: np.full(4, -1.0))
    before = Before.of(np.random.default_rng(0).normal(0, 1, (32, 40)))

    def repaired():
        margins: dict[bytes, Any] = {}

        def of(requests, _=None):
            return np.array([margins.setdefault(bytes(str(request), "utf-8"), rng.normal()) for request in requests]), None

        found: Any = SimpleNamespace(of=lambda *a: (of(*a)[0], np.full(len(a[0]), np.nan)), margins=lambda r: of(r)[0][:, None])
        search = Search(np.array([1.0]), Measured(1.0, 0.03), before.spread, Effort.of(3, 16, 1.1), strict=True)
        question = SearchQuestion(orders, 0, "random", np.array([0]), search, -1, before)
        while question.wants():
            question.learn(found)
        assert question.size is None or (question.outcome is not None and question.outcome.low > 0)
        return question.size is not None

    assert sum(repaired() for _ in range(cases)) / cases <= 0.025 + 3 * (0.025 / cases) ** 0.5


def test_a_behaviours_picture_is_its_targets_side_by_side():
    class Pictured(Additive):
        def pictures(self, of_train, indices):
            return np.stack([np.full((2, 3, 1), index, np.uint8) for index in indices])

    examples = Gallery(Pictured(), (Behaviour("five", T, (3, 8, 6, 1, 9)), Behaviour("two", T + 1, (4, 5))))
    five, two, four = (np.array(examples.picture(k))[..., 0].tolist() for k in (T, T + 1, 4))
    assert five == [[3] * 3 + [8] * 3] * 2 + [[6] * 3 + [1] * 3] * 2
    assert two == four == [[4] * 3] * 2
    assert [examples.of_target(k) for k in (T, 16, 3)] == ["five", "train:7", ""]
    assert Gallery(Additive()).picture(3) is None


def test_the_built_in_recipe_tells_which_targets_are_training_images(settings, digits):
    images, labels = (
        torch.cat([getattr(digits.test, part), getattr(digits.train, part)[[41, 2]]]) for part in ("images", "labels")
    )
    data = dataclasses.replace(digits, test=Split(images, labels), train_targets=(41, 2))
    assert Examples(built_in(settings(), digits).learner).train_targets == ()
    examples = Examples(built_in(settings(), data).learner)
    assert (examples.tests, examples.t, examples.n) == (20, 22, 60)
    assert targets_given(["train:2", "train:41", 19], examples) == [21, 20, 19]
    assert examples.labels[20:].tolist() == digits.train.labels[[41, 2]].tolist()


def test_the_rule_is_what_the_tests_take_it_for():
    assert smallest(-RULE.weights[:, 1], 1.0) == 2
    assert sum(ENEMIES[:2]) > 1 > ENEMIES[0]
    assert all(RULE.on_all[t] > 0 for t in RIGHT)


def test_the_page_calls_every_target_by_its_name_and_tells_what_sets_do_beside(own):
    settings, engine, _ = own
    verified(own, [0, "train:7", "boats: 1, 5"], goal="repair", sizes="3", methods="datamodel,relabel")
    chosen = changed(settings, goal="repair")
    assert report(chosen, engine.learner).endswith("index.html")
    page = (page_folder(chosen) / "index.html").read_text(encoding="utf-8")
    for name in ("train:7", "boats"):
        assert f"<bdi>{name}</bdi>" in page
    assert "what repairs each wrong prediction" in page
    assert "How many training examples make a prediction wrong?" in page
    assert "flipped</span>" not in page
    assert page.count("repaired</span>") >= 4
    assert 'title="9">1</td>' in page
    summary = json.loads((page_folder(chosen) / "summary.json").read_text())
    assert summary["goal"] == "repair"
    assert summary["by_method"]["datamodel"]["repaired"] == summary["by_method"]["datamodel"]["targets"] == 2
    assert summary["by_method"]["datamodel"]["others_broken"] >= 1
