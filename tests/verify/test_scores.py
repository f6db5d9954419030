"""Orders by others' scores: files of several kinds, read the right way round, named, and judged as any method is."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from datamodels.errors import InputError
from datamodels.evaluate.run import evaluate_run, of_random_subsets
from datamodels.reading import read_scores, scores_files
from datamodels.regress import Datamodels
from datamodels.regress.results import write
from datamodels.regress.run import regress
from datamodels.report import report
from datamodels.runs import page_folder, read_store, stage_folder, verdicts_folder
from datamodels.verify import verify_targets
from datamodels.verify.known import Behaviour, Examples, Targets
from datamodels.verify.plan import Plan
from datamodels.verify.record import read_verified
from datamodels.worker import engine_of, train_missing
from tests.verify.additive import TESTS, TRAIN_TARGETS, Additive, N, T
from tests.verify.rule import by_the_rule, changed
from tests.verify.test_goals import MORE

RULE = Additive()


def tensor(file, scores):
    torch.save(torch.tensor(scores), file)


def mapped(file, scores):
    array = np.lib.format.open_memmap(file, "w+", scores.dtype, scores.shape)
    array[:] = scores
    array.flush()


KINDS = {
    "a.npy": lambda file, scores: np.save(file, scores),
    "turned.npy": lambda file, scores: np.save(file, scores.T),
    "trak.mmap": mapped,
    "dattri.pt": tensor,
    "turned.pth": lambda file, scores: tensor(file, np.ascontiguousarray(scores.T)),
    "fortran.npy": lambda file, scores: np.save(file, np.asfortranarray(scores)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [T, TESTS], ids=["all", "tests"])
def test_every_kind_of_file_gives_the_numbers_that_it_was_made_of(tmp_path, kind, width):
    scores = np.random.default_rng(0).normal(size=(N, width)).astype(np.float32)
    KINDS[kind](tmp_path / kind, scores)
    found = read_scores("x", tmp_path / kind, N, T, TESTS)
    assert np.array_equal(found.of(range(width)), scores)
    assert np.array_equal(found.of([3, 0]), scores[:, [3, 0]])
    with pytest.raises(InputError, match=f"x has no scores for target {T}"):
        found.of([1, T])


@pytest.mark.parametrize("packed", [np.savez, np.savez_compressed])
def test_a_list_of_targets_says_of_which_columns_they_are(tmp_path, packed):
    packed(tmp_path / "a.npz", scores=np.arange(2 * N).reshape(N, 2), targets=np.array([9, 4]))
    found = read_scores("x", tmp_path / "a.npz", N, T, TESTS)
    assert found.targets == (9, 4)
    assert found.of([4]).ravel().tolist() == list(range(1, 2 * N, 2))
    with pytest.raises(InputError, match="x has no scores for target 5"):
        found.of([5])


def test_files_that_cannot_be_meant_are_refused_in_a_sentence(tmp_path):
    file, npz, pt = tmp_path / "a.npy", tmp_path / "a.npz", tmp_path / "a.pt"
    for array, told in {
        (N, T + 1): rf"is \(40, 19\), and scores are \(40, {TESTS} or {T}\): a row for each training image",
        (N,): "a column for each target",
        (N, T, 1): "a column for each target",
    }.items():
        np.save(file, np.zeros(array))
        with pytest.raises(InputError, match=told):
            read_scores("x", file, N, T, TESTS)
    np.save(file, np.zeros((N, N)))
    with pytest.raises(InputError, match="may be its rows or its columns; save it as an"):
        read_scores("x", file, N, N, N)
    np.savez(npz, scores=np.zeros((N, N)), targets=np.arange(N))
    assert read_scores("x", npz, N, N, N).values.shape == (N, N)
    np.save(file, np.full((N, T), "x"))
    with pytest.raises(InputError, match="scores are real numbers"):
        read_scores("x", file, N, T, TESTS)
    np.save(file, np.where(np.arange(T) == 4, np.nan, np.zeros((N, T))))
    bad = read_scores("x", file, N, T, TESTS)
    assert not bad.of([3, 5]).any()
    with pytest.raises(InputError, match="for target 4 that is not a finite number"):
        bad.of([3, 4])
    for more in (np.zeros(1), None):
        zeros = np.zeros((N, T))
        if more is None:
            np.savez(npz, scores=zeros)
        else:
            np.savez(npz, scores=zeros, targets=np.arange(T), more=more)
        with pytest.raises(InputError, match="and should hold scores and targets"):
            read_scores("x", npz, N, T, TESTS)
    for targets, told in {
        (0, 0): "each of its targets once",
        (0, T): f"from 0 to {T - 1}",
        (0.5, 1): "whole ones",
        (1, 2, 3): "for 3 targets, and they must be",
    }.items():
        np.savez(npz, scores=np.zeros((N, 2)), targets=np.array(targets))
        with pytest.raises(InputError, match=told):
            read_scores("x", npz, N, T, TESTS)
    torch.save({"scores": torch.zeros(N, T)}, pt)
    with pytest.raises(InputError, match="one tensor of scores, not a dict"):
        read_scores("x", pt, N, T, TESTS)
    with pytest.raises(InputError, match="as scores: it is missing"):
        read_scores("x", tmp_path / "nothing.npy", N, T, TESTS)


def test_files_are_named_by_their_stems_or_as_one_says():
    found = scores_files(["a/trak.mmap", "b=c/trak.mmap", "out/x=1/d.npy"])
    assert {name: str(file) for name, file in found.items()} == {
        "trak": "a/trak.mmap",
        "b": "c/trak.mmap",
        "d": "out/x=1/d.npy",
    }
    with pytest.raises(InputError, match="two files of scores are called trak; give NAME=FILE for one of them"):
        scores_files(["a/trak.mmap", "b/trak.mmap"])
    for word in ("", "a b.npy", "<b>.npy", f"{'x' * 41}.npy", "=a.npy, b"):
        with pytest.raises(InputError, match="give NAME=FILE"):
            scores_files([word])


@pytest.fixture
def own(settings):
    """A run of the rule with its weights: settings, engine, datamodels."""
    chosen = settings(**MORE)
    engine = engine_of(chosen, None)
    train_missing(chosen, engine)
    regress(chosen)
    return chosen, engine, Datamodels.load(stage_folder(chosen, "regress"))


def orders_of(own, tmp_path, numbers, behaviours=(), **verify):
    settings, engine, models = own
    chosen = changed(settings, **{"candidates": "all", **verify})
    plan = Plan.of(chosen, engine.learner)
    targets = Targets(Examples(engine.learner), behaviours)
    return plan, plan.orders(chosen, engine, models, targets, numbers, tmp_path)


def test_images_come_by_score_of_all_or_of_the_class_and_turned_round_to_repair(own, tmp_path):
    scores = np.random.default_rng(1).normal(size=(N, T))
    np.save(tmp_path / "a.npy", scores)
    np.savez(tmp_path / "b.npz", scores=-scores[:, [7, TESTS]], targets=np.array([7, TESTS]))
    methods = f"scores:{tmp_path}/a.npy, random, scores:other={tmp_path}/b.npz"
    plan, orders = orders_of(own, tmp_path, [7, TESTS], methods=methods)
    assert set(plan.methods) == {"scores:a", "scores:other", "random"}

    def by(score, which):
        return [image for image in np.argsort(-score) if which[image]]

    column = scores[:, 7]
    assert orders.of("scores:a", 7).tolist() == by(column, column > 0)
    assert orders.of("scores:other", 7).tolist() == by(-column, column < 0)
    # A training image that is a target is in no set.
    positive = (scores[:, TESTS] > 0) & (np.arange(N) != TRAIN_TARGETS[0])
    assert orders.of("scores:a", TESTS).tolist() == by(scores[:, TESTS], positive)
    assert orders.drops("scores:a", 7, np.arange(3)) is None
    of_class = RULE.train_labels == RULE.test_labels[7]
    _, orders = orders_of(own, tmp_path, [7], methods=methods, candidates="class")
    assert orders.of("scores:a", 7).tolist() == by(column, of_class)
    _, orders = orders_of(own, tmp_path, [7], methods=methods, goal="repair")
    assert orders.of("scores:a", 7).tolist() == by(-column, column < 0)
    # Of several targets as one it is the mean.
    boats = Behaviour("boats", T, (7, 9, TESTS))
    plan, orders = orders_of(own, tmp_path, [T], (boats,), methods=f"scores:{tmp_path}/a.npy")
    mean = scores[:, [7, 9, TESTS]].mean(1)
    assert orders.of("scores:a", T).tolist() == by(mean, (mean > 0) & (np.arange(N) != TRAIN_TARGETS[0]))
    with pytest.raises(InputError, match="scores:other has no scores for target 9"):
        orders_of(own, tmp_path, [7, 9], methods=methods)


def test_a_verification_by_scores_is_recorded_shown_and_not_mixed_with_that_of_another_file(own, tmp_path):
    settings, engine, models = own
    np.save(tmp_path / "a.npy", RULE.weights)
    chosen = changed(settings, methods=f"datamodel,scores:{tmp_path}/a.npy")
    line = verify_targets(chosen, engine, models, [9, 12])
    assert "scores:a flips 2 of 2 predictions" in line
    file = verdicts_folder(chosen) / "verify.json"
    examples = Examples(engine.learner)
    found = read_verified(file, examples.n, examples.t, examples.classes)
    for search in found.searches:
        if search.method == "scores:a":
            by_weight = np.argsort(-RULE.weights[:, search.target], kind="stable")
            assert list(search.order) == by_weight[: len(search.order)].tolist()
    assert set(found.inputs) == {"scores:a"}
    report(chosen, engine.learner)
    page = (page_folder(chosen) / "index.html").read_text(encoding="utf-8")
    assert "removed, by a" in page
    assert "scores:a" in json.loads((page_folder(chosen) / "summary.json").read_text())["by_method"]
    verify_targets(chosen, engine, models, [12])
    np.save(tmp_path / "a.npy", -RULE.weights)
    with pytest.raises(InputError, match=r"made under another setting \(digest of.scores:a"):
        verify_targets(chosen, engine, models, [9])
    for methods, told in {
        "scores": "scores:FILE, or none, not 'scores'",
        "scores:": "give NAME=FILE",
        f"scores:{tmp_path}/b.npy": "as scores: it is missing",
    }.items():
        with pytest.raises(InputError, match=told):
            verify_targets(changed(settings, methods=methods), engine, models, [9])


def test_a_run_evaluates_scores_on_held_out_models_and_on_the_random_subsets_with_their_ceiling(run, tmp_path):
    settings, data, planted = run
    settings = changed(settings, methods="none", sizes="none", subsets=15, subset_models=4)
    store, folder = read_store(settings), stage_folder(settings, "regress")
    models = dataclasses.replace(planted, heldout=store.done)
    meta = {"format_version": 3, "version": "0", **models.meta}
    write(folder, models.weights, models.bias, models.lam, models.heldout, {}, meta)
    models = Datamodels.load(folder)
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).normal(size=models.weights.shape))
    engine = by_the_rule(data, models)
    words = [str(tmp_path / "noise.npy")]
    assert len(evaluate_run(settings, engine.learner, words)) == 1
    verify_targets(settings, engine, models, [3])
    held, on_subsets = evaluate_run(settings, engine.learner, words)
    assert held.models == tuple(store.done.tolist())
    assert (on_subsets.masks, len(on_subsets.models)) == (15, 60)
    told = json.loads((verdicts_folder(settings) / "verify.json").read_text())["random_subsets"]
    assert on_subsets.scores[0].lds == pytest.approx(told["lds"], abs=1e-6)
    assert on_subsets.ceiling == pytest.approx(told["lds_ceiling"], abs=1e-6)
    assert on_subsets.on == "those on the verification's random subsets"
    assert set(held.scores[0].by_class) == {Examples(engine.learner).class_name(label) for label in data.test.labels.tolist()}
    assert of_random_subsets(changed(settings, subsets=9), engine.learner.train_labels.size) is None
