"""A process of a team, from within (see `processes`): it makes what it works with, does tasks, and ends when it is alone.

One thread reads from the process that started this one, another one writes to it, so that neither a signal in the middle of a
line nor a reader that is busy can tear or hold up what is sent.
"""

from __future__ import annotations

import functools
import io
import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from datamodels.errors import InputError, in_a_sentence, one_line

ALONE_S, END_S = 1.0, 5.0
"""After so long a process sees that it is alone though its line is held open, and ends whatever it is at."""
MOST_LINES, MOST_OF_A_LINE = 1000, 4000
"""Lines of stderr that wait to be sent, before who writes more waits; of a line without an end its last characters."""
TASK, STOP = "task", "stop"
SAID, TOLD, DONE, FAILED, STOPPED = "said", "told", "done", "failed", "stopped"

_worker: _Worker | None = None
"""In a process of a team: what it is."""


def tell(value: Any) -> None:
    """From a task, say something to the process that gave it, whose `heard` gets it; anywhere else nothing happens."""
    if _worker is not None:
        _worker.out.put((TOLD, _worker.at, pickle.dumps(value)))


class Lines(io.TextIOBase):
    """A stream whose lines are told, such as to the process that started this one: it has the progress bar.

    Each thread has a line of its own under way, so that those of two do not mix.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self.tell_line, self.under_way = tell, threading.local()

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Tell each whole line."""
        *lines, rest = (getattr(self.under_way, "rest", "") + text).split("\n")
        self.under_way.rest = rest[-MOST_OF_A_LINE:]
        for line in lines:
            self.tell_line(line)
        return len(text)

    def end_line(self) -> None:
        """Tell what this thread has written of a line."""
        if getattr(self.under_way, "rest", ""):
            self.write("\n")


