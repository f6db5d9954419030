"""Progress: what a log and a terminal are told, when, and in which words."""

from __future__ import annotations

import io
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from datamodels import progress as shown
from datamodels.progress import Advance, duration, progress, rate, say, step
from tests.silences import CONTROL, Heard, heard, rows_on_terminal


class Terminal(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True

    def rows(self) -> list[str]:
        return rows_on_terminal(self.getvalue())


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def screen(monkeypatch):
    """A screen whose thread never runs: tests tick it."""
    found = shown._Screen()
    monkeypatch.setattr(found, "_run", lambda: None)
    monkeypatch.setattr(shown, "_SCREEN", found)
    return found


def on_terminal(monkeypatch, width):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(shown, "_terminal", lambda: width - 1)
    return terminal


def told(screen, capsys):
    screen.tick(list(screen.activities))
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (47.2, "47 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3599.9, "1 h"),
        (8100, "2 h 15 min"),
        (47.9 * 3600, "47 h 54 min"),
        (48 * 3600, "2 days"),
        (99 * 3600 + 1, "4 days 3 h"),
        (float("inf"), "11574074 days 2 h"),
    ],
)
def test_a_time_in_words(seconds, words):
    assert duration(seconds) == words


def test_times_in_words_are_right_to_a_twentieth():
    units = {"s": 1, "min": 60, "h": 3600, "days": 86400}
    for k in range(3000):
        seconds = 1.006**k
        said = sum(float(n) * units[unit] for n, unit in re.findall(r"([\d.]+) (\w+)", duration(seconds)))
        assert said == pytest.approx(seconds, rel=0.051), seconds


@pytest.mark.parametrize(
    ("speed", "words"),
    [
        (850, "850 models/s"),
        (8.5, "8.5 models/s"),
        (1, "1.0 models/s"),
        (0.0383, "2.3 models/min"),
        (1 / 1200, "3.0 models/hour"),
        (1e-4, "8.6 models/day"),
        (1e-6, "0.1 models/day"),
    ],
)
def test_a_speed_in_words(speed, words):
    assert rate(speed, "models") == words


def test_no_speed_down_to_one_in_ten_days_is_told_as_none():
    assert all(float(rate(10.0**-k, "models").split()[0]) > 0 for k in range(6))


def test_a_total_may_grow_and_shrink_and_done_never_falls(clock):
    advance = Advance("verify", "models", 0, 0)
    advance.to(0, 30)
    clock[0] += 2
    advance(10)
    advance.to(4)
    assert (advance.done, advance.total) == (10, 30)
    assert advance.line() == "verify: 10 of 30 models, 5.0 models/s, 4.0 s left"
    advance.to(12, 12)
    assert advance.end() == "verify: 12 models in 2.0 s, 6.0 models/s"


def test_what_was_there_before_counts_as_done_and_not_for_the_speed(clock):
    advance = Advance("verify", "models", 50, 0)
    clock[0] += 5
    advance.there(40)
    assert (advance.done, advance.speed) == (40, 0)
    assert advance.line() == "verify: 40 of 50 models, 5.0 s so far"
    advance(10)
    assert advance.speed == advance.lately == pytest.approx(2)
    assert advance.end() == "verify: 10 models in 5.0 s, 2.0 models/s; 40 were there already"


def test_of_what_is_there_already_that_is_said(clock):
    assert Advance("worker", "models", 400, 400).end() == "worker: all 400 models are there already"
    assert Advance("worker", "models", 400, 0).end() == ""
    assert Advance("worker", "models", 0, 0).end() == ""


def test_what_is_broken_off_says_what_is_left(clock):
    advance = Advance("worker", "models", 400, 100)
    clock[0] += 60
    advance(60)
    assert advance.end() == "worker: 60 models in 1 min, 1.0 models/s; 100 were there already; 240 are left"


