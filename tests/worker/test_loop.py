"""The worker: rows are those of the seed, blocks are trained once, crashes cost a block, settings are guarded."""

import dataclasses
import gc
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import torch

from datamodels.data import load, prepare
from datamodels.errors import InputError
from datamodels.learners import recipe
from datamodels.machine import cores
from datamodels.regress.run import regress
from datamodels.runs import groups_of, read_store
from datamodels.settings import PLAIN, GroupSettings
from datamodels.store import claim, read_meta
from datamodels.store.layout import write_meta
from datamodels.subsets import draw_masks
from datamodels.training import Trainer
from datamodels.training.devices import device_named, for_each_group
from datamodels.worker import open_store, train_missing
from tests.conftest import built_in, flags, trained

CPU = torch.device("cpu")


def opened(settings, data):
    return open_store(settings, built_in(settings, data))


@pytest.fixture
def data(settings):
    prepare(settings(), use_ffcv=False)
    return load(settings())


def store_of(settings):
    return read_store(settings)


def test_rows_hold_the_masks_of_the_seed_and_the_margins_of_their_models(settings, data):
    trained(settings(), data)
    store = store_of(settings())
    assert store.done.tolist() == list(range(10))
    assert np.array_equal(store.masks(store.done), draw_masks(0, range(10), 60, 0.5))
    assert store.damaged(store.done) == []
    trainer = Trainer(data, settings().training, CPU)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        block = trainer.margins(store.masks(range(4, 8)), [(0, i) for i in range(4, 8)])
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(store.margins(range(4, 8)), block)


def test_a_finished_store_is_left_alone(settings, data, monkeypatch):
    trained(settings(), data)
    digest = store_of(settings()).digest()
    monkeypatch.setattr(Trainer, "outputs", lambda *_: pytest.fail("trained again"))
    assert "10 of 10" in trained(settings(), data)
    assert store_of(settings()).digest() == digest


def test_more_models_add_to_those_that_are_there(settings, data):
    trained(settings(), data)
    before = store_of(settings()).margins(range(10))
    assert "16 of 16" in trained(settings(store__num_models=16), data)
    store = store_of(settings())
    assert len(store.done) == 16
    assert np.array_equal(store.margins(range(10)), before)
    assert np.array_equal(store.masks(store.done), draw_masks(0, range(16), 60, 0.5))


def test_a_claimed_block_is_left_to_its_holder_and_taken_when_that_is_gone(settings, data):
    folder = opened(settings(), data)
    lock = claim(folder, 1)
    assert lock is not None
    assert claim(folder, 1) is None
    seen = []

    def end_of_the_holder():
        seen.append(store_of(settings()).done.tolist())
        lock.release()

    threading.Timer(3, end_of_the_holder).start()
    assert "10 of 10" in trained(settings(), data)
    assert seen == [[0, 1, 2, 3, 8, 9]]
    assert list((folder / "claims").iterdir()) == []


def test_other_settings_are_refused_by_name_and_nothing_is_touched(settings, data):
    trained(settings(), data)
    digest = store_of(settings()).digest()
    with pytest.raises(InputError, match=r"other settings \(store.alpha: 0.5 → 0.3; training.width: 4 → 5\)"):
        opened(settings(store__alpha=0.3, training__width=5), data)
    assert store_of(settings()).digest() == digest


def test_a_model_that_diverges_is_recorded_with_its_reason_and_the_rest_go_on(settings, data, monkeypatch):
    outputs = Trainer.outputs

    def seventh_diverges(self, masks, keys, labels=None):
        found = outputs(self, masks, keys, labels)
        found["margins"][[key == (0, 7) for key in keys]] = np.nan
        return found

    monkeypatch.setattr(Trainer, "outputs", seventh_diverges)
    assert "9 of 10 models are done" in (line := trained(settings(), data))
    assert "given up: 7 (diverged" in line
    store = store_of(settings())
    assert store.done.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert list(store.failures) == [7]
    monkeypatch.setattr(Trainer, "outputs", lambda *_: pytest.fail("trained again"))
    assert trained(settings(), data) == line


def test_a_recipe_by_which_every_model_diverges_is_said_and_no_model_is_given_up(settings, data):
    broken = settings(training__peak_lr=1e30)
    with pytest.raises(InputError, match=r"10 models were tried, and not one could be trained; model \d: diverged"):
        trained(broken, data)
    assert (len(store_of(broken).missing), store_of(broken).failures) == (10, {})
    with pytest.raises(InputError, match="0 finished models"):
        regress(broken)


