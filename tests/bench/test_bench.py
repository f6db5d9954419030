"""The benches: the loop that is compared with trains the same model, and the figures fit together."""

import contextlib
import dataclasses
import io
import json
import os
import runpy
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from datamodels.bench import fit as fit_bench
from datamodels.bench import prior as prior_bench
from datamodels.bench import regress as regress_bench
from datamodels.bench import samples, train
from datamodels.bench import store as store_bench
from datamodels.bench.accuracy import bench_accuracy
from datamodels.bench.devices import bench_devices
from datamodels.bench.one_at_a_time import Loop, ffcv_batches, resident_batches
from datamodels.bench.prior import bench_prior
from datamodels.bench.repair import bench_repair, row_of, with_wrong_labels
from datamodels.bench.samples import bench_samples, samples_figure
from datamodels.bench.store import bench_store
from datamodels.bench.train import bench_train, flops_per_image, matmul_peak
from datamodels.brittleness import Outcome
from datamodels.data import Split, beton, load, prepare
from datamodels.data.sources import read_source
from datamodels.errors import InputError
from datamodels.regress import fit_datamodels
from datamodels.regress.prior import covariates_named
from datamodels.regress.split import Parts
from datamodels.runs import read_store, stage_folder
from datamodels.settings import DataSettings, TrainingSettings
from datamodels.subsets import draw_masks
from datamodels.training import Trainer, attribution, tuning
from datamodels.training.draws import INITIALISATION, generator
from datamodels.training.group import STEPS_BEFORE_CAPTURE
from datamodels.verify.record import Probe, SearchRecord
from datamodels.worker import make_prior
from tests.conftest import built_in, dataset, flags, trained
from tests.training.test_resnet9 import load_row

CPU = torch.device("cpu")


def prior_made(settings, data):
    make_prior(settings, built_in(settings, data))


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_plain_loop_trains_the_very_model_that_a_group_trains(digits, recipe, nesterov):
    trainer = Trainer(digits, dataclasses.replace(recipe, nesterov=nesterov), CPU, dtype=torch.float64)
    mask = draw_masks(0, [0], 60, 0.5)
    subset = np.flatnonzero(mask[0])
    loop = Loop(trainer, subset, resident_batches(trainer, subset))
    loop.network.double()
    start = torch.from_numpy(trainer.network.initial_parameters(generator((0, 0), INITIALISATION)))
    load_row(loop.network, trainer.network, start.double())
    for step in range(loop.num_steps):
        loop.advance(step)
    np.testing.assert_allclose(loop.margins().numpy(), trainer.margins(mask, [(0, 0)])[0], atol=1e-5)


