"""Rounds kept full: whatever comes back first, the answers are the same, nothing is trained twice, and blocks are full."""

import random
from collections.abc import Callable

import numpy as np
import pytest

from datamodels.learners import Trained
from datamodels.progress import Advance, progress
from datamodels.runs import read_seconds, stage_folder
from datamodels.store import Store, read_meta
from datamodels.store.check import check
from datamodels.verify import run as stage
from datamodels.verify import verify_targets
from datamodels.verify.asking import ask
from datamodels.verify.questions import Question
from datamodels.verify.retrain import Request, Retraining
from datamodels.worker.jobs import BLOCK, RELABELLED, REPETITION
from tests.verify.engines import SLOTS, Rounds, Streaming, retrained
from tests.verify.rule import N, Rule, Seen, T, by_the_rule, changed, result_of

QUICK = {"methods": "datamodel,similarity,relabel", "most_models": 16, "counterfactuals": "3", "subsets": 3, "subset_models": 2}


def answers(settings):
    return {key: value for key, value in result_of(settings).items() if key != "verify"}


def store_of(settings):
    return Store(stage_folder(settings, "verify") / "store")


def test_rounds_and_blocks_and_rows_of_one_machine_are_those_of_a_plain_loop(run, monkeypatch):
    """Also where the models of some questions are there, up to a look that is new, and those of others not."""
    settings, data, models = run
    rounds = Rounds(Rule(data, models), settings.verify.seed)
    engine = by_the_rule(data, models)
    for name, most, targets in (("first", 8, [3, 7]), ("second", 16, [7, 11, 5])):
        of_both = QUICK | {"most_models": most}
        for_oracle, chosen = (changed(settings, **of_both, name=name + suffix) for suffix in ("-oracle", ""))
        with monkeypatch.context() as patched:
            patched.setattr(stage, "_ask", lambda questions, *_: rounds.ask(questions))
            verify_targets(for_oracle, engine, models, targets)
        verify_targets(chosen, engine, models, targets)
        assert answers(chosen) == answers(for_oracle)
    store, requests = store_of(settings), list(rounds.rows)
    assert np.array_equal(store.done, np.arange(len(requests)))
    assert [mask.tobytes() for mask in store.packed(store.done)] == [request.packed for request in requests]
    assert store.array(REPETITION, store.done).tolist() == [request.repetition for request in requests]
    assert store.array(RELABELLED, store.done).tolist() == [request.relabelled for request in requests]
    assert store.array(BLOCK, store.done).tolist() == rounds.blocks
    assert np.array_equal(store.margins(store.done), np.stack(rounds.margins_of))
    assert np.array_equal(store.array("confidence", store.done), np.stack(rounds.confidences_of))


ORDERS: dict[str, Callable[[list[int]], int]] = {"newest": max, "drawn": random.Random(3).choice}


@pytest.mark.parametrize("order", ORDERS)
def test_the_answers_are_those_of_rounds_whatever_comes_back_first(run, order):
    settings, data, models = run
    trained: list[Seen] = []
    engine = Streaming(Rule(data, models, trained), ORDERS[order])
    chosen, by_rounds = changed(settings, **QUICK), changed(settings, **QUICK, name="rounds")
    verify_targets(chosen, engine, models, [3, 7, 11])
    store = store_of(chosen)
    assert len(trained) == len(set(trained)) == len(store.done) == read_meta(store.folder).num_models
    assert check(store.folder) == []
    assert sum(map(len, engine.blocks)) == len(store.done)
    full = [len(ids) == engine.learner.models_at_once for ids in engine.blocks]
    assert sum(full) > 0.8 * len(full)
    assert set(engine.written) == {"_tidied", "create_once", "_merged", "enlist"}
    assert read_seconds(chosen)["verify"] > 0
    # The same questions by rounds: all that they want is there, and gives the same answers.
    before = len(trained)
    verify_targets(by_rounds, by_the_rule(data, models, trained), models, [3, 7, 11])
    assert len(trained) == before
    assert answers(by_rounds) == answers(chosen)