def test_who_asks_each_second_while_nothing_comes_changes_no_speed(clock):
    advance = Advance("worker", "models", 16 * 1000, 0)
    for second in range(1, 3001):
        clock[0] += 1
        advance.to(16 * (second // 300))
        if second >= 300:
            assert 16 / 600 <= advance.lately <= 16 / 290
            assert "0.0" not in advance.line()
    assert advance.left == pytest.approx(990 * 300, rel=0.2)


def test_what_fails_while_it_tells_where_the_work_is_hides_no_error_and_stops_no_progress(clock, screen, capsys):
    def look():
        raise RuntimeError("deque mutated during iteration")

    def work():
        with progress("worker", "models", 4) as advance:
            advance.look = look
            clock[0] += 20
            advance(2)
            assert told(screen, capsys) == "worker: 2 of 4 models, 6.0 models/min, 20 s left\n"
            raise KeyError("of the work")

    with pytest.raises(KeyError, match="of the work"):
        work()


def test_the_speed_that_is_shown_is_that_of_the_last_minute(clock):
    advance = Advance("worker", "models", 10**6, 0)
    for _ in range(600):
        clock[0] += 1
        advance(1)
    for _ in range(120):
        clock[0] += 1
        advance(5)
    assert advance.lately == pytest.approx(5, rel=0.05)
    assert advance.speed == pytest.approx(1200 / 720)


def test_where_blocks_take_long_the_speed_is_that_of_the_last_of_them(clock):
    advance = Advance("worker", "models", 10**6, 0)
    for _ in range(40):
        clock[0] += 300
        advance(16)
        assert 0.8 <= advance.lately / (16 / 300) <= 1.01
    clock[0] += 299
    assert advance.lately / (16 / 300) > 0.8


def test_the_speed_of_the_last_minute_takes_no_memory(clock):
    advance = Advance("worker", "models", 10**6, 0)
    for _ in range(20_000):
        clock[0] += 0.01
        advance(1)
    assert len(advance.seen) < 80


def test_a_log_is_told_of_what_lasts_and_of_nothing_else(screen, clock, capsys):
    with step("regress: reading"):
        clock[0] += 0.5
        assert told(screen, capsys) == ""
    assert capsys.readouterr().err == ""
    with step("regress: reading"):
        clock[0] += 1.1
        assert told(screen, capsys) == "regress: reading\n"
        assert told(screen, capsys) == ""
        clock[0] += 10.1
        assert told(screen, capsys) == "regress: reading, 11 s so far\n"
    assert capsys.readouterr().err == "regress: reading: took 11 s\n"


def test_a_log_of_ten_hours_has_some_six_hundred_lines_and_no_gap_over_a_minute(screen, clock, capsys):
    with progress("worker", "models", 36_000) as advance:
        at = []
        for _ in range(36_000):
            clock[0] += 1
            advance(1)
            if told(screen, capsys):
                at.append(clock[0] - 100)
    assert at[0] <= 2
    assert 550 < len(at) < 700
    assert max(b - a for a, b in itertools.pairwise(at)) <= 61
    assert max(b - a for a, b in itertools.pairwise(at[:8])) <= 11
    assert capsys.readouterr().err == "worker: 36000 models in 10 h, 1.0 models/s\n"


def test_a_log_learns_of_what_has_no_name_after_ten_seconds(screen, clock, capsys):
    with shown.command_at_work():
        clock[0] += 9
        assert told(screen, capsys) == ""
        with step("a step"):
            clock[0] += 1.1
            assert told(screen, capsys) == "a step\n"
        clock[0] += 9
        assert told(screen, capsys) == ""
        clock[0] += 1.1
        assert told(screen, capsys) == "datamodels: at work\n"
        clock[0] += 11
        assert told(screen, capsys) == "datamodels: at work, 31 s so far\n"


WITHOUT_ROOM = """
import os, resource, sys, threading, time
from datamodels.progress import step

for thread in [threading.Thread(target=lambda: [bytearray(5000) for _ in range(2000)]) for _ in range(3)]:
    thread.start()  # whose stacks are there for the next
    thread.join()
for left in range(0, 2**22, 2**17):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + left, resource.RLIM_INFINITY))
        try:
            with step("work"):
                os._exit(0)
        finally:
            os._exit(1)  # too little for anything
    end = time.monotonic() + 5
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > end:
            os.kill(child, 9)
            sys.exit(f"hangs with {left} bytes left")
        time.sleep(0.002)
"""


def test_a_thread_that_finds_no_memory_to_begin_holds_nobody_up():
    done = subprocess.run([sys.executable, "-c", WITHOUT_ROOM], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


def test_where_no_thread_can_be_started_the_work_goes_on(monkeypatch, capsys):
    def start(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(shown, "_SCREEN", shown._Screen())
    monkeypatch.setattr("_thread.start_new_thread", start)
    monkeypatch.setattr(shown, "DONE_S", 0.0)
    with progress("worker", "models", 1) as advance:
        advance()
    assert capsys.readouterr().err.startswith("worker: 1 models in ")


def test_a_bar_that_nothing_comes_of_is_told_of_all_the_same(screen, clock, capsys):
    with progress("worker", "models", 4):
        clock[0] += 1.1
        assert told(screen, capsys) == "worker: 0 of 4 models, 1.1 s so far\n"
        clock[0] += 50
        assert told(screen, capsys) == "worker: 0 of 4 models, 51 s so far\n"


def test_a_step_within_a_bar_is_named_and_the_bar_told_again(screen, clock, capsys):
    with progress("worker", "models", 4) as advance:
        clock[0] += 1.1
        told(screen, capsys)
        with step("compiling"):
            clock[0] += 1.1
            assert told(screen, capsys) == "compiling\n"
            advance(2)
            clock[0] += 10.1
            assert told(screen, capsys).startswith("worker: 2 of 4 models, ")


def test_a_terminal_shows_bars_and_the_step_within(screen, clock, monkeypatch):
    terminal = on_terminal(monkeypatch, 80)
    with step("regress: estimating"), progress("regress", "targets", 20) as advance:
        clock[0] += 2
        advance(5)
        with step("regress: moving"):
            clock[0] += 3
            screen.tick(list(screen.activities))
            assert terminal.rows() == [
                f"regress {'█' * 8 + '░' * 24} 5/20 targets, 1.0 targets/s, 15 s left",
                "regress: moving … 3.0 s",
            ]
    assert terminal.rows()[-1] == ""
    assert terminal.rows()[:-1] == [
        "regress: moving: took 3.0 s",
        "regress: 5 targets in 5.0 s, 1.0 targets/s; 15 are left",
        "regress: estimating: took 5.0 s",
    ]


def test_lines_of_others_stand_above_the_bar(screen, clock, monkeypatch):
    terminal = on_terminal(monkeypatch, 80)
    with progress("worker", "models", 4) as advance:
        screen.tick(list(screen.activities))
        say("a line of ours")
        screen.tick(list(screen.activities))
        print("half a line", end="", file=sys.stderr)
        screen.tick(list(screen.activities))  # which waits for the other half
        print(", whole", file=sys.stderr)
        advance(1)
        screen.tick(list(screen.activities))
        assert terminal.rows()[:2] == ["a line of ours", "half a line, whole"]
        assert re.match(r"worker █+░+ 1/4 models", terminal.rows()[2])
        assert len(terminal.rows()) == 3


@pytest.mark.parametrize("width", [24, 40, 80, 120, 200])
def test_on_a_narrow_terminal_the_numbers_stay_whole_and_the_speeds_of_nodes_take_more_lines(width, screen, monkeypatch):
    terminal = on_terminal(monkeypatch, width)
    nodes = [f"node{k}.of.a.cluster (172.31.12.{k}): 10.{k}/s" for k in range(4)]
    with progress("worker", "models", 4000) as advance:
        advance.look = lambda: ", ".join(nodes)
        advance.to(1234)
        screen.tick(list(screen.activities))
        rows = terminal.rows()
    assert all(len(row) < width for row in rows)
    if width >= 80:
        assert re.search(r"1234/4000 models, [\d.]+ models/s, \S+ s left", rows[0])
        assert all(re.search(rf"10\.{k}/s", " ".join(rows)) for k in range(4))


COMMAND = """
import sys, time
from pathlib import Path
from datamodels.errors import run_command
from datamodels.progress import progress, say, step
if len(sys.argv) > 1:
    sys.stdout = open(sys.argv[1], "w")
def main():
    time.sleep(1.2)
    with step("regress: reading"):
        time.sleep(2.1)
    with progress("worker", "models", 3) as advance:
        for _ in range(3):
            time.sleep(0.5)
            advance(1)
    print("done", flush=True)
    time.sleep(1.2)
run_command(main)
"""
LOADING = """
import sys, time
sys.argv[0], sys.orig_argv = "-m", ["python", "-m", "datamodels.x"]
import datamodels
time.sleep(2.5)
"""


@pytest.fixture(scope="module")
def of_commands(tmp_path_factory) -> dict[str, Heard]:
    """What commands say, all at the same time: each does little but sleep."""
    dumb, file = {**os.environ, "TERM": "dumb"}, tmp_path_factory.mktemp("out") / "out"
    given = {
        "terminal": ([COMMAND], True, None),
        "pipe": ([COMMAND], False, None),
        "dumb": ([COMMAND], True, dumb),
        "file": ([COMMAND, str(file)], True, None),
        "loading": ([LOADING], True, None),
    }
    with ThreadPoolExecutor(len(given)) as pool:
        begun = {
            name: pool.submit(heard, [sys.executable, "-c", *code], terminal, env)
            for name, (code, terminal, env) in given.items()
        }
    return {name: future.result() for name, future in begun.items()} | {"out": file.read_text(encoding="utf-8")}


def test_no_part_of_a_command_is_silent_on_a_terminal(of_commands):
    found = of_commands["terminal"]
    assert found.code == 0
    assert found.longest() < 1.5, found.silences[:3]
    words = [line for line in found.lines if line]
    assert re.fullmatch(r"regress: reading: took \d+(\.\d)? s", words[0])
    assert re.fullmatch(r"worker: 3 models in \d+(\.\d)? s, \d+(\.\d)? models/(s|min)", words[1])
    assert words[2:] == ["done"]
    assert "datamodels: at work … 1." in found.text


@pytest.mark.parametrize("where", ["pipe", "dumb"])
def test_in_a_log_each_step_is_named_within_two_seconds(where, of_commands):
    found = of_commands[where]
    assert found.code == 0
    assert not CONTROL.search(found.text)
    words = found.text.replace("\r\n", "\n").splitlines()
    assert words[0] == "regress: reading"
    assert re.fullmatch(r"worker: \d of 3 models, .*", words[2])
    assert words[-1] == "done"
    steps = [each for each in found.silences if re.match("regress: reading$|worker: \\d of 3", each.before)]
    assert max(each.seconds - each.lateness for each in steps) < 2.0


def test_stdout_into_a_file_is_the_same_beside_a_terminal(of_commands):
    assert of_commands["file"].code == 0
    assert of_commands["out"] == "done\n"
    assert "done" not in of_commands["file"].text


def test_loading_libraries_is_seen(of_commands):
    assert of_commands["loading"].longest() < 1.5
    assert "datamodels: loading libraries … 2." in of_commands["loading"].text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_forked_process_shows_nothing_of_its_parents(capfd):
    with step("of the parent"):
        pid = os.fork()
        if not pid:
            time.sleep(1.5)
            with step("of the child"):
                time.sleep(1.5)
            os._exit(len(shown._SCREEN.activities))
        _, status = os.waitpid(pid, 0)
    assert status == 0
    words = capfd.readouterr().err.splitlines()
    assert words[:2] == ["of the parent", "of the child"]
    assert [re.sub(r"[\d.]+ s", "3 s", word) for word in words[2:]] == ["of the parent: took 3 s"]


LOADED = """
import sys, time
from datamodels.errors import tell_in_a_sentence_before_a_command
from datamodels.progress import libraries_are_loaded
tell_in_a_sentence_before_a_command()
libraries_are_loaded()
time.sleep(1)
print("up", flush=True)
for _ in range(6000):  # as loading goes: a signal that comes just before one long sleep would wait for its end
    time.sleep(0.01)
"""


def test_ctrl_c_while_a_command_loads_leaves_no_rows_and_no_traceback():
    ours, theirs = os.openpty()
    env = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", LOADED], stdout=subprocess.PIPE, stderr=theirs, env=env) as process:
        os.close(theirs)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        found = b""
        with suppress(OSError):  # which is how the end of a terminal is read
            while part := os.read(ours, 4096):
                found += part
        assert process.wait(20) == 130
    os.close(ours)
    assert b"loading libraries" in found
    (row,) = (row for row in rows_on_terminal(found.decode()) if row.strip())
    assert row.startswith("interrupted; ")
