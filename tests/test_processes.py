"""A process for each device: what is named, who has which cores, and what becomes of tasks, errors, signals and deaths."""

import contextlib
import functools
import itertools
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodels import processes, serving
from datamodels.errors import InputError
from datamodels.machine import affinity
from datamodels.processes import Team, devices_named, shares
from tests import team_tasks as tasks

CPUS = ["cpu", "cpu"]


def alive(pid):
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_for(what, seconds=20.0):
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.02)
    return found


@pytest.mark.parametrize(
    ("text", "gpus", "devices"),
    [
        ("cpu", 3, ["cpu"]),
        ("0", 0, ["0"]),
        ("cpu,cpu", 0, ["cpu", "cpu"]),
        ("all", 3, ["0", "1", "2"]),
        ("all", 0, ["cpu"]),
        ("1, 0 ,cpu", 0, ["1", "0", "cpu"]),
        ("007", 0, ["7"]),
    ],
)
def test_devices_are_named(text, gpus, devices):
    assert devices_named(text, lambda: gpus) == devices


@pytest.mark.parametrize(
    "text", ["", ",", "0,", "all,0", "gpu", "-1", "1.5", "1000", "²", "0,0", "7,cpu,07", "cpu," * 64 + "cpu"]
)
def test_what_names_no_devices_is_refused(text):
    with pytest.raises(InputError, match=r"^--gpu "):
        devices_named(text, lambda: pytest.fail("nobody asks for GPUs"))


NAMES = st.lists(st.sampled_from(["cpu", *map(str, range(12))]), min_size=1, max_size=70)


@given(NAMES, st.sampled_from(["", " ", "  "]))
def test_what_is_named_comes_back_or_is_refused(names, space):
    text = ",".join(space + name + space for name in names)
    gpus = [name for name in names if name != "cpu"]
    if len(set(gpus)) < len(gpus) or len(names) > processes.MOST_DEVICES:
        with pytest.raises(InputError):
            devices_named(text, lambda: 0)
    else:
        assert devices_named(text, lambda: 0) == names


@given(st.text(max_size=8))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(InputError):
        found = devices_named(text, lambda: 2)
        assert all(name == "cpu" or str(int(name)) == name for name in found)


@given(st.sets(st.integers(0, 300), min_size=1), st.integers(1, 40))
@settings(deadline=None)
def test_cores_are_shared_disjointly_evenly_and_all_of_them(cores, devices):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(processes, "affinity", lambda: sorted(cores))
        found = shares(devices)
    sizes = [len(part) for part in found]
    assert len(found) == devices
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1
    assert set().union(*found) <= cores
    if devices <= len(cores):
        assert sorted(itertools.chain(*found)) == sorted(cores)


def test_every_process_has_its_device_its_cores_and_is_made_once():
    before = affinity()
    with Team(CPUS, tasks.name) as team:
        first: list[Any] = team.all(tasks.where)
        assert team.all(tasks.where) == first
        assert team.one(tasks.where) == first[0]
    assert [found[0] for found in first] == CPUS
    assert [found[2] for found in first] == shares(2)
    assert len({found[1] for found in first} | {os.getpid()}) == 3
    # Each in a session of its own, so that a terminal's Ctrl-C comes to the one that started them only.
    assert [found[3] for found in first] == [found[1] for found in first]
    assert affinity() == before
    assert not any(alive(found[1]) for found in first)


def test_a_process_that_dies_is_seen_told_and_started_anew(tmp_path):
    with Team(["0", "cpu"], tasks.name) as team:
        assert not team.revive()
        assert team.all(functools.partial(tasks.die_once, tmp_path)) == ["0", None]
        assert team.all(tasks.name) == ["0", None]  # until it is
        assert team.revive() == ["cpu (SIGKILL)"]
        assert not team.revive()
        assert team.all(functools.partial(tasks.die_once, tmp_path)) == ["0", "cpu"]
        process = team.members[1].process
        os.kill(process.pid, signal.SIGKILL)  # while it has nothing to do
        wait_for(lambda: process.poll() is not None)
        assert team.revive() == ["cpu (SIGKILL)"]
        assert team.all(tasks.name) == ["0", "cpu"]


