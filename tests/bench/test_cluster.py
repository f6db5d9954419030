"""The cluster's bench: its figures follow from what it measured, and what was written is whole."""

import functools
import json
import os
import runpy
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest

from datamodels.bench import cluster as bench
from datamodels.bench.asleep import Asleep, random_rows
from datamodels.errors import InputError
from datamodels.runs import stage_folder
from datamodels.store import Store, create
from datamodels.store.check import check
from datamodels.worker.dispatch import Dispatch
from datamodels.worker.jobs import RandomSubsets
from tests.conftest import flags
from tests.worker.afield import Afield

N, T = 400, 30


@pytest.fixture
def tiny(monkeypatch):
    for name, value in {"N": N, "T": T, "ROUNDS": 2, "BLOCKS": (3, 16), "BLOCK": 4, "MERGE_BYTES": 2000}.items():
        monkeypatch.setattr(bench, name, value)


@pytest.fixture(scope="module")
def own():
    with bench.own_cluster(2, 0) as address:
        yield address


@pytest.fixture
def shared(own, monkeypatch):
    """The benches that would start a cluster of two nodes find one; what they asked for."""
    asked = []

    @contextmanager
    def already(*nodes, **_):
        asked.append(nodes)
        yield own

    monkeypatch.setattr(bench, "own_cluster", already)
    return asked


