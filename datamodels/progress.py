"""What long work says of itself: on a terminal its last lines, ever moving; in a log a line now and then.

Work that can be counted has a bar, `progress`; what cannot is a `step`, with a name. One thread of the process shows both, so
that nothing has to call to be seen. On a terminal something changes each second, from the loading of the libraries on. In a log
a step or a bar that lasts is named within two seconds, and told again after 10 s, then ever more rarely, at last every 60 s:
600 lines in ten hours. Whatever ends says what was done in how long.
"""

from __future__ import annotations

import _thread
import atexit
import math
import os
import shutil
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from datamodels.errors import shown

TICK_S = 0.25
WORD_AFTER_S, LINE_AFTER_S = 1.0, 0.5
"""So old is a step that is named in a log, or seen on a terminal."""
OFTEN_S, RARELY_S, RARER = 10.0, 60.0, 0.1
"""A log is told again after so long at least and at most, and between them after this share of the time so far."""
TOOK_S, DONE_S = 2.0, 1.0
"""A step that took longer says so at its end, and a bar what was done."""
WINDOW_S, FEWEST_SEEN = 60.0, 8
"""The speed that is shown is that of so many seconds, or of so many times that something was done."""
SHORTEST_BAR = 10
LONGEST_S = 1e12
"""What takes longer is said to take so long."""

Bar = Callable[[str, int], AbstractContextManager[Callable[..., None]]]
"""Makes the bar of one part of some work, from its unit and how many of these there are."""