def test_the_measured_group_stays_with_the_store(settings, data, monkeypatch):
    measured = settings(groups__models_at_once=0)
    groups = GroupSettings(3, 3, PLAIN)
    monkeypatch.setattr(recipe, "choose_groups", lambda *_: (groups, {groups: 7.0}))
    assert "10 of 10" in trained(measured, data)
    store = store_of(measured)
    assert groups_of(store.meta) == groups
    assert store.meta.provenance["groups"] == {"models_at_once": 3, "models_per_kernel": 3, "program": PLAIN}
    monkeypatch.setattr(recipe, "choose_groups", lambda *_: pytest.fail("measured again"))
    assert "12 of 12" in train_missing(
        settings(groups__models_at_once=0, store__num_models=12),
        built_in(settings(groups__models_at_once=0, store__num_models=12), data),
    )
    with pytest.raises(InputError, match=r"groups.models_at_once: 3 → 4"):
        opened(settings(), data)
    assert store_of(settings()).done.tolist() == list(range(12))


def test_a_killed_worker_loses_no_row_and_the_next_one_ends_with_the_same_store(settings, tmp_path):
    many = {"store__num_models": 64, "training__epochs": 6}
    whole, broken = (settings(run__dir=str(tmp_path / name), **many) for name in ("whole", "broken"))
    for chosen in (whole, broken):
        prepare(chosen, use_ffcv=False)
    trained(whole, load(whole))
    command = [sys.executable, "-m", "datamodels.worker", *flags(tmp_path / "broken", **many), "--gpu", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as worker:
        done = tmp_path / "broken" / "store" / "done.npy"
        deadline = time.monotonic() + 60
        while worker.poll() is None and time.monotonic() < deadline and not (done.exists() and np.load(done).any()):
            time.sleep(0.02)
        worker.send_signal(signal.SIGKILL)
    half = store_of(broken)
    assert 0 < len(half.done) < 64
    assert half.damaged(half.done) == []
    trained(broken, load(broken))
    assert store_of(broken).digest() == store_of(whole).digest()


def test_all_groups_run_and_the_first_error_is_raised():
    seen: list[int] = []
    for_each_group(range(5), seen.append, CPU)
    assert sorted(seen) == list(range(5))
    with pytest.raises(ZeroDivisionError):
        for_each_group([1, 0], lambda k: seen.append(1 // k), CPU)


def test_devices_are_named_or_refused():
    assert device_named("cpu") == CPU
    with pytest.raises(InputError, match="must be cpu or the number of a GPU"):
        device_named("first")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"no GPU here.*GPU=cpu"):
            device_named("0")


def test_groups_run_side_by_side():
    if cores() < 2:
        pytest.skip("one core only")
    both = threading.Barrier(2, timeout=10)
    arrived: list[int] = []
    for_each_group(range(2), lambda _: arrived.append(both.wait()), CPU)
    assert sorted(arrived) == [0, 1]


def test_logits_are_kept_beside_the_margins_where_they_are_asked_for(settings, data):
    chosen = settings(store__arrays="logits:float32:20x10")
    trained(chosen, data)
    store = store_of(chosen)
    logits, labels = store.array("logits", range(10)), data.test.labels.numpy()
    right = np.take_along_axis(logits, labels[None, :, None], 2)[..., 0]
    others = np.where(np.arange(10) == labels[:, None], -np.inf, logits).max(2)
    np.testing.assert_allclose(store.margins(range(10)), right - others, rtol=1e-6)
    for wrong in ("features:float32:20x10", "logits:float32:10x20"):
        with pytest.raises(InputError, match="only logits of shape 20x10 can be kept"):
            opened(settings(store__arrays=wrong), data)


def test_a_store_whose_groups_name_no_program_was_trained_by_the_plain_one_and_goes_on(settings, data):
    trained(settings(), data)
    folder = store_of(settings()).folder
    meta = read_meta(folder)
    older = {name: value for name, value in meta.provenance["groups"].items() if name != "program"}
    write_meta(folder, dataclasses.replace(meta, provenance={**meta.provenance, "groups": older}))
    assert "12 of 12" in trained(settings(store__num_models=12), data)
    with pytest.raises(InputError, match=r"groups.program: plain → compiled"):
        opened(settings(groups__program="compiled"), data)


def test_what_a_gpu_held_for_the_training_is_given_back_when_nobody_holds_it_any_more(settings, data, monkeypatch):
    trainers, seen = list[weakref.ref[Trainer]](), list[int]()
    begin = Trainer.__init__

    def noted(self, *arguments, **named):
        begin(self, *arguments, **named)
        trainers.append(weakref.ref(self))

    def give_back(device):
        gc.collect()
        seen.append(sum(ref() is not None for ref in trainers))

    monkeypatch.setattr(Trainer, "__init__", noted)
    monkeypatch.setattr(recipe, "give_back", give_back)
    train_missing(
        settings(regress__prior="gradients", prior__models=2),
        built_in(settings(regress__prior="gradients", prior__models=2), data),
    )
    assert len(trainers) == 2
    assert seen == [0]
