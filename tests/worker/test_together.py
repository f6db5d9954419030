"""Workers that start together on a fresh run, and what they train: every model once."""

import numpy as np
import pytest

from datamodels.bench import workers
from datamodels.bench.workers import bench_workers
from datamodels.errors import InputError
from datamodels.runs import stage_folder
from datamodels.settings import parse
from datamodels.store import Store
from datamodels.verify.retrain import alone
from tests import started
from tests.conftest import flags


@pytest.mark.parametrize("prior", ["none", "gradients"])
def test_workers_started_together_on_a_fresh_run_all_end_well(tmp_path, prior):
    line = flags(tmp_path / "run", store__num_models=24, regress__prior=prior, prior__models=2)
    ended = started.run_together([("datamodels.worker", *line, "--gpu", "cpu")] * 3)
    assert [worker.returncode for worker in ended] == [0, 0, 0], ended
    assert all("24 of 24 models are done" in worker.stdout for worker in ended)
    store = Store(tmp_path / "run" / "store")
    assert np.array_equal(store.done, np.arange(24))
    assert store.damaged(store.done) == []
    assert (tmp_path / "run" / "prior").exists() is (prior != "none")
    left = [path.name for path in (tmp_path / "run").iterdir() if path.name.endswith((".tmp", ".old"))]
    assert left == []


def test_no_model_is_trained_again_that_lies_in_the_inbox(tmp_path):
    settings, _ = parse(["--run.dir", str(tmp_path)])
    record, _ = bench_workers(settings, 120)
    assert {row["workers"] for row in record["rows"]} >= {4, 16}
    assert max(row["trainings_per_model"] for row in record["rows"]) <= 1.02


def test_a_worker_that_fails_is_told_of_with_what_it_said_last(tmp_path):
    with pytest.raises(RuntimeError, match="2 of 2 workers have failed: exit code 1: TypeError"):
        workers._measured(tmp_path / "store", workers=2, size=0.5, models=3)  # type: ignore[arg-type]


def test_a_worker_that_dies_before_the_measurement_begins_is_told_of_too(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE_S", 3)
    (tmp_path / "store-0.log").mkdir()  # where the first of them would write
    with pytest.raises(RuntimeError, match="2 of 2 workers have failed: exit code 1: it said nothing; exit code 1: not all"):
        workers._measured(tmp_path / "store", workers=2, size=1, models=3)


def test_a_second_verification_is_refused_and_ends_nothing(settings):
    chosen = settings()
    with alone(chosen) as folder:
        with pytest.raises(InputError, match="verif"), alone(chosen):
            pass
        assert folder == stage_folder(chosen, "verify")
        assert folder.exists()
    with alone(chosen):
        pass