class _Worker:
    """What a process of a team is: it makes what it works with, then does one task after another, until nobody gives any.

    `at` is the task that it is at, `working` whether a signal is to interrupt that; all tasks up to `stopped` are to stop.
    `told` is the last task to which a signal has said so, and `unheard` is set from then until it is heard.
    """

    def __init__(self, connection: Connection, parent: int) -> None:
        self.connection, self.parent = connection, parent
        self.tasks: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()
        self.out: queue.SimpleQueue[tuple[str, int, Any] | None] = queue.SimpleQueue()
        self.stopped, self.at, self.working, self.alone = -2, -1, False, False
        self.told, self.unheard = -1, False
        self.make, self.here, self.made = b"", None, False
        self.maker: Callable[[], Any] | None = None
        self.failure: tuple[str | None, str] | None = None
        self.stderr = Lines(self.say)

    def run(self) -> None:
        """Work until the other end is gone, or SIGTERM or SIGINT comes from elsewhere."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        threading.Thread(target=self._read, daemon=True).start()
        writer = threading.Thread(target=self._write, daemon=True)
        writer.start()
        interrupted = False
        try:
            while (given := self.tasks.get()) is not None:
                answer = self._answer(*given)
                self.stderr.end_line()
                if given[0]:
                    self.out.put(answer)
        except KeyboardInterrupt:
            interrupted = not self.alone
        self.out.put(None)
        writer.join(END_S)
        if interrupted:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    def say(self, line: str) -> None:
        """Send a line, after a moment where many are waiting."""
        while self.out.qsize() > MOST_LINES and not self.alone:
            time.sleep(0.002)
        self.out.put((SAID, 0, line))

    def _answer(self, number: int, content: bytes) -> tuple[str, int, Any]:
        """What to answer to a task; the one of number 0 makes what the others work with, and is tried again where need be."""
        self.at = number
        if number == 0:
            self.make = content
        try:
            # What a task is made of is imported before a signal may interrupt: half of a module cannot be imported again.
            self._load()
            task, failure = self._task(content) if number else (None, None)
            self.working = True
            if self._asked():  # only now: a signal that came before this was not to interrupt anything
                return STOPPED, number, None
            return failure or self._attempt(number, task)
        except KeyboardInterrupt:
            self.working = False  # a signal that comes from now on is too late
            if self._asked():
                return STOPPED, number, None
            raise
        finally:
            self.working = False

    def _load(self) -> None:
        """Read what makes what tasks work with, once."""
        if self.maker is None and self.failure is None:
            try:
                device, make = _loaded(self.make)
                self.maker = functools.partial(_loaded(make), device)
            except KeyboardInterrupt:
                raise
            except BaseException as e:
                self.failure = _described(e)

    def _task(self, content: bytes) -> tuple[Callable[[Any], Any] | None, tuple[str, int, Any] | None]:
        """What is to be done, or the answer that tells why it cannot be read."""
        try:
            return _loaded(content), None
        except KeyboardInterrupt:
            raise
        except BaseException as e:
            return None, (FAILED, self.at, _described(e))

    def _attempt(self, number: int, task: Callable[[Any], Any] | None) -> tuple[str, int, Any]:
        try:
            if not self.made and self.failure is None:
                self._make()
            if self.failure is not None:
                return FAILED, number, self.failure
            return DONE, number, b"" if task is None else pickle.dumps(task(self.here))
        except KeyboardInterrupt:
            raise
        except BaseException as e:  # SystemExit too: the process is to live on
            return FAILED, number, _described(e)

    def _make(self) -> None:
        assert self.maker is not None
        try:
            self.here, self.made = self.maker(), True
        except KeyboardInterrupt:
            raise
        except BaseException as e:
            self.failure = _described(e)

    def _asked(self) -> bool:
        """Whether the process that started this one wants what is being done to stop."""
        return self.alone or self.stopped >= self.at

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.unheard = False
        if self.working or not self._asked():
            self.working = False  # once a task
            raise KeyboardInterrupt

    def _read(self) -> None:
        """Take what comes. When the other end is gone, stop what is being done; what takes no notice of that ends too."""
        with suppress(EOFError, OSError):
            while self._someone_speaks():
                kind, number, content = self.connection.recv()
                if kind == TASK:
                    self.tasks.put((number, content))
                    continue
                self.stopped = number
                self._tell_to_stop(self.at)
        self.alone = True
        self.tasks.put(None)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(END_S)
        # With what it has forked, which shares its session.
        os.killpg(os.getpgrp(), signal.SIGKILL)

    def _tell_to_stop(self, at: int) -> None:
        """Interrupt a task that is to stop, once: one that has noted a signal would be ended by the next."""
        if 0 <= at <= self.stopped and at != self.told:
            # What has taken signals into its own hands hears this one there.
            self.told, self.unheard = at, signal.getsignal(signal.SIGTERM) == self._on_signal
            os.kill(os.getpid(), signal.SIGTERM)

    def _someone_speaks(self) -> bool:
        """Wait for the next word; False when the process that started this one has died, though its end may be held open."""
        while not self.connection.poll(ALONE_S):
            if os.getppid() != self.parent:
                return False
            self._repeat()
        return True

    def _repeat(self) -> None:
        """Tell the task again that it is to stop, if it has not heard: a call that sleeps and had just begun sleeps on.

        What has taken signals into its own hands meanwhile, as training does, is not to be ended by a second one.
        """
        if self.unheard and self._asked() and signal.getsignal(signal.SIGTERM) == self._on_signal:
            os.kill(os.getpid(), signal.SIGTERM)

    def _write(self) -> None:
        while (what := self.out.get()) is not None:
            with suppress(OSError):
                self.connection.send(what)


def _described(e: BaseException) -> tuple[str | None, str]:
    return in_a_sentence(e), traceback.format_exc()


def _loaded(content: bytes) -> Any:
    try:
        return pickle.loads(content)
    except Exception as e:
        raise InputError(f"what is to run here cannot be read; it must be a function of a module: {one_line(e)}") from e


def serve(fd: int, parent: int) -> None:
    """Be a process of a team, of which `fd` is the connection, and `parent` the process that started it."""
    global _worker
    os.set_inheritable(fd, False)  # programs that tasks start must not hold it open
    _worker = _Worker(Connection(fd), parent)
    sys.stderr = _worker.stderr
    os.register_at_fork(after_in_child=_be_no_worker)
    _worker.run()


def _be_no_worker() -> None:
    """In a process that a task has forked: it holds the line no longer, so that a death of its parent is seen."""
    global _worker
    if _worker is not None:
        with suppress(OSError):
            _worker.connection.close()
        if sys.stderr is _worker.stderr:
            sys.stderr = sys.__stderr__
        _worker = None
