"""Several devices, a process each: started, told what to do, watched, and ended with the process that started them.

Each process has its share of the processor's cores, and makes of its device whatever it works with, once. A process that dies
is seen and can be started anew; when the one that started them dies, they end after what they are at, or within seconds.

Between the two lies one connection. Down come tasks, each with its number, and words to stop at one; up come answers with the
number of their task, what a task tells meanwhile, and lines of stderr. What lies at its other end is in `serving`.
"""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from datamodels.errors import STOPPING, InputError, one_line
from datamodels.machine import affinity
from datamodels.progress import say
from datamodels.serving import ALONE_S, DONE, END_S, FAILED, SAID, STOP, TASK, TOLD
from datamodels.signals import noted

ALL, CPU = "all", "cpu"
MOST_DEVICES = 64
POLL_S = 0.25
GONE = "gone"
START = "import sys; sys.path[:] = {path!r}; from datamodels.serving import serve; serve({fd}, {parent})"

T = TypeVar("T")
Here = TypeVar("Here")


def devices_named(text: str, gpus: Callable[[], int]) -> list[str]:
    """The devices that `--gpu` names, each 'cpu' or the number of a GPU; several stand with commas between.

    'all' are the GPUs that there are, by `gpus`, or the processor where there is none. The processor may be named several
    times: its cores are shared then. Raises InputError for anything else, and for a GPU that is named twice.
    """
    if text == ALL:
        return [str(number) for number in range(gpus())] or [CPU]
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word != CPU and not (word.isascii() and word.isdigit() and len(word) < 4):
            raise InputError(f"--gpu must be cpu, the number of a GPU, several with commas between, or {ALL}, not {text!r}")
    found = [word if word == CPU else str(int(word)) for word in words]
    twice = next((word for word in found if word != CPU and found.count(word) > 1), None)
    if twice is not None or len(found) > MOST_DEVICES:
        told = f"names GPU {twice} twice" if twice is not None else f"names more than {MOST_DEVICES} devices"
        raise InputError(f"--gpu {text} {told}")
    return found


@dataclass
class _Member:
    """One process of a team; `gone` once nothing more is heard of it."""

    device: str
    cores: Sequence[int]
    process: subprocess.Popen[bytes]
    connection: Connection
    gone: bool = False

    def send(self, kind: str, number: int, content: bytes = b"") -> None:
        """Send something, unless nobody is there any more: that is seen where the answer is waited for."""
        with suppress(OSError):
            self.connection.send((kind, number, content))

    def hear(self) -> tuple[str, int, Any]:
        """What the process says next."""
        try:
            kind, number, content = self.connection.recv()
        except (EOFError, OSError):
            return self._has_gone()
        if kind in (DONE, TOLD):
            try:
                return kind, number, pickle.loads(content)
            except Exception as e:
                return FAILED, number, RuntimeError(f"what the process on {self.device} gives cannot be read: {one_line(e)}")
        if kind != FAILED:
            return kind, number, content
        sentence, trace = content
        if sentence is not None:
            return FAILED, number, InputError(f"on {self.device}: {sentence}")
        return FAILED, number, RuntimeError(f"the process on {self.device} failed:\n{trace}")

    def silent(self) -> bool:
        """Whether it has died, and all that it said was heard; a process of its own that lives on may keep its line open."""
        return self.process.poll() is not None and not self._speaks()

    def _speaks(self) -> bool:
        try:
            return self.connection.poll()
        except OSError:
            return True

    def _has_gone(self) -> tuple[str, int, Any]:
        self.gone = True
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)
        return GONE, 0, None

    def end(self) -> None:
        """Let the process end, or end it, and what it has left running: that is of its session."""
        self.connection.close()
        try:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(END_S + ALONE_S)
                return
            self.process.kill()
            self.process.wait()
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)


