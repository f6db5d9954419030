"""Workers killed at random moments: no row is torn, none is lost, and the job completes."""

import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest

from datamodels.learners import Trained
from datamodels.store import ArraySpec, Meta, Store, create
from datamodels.store.check import check
from datamodels.subsets import draw_masks
from datamodels.worker.blocks import train_blocks
from datamodels.worker.jobs import RandomSubsets

N, T, M, BLOCK, KILLS, WORKERS = 300, 80, 4000, 4, 200, 4
META = Meta(M, N, T, {"margins": ArraySpec("float32", (T,))}, {"store": {"seed": 5, "alpha": 0.4}})


class Slow:
    """A learner whose margins follow from a model's number, after a moment of work."""

    name, provenance, models_at_once = "the test's", {"of": "a test"}, BLOCK
    train_labels, test_labels = np.full(N, -1), np.full(T, -1)

    def train(self, models):
        """Margins; some models fail."""
        time.sleep(0.04)
        margins = np.stack([np.random.default_rng([5, model.number, 9]).normal(size=T) for model in models])
        return Trained({"margins": margins}, {k: "unlucky" for k, model in enumerate(models) if model.number % 97 == 13})


def worker(folder):
    # The parent's output is not this process's.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    train_blocks(RandomSubsets(folder, M, BLOCK, 5, 0.4), Slow())


def start(folder):
    # Forked from a server that has this module and little else: as quick as a fork, and without the threads of the tests.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=worker, args=(folder,))
    process.start()
    return process


@pytest.mark.slow
def test_two_hundred_kills_over_four_workers_cost_no_row(tmp_path):
    folder, rng, kills, done = tmp_path / "store", random.Random(0), 0, []
    create(folder, META)
    workers = [start(folder) for _ in range(WORKERS)]
    try:
        while kills < KILLS:
            time.sleep(rng.uniform(0.005, 0.06))
            victim = rng.randrange(WORKERS)
            workers[victim].kill()
            workers[victim].join()
            kills += workers[victim].exitcode == -signal.SIGKILL
            store = Store(folder)
            done.append(len(store.done))
            assert store.damaged(store.done) == []
            if not len(store.missing):
                break
            workers[victim] = start(folder)
        for process in workers:
            process.join(timeout=120)
            assert process.exitcode in (0, -signal.SIGKILL)
    finally:
        for process in workers:
            process.kill()
    print(f"{kills} kills while {done[-1]} of {M} rows were written")
    assert kills == KILLS
    assert sorted(done) == done

    store = Store(folder)
    expected = [i for i in range(M) if i % 97 != 13]
    assert store.done.tolist() == expected
    assert sorted(store.failures) == [i for i in range(M) if i % 97 == 13]
    assert np.array_equal(store.masks(expected), draw_masks(5, expected, N, 0.4))
    margins = np.stack([np.random.default_rng([5, i, 9]).normal(size=T) for i in expected]).astype(np.float32)
    assert np.array_equal(store.margins(expected), margins)
    assert check(folder) == []
    assert not list((folder / "inbox").glob("[0-9]*"))


def test_a_reader_at_any_time_sees_whole_rows_only(tmp_path):
    folder = tmp_path / "store"
    create(folder, META)
    workers = [start(folder) for _ in range(2)]
    seen: list[int] = []
    deadline = time.monotonic() + 60
    try:
        while len(set(seen)) < 20 and time.monotonic() < deadline:
            store = Store(folder)
            rows = store.done[-200:]
            assert store.damaged(rows) == []
            if len(rows):
                assert np.array_equal(store.masks(rows), draw_masks(5, rows.tolist(), N, 0.4))
            seen.append(len(store.done))
    finally:
        for process in workers:
            process.kill()
            process.join()
    assert sorted(seen) == seen
    assert len(set(seen)) == 20
