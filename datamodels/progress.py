"""Progress of long work: a bar on a terminal, a line now and then in a log; both with speed and time left."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from datamodels.errors import shown

LOG_INTERVAL_S = 15.0

Bar = Callable[[str, int], AbstractContextManager[Callable[..., None]]]
"""Makes the bar of one part of some work, from its unit and how many of these there are."""


def say(line: str) -> None:
    """A line about long work, beside its progress; it appears above the bar where there is one."""
    print(shown(line), file=sys.stderr, flush=True)


class Advance:
    """Counts work that is done; safe to call from several threads. `look` gives at what the work is, where nobody says so."""

    def __init__(self, label: str, unit: str, total: int, done: int) -> None:
        self.label, self.unit, self.total, self.done = label, unit, total, done
        self.first = done
        self.start = self.last_line = time.monotonic()
        self.lock = threading.Lock()
        self.where = ""
        self.look: Callable[[], str] = lambda: ""

    def __call__(self, n: int = 1, where: str = "") -> None:
        """`n` more units are done; `where` says in a few words at what the work is."""
        with self.lock:
            self.done += n
            self.where = where
            self._show()

    def to(self, done: int, total: int | None = None) -> None:
        """`done` units are done by now, whoever did them, of `total`, where that is another than before."""
        with self.lock:
            changed = done > self.done or total not in (None, self.total)
            self.done, self.total = max(done, self.done), self.total if total is None else total
            if changed:
                self._show()

    def there(self, n: int) -> None:
        """`n` more units are done, and were so before: they do not count for the speed."""
        with self.lock:
            self.done += n
            self.first += n
            if n:
                self._show()

    @property
    def speed(self) -> float:
        """Units per second since the start."""
        return (self.done - self.first) / max(time.monotonic() - self.start, 1e-9)

    def _show(self) -> None:
        if self.done == self.first:
            return  # nothing was there to do so far
        now = time.monotonic()
        if now - self.last_line >= LOG_INTERVAL_S or self.done >= self.total:
            self.last_line = now
            left = (self.total - self.done) / max(self.speed, 1e-9)
            speed = f"{self.speed:.1f} {self.unit}/s"
            where = self.where or self.look()
            told = f" ({where})" if where else ""
            say(f"{self.label}: {self.done} of {self.total} {self.unit}, {speed}, {left:.0f} s left{told}")


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.1f} {task.fields['unit']}/s")


class _Bar(Advance):
    def __init__(self, label: str, unit: str, total: int, done: int, progress: Progress) -> None:
        super().__init__(label, unit, total, done)
        self.progress = progress
        number = progress.add_task(label, total=total, completed=done, unit=unit, where="")
        self.task = next(task for task in progress.tasks if task.id == number)

    def there(self, n: int) -> None:
        """See `Advance.there`."""
        self.task.completed += n  # not by `update`, which would take it for speed
        super().there(n)

    def _show(self) -> None:
        self.task.total = self.total  # not by `update`, which would forget the speed so far
        if self.done < self.total:
            self.task.finished_time = None  # it may have seemed to be at its end
        self.progress.update(self.task.id, completed=self.done, where=self.where or self.look())


class _Terminal(Console):
    """The terminal, its cursor left alone: whoever hides it must live to show it again."""

    def show_cursor(self, show: bool = True) -> bool:
        """Do nothing."""
        del show
        return False


@contextmanager
def progress(label: str, unit: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show the progress of `total` units of work, of which `done` are there already, while the block runs."""
    console = _Terminal(stderr=True)
    if not console.is_terminal:
        yield Advance(label, unit, total, done)
        return
    whole = Column(no_wrap=True)  # where the line is too long for the terminal only what comes last, and the bar, give way
    numbers = (MofNCompleteColumn(table_column=whole), _Speed(table_column=whole), TimeRemainingColumn(table_column=whole))
    columns = (TextColumn("{task.description}"), BarColumn(), *numbers)
    where = TextColumn("{task.fields[where]}", table_column=Column(overflow="fold"))
    with Progress(*columns, where, console=console) as bar:
        yield _Bar(label, unit, total, done, bar)


def no_advance(n: int = 1, where: str = "") -> None:
    """Progress that nobody is shown."""
    del n, where


@contextmanager
def no_progress(unit: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar that nobody is shown."""
    del unit, total
    yield no_advance