def test_efficiency_is_counted_by_the_clock_from_the_first_block_to_the_last_row(tiny, tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(bench, "clock", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    create(tmp_path / "store", bench._meta(16))
    job = RandomSubsets(tmp_path / "store", 16, 4, 0, 0.5)
    crew = Afield(a=Asleep(N, T, 4, 30.0))
    with Dispatch(lambda: crew, crew, crew) as dispatch:
        # One worker, four blocks of 30 s and nothing besides.
        assert bench._seconds_of(dispatch.train, job) == 120
    assert bench.efficiency(4, 30.0, 1, 120) == 1
    assert bench.efficiency(256 * 4, 30.0, 256, 150) == pytest.approx(0.8)
    with pytest.raises(RuntimeError, match="not all 17 models are there"):
        bench._refuse_gaps(tmp_path / "store", 17)


def test_the_writer_is_timed_with_rows_that_are_in_the_store_afterwards(tiny, shared, tmp_path, monkeypatch):
    seen: list[int] = []

    def checked(folder):
        store = Store(folder)
        size = bench.BLOCKS[len(seen) % 2]
        for first in range(0, 40, size):
            ids = range(first, min(first + size, 40))
            _, rows = random_rows(store.meta, ids, None)
            assert np.array_equal(store.margins(ids), rows.arrays["margins"])
            assert np.array_equal(store.packed(ids), rows.masks)
        seen.append(len(store.done))
        return check(folder)

    monkeypatch.setattr(bench, "check", checked)
    args = ["cluster", "--part", "ingest", "--n", "40", "--out", str(tmp_path / "out"), *flags(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["bench", *args])
    runpy.run_module("datamodels.bench", run_name="__main__")
    assert seen == [40] * 4
    assert len(shared) == 1
    record = json.loads((tmp_path / "out" / "cluster-ingest-run-disk.json").read_text())
    assert (record["bench"], record["num_train"], record["num_targets"], record["rows"]) == ("cluster-ingest", N, T, 40)
    assert record["ray"]
    assert record["machine"]["packages"]
    assert record["row_bytes"] == N // 8 + 2 * T + 4 + 1
    for size in ("3", "16"):
        per_s = record["rows_per_s"][size]
        rounds = record["rows_per_s_of_rounds"][size]
        assert len(rounds) == 2
        assert min(rounds) <= per_s <= max(rounds)
        assert record["megabytes_per_s"][size] == pytest.approx(per_s * record["row_bytes"] / 1e6, abs=0.1)
        assert 0 < record["share_of_writing"][size] < 1
    assert not (tmp_path / "run" / "bench").exists()


def test_lots_go_to_the_writer_as_many_at_once_as_dispatch_gives_it(tiny):
    lots = [(k, 800) for k in range(7)]
    assert list(bench._calls(lots)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(bench._calls([("large", 9000), ("small", 1)])) == [["large"], ["small"]]
    assert list(bench._calls(lots[:0])) == []


def test_the_processors_seconds_are_those_of_the_process():
    own = [os.getpid()]
    before, start = bench._processor_seconds(own), time.process_time()
    while time.process_time() - start < 0.3:
        pass
    assert bench._processor_seconds(own) - before == pytest.approx(time.process_time() - start, abs=0.1)


@pytest.mark.slow
def test_workers_that_sleep_are_as_busy_as_the_wall_says(tiny, shared, settings):
    record, table = bench.bench_cluster(settings(), "scaling", "2", 0.3, None, 2)
    assert shared == [(0, 2)]
    (row,) = record["rows"]
    assert row["workers"] == 2
    assert row["wall_s"] >= 2 * 0.3
    assert row["efficiency"] == pytest.approx(2 * 0.3 / row["wall_s"], rel=0.02)
    assert row["rows_per_s"] == pytest.approx(row["workers"] * 2 * 4 / row["wall_s"], rel=0.02)
    assert 10 < row["worker_megabytes"] < 300
    assert row["once_cpu_s"] > 0
    assert f"{row['efficiency']:.4f}" in table
    assert (record["block_seconds"], record["blocks_of_worker"], record["models_of_block"]) == (0.3, 2, 4)
    json.dumps(record, allow_nan=False)


@pytest.mark.slow
def test_both_engines_train_the_same_rows_and_the_ratio_is_that_of_the_medians(settings, own):
    chosen = settings(store__num_models=8, ray__address=own)
    record, table = bench.bench_cluster(chosen, "overhead", bench.WORKERS, 1.0, "cpu", 1)
    (row,) = record["rounds"]
    assert record["models_per_s"] == row
    assert record["ratio"] == pytest.approx(row["ray"] / row["local"], abs=1e-3)
    assert (record["models"], record["device"]) == (8, "cpu")
    assert f"ratio of medians {record['ratio']:.3f}, n = 1 rounds of 8 models" in table
    assert not stage_folder(chosen, "bench").exists()
    assert not stage_folder(chosen, "store").exists()


def test_nonsense_is_refused_in_a_sentence(settings, monkeypatch):
    def run(part, workers="1", seconds=1.0, *n, **changed):
        with pytest.raises(InputError) as refused:
            bench.bench_cluster(settings(**changed), part, workers, seconds, "cpu", *n)
        return str(refused.value)

    for workers in ("", "0", "1,x", "1,,2", "-1", "²"):
        assert "--workers takes numbers from 1 to 9999 with commas between" in run("scaling", workers)
    assert "a round, a row, a block or more" in run("ingest", "1", 1.0, 0)
    assert "seconds above 0" in run("scaling", "1", 0.0)
    assert "take some 700 MB of memory, and 699 MB are free" in (
        monkeypatch.setattr(bench, "free_host_memory", lambda: int(699e6)) or run("scaling", "10")
    )
    with pytest.raises(InputError, match=r"the cluster at ray\.address has more"):
        bench._refuse_more_nodes(Afield(a=None, b=None))
    bench._refuse_more_nodes(Afield(a=None))
    stage_folder(settings(), "bench").mkdir(parents=True)
    assert "another bench is at work" in run("ingest")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "needs Ray, which is not installed here" in run("scaling")


def test_a_first_task_that_fails_is_told(tmp_path):
    crew = Afield(a=Asleep(N, T, 4, 0.0))
    with pytest.raises(InputError, match="on node a: attribute name must be string"):
        bench.assemble(crew, 1, tmp_path / "here", functools.partial(getattr, None))


@pytest.mark.parametrize("module", ["datamodels.bench.asleep", "datamodels.worker.writing"])
def test_processes_that_sleep_or_write_import_neither_pytorch_nor_scipy(module):
    line = f"import sys, {module} as _; print(sorted({{'torch', 'scipy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True).stdout == "[]\n"