def test_one_that_dies_while_it_starts_is_seen_each_time():
    with Team(["0"], tasks.dying) as team:
        for _ in range(2):
            assert team.all(tasks.name) == [None]
            assert team.revive() == ["0 (SIGKILL)"]


def test_a_death_is_seen_though_a_child_of_it_lives_on():
    with Team(["0"], tasks.name) as team:
        start = time.monotonic()
        assert team.all(tasks.leave) == [None]
        assert team.revive() == ["0 (SIGKILL)"]
        assert team.all(tasks.name) == ["0"]
    assert time.monotonic() - start < 10


def test_a_death_in_the_middle_of_an_answer_is_seen_though_a_child_lives_on_and_the_child_can_speak(capfd):
    with Team(["0"], tasks.name) as team:
        start = time.monotonic()
        assert team.all(tasks.fork_and_answer) == [None]
        assert time.monotonic() - start < 10
        assert team.revive() == ["0 (SIGKILL)"]
    assert "all is said" in capfd.readouterr().err


def test_programs_started_by_tasks_have_none_of_our_files():
    with Team(["0"], tasks.name) as team:
        assert team.all(tasks.start_a_program) == ["0\n"]


def test_a_process_that_somebody_ends_is_one_that_died():
    with Team(["0"], tasks.name) as team:
        assert team.all(tasks.end_by_a_signal) == [None]
        assert team.revive() == ["0 (SIGTERM)"]


@pytest.mark.parametrize(
    ("error", "comes"),
    [
        (InputError("this cannot be"), (InputError, r"^on 0: this cannot be$")),
        (MemoryError("x"), (InputError, "on 0: memory does not suffice")),
        (ValueError("a fault"), (RuntimeError, r"(?s)process on 0 failed:.*ValueError: a fault")),
        (SystemExit(3), (RuntimeError, "(?s)failed:.*SystemExit: 3")),
    ],
)
def test_an_error_comes_through_and_stops_the_others(error, comes):
    with Team(["0", "1"], tasks.name) as team:
        start = time.monotonic()
        with pytest.raises(comes[0], match=comes[1]):
            team.all(functools.partial(tasks.fail, error))
        assert time.monotonic() - start < 20
        # All of them live on, and do what comes next.
        assert not team.revive()
        assert team.all(tasks.name) == ["0", "1"]


def test_what_sleeps_through_a_stop_is_told_again():
    with Team(["0", "1"], tasks.name) as team:
        start = time.monotonic()
        with pytest.raises(RuntimeError, match="a fault"):
            team.all(tasks.fail_unheard)
        assert time.monotonic() - start < 20
        assert team.all(tasks.name) == ["0", "1"]


def test_a_stop_that_a_task_has_noted_does_not_come_again_at_it_or_at_the_next_one(tmp_path):
    with Team(["0", "1"], tasks.name) as team:
        with pytest.raises(RuntimeError, match="a fault"):
            team.all(functools.partial(tasks.fail_while_signals_are_noted, tmp_path / "row"))
        assert (tmp_path / "row").read_text() == "finished"
        assert team.all(tasks.last_a_while) == ["0", "1"]
        assert not team.revive()


def test_a_task_that_was_told_to_stop_ends_in_good_order_though_the_next_one_is_stopped_too(tmp_path):
    def refuse(_device, _word):
        raise OSError("no room")

    with Team(["0", "1"], tasks.name) as team:
        with pytest.raises(OSError, match="no room"):
            team.all(functools.partial(tasks.finish, tmp_path / "row"), heard=refuse)
        time.sleep(0.3)  # until the other one has noted the signal
        with pytest.raises(RuntimeError, match="a fault"):
            team.all(functools.partial(tasks.fail, ValueError("a fault")))
        assert team.all(tasks.name) == ["0", "1"]
        assert not team.revive()
    assert (tmp_path / "row").read_text() == "finished"


