"""Estimates: what is said before long work, when it does not begin, and that nothing else comes of them."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from datamodels.data import load, prepare
from datamodels.errors import InputError
from datamodels.estimates import Forecast, bytes_of_row
from datamodels.learners.recipe import Recipe
from datamodels.machine import room
from datamodels.regress.split import Subsets, refuse_too_few, split_models
from datamodels.runs import read_store, stage_folder
from datamodels.settings import RegressSettings, VerifySettings, parse
from datamodels.store import ArraySpec, Store, claim
from datamodels.verify.expected import Expected, expected, of_searches
from datamodels.verify.plan import Plan
from datamodels.verify.questions.base import BaseMargin
from datamodels.verify.record import read_verified
from datamodels.worker import Local, open_store, speed
from datamodels.worker.run import _LongTold, train_missing
from datamodels.worker.speed import SPEEDS, speed_of
from tests.conftest import built_in, by, flags


@pytest.fixture
def data(settings):
    prepare(settings(), use_ffcv=False)
    return load(settings())


@pytest.fixture
def slow(monkeypatch):
    """A step takes a quarter of an hour; how often that was measured."""
    measured = []

    def measure(self):
        measured.append(self)
        return 1 / 900

    monkeypatch.setattr(Recipe, "measured_speed", measure)
    return measured


@pytest.fixture
def few(monkeypatch):
    """Roads of fewer models than a regression takes may be foreseen."""
    monkeypatch.setattr("datamodels.estimates.refuse_too_few", lambda *_: None)


def seconds_of(settings, engine, images):
    found = speed_of(settings, engine)
    assert found is not None
    return found.seconds(images)


def steps_of(engine, images):
    assert isinstance(engine.learner, Recipe)
    return engine.learner.steps(images)


def told(forecast, capsys):
    capsys.readouterr()
    forecast.before_models()
    return capsys.readouterr().err


def test_an_estimate_changes_no_model(settings, data, tmp_path, capsys):
    digests = []
    for name in ("with", "without"):
        chosen = dataclasses.replace(settings(), run=dataclasses.replace(settings().run, dir=str(tmp_path / name)))
        engine = built_in(chosen, data)
        if name == "with":
            assert "worker: 10 models to train, about " in told(Forecast(chosen, engine, yes=False), capsys)
        train_missing(chosen, engine)
        digests.append(read_store(chosen).digest())
    assert digests[0] == digests[1]


def test_where_groups_are_chosen_by_measuring_nothing_is_measured_again(settings, data, monkeypatch):
    chosen = settings(groups__models_at_once=0)
    monkeypatch.setattr("datamodels.training.tuning.MEASURE_S", 0.02)
    monkeypatch.setattr("datamodels.learners.recipe.speed_of_groups", lambda *_: pytest.fail("measured once more"))
    Forecast(chosen, built_in(chosen, data), yes=False).before_models()
    (kept,) = json.loads((stage_folder(chosen, SPEEDS)).read_text(encoding="utf-8")).values()
    assert kept > 0
    Forecast(chosen, built_in(chosen, data), yes=False).before_models()  # in another process it is read


@pytest.mark.parametrize("kept", ["", "{", "[]", '{"x": "y"}', "-5", "0", "1e-320", "1e308"])
def test_speeds_that_cannot_be_read_are_measured_again(settings, data, slow, kept):
    chosen, engine = settings(), built_in(settings(), data)
    open_store(chosen, engine)
    if kept[-1:].isdigit():  # in the place of what was measured
        seconds_of(chosen, engine, 30)
        (key,) = json.loads(stage_folder(chosen, SPEEDS).read_text(encoding="utf-8"))
        kept, slow[:] = json.dumps({key: float(kept)}), []
    stage_folder(chosen, SPEEDS).write_text(kept, encoding="utf-8")
    assert seconds_of(chosen, engine, 30) == pytest.approx(900 * steps_of(engine, 30))
    assert len(slow) == 1


def test_a_speed_that_cannot_be_measured_is_none(settings, data, monkeypatch):
    chosen, engine = settings(), built_in(settings(), data)
    open_store(chosen, engine)
    measured = iter([0.0, 2.0])
    monkeypatch.setattr(Recipe, "measured_speed", lambda _: next(measured))
    assert speed_of(chosen, engine) is None
    assert seconds_of(chosen, engine, 30) == pytest.approx(steps_of(engine, 30) / 2)  # what failed once is tried again


def test_the_speed_of_another_recipe_is_another_one(settings, data, slow):
    for width in (8, 16, 8):  # in one folder, of which the store was deleted in between
        chosen = settings(training__width=width)
        engine = built_in(chosen, data)
        open_store(chosen, engine)
        seconds_of(chosen, engine, 30)
        shutil.rmtree(stage_folder(chosen, "store"))
    assert len(slow) == 2


def test_the_time_is_that_of_the_steps_and_of_looking_at_all_targets(settings, data, slow):
    chosen, engine = settings(training__epochs=3), built_in(settings(), data)
    # 3 passes over 30 images in batches of 10, and a pass forth, a third of a step, over 20 targets.
    assert steps_of(engine, 30) == pytest.approx(9 + 20 / 10 / 3)
    assert steps_of(built_in(settings(training__flip=True), data), 30) == pytest.approx(9 + 2 * 20 / 10 / 3)
    open_store(chosen, engine)
    assert seconds_of(chosen, engine, 60) == pytest.approx(900 * steps_of(engine, 60))


def test_devices_share_the_work(settings, data, slow, monkeypatch):
    chosen = settings()
    open_store(chosen, built_in(chosen, data))
    monkeypatch.setattr(Local, "ask", lambda self, question: question(self.learner))
    one, three = (Local(lambda _: Recipe(chosen, data, "cpu"), ["cpu"] * k) for k in (1, 3))
    assert seconds_of(chosen, three, 30) == pytest.approx(seconds_of(chosen, one, 30) / 3)
    assert "3 × " in str(speed_of(chosen, three))
    assert len(slow) == 1


def test_more_than_a_day_does_not_begin_without_yes_and_what_was_measured_is_kept(settings, data, slow, capsys):
    chosen = settings()
    for _ in range(2):
        engine = built_in(chosen, data)
        with pytest.raises(InputError) as refused:
            Forecast(chosen, engine, yes=False).before_models()
        assert re.fullmatch(
            r"10 models take about 24 h 10 min, which is more than 24 hours; the same command with --yes begins "
            r"\(make: YES=1\); what was measured is kept",
            str(refused.value),
        )
    assert len(slow) == 1
    assert len(read_store(chosen).done) == 0
    said = told(Forecast(chosen, built_in(chosen, data), yes=True), capsys)
    assert re.match(
        r"worker: 10 models to train, about 24 h 10 min, on \d+ cores? of .* \(9.9 models/day\); .* on the disk", said
    )


def test_only_the_models_that_are_missing_count(settings, data, slow, capsys):
    chosen, engine = settings(), built_in(settings(), data)
    train_missing(settings(store__num_models=4), engine)
    assert "worker: 6 models to train, about 14 h 30 min" in told(Forecast(chosen, engine, yes=False), capsys)
    train_missing(chosen, engine)
    assert told(Forecast(chosen, engine, yes=False), capsys) == ""


def test_who_joins_others_is_asked_for_nothing_but_the_verification(settings, data, slow, capsys, few):
    chosen, engine = settings(), built_in(settings(), data)
    others = claim(open_store(chosen, engine), 1)
    short = settings(verify__methods="none", verify__sizes="none", verify__base_models=2)
    road = Forecast(short, engine, yes=False, targets=[0, 1])
    road.before_models()
    road.before_verification(Expected(9, 9, 9, 0))  # whoever began with others is not stopped half way
    alone = settings(verify__methods="none", verify__base_models=8)
    with pytest.raises(InputError, match=r"the models of the verification take about .*--yes"):  # but asked what is not shared
        Forecast(alone, engine, yes=False, targets=[0, 1]).before_models()
    assert "about 24 h 10 min, beside other workers" in told(Forecast(chosen, engine, yes=False), capsys)
    assert others is not None
    others.release(remove=True)
    with pytest.raises(InputError, match="--yes"):
        Forecast(chosen, engine, yes=False).before_models()


def test_who_joins_others_while_no_speed_is_known_is_asked_once_it_is(settings, data, slow, few, monkeypatch):
    chosen = settings(verify__methods="none", verify__sizes="none", verify__base_models=2)
    engine = built_in(chosen, data)
    others = claim(open_store(chosen, engine), 1)
    road = Forecast(chosen, engine, yes=False, targets=[0, 1])
    with monkeypatch.context() as patch:
        patch.setattr("datamodels.estimates.speed_of", lambda *_: None)
        road.before_models()
    with pytest.raises(InputError, match=r"the models of the verification take about .*--yes"):
        road.before_verification(Expected(9, 9, 9, 0))
    assert others is not None
    others.release(remove=True)


def test_a_road_that_was_begun_is_not_stopped_where_it_turns_out_to_be_slower(settings, data, slow, capsys, few):
    chosen = settings(store__num_models=1, verify__methods="none", verify__sizes="none", verify__base_models=2)
    engine, count = built_in(chosen, data), Expected(2, 2, 2, 0)
    road = Forecast(chosen, engine, yes=False, targets=[0, 1])
    assert "road: 4 verification: 2 new targets: 2 models, about 9 h 20 min\n" in told(road, capsys)
    for forecast in (road, alone := Forecast(chosen, engine, yes=False)):
        forecast.slower = 10.0
    road.before_verification(count)
    assert "verify: 2 models, about 3 days 21 h" in capsys.readouterr().err
    with pytest.raises(InputError, match="the models of the verification take about 3 days 21 h, which is more than 24 hours"):
        alone.before_verification(count)


def test_a_learner_of_ones_own_begins_and_says_after_its_first_models(settings, capsys, few):
    engine = by(settings(worker__main="x:y"), lambda *_: None)
    chosen = settings(worker__main="x:y")
    assert speed.LONG_S == 24 * 3600
    found = Forecast(chosen, engine, yes=False)
    found._refuse_long("1 model", float("nan"), float("nan"))  # nobody knows
    road = Forecast(settings(worker__main="x:y", verify__methods="none"), engine, yes=False, targets=[0, 1])
    says = told(road, capsys)
    assert "\nroad: how long the models take is not known before the first of them; " in says
    assert "\nroad: 2 models: 10 models to train\n" in says
    advance: Any = SimpleNamespace(to=lambda done: None, left=float("nan"), total=100)
    show = _LongTold(advance)
    show(0)
    advance.left = 3 * 86400.0
    show(4)
    show(8)
    more = "96 models more take about 3 days at the speed of the first; Ctrl-C ends the work, and what is trained is kept"
    assert capsys.readouterr().err == f"worker: {more}\n"


@pytest.mark.parametrize("heldout", [0.05, 0.1, 0.2, 0.5])
def test_a_road_with_too_few_models_for_its_regression_is_refused_before_it_begins(settings, data, heldout):
    chosen = settings(store__num_models=12, regress__heldout=heldout, verify__methods="none")
    with pytest.raises(InputError, match="12 models will be too few for the regression") as refused:
        Forecast(chosen, built_in(chosen, data), yes=False, targets=[0]).before_models()
    assert not stage_folder(chosen, "store").exists()
    named = int(re.findall(r"store.num_models (\d+) is enough", str(refused.value))[0])
    enough, too_few = (Subsets(np.arange(number), np.arange(number)) for number in (named, named - 1))
    split_models(enough, chosen.regress)
    with pytest.raises(InputError, match="too few"):
        split_models(too_few, chosen.regress)


def test_a_regression_that_no_number_of_models_would_suit_is_refused_by_its_shares():
    chosen = dataclasses.replace(RegressSettings(), heldout=1e-6)
    with pytest.raises(InputError, match=r"12 models will be too few .*; change regress.heldout and regress.choice"):
        refuse_too_few(12, chosen)


def test_the_images_take_what_their_files_take(settings, data, capsys):
    chosen = settings()
    size = sum(file.stat().st_size for file in stage_folder(chosen, "data").iterdir() if file.is_file())
    assert f" images {room(size)}" in told(Forecast(chosen, built_in(chosen, data), yes=False), capsys)


def test_where_the_store_has_no_room_nothing_begins(settings, data, monkeypatch):
    row = bytes_of_row(60, {"margins": ArraySpec("float32", (20,))})
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10 * row - 1))
    with pytest.raises(InputError, match=r"no room for the store in .*: its models take [\d.]+ kB, and [\d.]+ kB are free"):
        Forecast(settings(), built_in(settings(), data), yes=True).before_models()
    assert not stage_folder(settings(), "store").exists()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10 * row))
    Forecast(settings(), built_in(settings(), data), yes=True).before_models()


def test_the_size_of_a_row_is_that_of_the_stores_files(settings, data):
    chosen = settings(store__arrays="logits:float16:20x10", store__margin_dtype="float16")
    folder = open_store(chosen, built_in(chosen, data))
    size = sum(np.load(file, mmap_mode="r").nbytes for file in folder.glob("*.npy"))
    assert Forecast(chosen, built_in(chosen, data), yes=False)._row_bytes() == size / 10


def test_what_the_loop_expects_of_searches_is_what_is_expected_beforehand():
    chosen = VerifySettings(models=3, most_models=20)
    for methods, rivals in ((["datamodel", "relabel"], ["trak", "similarity"]), (["random"], []), ([], [])):
        orders = SimpleNamespace(settings=chosen)
        with_their_own = [*rivals, *methods]  # of which nothing more is expected
        question: Any = SimpleNamespace(orders=orders, targets=range(7), methods=methods, rivals=with_their_own)
        assert BaseMargin.expects(question) == 7 * of_searches(chosen, methods, len(rivals))[1]
        few, as_a_rule, many = of_searches(chosen, methods, len(rivals))
        assert few <= as_a_rule <= many
        without = of_searches(chosen, methods, 0)
        assert all(more - fewer >= 3 * len(rivals) for more, fewer in zip((few, as_a_rule, many), without, strict=True))
    assert expected(chosen, ["random"], 0, 1, 1, 0, False)[:3] == (chosen.base_models,) * 3


ROAD = {"store__num_models": 70, "verify__sizes": "5", "verify__counterfactuals": "3,7", "verify__subsets": 10}


@pytest.fixture(scope="module")
def roads(tmp_path_factory, command):
    """The road twice, and once more with more targets."""
    run = tmp_path_factory.mktemp("road") / "run"
    shorter = {**ROAD, "verify__methods": "none"}
    prepare(parse(flags(run, **shorter))[0], use_ffcv=False)  # which is quicker to be read back
    first = command("", *flags(run, **shorter), "--gpu", "cpu")
    again = command("", *flags(run, **shorter), "--gpu", "cpu")
    searched = command("", *flags(run, **ROAD, verify__name="searched"), "--gpu", "cpu")
    assert first.returncode == again.returncode == searched.returncode == 0, first.stderr + again.stderr + searched.stderr
    return SimpleNamespace(run=run, first=first.stderr, again=again.stderr, searched=searched.stderr)


def test_the_road_says_where_it_is_and_what_remains(roads):
    lines = [line for line in roads.first.splitlines() if line.startswith(("road: ", "verify: "))]
    patterns = [
        "road: 1 data: there",
        "road: 2 models: 70 models to train, about .* s",
        "road: 3 weights",
        r"road: 4 verification: 2 new targets: \d+ models, about .*",
        "road: 5 page",
        r"road: about .* in all for the models, on \d+ cores? of .*; .* on the disk \(store .*, weights .*, verification .*\)",
        "road: 2 of 5, models",
        "road: 3 of 5, weights",
        "road: 4 of 5, verification",
        r"verify: \d+ models, about .*, on \d+ cores? of .* on the disk",
    ]
    found = iter(lines)
    for pattern in patterns:
        assert any(re.fullmatch(pattern, line) for line in found), (pattern, lines)


def test_a_road_that_is_done_has_nothing_to_foresee(roads):
    assert not re.search("to train|new targets|in all for", roads.again)
    assert "road: 5 of 5, page" in roads.again


def test_a_verification_takes_as_many_models_as_was_said(roads):
    (known,) = map(int, re.findall(r"^verify: (\d+) models, about", roads.first, re.M))
    assert known == read_verified(roads.run / "verify/verify.json", 60, 20, 10).models_used  # for there are no searches
    ((few, many),) = (map(int, each) for each in re.findall(r"^verify: (\d+) to (\d+) models, as", roads.searched, re.M))
    assert known < few < many
    assert read_verified(roads.run / "searched/verify.json", 60, 20, 10).models_used <= many


def test_the_size_of_a_row_of_retrained_models_is_that_of_their_store(roads, settings, data):
    store = Store(roads.run / "verify/store")
    size = sum(np.load(file, mmap_mode="r").nbytes for file in store.folder.glob("*.npy")) / store.meta.num_models
    forecast = Forecast(settings(), built_in(settings(), data), yes=False)
    assert forecast._verify_bytes(Expected(0, 0, 3, 4)) == 7 * size


def test_a_command_refuses_in_a_sentence(tmp_path, command):
    run = tmp_path / "run"
    long = flags(run, training__epochs=10**6, store__num_models=1000)
    done = command("worker", *long, "--gpu", "cpu")
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: 1000 models take about .* days.*, which is more than 24 hours; the same command with --yes begins .*",
        done.stderr.splitlines()[-1],
    )
    assert len(Store(run / "store").done) == 0


def test_the_plan_counts_methods_sizes_and_counterfactuals(settings, data):
    chosen = settings(verify__methods="datamodel,random", verify__sizes="5,9", verify__counterfactuals="3", verify__subsets=6)
    plan = Plan.of(chosen, built_in(chosen, data).learner)
    assert plan.expected(chosen, 2, True) == expected(chosen.verify, ["datamodel", "random"], 0, 2, 1, 2, True)
    assert plan.expected(chosen, 2, True).on_subsets == 6 * 4
    assert plan.expected(chosen, 2, False).on_subsets == 0