class CutOffError(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("after", [0, 7, 20])
def test_a_verification_that_was_cut_off_between_blocks_goes_on_in_the_blocks_that_were_listed(run, after):
    settings, data, models = run
    chosen = changed(settings, **QUICK | {"methods": "datamodel,similarity"})
    trained: list[Seen] = []
    left = [after]

    def cut_off(blocks):
        left[0] -= 1
        if left[0] < 0:
            raise CutOffError
        return max(blocks)

    with pytest.raises(CutOffError):
        verify_targets(chosen, Streaming(Rule(data, models, trained), cut_off), models, [3, 7])
    listed, blocks = store_of(chosen).meta.num_models, store_of(chosen).array(BLOCK, store_of(chosen).done)
    assert len(blocks) == len(trained) < listed
    before = store_of(chosen).array(BLOCK, range(listed))
    again = Streaming(Rule(data, models, trained), min)
    verify_targets(chosen, again, models, [3, 7])
    store = store_of(chosen)
    assert np.array_equal(store.array(BLOCK, range(listed)), before)
    assert len(trained) == len(set(trained)) == len(store.done) == store.meta.num_models
    assert {ids.start for ids in again.blocks} >= set(before.tolist()) - set(blocks.tolist())
    whole = changed(chosen, name="whole")
    verify_targets(whole, by_the_rule(data, models, trained), models, [3, 7])
    assert len(trained) == len(store.done)
    assert answers(whole) == answers(chosen)


class Steps(Question):
    """Wants so many models on all but its first images, and so many more with each step; tells `events` when it learns."""

    def __init__(self, name, size, steps, events):
        mask = np.arange(N) >= size
        self.requests = [[Request.of(mask, repetition) for repetition in range(k)] for k in steps]
        self.name, self.events = name, events

    def wants(self):
        """Of this step."""
        return self.requests[0] if self.requests else []

    def learn(self, found):
        """Go on to the next."""
        assert np.isfinite(found.margins(self.wants())).all()
        self.events.append(self.name)
        del self.requests[0]

    def used(self):
        """Nobody asks."""
        raise NotImplementedError


def newest(events):
    """Chooses the newest block, and tells."""

    def choose(blocks):
        events.append("block")
        return max(blocks)

    return choose


def retraining(run, engine):
    return Retraining(stage_folder(run[0], "other"), run[0], engine)


def test_a_question_goes_on_while_the_models_of_another_are_not_back(run):
    events: list[str] = []
    # Of the largest subsets, so in the first block; the newest block is given back first, as long as there is a newer one.
    slow, quick = Steps("slow", 1, [8], events), Steps("quick", 5, [8, 16, 24, 32], events)
    engine = Streaming(Rule(*run[1:]), newest(events))
    with progress("verify", "models", 0) as bar:
        ask([slow, quick], retraining(run, engine), bar)
    assert events == ["block", "quick"] * 4 + ["block", "slow"]
    assert bar.done == bar.total == 40


def test_a_question_whose_models_are_there_waits_for_none_while_there_is_room(run):
    events: list[str] = []
    engine = Streaming(Rule(*run[1:]), newest(events))
    models = retraining(run, engine)
    known = Steps("known", 5, [8, 16], events)
    retrained(models, [request for step in known.requests for request in step])
    assert events == ["block"] * 2
    events.clear()
    with progress("verify", "models", 0) as bar:
        ask([Steps("new", 1, [8], events), known], models, bar)
    assert events == ["known", "known", "block", "new"]
    assert bar.done - bar.first == 8  # the others were there before


def test_a_block_that_is_not_full_waits_until_something_is_idle(run):
    """`Streaming` refuses it else."""
    events: list[str] = []
    engine = Streaming(Rule(*run[1:]), min)
    few, many = Steps("few", 9, [3, 4], events), Steps("many", 2, [8 * SLOTS], events)
    with progress("verify", "models", 0) as bar:
        ask([few, many], retraining(run, engine), bar)
    assert [len(ids) for ids in engine.blocks] == [8, 8, 3, 1]
    assert events == ["many", "few", "few"]


class Remembering(Advance):
    """Remembers what it has shown."""

    shown: list[tuple[int, int]]

    def to(self, done, total=None):
        """As a bar does."""
        super().to(done, total)
        self.shown = [*getattr(self, "shown", []), (self.done, self.total)]


def test_the_bar_counts_what_is_there_whichever_block_comes_first(run):
    bar = Remembering("verify", "models", 0, 0)
    engine = Streaming(Rule(*run[1:]), random.Random(5).choice)
    ask([Steps("", size, [8, 12, 30], []) for size in (1, 2, 5)], retraining(run, engine), bar)
    shown = bar.shown
    done = [each for each, _ in shown]
    assert done == sorted(done)
    assert shown[-1] == (90, 90)
    assert all(each <= total for each, total in shown)
    assert set(done) == {0, *np.cumsum([len(ids) for ids in engine.blocks]).tolist()}


def test_models_that_fail_are_said_once_each_and_have_no_margins(run, capsys):
    _, data, models = run

    class Failing(Rule):
        def train(self, models):
            """Those of even repetitions fail."""
            trained = super().train(models)
            failed = {k: "it is even" for k, model in enumerate(models) if model.key[3] % 2 == 0}
            return Trained(trained.arrays, failed)

    with progress("verify", "models", 0):
        requests = [Request.of(np.arange(N) >= size, repetition) for size in (1, 2, 3) for repetition in range(8)]
        found = retrained(retraining(run, Streaming(Failing(data, models))), requests)
    assert np.isnan(found.margins(requests)).any(1).tolist() == [True, False] * 12
    assert found.margins(requests).shape == (24, T)
    said = [line for line in capsys.readouterr().err.splitlines() if "could not be trained" in line]
    assert said == ["verify: 4 models could not be trained, and do not count: it is even"] * 3


@pytest.mark.parametrize("handed_out", [True, False])
def test_models_of_one_block_may_be_wanted_one_after_the_other(run, handed_out):
    """Of a block that a verification has listed that was cut off: it is trained once, and whole."""
    _, data, models = run
    requests = [Request.of(np.arange(N) >= 1, repetition) for repetition in range(8)]
    cut_off = retraining(run, Streaming(Rule(data, models)))
    cut_off.want(requests)
    cut_off.hand_out()
    engine = Streaming(Rule(data, models))
    again = retraining(run, engine)
    again.want(requests[:3])
    again.hand_out()
    again.want(requests[2:6])
    if handed_out:
        again.hand_out()
    told: list[int] = []
    again.wait(told.append)
    again.hand_out()
    assert again.lacking(requests) == []
    assert told == [6 if handed_out else 3]
    assert [len(ids) for ids in engine.blocks] == [8]
    assert engine.jobs == []
    assert len(engine.learner.trained) == 8