@pytest.mark.parametrize("moment", ["_load", "_task", "_asked"])
def test_a_stop_that_comes_as_a_task_begins_is_not_lost(moment, monkeypatch):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = serving._Worker(Connection(os.dup(theirs.fileno())), os.getppid())
        make = pickle.dumps(("0", pickle.dumps(tasks.name)))
        assert worker._answer(0, make)[0] == serving.DONE
        undisturbed = getattr(worker, moment)

        def stopped_after_it(*given):
            found = undisturbed(*given)
            monkeypatch.undo()
            worker.stopped = worker.at
            worker._on_signal(signal.SIGTERM, None)
            return found

        monkeypatch.setattr(worker, moment, stopped_after_it)
        answer = worker._answer(1, pickle.dumps(tasks.name))
        assert answer == (serving.STOPPED, 1, None)


def test_what_cannot_be_made_is_said_for_the_first_task_and_every_other():
    with Team(CPUS, tasks.refusing) as team:
        for _ in range(2):
            with pytest.raises(InputError, match="on cpu: there is no cpu here"):
                team.all(tasks.name)


def test_one_that_was_stopped_while_it_was_made_is_made_for_the_next_task(tmp_path):
    with Team(["0"], functools.partial(tasks.slowly, tmp_path)) as team:

        def interrupt():
            if (tmp_path / "began-0").exists():
                raise InputError("enough")

        with pytest.raises(InputError, match="enough"):
            team.all(tasks.name, interrupt)
        assert team.all(tasks.name) == ["0"]


def test_an_error_of_who_waits_leaves_no_answer_for_the_next_task():
    def failing():
        raise InputError("enough")

    with Team(CPUS, tasks.name) as team:
        for k in range(3):
            with pytest.raises(InputError, match="enough"):
                team.all(functools.partial(tasks.give, k), failing)
        assert team.all(functools.partial(tasks.give, "the last")) == ["the last"] * 2