def test_the_papers_network_takes_the_operations_that_its_layers_take():
    data = dataset(20, 2)
    pixels_of = torch.randint(256, (20, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    color = Split(pixels_of, data.train.labels)
    data = dataclasses.replace(data, train=color, test=color)
    trainer = Trainer(data, TrainingSettings(batch_size=2), CPU)
    w = 64
    pixels = {1024: 27 * w, 256: 50 * w**2 + 2 * 36 * w**2 + 72 * w**2, 64: 2 * 144 * w**2, 36: 72 * w**2}
    macs = sum(count * weights for count, weights in pixels.items())
    # Forward, gradient by the weights, gradient by the input: the first layer needs none of the last.
    expected = 6 * macs - 2 * 1024 * 27 * w
    assert flops_per_image(trainer) == pytest.approx(expected, rel=0.001)
    assert expected == pytest.approx(1.75e9, rel=0.02)


@pytest.mark.skipif(not beton.available(), reason="FFCV is not installed")
def test_ffcvs_loader_feeds_the_images_of_the_subset(settings):
    prepare(settings())
    data = load(settings())
    trainer = Trainer(data, settings().training, CPU)
    subset, threads = np.arange(10, 45), torch.get_num_threads()
    batches = ffcv_batches(stage_folder(settings(), "data") / "train.beton", trainer, data)(subset)
    seen = []
    for _ in range(6):
        x, labels = next(batches)
        assert x.shape == (10, 1, 8, 8)
        for image, label in zip(x.permute(0, 2, 3, 1), labels, strict=True):
            near = (trainer.images.pixels.view(-1, 8, 8, 1) - image).abs().amax((1, 2, 3))
            assert near.min() < 1e-4
            seen.append(int(near.argmin()))
            assert label == data.train.labels[seen[-1]]
    batches.close()
    torch.set_num_threads(threads)  # FFCV sets it in every epoch
    assert set(seen[:30]) <= set(subset.tolist())
    assert len(set(seen[:30])) == 30


def test_figures_of_the_training_bench_fit_together(settings, monkeypatch):
    monkeypatch.setattr(train, "PEAK_S", 0.05)
    monkeypatch.setattr(tuning, "MEASURE_S", 0.02)
    monkeypatch.setattr(tuning, "MOST_AT_ONCE", 4)
    prepare(settings(), use_ffcv=False)
    record, table = bench_train(settings(), load(settings()), CPU, 2)
    rows = record["rows"]
    alone = [row for row in rows if row["one_at_a_time"]]
    at_once = [row for row in rows if not row["one_at_a_time"]]
    assert [row["models_at_once"] for row in at_once] == [1, 2, 4][: len(at_once)]
    best = max(row["models_per_s"] for row in alone)
    for row in rows:
        assert row["times_one_at_a_time"] == pytest.approx(row["models_per_s"] / best, abs=0.01)
        assert row["models_per_s_range"][0] <= row["models_per_s"] <= row["models_per_s_range"][1]
        assert row["tflop_per_s"] == pytest.approx(row["images_per_s"] * record["training_gflop_per_image"] / 1e3, abs=1e-3)
        # A model takes 9 steps of 10 images, of which those after the start are timed, and more than these belong to it.
        timed = 9 - (1 if row["one_at_a_time"] else STEPS_BEFORE_CAPTURE)
        assert 0 < row["models_per_s"] * timed * 10 <= 1.01 * row["images_per_s"]
        assert row["name"] in table
    json.dumps(record, allow_nan=False)


def test_a_partial_trial_reckons_the_rest_of_the_training_from_its_steps(monkeypatch):
    monkeypatch.setattr(train, "TRIAL_S", 0.0)
    taken: list[int] = []
    _, step_s = train.timed_steps(taken.append, 9, CPU)
    assert taken == []
    monkeypatch.setattr(train, "TRIAL_S", 10.0)
    _, step_s = train.timed_steps(taken.append, 9, CPU)
    assert taken == list(range(9))
    trial = train.Trial(4, 1.0, 10, 0.5, 2.0)
    assert trial.models_per_s == 4 / 8
    assert trial.steps_per_s == 8
    assert step_s < 1


def test_the_matmul_peak_is_within_what_a_processor_can_do(monkeypatch):
    monkeypatch.setattr(train, "PEAK_S", 0.05)
    assert 1e8 < matmul_peak(CPU, torch.float32) < 1e14


def test_accuracy_is_that_of_the_margins(settings):
    prepare(settings(), use_ffcv=False)
    data = load(settings())
    record, table = bench_accuracy(settings(), data, CPU, 3)
    whole, part = record["rows"]
    assert (whole["images"], part["images"], whole["models"]) == (60, 30, 3)
    masks = draw_masks(0, range(3), 60, 0.5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    margins = Trainer(data, settings().training, CPU).margins(masks, [(0, i) for i in range(3)])
    torch.set_num_threads(threads)
    assert part["accuracies"] == pytest.approx((margins > 0).mean(1).tolist(), abs=1e-4)
    assert f"{part['mean']:.2%}" in table


def test_the_prior_bench_times_training_and_what_comes_after_it_apart(settings, monkeypatch):
    chosen, networks = settings(prior__dimensions=77), []

    def slow(trainer, parameters, statistics, dimensions):
        networks.append((parameters, dimensions))
        end = time.process_time() + 0.5
        while time.process_time() < end:
            pass
        return attribution(trainer, parameters, statistics, dimensions)

    prepare(chosen, use_ffcv=False)
    data = load(chosen)
    monkeypatch.setattr(prior_bench, "attribution", slow)
    record, table = bench_prior(chosen, data, CPU, 5)
    assert [(len(parameters), dimensions) for parameters, dimensions in networks] == [(4, 77), (1, 77)]
    ids = [2**31 + k for k in range(4)]
    trained, _ = Trainer(data, chosen.training, CPU).train(draw_masks(0, ids, 60, 0.5), [(0, i) for i in ids])
    # The very networks of the worker's prior.
    assert np.corrcoef(networks[0][0].ravel(), trained.ravel())[0, 1] > 0.99
    assert record["rest_s"] > 2 * 0.5 / 5
    assert record["training_s"] > 0
    assert record["ratio"] == pytest.approx(record["rest_s"] / record["training_s"], rel=0.2)
    assert "N = 60, T = 20, a network of n = 5: training" in table
    json.dumps(record, allow_nan=False)
    with pytest.raises(InputError, match="1 or more, not 0"):
        bench_prior(chosen, data, CPU, 0)


def test_nonsense_is_refused_in_a_sentence(settings, tmp_path, monkeypatch):
    prepare(settings(), use_ffcv=False)
    with pytest.raises(InputError, match="1 round or more, not 0"):
        bench_train(settings(), load(settings()), CPU, 0)
    monkeypatch.setattr(sys, "argv", ["bench", "accuracy", *flags(tmp_path / "run"), "--n", "1", "--gpu", "cpu"])
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as ended:
        runpy.run_module("datamodels.bench", run_name="__main__")
    assert ended.value.code == 2
    assert errors.getvalue().splitlines()[-1] == "error: a mean accuracy with an interval takes 2 models or more, not 1"


def test_the_store_bench_reads_back_what_it_wrote_and_leaves_nothing(settings, monkeypatch):
    monkeypatch.setattr(store_bench, "N", 400)
    monkeypatch.setattr(store_bench, "T", 30)
    monkeypatch.setattr(store_bench, "ROUNDS", 1)
    monkeypatch.setattr(store_bench, "BLOCKS", (3, 16))
    record, table = bench_store(settings(), 40)
    assert record["row_bytes"] == 400 // 8 + 2 * 30 + 4 + 1
    assert record["mask_share_of_bool"] == 0.125
    for name, per_s in record["rows_per_s"].items():
        assert record["megabytes_per_s"][name] == pytest.approx(per_s * record["row_bytes"] / 1e6, rel=0.01, abs=0.1)
        assert name in table
    assert set(record["write_share_of_dd"]) == {"3", "16"}
    assert not stage_folder(settings(), "bench").exists()
    with pytest.raises(InputError, match="16 rows or more, not 15"):
        bench_store(settings(), 15)
    stage_folder(settings(), "bench").mkdir(parents=True)
    with pytest.raises(InputError, match="another bench is at work"):
        bench_store(settings(), 40)


def test_the_regression_bench_compares_equal_solutions(settings, monkeypatch):
    for name in ("LARGE", "SMALL"):
        monkeypatch.setattr(regress_bench, name, regress_bench.Size(40, 300, 5, 6))
    monkeypatch.setattr(regress_bench, "ROUNDS", 1)
    record, table = regress_bench.bench_regress(settings(regress__device="cpu", regress__gap=1e-6), 3)
    assert abs(record["worst_relative_objective_above_scikit_learns"]) < 1e-3
    assert record["times_scikit_learn"] > 0
    assert set(record["growth_seconds"]) == {"base", "2 × models", "2 × images", "2 × targets", "2 × lams"}
    assert all(name in table for name in record["growth_seconds"])
    json.dumps(record, allow_nan=False)
    with pytest.raises(InputError, match="1 to 5 targets, not 6"):
        regress_bench.bench_regress(settings(), 6)


@pytest.mark.parametrize("solver", ["gram", "saga"])
def test_the_fit_bench_runs_the_command_and_reads_its_memory(settings, solver):
    size = fit_bench.size_named("60,900,7,12")
    record, table = fit_bench.bench_fit(settings(regress__device="cpu", regress__solver=solver, regress__heldout=0.1), size)
    assert record["solved_by"]["solver"] == solver
    assert 50e6 < record["peak_resident_bytes"] < record["bound_bytes"]
    assert record["bound_bytes"] == 2 * 4 * (60 * 60 + 60 * 7 + 60 * 7) + 500_000_000
    assert 0 < record["lds"] < 0.6
    assert (record["products_per_target"] > 12) == (solver == "gram")
    assert f"{solver} in float32" in table
    assert not stage_folder(settings(), "bench").exists()


@pytest.mark.parametrize("size", ["", "1,2,3", "1,2,3,x", "1,2,3,0", "1,2,3,4,5"])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(InputError, match="--size takes images, models, targets and values of λ"):
        fit_bench.size_named(size)


def test_without_a_name_the_command_asks_for_a_bench(command):
    asked = command("bench")
    assert (asked.returncode, asked.stderr) == (
        2,
        "error: which bench? There are "
        "train, accuracy, prior, store, page, workers, lasso, devices, regress, samples, court, fit, repair, cost, cluster, "
        "shots, gpu-check\n",
    )


def test_samples_are_scores_of_fits_and_the_ratio_is_read_off_the_lassos_curve(settings, tmp_path):
    chosen = settings(store__num_models=320, prior__models=2, regress__prior="gradients", regress__lams=5)
    prepare(chosen, use_ffcv=False)
    data = load(chosen)
    trained(chosen, data)
    prior_made(chosen, data)
    record, table = bench_samples(chosen, 2)
    assert [(row["models"], row["way"]) for row in record["rows"]] == [
        (m, way) for m in (50, 100, 120) for way in ("lasso", "ridge", "similarity", "gradients", "sparse")
    ]
    by_way = {row["way"]: row for row in record["rows"] if row["models"] == 100}
    assert by_way["sparse"]["nonzeros"] < by_way["gradients"]["nonzeros"] == 60
    # One of them by hand: the flat prior of the second draw at m = 100, judged by models it has not seen.
    store = read_store(chosen)
    order = np.random.default_rng(0).permutation(store.done)
    drawn = np.random.default_rng([0, 100, 1]).permutation(order[200:])[:100]
    heldout = order[:200]
    parts = Parts(np.sort(drawn), np.array([], np.int64), np.sort(heldout))
    fit = fit_datamodels(store, chosen.regress, covariates=covariates_named("flat", None, 60, 20), parts=parts)
    predicted = store.masks(heldout) @ fit.weights.astype(float) + fit.bias
    oracle = [spearmanr(predicted[:, t], store.margins(heldout)[:, t]).statistic for t in range(20)]
    row = next(r for r in record["rows"] if (r["models"], r["way"]) == (100, "ridge"))
    assert row["lds"]["draws"][1] == pytest.approx(np.mean(oracle), abs=2e-3)
    assert "sample ratio" in table
    assert samples_figure(record).startswith(b"\x89PNG")
    lasso = [{"way": "lasso", "models": m, "lds": {"mean": lds}} for m, lds in ((100, 0.1), (400, 0.3), (1600, 0.28))]

    def ratio(lds):
        return samples._ratio(lasso, {"way": "gradients", "models": 50, "lds": {"mean": lds}}, 50)

    assert ratio(0.2)["ratio"] == pytest.approx(4)
    assert ratio(0.2)["ratio_with_the_priors_own"] == pytest.approx(2)
    assert (ratio(0.2)["at_least"], ratio(0.31)["at_least"]) == (False, True)
    assert ratio(0.05)["ratio"] == pytest.approx(2)
    with pytest.raises(InputError, match="drawn"):
        bench_samples(chosen, 0)
    few = settings(run__dir=str(tmp_path / "few"), store__num_models=4)
    prepare(few, use_ffcv=False)
    trained(few, data)
    with pytest.raises(InputError, match="4 finished models are too few to draw from"):
        bench_samples(few, 1)


def test_the_bench_of_devices_verifies_twice_to_the_same_end(settings):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core only")
    chosen = settings(verify__methods="none", verify__sizes="5", store__num_models=60)
    record, table = bench_devices(chosen)
    (row,) = record["rows"]
    assert row["models"] >= 12
    assert record["ratio"] == pytest.approx(row["two"] / row["one"], abs=1e-3)
    assert f"{row['models']} networks" in table
    assert not list(Path(chosen.run.dir).glob("bench-*"))


def test_wrong_labels_are_as_many_as_asked_of_other_classes_and_follow_from_the_seed():
    raw = read_source(DataSettings("digits", train_images=200, test_images=20))
    changed, wrong = with_wrong_labels(raw, 0.05, 3)
    again, _ = with_wrong_labels(raw, 0.05, 3)
    other, _ = with_wrong_labels(raw, 0.05, 4)
    assert sorted(wrong.tolist()) == np.flatnonzero(changed.train.labels != raw.train.labels).tolist()
    assert len(wrong) == 10
    assert np.array_equal(changed.train.labels, again.train.labels)
    assert not np.array_equal(changed.train.labels, other.train.labels)
    assert ((changed.train.labels >= 0) & (changed.train.labels < 10)).all()
    assert np.array_equal(changed.test.labels, raw.test.labels)
    assert np.array_equal(changed.train.images, raw.train.images)
    for share in (0.0, 0.001, 1.0):
        with pytest.raises(InputError, match="some must be wrong, and some right"):
            with_wrong_labels(raw, share, 0)


def test_the_bench_of_repairs_counts_what_the_records_say(settings):
    chosen = settings(store__num_models=60, data__test_images=30, verify__max_size=3, verify__models=3)
    record, table = bench_repair(chosen, share=0.1, seed=0, gpu="cpu", targets=2)
    run = Path(f"{chosen.run.dir}-wrong-0.1-0")
    verified = json.loads((run / "verify" / "verify.json").read_text())
    wrong = {each["image"]: each["is"] for each in record["wrong_labels"]}
    assert len(wrong) == 6
    assert all(each["was"] != each["is"] for each in record["wrong_labels"])
    labels = load(dataclasses.replace(chosen, run=dataclasses.replace(chosen.run, dir=str(run)))).train.labels
    assert {i: int(labels[i]) for i in wrong} == wrong
    assert verified["verify"]["goal"] == "repair"
    assert len(verified["base"]) == len(verified["searches"]) / 2 == record["targets"] == min(2, record["wrong_beyond_doubt"])
    assert f"6 of 60 labels wrong (10.0%); of 30 test targets {record['wrong_beyond_doubt']} wrong beyond doubt" in table
    with pytest.raises(InputError, match="1 or more"):
        bench_repair(chosen, targets=0)


def test_wrongly_labelled_images_are_counted_in_every_set_beside_their_share():
    def search(method, size, *order):
        probe = (0.0, 8, "held", Outcome(8, 1.0, 0.5, 1.5, 1.0, 0.7, 1.0, None), 0.0)
        verdict = "repaired" if size else "censored"
        beside = (None, None) if size is None else ((2, 3), (5,))
        return SearchRecord(
            1, 0, method, None, verdict, size, 9, order, (0.0,) * len(order), -1.0, 8, (Probe(size or 9, *probe),), *beside
        )

    found = [search("a", 2, 7, 3), search("a", 1, 7, 2), search("a", None, 1, 4), search("b", None, 7)]
    row = row_of("a", found, np.array([7, 9]), np.zeros(20, np.int64))
    assert (row["targets"], row["repaired"], row["images"], row["wrongly_labelled"]) == (3, 2, 3, 2)
    assert (row["chance"], row["ratio"], row["sets_with_one"]) == (0.1, pytest.approx(20 / 3), 2)
    assert (row["different_images"], row["different_wrongly_labelled"]) == (2, 1)
    assert row["ratio_interval"] == [5.0, 10.0]  # both sets drawn alike, or the one or the other twice
    assert (row["median_size"], row["breaks"], row["repairs"]) == (1.5, 2, 1)
    none = row_of("b", found, np.array([7, 9]), np.zeros(20, np.int64))
    assert (none["ratio"], none["ratio_interval"], none["median_size"], none["breaks"]) == (0, None, None, None)
