"""Engines: one device or several bring the same rows; who dies is replaced; what cannot go on is said."""

import functools
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from datamodels.errors import InputError
from datamodels.learners.function import learner_named
from datamodels.store import ArraySpec, Meta, Store, create
from datamodels.store.check import check
from datamodels.training import devices
from datamodels.worker import Local, engine_of, train_missing
from datamodels.worker.engine import MOST_DEATHS
from datamodels.worker.jobs import RandomSubsets
from tests.worker.slow import N, Slow

OWN = {"worker__main": "tests.worker.slow:Slow", "groups__models_at_once": 0, "store__num_models": 60}


def several(settings, devices=("cpu", "cpu")):
    return Local(functools.partial(learner_named, settings), devices)


def test_several_devices_bring_the_rows_of_one(settings, tmp_path):
    one, two = (settings(run__dir=str(tmp_path / name), **OWN) for name in ("one", "two"))
    assert "60 of 60" in train_missing(one, engine_of(one, None))
    with engine_of(two, "cpu,cpu") as engine:
        assert isinstance(engine, Local)
        assert "60 of 60" in train_missing(two, engine)
    stores = [Store(tmp_path / name / "store") for name in ("one", "two")]
    assert stores[0].digest() == stores[1].digest()
    assert check(stores[1].folder) == []


def test_the_work_is_shared(settings, monkeypatch):
    monkeypatch.setenv("SLOW_S", "0.2")
    chosen = settings(**OWN)
    with several(chosen) as engine:
        engine.ask(who)  # its processes are up
        start = time.monotonic()
        train_missing(chosen, engine)
        seconds = time.monotonic() - start
    # 15 blocks of 0.2 s: 3 s by one.
    assert seconds < 2.7


def random_subsets(folder, ids):
    """A job of the models of some blocks of four, and a store for it."""
    create(folder, Meta(ids, N, 6, {"margins": ArraySpec("float32", (6,))}, {}))
    return RandomSubsets(folder, ids, 4, 3, 0.5)


@pytest.mark.parametrize("devices", [(), ("cpu", "cpu")])
def test_jobs_that_are_started_are_trained_together_where_they_are_waited_for(settings, tmp_path, devices):
    shown: list[int] = []
    with several(settings(**OWN), devices) as engine:
        jobs = [random_subsets(tmp_path / name, ids) for name, ids in (("one", 10), ("two", 7))]
        assert engine.room == engine.idle == sys.maxsize
        engine.wait(shown.append)
        for job in jobs:
            engine.start(job)
        assert [len(Store(job.folder).done) for job in jobs] == [0, 0]
        assert shown == []
        assert engine.room == engine.idle == 0
        engine.wait(shown.append)
    assert [len(Store(job.folder).done) for job in jobs] == [10, 7]
    assert engine.room == engine.idle == sys.maxsize
    assert shown == sorted(shown)
    assert shown[-1] == 17
    assert [np.load(job.folder / "margins.npy").any() for job in jobs] == [True, True]


def test_a_write_into_a_store_is_called_with_what_it_is_given(settings):
    assert several(settings(**OWN)).write(divmod, 7, 2) == (3, 1)


class Told(Local):
    """Remembers who wrote into a store."""

    written: tuple[str, ...] = ()

    def write(self, work, *args):
        """See `Engine`."""
        self.written += (work.__name__,)
        return super().write(work, *args)


def test_a_runs_store_is_made_and_grown_where_stores_are_written(settings):
    for models, written in ((4, ["create_once"]), (8, ["tidy", "grow"]), (8, ["tidy"])):
        chosen = settings(**OWN | {"store__num_models": models})
        engine = Told(functools.partial(learner_named, chosen))
        train_missing(chosen, engine)
        assert list(engine.written) == written


def who(learner):
    """A question that can be sent."""
    return learner.name, os.getpid()


def test_a_question_is_answered_where_the_learner_trains(settings):
    chosen = settings(**OWN)
    assert engine_of(chosen, None).ask(who) == ("slow models", os.getpid())
    with several(chosen) as engine:
        name, process = engine.ask(who)
        assert name == "slow models"
        assert process != os.getpid()


def test_a_process_that_dies_is_started_again_and_its_block_is_trained(settings, tmp_path, monkeypatch, capsys):
    (tmp_path / "die").touch()
    monkeypatch.setenv("DIE_AT", str(tmp_path / "die"))
    chosen = settings(**OWN)
    with several(chosen) as engine:
        assert "60 of 60" in train_missing(chosen, engine)
    assert "(SIGKILL) has died; it is started again" in capsys.readouterr().err
    assert not (tmp_path / "die").exists()
    store = Store(tmp_path / "run" / "store")
    assert len(store.done) == 60
    assert list((store.folder / "claims").iterdir()) == []


def test_processes_that_die_at_everything_end_the_work_in_a_sentence(settings, monkeypatch):
    monkeypatch.setenv("DIE_ALWAYS", "1")
    chosen = settings(**OWN)
    with several(chosen) as engine, pytest.raises(InputError, match=f"died, {MOST_DEATHS} times over, and no model came"):
        train_missing(chosen, engine)


def test_what_fails_on_every_model_is_said_from_any_process(settings):
    chosen = settings(**{**OWN, "worker__main": "tests.worker.slow:failing"})
    with (
        several(chosen) as engine,
        pytest.raises(InputError, match=r"not one could be trained; model \d+: .*ValueError: never"),
    ):
        train_missing(chosen, engine)
    assert len(Store(engine_folder(chosen)).missing) == 60


def engine_folder(settings):
    return Path(settings.run.dir) / "store"


def test_a_coarse_format_is_said_with_several_devices_too(settings, capsys):
    chosen = settings(**{**OWN, "worker__main": "tests.worker.slow:Coarse", "store__margin_dtype": "float16"})
    with several(chosen) as engine:
        train_missing(chosen, engine)
    assert "worker: float16 keeps the margins of" in capsys.readouterr().err


@pytest.mark.parametrize("gpus", ["0,1", "all"])
def test_one_gpu_each_is_what_ones_own_code_sees(settings, monkeypatch, gpus):
    """No GPU is needed: what matters is the variable by which CUDA knows them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setattr(devices, "HANDED_OUT", "5,7")
    chosen = settings(**{**OWN, "worker__main": "tests.worker.slow:Seeing"})
    with engine_of(chosen, gpus) as engine:
        assert "60 of 60" in train_missing(chosen, engine)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,7"
    seen = Store(engine_folder(chosen)).margins(range(60))[:, 0]
    assert set(seen.tolist()) <= {5.0, 7.0}


def test_the_margins_are_those_of_the_rule(settings):
    chosen = settings(**OWN)
    train_missing(chosen, engine_of(chosen, None))
    store = Store(engine_folder(chosen))
    assert store.meta.num_train == N
    correlation = np.corrcoef(store.margins(store.done)[:, 0], store.masks(store.done)[:, Slow.train_labels == 0].sum(1))
    assert correlation[0, 1] > 0.5
