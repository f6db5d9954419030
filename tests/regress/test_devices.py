"""A regression over several devices gives what one gives, whoever dies, and does nothing twice that is kept."""

import dataclasses
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from datamodels.data import load, prepare
from datamodels.errors import InputError
from datamodels.regress import Datamodels, devices, fit_datamodels, provenance, solvers
from datamodels.regress import run as run_module
from datamodels.regress.devices import devices_of, pieces_of
from datamodels.regress.memory import needs
from datamodels.regress.path import Run
from datamodels.regress.run import regress, regress_store
from datamodels.regress.solvers import Sharers
from datamodels.regress.source import Source
from datamodels.regress.split import Parts
from datamodels.regress.unfinished import Unfinished
from datamodels.settings import RegressSettings
from datamodels.store import Store
from tests.conftest import trained
from tests.regress import device_tasks
from tests.regress.test_path import planted, store_of
from tests.regress.test_prior import drawn

TWO = "cpu,cpu"
LASSO = RegressSettings(lams=12, block=2, solver="gram")
SETTINGS = {
    "gram": LASSO,
    "saga": dataclasses.replace(LASSO, solver="saga", lams=5, lam_ratio=0.05),
    "a range": dataclasses.replace(LASSO, targets="1:6", block=1),
    "mean": dataclasses.replace(LASSO, prior="a.npy"),
    "sparse": dataclasses.replace(LASSO, prior="a.npy", sparse=True),
}


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A store, and a file of covariates of its weights beside it."""
    folder = tmp_path_factory.mktemp("s")
    masks, margins, a, _ = drawn(250, n=60, t=7)
    np.save(folder / "a.npy", a)
    return store_of(folder / "s", masks, margins)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """One thread here and there: libraries add up in another order with more, and bits are compared."""
    monkeypatch.setenv(device_tasks.HERE, str(tmp_path))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    with threadpool_limits(1):
        yield tmp_path


def chosen(name, store):
    settings = SETTINGS[name]
    return (
        dataclasses.replace(settings, prior=str(store.folder.parent / settings.prior)) if settings.prior != "none" else settings
    )


def same(one, other):
    """Two folders hold the same numbers, to the last bit."""
    first, second = Datamodels.load(one), Datamodels.load(other)
    for name in ("weights", "bias", "lam", "heldout"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    assert first.metrics["per_target"] == second.metrics["per_target"]
    assert first.meta == second.meta
    assert first.metrics["solved_by"].get("prior") == second.metrics["solved_by"].get("prior")
    return second


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_find_what_one_finds_and_nothing_twice(known, folder, monkeypatch, only_ends_of_bars, name, capsys):
    settings = chosen(name, known)
    said = regress_store(known.folder, folder / "one", settings, "cpu")
    monkeypatch.setattr(devices, "prepare", device_tasks.noting)
    with monkeypatch.context() as patched:
        # What is kept whole is joined: this process takes in no models.
        patched.setattr(Run, "take_in", lambda *_: pytest.fail("XᵀX was made once more"))
        capsys.readouterr()
        assert regress_store(known.folder, folder / "two", settings, TWO) == said.replace("/one", "/two")
    found = same(folder / "one", folder / "two")
    kept = [line.split() for line in (folder / "kept.txt").read_text().splitlines()]
    names = [name for _, name in kept if name != "about"]
    assert len(set(names)) == len(names)
    assert len({pid for pid, _ in kept}) == 2
    reports = found.metrics["solved_by"]["devices"]
    assert [report["device"] for report in reports] == ["cpu", "cpu"]
    for stage in reports[0]["targets"]:
        assert sum(report["targets"][stage] for report in reports) == len(found.targets)
        assert min(report["targets"][stage] for report in reports) > 0
    assert found.metrics["seconds"]["moments"] > 0
    # One bar over all targets, to its end, and none beside it.
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("regress: ")]
    assert [line.startswith(f"regress: {len(found.targets)} targets in ") for line in shown] == [True]
    assert not [line for line in shown if " models/s" in line or " λ/s" in line]
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("prior", ["none", "a.npy"])
def test_blocks_that_nobody_names_are_shared_too_and_give_the_same_within_the_gap(known, folder, monkeypatch, prior):
    monkeypatch.setattr(devices, "prepare", device_tasks.noting)
    exact = RegressSettings(lams=10, gap=1e-8, prior=prior if prior == "none" else str(known.folder.parent / prior))
    for gpu in ("cpu", TWO, "cpu,cpu,cpu"):
        regress_store(known.folder, folder / gpu, exact, gpu)
    first, *others = (Datamodels.load(folder / gpu) for gpu in ("cpu", TWO, "cpu,cpu,cpu"))
    for other in others:
        np.testing.assert_allclose(other.weights, first.weights, atol=1e-4)
        np.testing.assert_allclose(other.lam, first.lam)
        # So little work may be done before the second process has begun.
        assert sum(each["targets"]["fitted"] for each in other.metrics["solved_by"]["devices"]) == len(first.bias)


@pytest.mark.parametrize(("name", "stage"), [("gram", "chosen"), ("gram", "fitted"), ("mean", "prior")])
def test_a_process_that_is_killed_costs_nothing_that_is_kept(known, folder, monkeypatch, capsys, name, stage):
    settings = chosen(name, known)
    regress_store(known.folder, folder / "one", settings, "cpu")
    monkeypatch.setattr(devices, "prepare", functools.partial(device_tasks.dying_after, stage))
    monkeypatch.setattr(Run, "take_in", lambda *_: pytest.fail("XᵀX was made once more"))
    regress_store(known.folder, folder / "two", settings, TWO)
    same(folder / "one", folder / "two")
    assert "a process ended on cpu (SIGKILL); its targets are done by others" in capsys.readouterr().err
    kept = [line.split()[1] for line in (folder / "kept.txt").read_text().splitlines()]
    again = [name for name in kept if name != "about"]
    assert len(set(again)) == len(again)


def test_where_all_die_this_process_does_it(known, folder, monkeypatch):
    settings = chosen("gram", known)
    regress_store(known.folder, folder / "one", settings, "cpu")
    monkeypatch.setattr(devices, "prepare", device_tasks.dying_always)
    regress_store(known.folder, folder / "two", settings, TWO)
    same(folder / "one", folder / "two")


@pytest.mark.parametrize("name", ["gram", "mean"])
def test_what_was_kept_before_is_gone_on_with_in_blocks_of_any_size(known, folder, monkeypatch, name):
    settings = dataclasses.replace(chosen(name, known), gap=1e-8)
    whole = fit_datamodels(known, dataclasses.replace(settings, prior="none")) if name == "gram" else None
    work, left = ("choose", 2) if name == "gram" else ("with_prior", 1)

    class Lost(Exception):  # noqa: N818
        pass

    real, calls = getattr(Run, work), list[Any]()

    def failing(*args):
        if len(calls) == left:
            raise Lost
        calls.append(args)
        return real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(Run, work, failing)
        with pytest.raises(Lost):
            regress_store(known.folder, folder / "out", dataclasses.replace(settings, block=2), "cpu")
    monkeypatch.setattr(devices, "prepare", device_tasks.noting)
    regress_store(known.folder, folder / "out", dataclasses.replace(settings, block=1), TWO)
    kept = {line.split()[1] for line in (folder / "kept.txt").read_text().splitlines()}
    stage = "chosen" if name == "gram" else "fitted"
    assert {name for name in kept if name.startswith(stage)} == {f"{stage}-{t}-{t + 1}" for t in range(2 * left, 7)}
    assert "prior" not in kept  # it was kept before
    if whole is not None:
        np.testing.assert_allclose(Datamodels.load(folder / "out").weights, whole.weights, atol=1e-4)


KILLED = """
import sys
from pathlib import Path
from datamodels.errors import run_command
from datamodels.regress import devices
from datamodels.regress.run import regress_store
from datamodels.settings import RegressSettings
from tests.regress import device_tasks
devices.prepare = device_tasks.noting
settings = RegressSettings(lams=12, block=1, solver="gram")
run_command(lambda: print(regress_store(Path({store!r}), Path({out!r}), settings, "cpu,cpu")))
"""


@pytest.mark.parametrize(("after", "number"), [(0, signal.SIGKILL), (3, signal.SIGTERM), (9, signal.SIGKILL)])
def test_a_run_over_devices_that_is_ended_goes_on_with_what_it_kept(known, folder, after, number):
    settings = dataclasses.replace(LASSO, block=1)
    regress_store(known.folder, folder / "one", settings, "cpu")
    code = KILLED.format(store=str(known.folder), out=str(folder / "two"))
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    )
    notes = folder / "kept.txt"
    until = time.monotonic() + 60
    while time.monotonic() < until and (len(notes.read_text().splitlines()) if notes.exists() else 0) < after:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(30) == (130 if number == signal.SIGTERM else -number)
    assert not (folder / "two").exists()
    regress_store(known.folder, folder / "two", settings, TWO)
    same(folder / "one", folder / "two")


def test_two_gpus_have_a_process_each_and_nothing_of_the_other(known, folder, monkeypatch, strict):
    strict.devices = 2
    settings = dataclasses.replace(LASSO, device="gpu", gap=1e-8)
    regress_store(known.folder, folder / "one", settings, "0")
    monkeypatch.setattr(devices, "prepare", device_tasks.strict)
    regress_store(known.folder, folder / "two", settings, "all")
    found = same(folder / "one", folder / "two")
    assert [report["device"] for report in found.metrics["solved_by"]["devices"]] == ["0", "1"]
    for number in (0, 1):
        assert (folder / f"used-{number}").read_text() == f"[{number}] 0 Counter()"
    assert strict.held[0] == strict.held[1] == 0


def test_which_devices_are_named(strict):
    strict.devices = 3
    assert devices_of("auto", "all") == ["0", "1", "2"]
    assert devices_of("cpu", "all") == devices_of("auto", None) == [None]
    assert devices_of("auto", "0,cpu") == ["0", "cpu"]
    strict.devices = 0
    assert devices_of("auto", "all") == devices_of("gpu", "all") == [None]
    for device, gpu, why in (("gpu", TWO, "--gpu is cpu, but regress.device is gpu"), ("auto", "0,0", "names GPU 0 twice")):
        with pytest.raises(InputError, match=why):
            devices_of(device, gpu)


def test_what_cannot_be_is_one_sentence_and_leaves_nothing(known, folder, command):
    line = ("--store", known.folder, "--out", folder / "out", "--regress.lams", 5)
    done = command("regress", *line, "--gpu", "0,")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --gpu must be")
    done = command("regress", *line, "--gpu", "7,8", "--regress.block", 2)
    assert done.returncode == 2
    assert "error: on 7: " in done.stderr or "error: on 8: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "out").exists()
    done = command("regress", *line, "--gpu", TWO, "--regress.block", 2)
    assert done.returncode == 0, done.stderr
    assert Datamodels.load(folder / "out").metrics["solved_by"]["devices"]


def test_an_error_in_a_process_is_told_with_its_device(tmp_path):
    masks, margins, _ = planted(m=300)
    margins[77, 2] = np.nan
    store = store_of(tmp_path / "s", masks, margins)
    with pytest.raises(InputError, match=r"on cpu: model 77 .* train it again"):
        regress_store(store.folder, tmp_path / "out", LASSO, TWO)


@pytest.mark.parametrize("key", ["store_digest", "prior_digest"])
def test_a_store_or_prior_that_becomes_another_is_refused(known, folder, monkeypatch, key):
    real = devices.fit_shares

    def changed(store, settings, unfinished, *rest):
        unfinished.meta = {**unfinished.meta, key: "another"}
        return real(store, settings, unfinished, *rest)

    monkeypatch.setattr(run_module, "fit_shares", changed)
    with pytest.raises(InputError, match=r"on cpu: .* has changed since the regression began"):
        regress_store(known.folder, folder / "out", chosen("mean", known), TWO)


def test_models_that_have_come_by_the_time_a_process_opens_the_store_are_left_out(known, folder):
    few, parts = Store(known.folder), Parts(np.arange(0, 150), np.arange(150, 180), np.arange(180, 220))
    few.done = np.arange(220)
    meta = provenance(few, LASSO)
    kept = Unfinished(folder / "kept", meta)
    devices.prepare(devices.Plan(known.folder, LASSO, None, parts, kept.begun(), meta, PIECES, 1), "cpu")()
    joined, whole = (fit_datamodels(few, LASSO, unfinished=u, parts=parts) for u in (kept, Unfinished()))
    assert np.array_equal(joined.weights, whole.weights)
    assert np.array_equal(joined.metrics["lds"], whole.metrics["lds"])


PIECES = {"chosen": [(0, 2), (2, 4), (4, 6), (6, 7)], "fitted": [(0, 2), (2, 4), (4, 6), (6, 7)]}


@pytest.mark.parametrize(("names", "block", "sizes"), [("cpu", 2, [2, 2, 2, 1]), ("cpu", 0, [4, 3]), ("01234567", 0, [1] * 7)])
def test_pieces_are_blocks_or_even(known, names, block, sizes):
    of = ["cpu", "cpu"] if names == "cpu" else list(names)
    pieces = pieces_of(Unfinished(), known, dataclasses.replace(LASSO, block=block), of)
    assert [b - a for a, b in pieces["chosen"]] == sizes
    assert pieces["chosen"] == pieces["fitted"]


def test_processes_share_the_memory_of_the_processor(known, monkeypatch):
    of = Source(known, 0, 7)
    sizes = needs(of.n, of.t, (180, 45, 25), LASSO, on_host=True)
    room = sizes.bytes("gram", 1)
    monkeypatch.setattr(solvers, "free_memory", lambda _: 2 * room / solvers.SHARE_OF_MEMORY + 9)
    alone, shared = (solvers.plan(of, dataclasses.replace(LASSO, block=0), sizes, np, Sharers(k)).block for k in (1, 2))
    assert alone == 7 > shared
    assert sizes.bytes("gram", shared) <= room < sizes.bytes("gram", shared + 1)


@given(st.sets(st.tuples(st.integers(0, 20), st.integers(1, 8)), max_size=12), st.integers(1, 24))
def test_what_is_missing_is_what_a_walk_does_not_meet(kept, last):
    unfinished = Unfinished()
    blocks = sorted(((a, a + n) for a, n in kept), key=lambda block: block[0] - block[1])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(unfinished, "blocks", lambda stage: blocks)
        met, gaps = unfinished.walk("x", 0, last), unfinished.missing("x", 0, last)
    seen = np.zeros(last, int)
    for a, b in [*met, *gaps]:
        assert 0 <= a < b <= last
        seen[a:b] += 1
    assert (seen == 1).all()
    assert set(met) <= set(blocks)


def test_a_run_over_devices_by_its_settings(settings, tmp_path):
    run = settings(
        store__num_models=60, regress__prior="similarity", regress__block=5, training__epochs=1, training__peak_epoch=0.5
    )
    prepare(run)
    trained(run, load(run))
    one = regress(run, "cpu")
    folder = Path(run.run.dir, "regress")
    folder.rename(tmp_path / "one")
    assert regress(run, TWO) == one
    same(tmp_path / "one", folder)
