"""Several devices, a process each: started, told what to do, watched, and ended with the process that started them.

Each process has its share of the processor's cores, and makes of its device whatever it works with, once. A process that dies
is seen and can be started anew; when the one that started them dies, they end after what they are at.
"""

from __future__ import annotations

import functools
import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, Generic, TypeVar

from datamodels.errors import InputError, in_a_sentence
from datamodels.machine import affinity
from datamodels.progress import say

ALL, CPU = "all", "cpu"
MOST_DEVICES = 64
POLL_S = 0.25
END_S = 10.0
SAID, DONE, FAILED, STOPPED = "said", "done", "failed", "stopped"

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
    """One process of a team."""

    device: str
    cores: Sequence[int]
    process: subprocess.Popen[bytes]
    connection: Connection
    ready: bool = False


class Team(Generic[Here]):
    """A process for each device, to be used as a context.

    `make` is called in each of them with the name of its device; what it gives is what every task is called with there. It and
    the tasks must be picklable: functions of modules, `functools.partial` of these. Raises InputError where they are not, and
    what `make` raises when the first task is given.
    """

    def __init__(self, devices: Sequence[str], make: Callable[[str], Here]) -> None:
        self.devices, self.make = list(devices), make
        self.members: list[_Member] = []

    def __enter__(self) -> Team[Here]:
        for device, cores in zip(self.devices, shares(len(self.devices)), strict=True):
            self.members.append(self._started(device, cores))
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.connection.close()
        for member in self.members:
            _end(member.process)

    def all(self, task: Callable[[Here], T], meanwhile: Callable[[], None] = lambda: None) -> list[T | None]:
        """What a task gives in every process; None for one that died at it.

        `meanwhile` is called again and again until all are back. The first error in one of them stops the others after what
        they are at, and is raised: InputError for what has its cause outside, RuntimeError for anything else. SIGINT and
        SIGTERM stop all of them so, and end in KeyboardInterrupt; a second one ends this process at once, and they see it.
        """
        return self._given(self.members, task, meanwhile)

    def one(self, task: Callable[[Here], T], meanwhile: Callable[[], None] = lambda: None) -> T | None:
        """As `all`, in the first process only."""
        return self._given(self.members[:1], task, meanwhile)[0]

    def revive(self) -> list[str]:
        """Start dead processes anew; the devices whose process had died, each with how."""
        told = []
        for k, member in enumerate(self.members):
            if member.process.poll() is not None:
                told.append(f"{member.device} ({_how_it_ended(member.process)})")
                member.connection.close()
                self.members[k] = self._started(member.device, member.cores)
        return told

    def _started(self, device: str, cores: Sequence[int]) -> _Member:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "datamodels.processes", str(theirs.fileno())]
        # A session of its own: a terminal's Ctrl-C comes to this process, which tells the others once.
        with theirs, _bound_to(cores):
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
        member = _Member(device, cores, process, Connection(ours.detach()))
        self._send(member, (sys.path, device, self.make))
        return member

    def _send(self, member: _Member, what: object) -> None:
        try:
            member.connection.send(what)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has died: its end is seen where its answer is waited for
        except Exception as e:
            raise InputError(f"what is to run on several devices cannot be sent to other processes: {e}") from e

    def _given(self, members: Sequence[_Member], task: Callable[[Here], T], meanwhile: Callable[[], None]) -> list[T | None]:
        for member in members:
            self._send(member, task)
        found: dict[int, T | None] = {}
        errors: list[Exception] = []
        with _forwarding(members) as stopped:
            while len(found) < len(members):
                waiting = {member.connection: k for k, member in enumerate(members) if k not in found}
                for connection in wait(list(waiting), POLL_S):
                    k = waiting[connection]  # type: ignore[index]
                    kind, value = _heard(members[k])
                    if kind == SAID:
                        say(value)
                        continue
                    found[k] = value if kind == DONE else None
                    if kind == FAILED:
                        errors.append(value)
                        _stop([member for i, member in enumerate(members) if i not in found])
                meanwhile()
        if errors:
            raise errors[0]
        if stopped.is_set():
            raise KeyboardInterrupt
        return [found[k] for k in range(len(members))]


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
        os.sched_setaffinity(0, before)


@contextmanager
def _forwarding(members: Sequence[_Member]) -> Iterator[threading.Event]:
    """Pass the first SIGINT or SIGTERM on to the processes, as an event too; the next one does what it always does."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stopped.set()
        for each in signals:
            signal.signal(each, signal.SIG_DFL)
        _stop(members)

    for number in signals:
        signal.signal(number, on_signal)
    try:
        yield stopped
    finally:
        for number in signals:
            signal.signal(number, before[number])


def _stop(members: Sequence[_Member]) -> None:
    for member in members:
        if member.process.poll() is None:
            member.process.terminate()


def _heard(member: _Member) -> tuple[str, Any]:
    """What a process says next; when it has died, that it is stopped."""
    try:
        kind, value = member.connection.recv()
    except (EOFError, OSError):
        with suppress(subprocess.TimeoutExpired):
            member.process.wait(END_S)
        return STOPPED, None
    if kind != FAILED:
        return kind, value
    sentence, trace = value
    if sentence is not None:
        return FAILED, InputError(f"on {member.device}: {sentence}")
    return FAILED, RuntimeError(f"the process on {member.device} failed:\n{trace}")


def _end(process: subprocess.Popen[bytes]) -> None:
    for end in (None, process.terminate, process.kill):
        if end is not None:
            end()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
            return


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


class _Told:
    """A stream whose lines are told to the process that started this one: it has the progress bar."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.rest, self.lock = connection, "", threading.Lock()

    def write(self, text: str) -> int:
        """Tell each whole line."""
        with self.lock:
            *lines, self.rest = (self.rest + text).split("\n")
            for line in lines:
                with suppress(OSError):
                    self.connection.send((SAID, line))
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back but a line that has no end yet."""


def _serve(fd: int) -> None:
    """What a process of a team does: make what it works with, then one task after another, until nobody gives any."""
    connection = Connection(fd)
    threading.Thread(target=_end_when_alone, args=[fd], daemon=True).start()
    sys.stderr = _Told(connection)
    with suppress(EOFError, ConnectionResetError, BrokenPipeError, KeyboardInterrupt):
        sys.path[:], device, make = connection.recv()
        here, failure = _attempted(lambda: make(device))
        while True:
            task = connection.recv()
            if failure is None:
                found, answer = _attempted(functools.partial(task, here))
                connection.send(answer or (DONE, found))
            else:
                connection.send(failure)


def _attempted(work: Callable[[], T]) -> tuple[T | None, tuple[str, Any] | None]:
    """What some work gives, or how it failed, as an answer to send. SIGTERM ends the work, and between works nothing."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return work(), None
    except KeyboardInterrupt:
        return None, (STOPPED, None)
    except Exception as e:
        return None, (FAILED, (in_a_sentence(e), traceback.format_exc()))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end_when_alone(fd: int) -> None:
    """When the other end is gone, stop after what is being done, as by SIGTERM; what takes no notice of that ends."""
    watch = select.poll()
    watch.register(fd, 0)
    watch.poll()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