def say(line: str) -> None:
    """A line about long work, beside its progress; it appears above the bar where there is one."""
    with _SCREEN.lock:
        _SCREEN.clear()
        print(shown(line), file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A time in words: 0.4 s, 47 s, 3 min 20 s, 2 h 15 min, 4 days 3 h."""
    seconds = min(seconds, LONGEST_S)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    for large, small, names in ((60, 1, ("min", "s")), (3600, 60, ("h", "min")), (86400, 3600, ("days", "h"))):
        parts = divmod(round(seconds / small), large // small)
        if parts[0] < {60: 60, 3600: 48}.get(large, float("inf")):
            return f"{parts[0]} {names[0]} {parts[1]} {names[1]}" if parts[1] else f"{parts[0]} {names[0]}"
    raise AssertionError("no time is longer")


def rate(speed: float, unit: str = "") -> str:
    """A speed, in units per second, in words, such as '8.5 models/s': a slow one by the minute, hour or day, never as 0.0."""
    for seconds, name in ((1, "s"), (60, "min"), (3600, "hour"), (86400, "day")):
        per = speed * seconds
        if per >= 0.95 or name == "day":
            return f"{f'{per:.1f}' if per < 99.5 else f'{per:.0f}'} {unit}".rstrip() + f"/{name}"
    raise AssertionError("a day is the last")


class _Activity:
    """Something that is at work, from now on. A plain one has neither bar nor number.

    `alone` is when the last thing within it came to its end, `told` when a log was told of it.
    """

    def __init__(self, label: str) -> None:
        self.label, self.start = label, time.monotonic()
        self.told = self.alone = self.start
        self.named, self.word_after = False, WORD_AFTER_S

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self.start

    def line(self) -> str:
        """What is to be said of it in a log."""
        return f"{self.label}, {duration(self.seconds)} so far" if self.named else self.label

    def rows(self, width: int) -> list[str]:
        """What a terminal shows of it."""
        return [_cut(f"{self.label} … {duration(self.seconds)}", width)]


class Advance(_Activity):
    """Counts work that is done; safe to call from several threads. `look` gives at what the work is, where nobody says so."""

    def __init__(self, label: str, unit: str, total: int, done: int) -> None:
        super().__init__(label)
        self.unit, self.total, self.done = unit, total, done
        self.first = done
        self.lock = threading.Lock()
        self.where = ""
        self.look: Callable[[], str] = lambda: ""
        self.seen = deque([(self.start, 0)])

    def __call__(self, n: int = 1, where: str = "") -> None:
        """`n` more units are done; `where` says in a few words at what the work is."""
        with self.lock:
            self.done += n
            self.where = where
            self._note()

    def to(self, done: int, total: int | None = None) -> None:
        """`done` units are done by now, whoever did them, of `total`, where that is another than before."""
        with self.lock:
            self.done, self.total = max(done, self.done), self.total if total is None else total
            self._note()

    def there(self, n: int) -> None:
        """`n` more units are done, and were so before: they do not count for the speed."""
        with self.lock:
            self.done += n
            self.first += n

    @property
    def speed(self) -> float:
        """Units per second since the start."""
        return (self.done - self.first) / max(time.monotonic() - self.start, 1e-9)

    @property
    def lately(self) -> float:
        """Units per second of the last minute, or of longer where nothing came meanwhile."""
        since, before = self.seen[0]
        return (self.done - self.first - before) / max(time.monotonic() - since, 1e-9)

    @property
    def left(self) -> float:
        """Seconds to the end at the present speed; NaN before the first unit is done."""
        return math.nan if self.done == self.first else max(0, self.total - self.done) / max(self.lately, 1e-12)

    def at_what(self) -> str:
        """In a few words at what the work is; nothing where that cannot be told just now."""
        with suppress(Exception):  # it serves the eye, and shall hide no error of the work
            return self.where or self.look()
        return ""

    def numbers(self) -> str:
        """Speed and time left; before the first is done only the time so far."""
        if self.done == self.first:
            return f"{duration(self.seconds)} so far"
        return f"{rate(self.lately, self.unit)}, {duration(self.left)} left"

    def line(self) -> str:
        """See `_Activity`."""
        told = f" ({where})" if (where := self.at_what()) else ""
        return f"{self.label}: {self.done} of {self.total} {self.unit}, {self.numbers()}{told}"

    def rows(self, width: int) -> list[str]:
        """See `_Activity`. The bar gives way to the numbers, and these to nothing; where the work is takes lines of its own."""
        numbers = f"{self.done}/{self.total} {self.unit}, {self.numbers()}"
        room = min(40, width - len(self.label) - len(numbers) - 2)
        bar = f" {_drawn(self.done / max(self.total, 1), room)}" if room >= SHORTEST_BAR else ""
        where = self.at_what()
        beside = f"{self.label}{bar} {numbers} {where}"
        if len(beside) <= width:
            return [beside.rstrip()]
        return [_cut(f"{self.label}{bar} {numbers}", width), *(f"  {row}" for row in textwrap.wrap(where, max(width - 2, 8)))]

    def end(self) -> str:
        """What was done in how long; nothing where there was nothing to do."""
        done = self.done - self.first
        if not done:
            return f"{self.label}: all {self.total} {self.unit} are there already" if 0 < self.total <= self.done else ""
        if self.seconds < DONE_S:
            return ""
        there = f"; {self.first} were there already" if self.first else ""
        lacking = f"; {self.total - self.done} are left" if self.total > self.done else ""
        told = f" ({where})" if (where := self.at_what()) else ""
        took = f"{done} {self.unit} in {duration(self.seconds)}, {rate(self.speed, self.unit)}"
        return f"{self.label}: {took}{there}{lacking}{told}"

    def _note(self) -> None:
        """Remember when how much was done, for the speed of the last minute; to be asked when nothing came says nothing."""
        now, done = time.monotonic(), self.done - self.first
        if done == self.seen[-1][1]:
            return
        while len(self.seen) > FEWEST_SEEN and now - self.seen[1][0] > WINDOW_S:
            self.seen.popleft()
        if now - self.seen[-1][0] >= 1.0:
            self.seen.append((now, done))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(width - 2, 1)]} …"


def _drawn(share: float, width: int) -> str:
    """A bar of so many characters."""
    full = round(min(max(share, 0.0), 1.0) * width)
    return "█" * full + "░" * (width - full)


class _Screen:
    """What this process shows of its activities: a terminal's last rows, drawn again and again, or lines of a log."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """With nothing at work; in a process that was forked too, where the thread is not."""
        self.lock = threading.RLock()
        self.changed = threading.Condition()
        self.activities: list[_Activity] = []
        self.draws = False
        """Whether a thread does."""
        self.drawn, self.whole = 0, True
        """Rows that stand on the terminal now, and whether what others wrote last ended its line."""
        self.said = time.monotonic()

    def add(self, activity: _Activity) -> None:
        """Show it from now on."""
        with self.changed:
            self.activities.append(activity)
            if not self.draws:
                # A threading.Thread waits until it has begun: where it finds no memory for that, without an end.
                with suppress(RuntimeError, MemoryError):  # where there is no room for one the work goes on unseen
                    _thread.start_new_thread(self._run, ())
                    self.draws = True

    def remove(self, activity: _Activity, last: str) -> None:
        """Show it no more, and say a last line of it."""
        with self.changed:
            if activity in self.activities:
                self.activities.remove(activity)
            for within in self.activities[-1:]:
                within.alone = time.monotonic()
            self.changed.notify_all()
        with self.lock:
            self.clear()
            if last:
                say(last)

    def _run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait(TICK_S)
                if not self.activities:
                    self.draws = False
                    return
                shown_now = list(self.activities)
            with suppress(Exception):  # neither a terminal that is gone nor what tells of the work ends anything
                self.tick(shown_now)

    def tick(self, activities: list[_Activity]) -> None:
        """Show what is at work."""
        width = _terminal()
        if width:
            self._draw([row for each in _seen(activities) for row in each.rows(width)])
            return
        for each in _due(activities, self.said):
            line = each.line()
            each.named, each.told = True, time.monotonic()
            self.said = each.told
            say(line)

    def clear(self) -> None:
        """Take the rows off the terminal, for others to write there."""
        if self.drawn:
            _put("\r\x1b[2K" + "\x1b[1A\x1b[2K" * (self.drawn - 1))
            self.drawn = 0

    def _draw(self, rows: list[str]) -> None:
        with self.lock:
            if not self.whole:
                return
            up = "\r" + "\x1b[1A" * (self.drawn - 1) if self.drawn else ""
            text = "\n".join(f"{shown(row)}\x1b[K" for row in rows)
            _put(f"{up}{text}\x1b[J")
            self.drawn = len(rows)


def _seen(activities: list[_Activity]) -> list[_Activity]:
    """The bars, and what lasts within the last of them; without a bar the innermost of what lasts."""
    bars = [each for each in activities if isinstance(each, Advance)]
    within = activities[activities.index(bars[-1]) + 1 :] if bars else activities
    return bars + [each for each in within if time.monotonic() - each.alone > LINE_AFTER_S][-1:]


def _due(activities: list[_Activity], said: float) -> list[_Activity]:
    """What a log is to be told of now: what has begun and lasts, and what lasts on; the innermost, and bars."""
    now = time.monotonic()
    first = [each for each in activities[-1:] if not each.named and now - each.alone > each.word_after]
    if first:
        return first
    again = [each for each in activities if isinstance(each, Advance)][-1:] or activities[-1:]
    return [each for each in again if now - max(each.told, said) >= min(max(OFTEN_S, RARER * each.seconds), RARELY_S)]


def _terminal() -> int:
    """Columns of the terminal that stderr is, one left free at its end; 0 where it is none that can move its cursor."""
    if not _is_terminal(sys.stderr) or os.environ.get("TERM", "") in ("", "dumb"):
        return 0
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError, AttributeError):
        columns = 0
    return max(2, (columns or shutil.get_terminal_size().columns) - 1)


