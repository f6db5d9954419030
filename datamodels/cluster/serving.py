"""A process of a crew, from within: it makes what its tasks work with, once, does them, and says what came of them.

A process that Ray gives another GPU than the one on which it has made something cannot take it: CUDA has chosen for good. It
says so, ends, and a fresh one takes its place.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodels.cluster.board import At, Process
from datamodels.cluster.code import sentence_on_a_node
from datamodels.cluster.connection import ray_here
from datamodels.cluster.nodes import difference, fitting, versions
from datamodels.errors import InputError, one_line
from datamodels.serving import Lines

LEAVES_AFTER_S = 0.2
ALIVE_EVERY_S = 5.0


@dataclass(frozen=True)
class Summary:
    """What came of a task: its value, or why there is none.

    `error` is a sentence, where the cause lies outside, and the trace. `unfit` says why the node may not take part, `moved`
    that the process has left and the task is to be given again.
    """

    node: str
    seconds: float = 0.0
    value: Any = None
    error: tuple[str | None, str] | None = None
    unfit: str | None = None
    moved: bool = False


@dataclass(frozen=True)
class Trade:
    """What the processes of a crew work by: what makes what their tasks are called with, pickled into the object store.

    `make` is a list with the reference to it, which Ray does not follow by itself; `device` is what it is called with,
    `versions` those of the process that gives the tasks.
    """

    crew: str
    make: list[Any]
    device: str
    versions: Mapping[str, str]


@dataclass
class _Kept:
    """What a process has made, for which crew, and with which GPUs to be seen."""

    crew: str = ""
    visible: str | None = None
    here: list[Any] = field(default_factory=list)


@dataclass
class _AtWork:
    """How the task under way is said to be at work, whether it has begun, and when that was said last."""

    say: Callable[[bool], None] = lambda _begun: None
    begun: bool = False
    last: float = 0.0


_kept = _Kept()
_at_work = _AtWork()


def work(trade: Trade, number: int, task: bytes, board: Any) -> tuple[Summary, Any]:
    """Do a task, on whatever node this is: what came of it, and what is to stay in the object store."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    unfit = difference(trade.versions, versions())
    if unfit is not None:
        return Summary(node, unfit=unfit), None
    if _is_elsewhere(trade):
        _leave()
        return Summary(node, moved=True), None

    process = Process(node, os.getpid(), _born(os.getpid()))

    def is_at(begun: bool) -> None:
        board.is_at.remote(number, At(process, begun))
        _at_work.begun, _at_work.last = begun, time.monotonic()

    _at_work.say = is_at
    with _told(lambda line: board.said.remote(node, line)):
        try:
            is_at(False)
            here = _here(trade)
            is_at(True)
            start = time.monotonic()
            value, payload = _loaded(task)(here)
            return Summary(node, time.monotonic() - start, value), payload
        except KeyboardInterrupt:
            raise
        except BaseException as e:  # SystemExit too: the process is to live on
            return Summary(node, error=(sentence_on_a_node(e), traceback.format_exc())), None


def alive() -> None:
    """From a task of a crew, or what makes its tools: say that it goes on, so that it does not count as hanging."""
    if time.monotonic() - _at_work.last > ALIVE_EVERY_S:
        _at_work.say(_at_work.begun)


def tasks_here(cpus: float, gpus: float) -> int:
    """How many tasks of so many cores and GPUs fit at once on the node that this runs on."""
    ray = ray_here()
    here = ray.get_runtime_context().get_node_id()
    return next((fitting(each["Resources"], cpus, gpus) for each in ray.nodes() if each["NodeID"] == here), 1)


def versions_here() -> tuple[str, Mapping[str, str]]:
    """The node that this runs on, and what it has."""
    import ray

    return ray.get_runtime_context().get_node_id(), versions()


def end(process: Process) -> None:
    """End a process of this node, whatever it takes notice of, unless another one has its number by now."""
    with suppress(ProcessLookupError, PermissionError):
        if _born(process.pid) == process.born:
            os.kill(process.pid, signal.SIGKILL)


def _born(pid: int) -> str:
    """When a process of this machine began, as Linux counts; '' where that cannot be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _is_elsewhere(trade: Trade) -> bool:
    """Whether this process has chosen another GPU than the one it is given now, or has a GPU for another crew.

    It may have chosen also where nothing came of what it was to make.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return bool(_kept.crew) and trade.device != "cpu" and (visible, trade.crew) != (_kept.visible, _kept.crew)


def _leave() -> None:
    """End this process once its answer is gone. A task that comes in between is tried again by Ray."""
    timer = threading.Timer(LEAVES_AFTER_S, os._exit, (0,))
    timer.daemon = True
    timer.start()


def _here(trade: Trade) -> Any:
    """What tasks work with, made where it is not there."""
    import ray

    if not _kept.here or _kept.crew != trade.crew:
        _kept.here.clear()
        gc.collect()
        make: Callable[[str], Any] = ray.get(trade.make[0])
        _kept.crew, _kept.visible = trade.crew, os.environ.get("CUDA_VISIBLE_DEVICES")
        _kept.here.append(make(trade.device))
    return _kept.here[0]


def _loaded(content: bytes) -> Callable[[Any], tuple[Any, Any]]:
    try:
        task: Callable[[Any], tuple[Any, Any]] = pickle.loads(content)
    except Exception as e:
        raise InputError(f"what is to run here cannot be read; it must be a function of a module: {one_line(e)}") from e
    return task


@contextmanager
def _told(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell what is written to stderr meanwhile."""
    before, lines = sys.stderr, Lines(tell)
    sys.stderr = lines
    try:
        yield
    finally:
        lines.end_line()
        sys.stderr = before