class Team(Generic[Here]):
    """A process for each device, to be used as a context.

    `make` is called in each of them with the name of its device; what it gives is what every task is called with there. It and
    the tasks must be picklable: functions of modules, `functools.partial` of these. Raises InputError where they are not, and
    what `make` raises when the first task is given.
    """

    def __init__(self, devices: Sequence[str], make: Callable[[str], Here]) -> None:
        self.devices, self.make = list(devices), _pickled(make)
        self.members: list[_Member] = []
        self.number = 0

    def __enter__(self) -> Team[Here]:
        try:
            for device, cores in zip(self.devices, shares(len(self.devices)), strict=True):
                self.members.append(self._started(device, cores))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.connection.close()  # all at once, so that they end side by side
        for member in self.members:
            member.end()

    def all(
        self,
        task: Callable[[Here], T],
        meanwhile: Callable[[], None] = lambda: None,
        heard: Callable[[str, Any], None] = lambda _device, _value: None,
    ) -> list[T | None]:
        """What a task gives in every process; None for one that died at it.

        `meanwhile` is called again and again until all are back, `heard` with a device and what a task there tells by
        `serving.tell`. The first error in one of them stops the others after what they are at, and is raised: InputError for
        what has its cause outside, RuntimeError for anything else. SIGINT and SIGTERM stop all of them so, and end in
        KeyboardInterrupt; a second one ends this process at once, and they see it.
        """
        return self._given(range(len(self.members)), task, meanwhile, heard)

    def one(
        self,
        task: Callable[[Here], T],
        meanwhile: Callable[[], None] = lambda: None,
        heard: Callable[[str, Any], None] = lambda _device, _value: None,
    ) -> T | None:
        """As `all`, in the first process only."""
        return self._given(range(1), task, meanwhile, heard)[0]

    def revive(self) -> list[str]:
        """Start dead processes anew; the devices whose process had died, each with how."""
        told = []
        for k, member in enumerate(self.members):
            if member.gone or member.process.poll() is not None:
                member.end()
                told.append(f"{member.device} ({_how_it_ended(member.process)})")
                self.members[k] = self._started(member.device, member.cores)
        return told

    def _started(self, device: str, cores: Sequence[int]) -> _Member:
        ours, theirs = socket.socketpair()
        code = START.format(path=sys.path, fd=theirs.fileno(), parent=os.getpid())
        connection = Connection(ours.detach())
        try:
            # A session of its own: a terminal's Ctrl-C comes to this process, which tells the others once.
            with theirs, _bound_to(cores):
                process = subprocess.Popen(
                    [sys.executable, "-c", code],
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                )
        except BaseException:
            connection.close()
            raise
        member = _Member(device, cores, process, connection)
        member.send(TASK, 0, pickle.dumps((device, self.make)))
        return member

    def _given(
        self,
        which: Sequence[int],
        task: Callable[[Here], T],
        meanwhile: Callable[[], None],
        heard: Callable[[str, Any], None],
    ) -> list[T | None]:
        content = _pickled(task)
        self.number += 1
        members = [self.members[k] for k in which]
        round_ = _Round(members, self.number, heard)
        try:
            with noted() as signalled:
                for member in members:
                    member.send(TASK, self.number, content)
                self._attend(round_, signalled, meanwhile)
        except BaseException:
            round_.stop()  # before another task is given
            raise
        if round_.errors:
            raise round_.errors[0]
        if signalled.is_set():
            raise KeyboardInterrupt
        return [round_.found[k] for k in range(len(members))]

    def _attend(self, round_: _Round, signalled: threading.Event, meanwhile: Callable[[], None]) -> None:
        due = time.monotonic()
        while not round_.over:
            round_.listen()
            if signalled.is_set() and not round_.stopping:
                say(STOPPING)
            if signalled.is_set() or round_.errors:
                round_.stop()
            if time.monotonic() >= due:
                meanwhile()
                due = time.monotonic() + POLL_S


class _Round:
    """One task, given to some processes: what they have answered, and the errors among that."""

    def __init__(self, members: Sequence[_Member], number: int, heard: Callable[[str, Any], None]) -> None:
        self.members, self.number, self.heard = members, number, heard
        self.found: dict[int, Any] = {}
        self.errors: list[Exception] = []
        self.stopping = False

    @property
    def over(self) -> bool:
        """Whether all have answered or died."""
        return len(self.found) == len(self.members)

    def listen(self) -> None:
        """Take one word of each that says something, after a moment at most."""
        open_ = {member.connection: k for k, member in enumerate(self.members) if k not in self.found}
        speaking = {open_[connection] for connection in wait(list(open_), POLL_S)}  # type: ignore[index]
        for k in open_.values():
            if k in speaking:
                self._take(k, *self.members[k].hear())
            elif self.members[k].silent():
                self.members[k].gone = True
                self.found[k] = None

    def stop(self) -> None:
        """Stop those that are still at work, after what they are at; once."""
        if not self.stopping:
            for k, member in enumerate(self.members):
                if k not in self.found:
                    member.send(STOP, self.number)
        self.stopping = True

    def _take(self, k: int, kind: str, number: int, value: Any) -> None:
        if kind == SAID:
            say(value)
        elif kind == GONE:
            self.found[k] = None
        elif number == self.number:  # not of a task that was given up
            if kind == TOLD:
                self.heard(self.members[k].device, value)
                return
            self.found[k] = value if kind == DONE else None
            if kind == FAILED:
                self.errors.append(value)


def _pickled(what: object) -> bytes:
    try:
        return pickle.dumps(what)
    except Exception as e:
        raise InputError(f"what is to run on several devices cannot be sent to other processes: {one_line(e)}") from e


def shares(devices: int) -> list[list[int]]:
    """The cores of the processor for each of so many devices: parts of equal size, at least one core each."""
    cores = affinity()
    if devices >= len(cores):
        return [[cores[k % len(cores)]] for k in range(devices)]
    bounds = [round(k * len(cores) / devices) for k in range(devices + 1)]
    return [cores[first:last] for first, last in itertools.pairwise(bounds)]


@contextmanager
def _bound_to(cores: Sequence[int]) -> Iterator[None]:
    """Let processes that this thread starts run on these cores only, from the first instruction: libraries count them early."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        with suppress(OSError):
            os.sched_setaffinity(0, cores)
        yield
    finally:
        with suppress(OSError):  # cores that were taken from this process meanwhile
            os.sched_setaffinity(0, before)


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