def _put(text: str) -> None:
    """Write to the terminal itself."""
    stream = sys.stderr
    while isinstance(stream, _Above):
        stream = stream._stream
    stream.write(text)
    stream.flush()


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


class _Above:
    """A stream to the terminal on which rows are drawn: what is written goes where they were, and they are drawn below it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write above the rows."""
        with _SCREEN.lock:
            _SCREEN.clear()
            self._stream.write(text)
            if text:
                _SCREEN.whole = text.endswith("\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_SCREEN = _Screen()


@atexit.register
def leave_terminal() -> None:
    """Take the rows off the terminal: nothing more will be said of what is at work."""
    with _SCREEN.lock:
        _SCREEN.activities.clear()
        _SCREEN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_SCREEN.begin_anew)


@contextmanager
def _at_work(activity: _Activity, end: Callable[[], str]) -> Iterator[None]:
    before = (sys.stdout, sys.stderr)
    above = tuple(_Above(s) if _is_terminal(s) and not isinstance(s, _Above) and _terminal() else s for s in before)
    sys.stdout, sys.stderr = above
    _SCREEN.add(activity)
    try:
        yield
    finally:
        _SCREEN.remove(activity, end())
        if (sys.stdout, sys.stderr) == above:
            sys.stdout, sys.stderr = before


@contextmanager
def progress(label: str, unit: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show the progress of `total` units of work, of which `done` are there already, while the block runs.

    At the end it is said how many were done in how long.
    """
    advance = Advance(label, unit, total, done)
    with _at_work(advance, advance.end):
        yield advance


@contextmanager
def step(label: str) -> Iterator[None]:
    """Show that the block is at work at what the label says, such as 'regress: reading the store'."""
    activity = _Activity(label)

    def end() -> str:
        return f"{label}: took {duration(activity.seconds)}" if activity.seconds >= TOOK_S else ""

    with _at_work(activity, end):
        yield


@contextmanager
def command_at_work() -> Iterator[None]:
    """Let a command be seen to be at work whatever it is at, also where it has no name for that."""
    global _loading
    if _loading is not None:
        _SCREEN.remove(_loading, "")
        _loading = None
    command = Path(sys.argv[0])  # .../datamodels/verify/__main__.py
    name = command.parent.name if "datamodels" in command.parts[:-1] and command.stem == "__main__" else "datamodels"
    with _at_work(_nameless(f"{name}: at work"), str):
        yield


_loading: _Activity | None = None


def _nameless(label: str) -> _Activity:
    """What is seen on a terminal as any step is; of which a log learns only where nothing else has a name for long."""
    activity = _Activity(label)
    activity.word_after = OFTEN_S
    return activity


def libraries_are_loaded() -> None:
    """Let a command be seen to load its libraries, from now until it begins; there is no block around imports."""
    global _loading
    _loading = _nameless("datamodels: loading libraries")
    _SCREEN.add(_loading)


def no_advance(n: int = 1, where: str = "") -> None:
    """Progress that nobody is shown."""
    del n, where


@contextmanager
def no_progress(unit: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar that nobody is shown."""
    del unit, total
    yield no_advance
