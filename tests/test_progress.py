"""Progress whose total changes on the way, in a log and on a terminal."""

import io
import re

import pytest
from rich.console import Console
from rich.progress import Progress

from datamodels import progress as shown
from datamodels.progress import Advance, progress


def test_a_total_may_grow_and_shrink_and_done_never_falls(capsys):
    advance = Advance("verify", "models", 0, 0)
    advance.to(0, 30)
    advance(10)
    advance.to(4)
    assert (advance.done, advance.total) == (10, 30)
    advance.to(12, 12)
    assert (advance.done, advance.total) == (12, 12)
    assert re.fullmatch(r"verify: 12 of 12 models, .* models/s, 0 s left\n", capsys.readouterr().err)
    advance.to(12, 12)
    assert capsys.readouterr().err == ""


def test_what_was_there_before_counts_as_done_and_not_for_the_speed(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    advance = Advance("verify", "models", 50, 0)
    now[0] += 5
    advance.there(40)
    assert (advance.done, advance.speed) == (40, 0)
    advance(10)
    assert advance.done == 50
    assert advance.speed == pytest.approx(2)


def test_a_bar_on_a_terminal_shows_the_total_of_the_moment(monkeypatch):
    terminal = io.StringIO()

    class Terminal(shown._Terminal):
        def __init__(self, **_):
            super().__init__(file=terminal, force_terminal=True, width=120)

    monkeypatch.setattr(shown, "_Terminal", Terminal)
    with progress("verify", "models", 0) as advance:
        advance.to(0, 30)
        advance(10)
        advance.to(10, 25)
        advance.there(5)
    assert "15/25" in terminal.getvalue()


def test_a_bar_keeps_its_speed_when_its_total_changes(monkeypatch):
    now = [0.0]
    bar = Progress(get_time=lambda: now[0], disable=True)
    advance = shown._Bar("verify", "models", 10, 0, bar)
    for _ in range(4):
        now[0] += 2
        advance(6)
    (task,) = bar.tasks
    assert task.speed == pytest.approx(3)
    advance.to(24, 50)
    advance.there(20)
    assert task.speed == pytest.approx(3)
    assert (task.completed, task.total, task.time_remaining) == (44, 50, 2)


@pytest.mark.parametrize("width", [80, 120, 200])
def test_on_a_narrow_terminal_the_numbers_stay_whole_and_the_speeds_of_nodes_take_more_lines(width, monkeypatch):
    terminal, nodes = io.StringIO(), [f"node{k}.of.a.cluster (172.31.12.{k}): 10.{k}/s" for k in range(4)]
    monkeypatch.setattr(
        shown, "_Terminal", lambda **_: Console(file=terminal, force_terminal=True, width=width, color_system=None)
    )
    with progress("worker", "models", 4000) as advance:
        advance.look = lambda: ", ".join(nodes)
        advance.to(1234)
    last = terminal.getvalue().split("\r")[-1]
    assert re.search(r"1234/4000 [\d.]+ models/s \S+ node0", last)
    assert all(re.search(rf"10\.{k}/s", last) for k in range(4))