def test_what_cannot_be_sent_is_one_sentence_and_starts_nothing(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
        with pytest.raises(InputError, match="cannot be sent to other processes"):
            Team(CPUS, lambda device: device)
    with Team(["0"], tasks.name) as team:
        with pytest.raises(InputError, match="cannot be sent to other processes"):
            team.all(lambda device: device)
        with pytest.raises(InputError, match="on 0: what is to run here cannot be read"):
            team.all(functools.partial(tasks.give, tasks.Unreadable()))
        with pytest.raises(RuntimeError, match="process on 0 failed"):
            team.all(tasks.unsendable)
        assert team.all(tasks.name) == ["0"]


def test_a_team_that_cannot_be_started_whole_leaves_nobody(monkeypatch):
    popen, started = subprocess.Popen, list[Any]()

    def once(*args, **kwargs):
        if started:
            raise OSError(11, "no more processes")
        started.append(popen(*args, **kwargs))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", once)
    with pytest.raises(OSError, match="no more processes"), Team(CPUS, tasks.name):
        pass
    assert started[0].returncode is not None


def test_results_and_tasks_may_be_larger_than_any_buffer():
    ours = np.random.default_rng(0).random(1_000_000)
    with Team(CPUS, tasks.name) as team:
        for found in team.all(functools.partial(tasks.large, 2_000_000)):
            assert found is not None
            assert np.array_equal(found, np.arange(2_000_000))
        for found in team.all(functools.partial(tasks.give, ours)):
            assert found is not None
            assert np.array_equal(found, ours)


def test_lines_of_many_threads_arrive_whole_all_of_them_and_in_order(capsys):
    lines, threads = 1500, 3
    with Team(["0"], tasks.name) as team:
        assert team.all(functools.partial(tasks.write, lines, threads)) == [False]
    found = capsys.readouterr().err.splitlines()
    assert found[-2:] == ["said", "no end"]
    for k in range(threads):
        mine = [line for line in found if line.startswith(f"thread {k} ")]
        assert mine == [f"thread {k} line {i}" for i in range(lines)]
    assert len(found) == lines * threads + 2


def test_what_tasks_tell_comes_with_their_device():
    heard = []
    with Team(["0", "1"], tasks.name) as team:
        assert team.all(functools.partial(tasks.tell_squares, 50), heard=lambda *what: heard.append(what)) == [50, 50]
    for device in ("0", "1"):
        assert [value for name, value in heard if name == device] == [i * i for i in range(50)]


def test_somebody_is_called_meanwhile():
    calls = []
    with Team(["0"], tasks.name) as team:
        team.all(functools.partial(tasks.write, 200, 2), lambda: calls.append(time.monotonic()))
    # Not for each line of a flood.
    assert 1 <= len(calls) < 60


PARENT = """
import functools, pathlib, sys
from datamodels.processes import Team
from tests import team_tasks as tasks
task = functools.partial(*{task})
with Team(["0", "1"], tasks.name) as team:
    try:
        team.all(task)
    except KeyboardInterrupt:
        pathlib.Path({folder!r}, "interrupted").touch()
        print(team.all(tasks.name), flush=True)
        sys.exit(7)
"""


@contextlib.contextmanager
def parent_of(task, folder):
    """A process with a team at a task, and the processes of that."""
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    code = PARENT.format(task=task, folder=str(folder))
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([sys.executable, "-c", code], env=path, **piped)
    try:
        wait_for(lambda: len(list(folder.glob("began-*"))) == 2)
        began = folder.glob("began-*")
        yield process, [int(path.name.rsplit("-", 1)[1]) for path in began]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_and_they_are_there_for_what_comes_then(tmp_path, number):
    with parent_of(f"[tasks.after_a_sleep, {str(tmp_path)!r}, 60]", tmp_path) as (process, children):
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 7
        assert out == "['0', '1']\n"
        assert err == "stopping after what is at work; once more ends it at once\n"
        assert len(list(tmp_path.glob("stopped-*"))) == 2
        assert not any(map(alive, children))


def test_a_second_signal_ends_the_parent_at_once_and_the_children_soon(tmp_path):
    with parent_of(f"[tasks.stubborn, {str(tmp_path)!r}]", tmp_path) as (process, children):
        process.send_signal(signal.SIGTERM)
        assert re.match("stopping", process.stderr.readline())
        assert all(map(alive, children))
        process.send_signal(signal.SIGTERM)
        process.wait(5)
        assert process.returncode == -signal.SIGTERM
        # They take no notice of being asked.
        wait_for(lambda: not any(map(alive, children)), 20)


def test_no_child_outlives_a_parent_that_is_killed(tmp_path):
    with parent_of(f"[tasks.after_a_sleep, {str(tmp_path)!r}, 60]", tmp_path) as (process, children):
        process.kill()
        wait_for(lambda: not any(map(alive, children)), 5)
    assert len(list(tmp_path.glob("stopped-*"))) == 2


@pytest.mark.parametrize("pause", [0, 0.01, 0.1, 0.25])
def test_a_stop_at_any_moment_of_a_task_is_heard(pause, tmp_path):
    """Also between its arrival and its beginning, and while the process is only starting."""
    with Team(["0"], tasks.name) as team:
        if pause:
            team.all(tasks.name)
        for _ in range(3):
            start = time.monotonic()

            def enough(begun=start):
                if time.monotonic() - begun >= pause:
                    raise InputError("enough")

            with pytest.raises(InputError, match="enough"):
                team.all(functools.partial(tasks.after_a_sleep, str(tmp_path), 30), enough)
            assert team.all(tasks.name) == ["0"]
            assert time.monotonic() - start < 10
        assert not team.revive()
