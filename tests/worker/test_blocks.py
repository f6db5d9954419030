"""Workers from outside: signals, a disk that is full, several at once."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest

from datamodels.resources import CONFIGS
from datamodels.store import Store
from datamodels.store.check import WHOLE, check
from datamodels.subsets import draw_masks

SLOW = """
import os, time
import numpy as np

def train(index, mask):
    time.sleep(float(os.environ.get("SECONDS_A_MODEL", "0")))
    return {"margins": np.random.default_rng([index, 1]).normal(size=2000)}
"""


@pytest.fixture
def worker(tmp_path):
    """Starts a worker in a folder, on models that take as long as one likes."""
    started = []

    def start(folder, seconds=0.0, models=40, at_once=4):
        (folder / "slow.py").write_text(SLOW)
        flags = {"run.dir": "run", "worker.main": "slow:train", "data.train_images": 5000, "data.test_images": 2000}
        flags |= {
            "store.num_models": models,
            "groups.models_at_once": at_once,
            "store.margin_dtype": "float32",
            "store.alpha": 0.5,
        }
        line = [sys.executable, "-m", "datamodels.worker", "-C", str(CONFIGS / "digits.yaml"), "--gpu", "cpu"]
        line += [str(part) for key, value in flags.items() for part in (f"--{key}", value)]
        environment = {**os.environ, "SECONDS_A_MODEL": str(seconds)}
        process = subprocess.Popen(line, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for_rows(folder, rows):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (folder / "run/store/meta.json").exists() and len(Store(folder / "run/store").done) >= rows:
            return
        time.sleep(0.05)
    pytest.fail("no rows came")


def sound(store):
    assert store.damaged(store.done) == []
    expected = [np.random.default_rng([i, 1]).normal(size=2000).astype(np.float32) for i in store.done.tolist()]
    assert np.array_equal(store.margins(store.done), np.reshape(expected, (-1, 2000)))
    assert np.array_equal(store.masks(store.done[:3]), draw_masks(0, store.done[:3].tolist(), 5000, 0.5))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_work_after_the_block_in_training(worker, tmp_path, number):
    process = worker(tmp_path, seconds=0.1)
    wait_for_rows(tmp_path, 4)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopping after the blocks" in errors
    assert "run the same command again to go on" in errors
    store = Store(tmp_path / "run/store")
    assert 4 <= len(store.done) < 40
    assert len(store.done) % 4 == 0
    assert list((tmp_path / "run/store/claims").iterdir()) == []
    sound(store)
    out, _ = worker(tmp_path).communicate(timeout=60)
    assert "40 of 40" in out
    sound(Store(tmp_path / "run/store"))


def test_a_second_signal_ends_the_process_at_once_and_costs_the_block_only(worker, tmp_path):
    process = worker(tmp_path, seconds=2, at_once=20)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "run").glob("store/claims/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGTERM
    assert "40 of 40" in worker(tmp_path, at_once=20).communicate(timeout=60)[0]


def test_several_workers_share_the_work_and_each_shows_the_whole_of_it(worker, tmp_path):
    processes = [worker(tmp_path, seconds=0.05, models=80) for _ in range(3)]
    ended = [process.communicate(timeout=120) for process in processes]
    assert all("80 of 80 models are done" in out for out, _ in ended)
    # One that comes late has little to show, or nothing; whoever shows something shows the models of all.
    line = re.compile(r"worker: (\d+) models in .+?, [\d.]+ models/(?:s|min)(?:; (\d+) were there already)?")
    ends = [end for _, errors in ended if (end := line.search(errors))]
    assert ends
    assert all(int(end[1]) + int(end[2] or 0) == 80 for end in ends)
    sound(Store(tmp_path / "run/store"))
    assert check(tmp_path / "run/store") == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with little room; and a function that gives it more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=4m", folder], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is Linux's")
def test_a_full_disk_is_said_in_a_sentence_and_after_room_is_made_it_goes_on(worker, small_disk):
    folder, make_room = small_disk
    process = worker(folder, models=60)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.search(r"error: no room for the store in run/store: its models take \d+ kB, and \d+ kB are free", errors)
    assert not (folder / "run/store").exists()
    process = worker(folder, models=40, seconds=0.1)
    while not ((folder / "run/store/meta.json").exists() and len(Store(folder / "run/store").done)):
        assert process.poll() is None
        time.sleep(0.02)
    with suppress(OSError), (folder / "of-others").open("wb", buffering=0) as other:  # who fill it meanwhile
        while True:
            other.write(bytes(4096))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.search(r"error: no room left on the disk for \S+; make room and run the same command again", errors)
    store = Store(folder / "run/store")
    assert 0 < len(store.done) < 40
    sound(store)
    assert {fault.what for fault in check(folder / "run/store")} <= {WHOLE}
    make_room()
    assert "60 of 60" in worker(folder, models=60).communicate(timeout=60)[0]
    sound(Store(folder / "run/store"))
