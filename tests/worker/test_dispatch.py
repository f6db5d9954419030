"""Blocks on a cluster: what is believed of them, what is bounded, what other workers may do beside it. No Ray is needed."""

import dataclasses
import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

from datamodels.durable import Lock
from datamodels.errors import InputError
from datamodels.learners import Trained
from datamodels.learners.function import learner_named
from datamodels.settings import parse
from datamodels.store import ArraySpec, Meta, Store, claim, create, enlist, hand_over
from datamodels.store.check import check
from datamodels.worker import Local, open_store, train_missing
from datamodels.worker.dispatch import CLUSTERS_LOCK, Dispatch
from datamodels.worker.jobs import BLOCK, LISTED, RELABELLED, REPETITION, ListedModels, RandomSubsets
from datamodels.worker.speeds import NAMED, Speeds
from datamodels.worker.tasks import Here
from datamodels.worker.writing import Taken
from tests.conftest import flags
from tests.worker.afield import Afield, Narrow, NotFinite, Raising, Relabelling
from tests.worker.slow import N, Slow

OWN = {"worker__main": "tests.worker.slow:Slow", "groups__models_at_once": 0, "store__num_models": 60}
ALL = range(60)


@pytest.fixture
def opened(settings):
    """The folder of an empty store of 60 models, and the job that wants them."""
    chosen = settings(**OWN)
    folder = open_store(chosen, Local(lambda _: learner_named(chosen)))
    return RandomSubsets(folder, 60, 4, chosen.store.seed, chosen.store.alpha)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The store as one process on this machine makes it."""
    chosen = parse(flags(tmp_path_factory.mktemp("local"), **OWN))[0]
    train_missing(chosen, Local(lambda _: learner_named(chosen)))
    return Store(open_store(chosen, Local(lambda _: learner_named(chosen))))


def run(job, **learners):
    afield = Afield(**learners)
    with Dispatch(lambda: afield, afield, afield) as dispatch:
        dispatch.train(job)
    return afield


def test_rows_are_those_of_this_machine_and_nothing_is_trained_twice(opened, undisturbed):
    afield = run(opened, a=Slow(), b=Slow())
    store = Store(opened.folder)
    assert store.digest() == undisturbed.digest()
    assert check(opened.folder) == []
    assert sorted(block for block, _ in afield.trained) == list(range(15))
    assert {node for _, node in afield.trained} == {"a", "b"}
    assert list((opened.folder / "claims").iterdir()) == []
    assert not (opened.folder / CLUSTERS_LOCK).exists()


def test_a_model_that_no_node_can_train_is_given_up(opened):
    afield = run(opened, a=NotFinite(7), b=NotFinite(7))
    store = Store(opened.folder)
    assert list(store.failures) == [7]
    assert "not finite" in store.failures[7]
    assert len(store.done) == 59
    assert not afield.refused
    assert len({node for block, node in afield.trained if block == 1}) == 2


def test_a_node_that_gives_up_what_another_can_train_is_refused_by_name(opened, undisturbed):
    afield = run(opened, a=NotFinite(*ALL), b=Slow(), c=Slow())
    assert list(afield.refused) == ["a"]
    assert "could not train model" in afield.refused["a"]
    assert "not finite), and node " in afield.refused["a"]
    assert Store(opened.folder).digest() == undisturbed.digest()


def test_of_two_nodes_that_fail_at_different_models_each_gives_its_rows(opened, undisturbed):
    run(opened, a=NotFinite(4), b=NotFinite(5))
    store = Store(opened.folder)
    assert not store.failures
    assert store.digest() == undisturbed.digest()


def test_the_only_node_is_believed_at_once(opened):
    afield = run(opened, a=NotFinite(7, 8))
    assert list(Store(opened.folder).failures) == [7, 8]
    assert len(afield.trained) == 15


@pytest.mark.parametrize(("bad", "told"), [(Raising(), "its driver is broken"), (Narrow(), "of shape (5,) for model")])
def test_a_node_that_raises_or_gives_other_shapes_is_refused_where_another_one_works(opened, undisturbed, bad, told):
    afield = run(opened, a=bad, b=Slow())
    assert told in afield.refused["a"]
    assert Store(opened.folder).digest() == undisturbed.digest()


def test_what_every_node_says_is_raised(opened):
    with pytest.raises(InputError, match=r"on node .: .*its driver is broken"):
        run(opened, a=Raising(), b=Raising())
    assert len(Store(opened.folder).missing) == 60


def test_a_node_on_which_no_learner_can_be_made_is_refused(opened, undisturbed):
    unfit = Here(None, "cannot take part: there is no such file")
    with pytest.raises(InputError, match="node a cannot take part: there is no such file, and no other node is left"):
        run(opened, a=unfit)
    afield = run(opened, a=unfit, b=Slow())
    assert afield.refused == {"a": unfit.unfit}
    assert Store(opened.folder).digest() == undisturbed.digest()


def without_masks(rows):
    return dataclasses.replace(rows, masks=rows.masks[:, :-1])


def with_nan(rows):
    margins = rows.arrays["margins"].copy()
    margins[0, 0] = np.nan
    return dataclasses.replace(rows, arrays={"margins": margins})


@pytest.mark.parametrize(
    ("spoil", "told"), [(without_masks, "has masks of uint8 and shape"), (with_nan, "not finite"), (lambda _: 3, "no rows")]
)
def test_rows_that_the_writer_refuses_are_trained_elsewhere(opened, undisturbed, spoil, told):
    afield = Afield(a=Slow(), b=Slow())
    afield.spoil = {"a": spoil}
    with Dispatch(lambda: afield, afield, afield) as dispatch:
        dispatch.train(opened)
    assert told in afield.refused["a"]
    assert Store(opened.folder).digest() == undisturbed.digest()


def test_rows_of_the_only_node_that_are_refused_end_the_work_in_a_sentence(opened):
    afield = Afield(a=Slow())
    afield.spoil = {"a": with_nan}
    with Dispatch(lambda: afield, afield, afield) as dispatch, pytest.raises(InputError, match="what node a gave of models 0"):
        dispatch.train(opened)
    # What was trained besides is kept.
    assert Store(opened.folder).done.tolist() == list(range(4, 4 + len(Store(opened.folder).done)))


def test_payloads_that_are_lost_are_trained_again(opened, undisturbed):
    afield = Afield(a=Slow(), b=Slow())
    afield.spoil = {"a": lambda _: OSError("its node has gone")}
    with Dispatch(lambda: afield, afield, afield) as dispatch:
        dispatch.train(opened)
    assert not afield.refused
    assert len(afield.trained) == 16
    assert Store(opened.folder).digest() == undisturbed.digest()


def test_of_a_block_of_two_nodes_one_may_be_lost_while_the_other_is_refused(opened):
    class Torn(Afield):
        torn = False

        def taken(self, timeout):
            _, lots, _ = self.under_way_there
            if self.torn or len(lots) < 2:
                return super().taken(timeout)
            self.torn, self.under_way_there = True, None
            return Taken({0: "is nonsense"}, [1], 0, 0.0)

    afield = Torn(a=NotFinite(4), b=NotFinite(5))
    with Dispatch(lambda: afield, afield, afield) as dispatch:
        dispatch.train(opened)
    assert afield.torn
    assert not len(Store(opened.folder).missing)
    assert check(opened.folder) == []


def test_blocks_that_are_trained_and_not_written_are_bounded_and_written_together(opened):
    afield = Afield(a=Slow())
    afield.slow_writer, afield.room_for = 8, 5
    with Dispatch(lambda: afield, afield, afield) as dispatch:
        dispatch.train(opened)
    assert len(Store(opened.folder).done) == 60
    assert afield.most <= 5
    assert afield.calls < 15


def test_nothing_is_given_up_before_one_model_could_be_trained(opened):
    hopeless = NotFinite(*ALL)
    with pytest.raises(InputError, match="16 models were tried, and not one could be trained; model 0"):
        run(opened, a=hopeless)
    store = Store(opened.folder)
    assert len(store.missing) == 60
    afield = run(opened, a=NotFinite(*range(9)))
    store = Store(opened.folder)
    assert list(store.failures) == list(range(9))
    assert len(afield.trained) == 15


def test_there_is_no_hope_where_two_jobs_want_the_same_few_models_in_vain(opened):
    afield, few = Afield(a=NotFinite(*ALL)), dataclasses.replace(opened, total=8)
    with Dispatch(lambda: afield, afield, afield) as dispatch:
        dispatch.start(few)
        with pytest.raises(InputError, match="8 models were tried"):
            dispatch.train(few)


def test_a_second_command_on_a_cluster_is_refused(opened):
    lock = Lock(opened.folder / CLUSTERS_LOCK)
    assert lock.take()
    with pytest.raises(InputError, match=r"another command trains into .* on a cluster"):
        run(opened, a=Slow())
    lock.release()


def test_a_block_that_another_worker_has_is_left_to_it(opened, capsys):
    lock: Any = claim(opened.folder, 3)
    afield = Afield(a=Slow())
    ended = list[list[int]]()

    class Ends(Dispatch):
        def _wait_for_others(self):
            if not ended and len(Store(opened.folder).done) == 56:
                ended.append(Store(opened.folder).missing.tolist())
                lock.release()
            super()._wait_for_others()

    with Ends(lambda: afield, afield, afield) as dispatch:
        dispatch.train(opened)
    assert ended == [[12, 13, 14, 15]]
    assert len(Store(opened.folder).done) == 60


@pytest.mark.parametrize("delivered", [[2], range(15)])
def test_rows_in_the_inbox_are_taken_in_and_not_trained_again(opened, undisturbed, delivered):
    for block in delivered:
        ids = np.arange(4 * block, 4 * block + 4)
        hand_over(opened.folder, ids, undisturbed.masks(ids), {"margins": undisturbed.margins(ids)})
    afield = run(opened, a=Slow())
    assert {block for block, _ in afield.trained} == set(range(15)) - set(delivered)
    assert Store(opened.folder).digest() == undisturbed.digest()


def test_jobs_are_started_beside_each_other_and_a_block_once(opened):
    afield = Afield(a=Slow(), b=Slow())
    afield.slow_writer = 1
    shown = list[int]()
    with Dispatch(lambda: afield, afield, afield) as dispatch:
        assert dispatch.room >= 1
        dispatch.start(dataclasses.replace(opened, total=8))
        dispatch.start(dataclasses.replace(opened, total=16))
        assert dispatch.room == 0
        waits = 0
        while dispatch.blocks:
            dispatch.wait(shown.append)
            waits += 1
            # What the store says is there was told.
            assert shown[-1] == len(Store(opened.folder).done) == 16 - 4 * len(dispatch.blocks)
        dispatch.wait(shown.append)
    assert sorted(block for block, _ in afield.trained) == [0, 1, 2, 3]
    assert 1 < waits <= 4
    assert shown[-1] == 16
    assert Store(opened.folder).done.tolist() == list(range(16))


def listed(folder, whole=()):
    """A job of ten listed models in a store of its own, some of them on all of S."""
    meta = Meta(0, N, 6, {"margins": ArraySpec("float32", (6,)), "confidence": ArraySpec("float16", (6,)), **LISTED}, {})
    create(folder, meta)
    known = {REPETITION: np.arange(10), RELABELLED: np.arange(10) % 3 - 1, BLOCK: np.arange(10) // 4 * 4}
    masks = np.random.default_rng(0).random((10, N)) < 0.9
    masks[:, 0] = np.isin(np.arange(10), list(whole))
    masks[list(whole)] = True
    enlist(folder, masks, {key: value.astype(np.int32) for key, value in known.items()})
    return ListedModels(folder, 1, tuple(range(10)))


def test_listed_models_need_no_store_where_they_are_trained(opened, tmp_path):
    """An excerpt says what they are: rows as this machine trains them, relabelled ones too."""
    jobs = [listed(tmp_path / name) for name in ("here", "afield")]
    Local(lambda _: Relabelling()).train(jobs[0])
    run(jobs[1], a=Relabelling(), b=Relabelling())
    stores = [Store(job.folder) for job in jobs]
    assert len(stores[0].done) == 10
    assert stores[0].digest() == stores[1].digest()


def test_where_a_model_on_all_images_cannot_be_trained_nothing_is_given_up(tmp_path):
    class Never(Relabelling):
        def train(self, models):
            found = super().train(models).arrays["margins"]
            found[[k for k, model in enumerate(models) if model.mask.all() and model.labels is None]] = np.nan
            return Trained({"margins": found})

        train_relabelled = train

    job = listed(tmp_path / "store", whole=[9])
    with pytest.raises(InputError, match="a model on all of S could not be trained"):
        run(job, a=Never(), b=Never())
    assert not Store(job.folder).failures
    assert len(Store(job.folder).done) == 8


def test_a_signal_ends_the_work_after_what_is_trained(opened, capsys):
    class Signalled(Slow):
        def train(self, models):
            if models[0].number == 8:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().train(models)

    with pytest.raises(KeyboardInterrupt):
        run(opened, a=Signalled())
    assert Store(opened.folder).done.tolist() == list(range(12))
    assert "stopping after the blocks" in capsys.readouterr().err


def test_what_is_trained_is_written_also_where_a_signal_and_an_error_come_together(opened, monkeypatch):
    class Signalled(Slow):
        def train(self, models):
            if models[0].number == 8:
                os.kill(os.getpid(), signal.SIGTERM)
            if models[0].number == 12:
                raise ValueError("its driver is broken")
            return super().train(models)

    afield = Afield(a=Signalled())
    afield.slow_writer = 3
    afield.room_for = 9
    monkeypatch.setattr(afield, "drop_waiting", list)  # all has begun
    with Dispatch(lambda: afield, afield, afield) as dispatch, pytest.raises(InputError, match="its driver is broken"):
        dispatch.train(opened)
    assert Store(opened.folder).done.tolist() == list(range(12))


def test_a_coarse_format_is_said_once(settings, capsys):
    chosen = settings(**{**OWN, "worker__main": "tests.worker.slow:Coarse", "store__margin_dtype": "float16"})
    engine = Local(lambda _: learner_named(chosen))
    folder = open_store(chosen, engine)
    run(RandomSubsets(folder, 60, 4, chosen.store.seed, chosen.store.alpha), a=engine.learner)
    assert capsys.readouterr().err.count("worker: float16 keeps the margins of") == 1


def test_speeds_are_told_while_they_are_added_to():
    speeds, stop = Speeds(), threading.Event()
    speeds.add("a", 1)

    def add():
        while not stop.wait(1e-5):
            speeds.add("a", 1)

    adding = [threading.Thread(target=add) for _ in range(4)]
    for thread in adding:
        thread.start()
    try:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            assert "/s" in speeds.told()
    finally:
        stop.set()
        for thread in adding:
            thread.join()


def test_speeds_of_few_nodes_are_named_and_of_many_a_range():
    speeds = Speeds()
    assert speeds.told() == ""
    speeds.add("one", 8)
    assert speeds.told() == "one: 8.0/s"
    since = speeds.since
    speeds.begin()
    assert speeds.since == since
    for k in range(NAMED):
        speeds.add(f"node {k}", 2)
    assert speeds.told() == f"{NAMED + 1} nodes, 2.0/s to 8.0 models/s each"
