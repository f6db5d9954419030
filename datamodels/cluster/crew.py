"""A crew: tasks for the processes of a cluster, given and taken back. What a `processes.Team` is on one machine.

Who does a task, and when, is Ray's to decide; it also tries a task again whose process or node has died. What Ray gives up is
tried again here, for as long as anything comes of the others' work. A task that hangs is ended: after `ray.patience` times the
median time of those that are back, at least HANG_FLOOR_S, or where it has not even begun MAKING_S after its process took it up.
A single question is like no other task, and may take its time: it is never ended once it has begun, and tells no median.
"""

from __future__ import annotations

import pickle
import statistics
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from datamodels.cluster.board import At, Board, Process
from datamodels.cluster.connection import Cluster
from datamodels.cluster.nodes import Node, versions
from datamodels.cluster.serving import Summary, Trade, end, work
from datamodels.errors import InputError, one_line
from datamodels.progress import say

HANG_FLOOR_S = 30.0
MAKING_S = 900.0
ENOUGH_TO_TELL = 3
"""Tasks that are back before their median tells how long one takes."""
REMEMBERED = 512
MOST_ENDS = 3
"""So often a task may hang before it is its own fault, and so often in a row processes may die while nothing comes back."""
RETRIES = 3
"""Of Ray, after a process or a node has died."""
WORD_AFTER_S = 15.0
NEWS_WITHIN_S = 1.0
"""So long the board is waited for; what it says later is heard the next time."""

Here = TypeVar("Here")
R = TypeVar("R")
Task = Callable[[Here], tuple[Any, Any]]


class Back(NamedTuple):
    """A task that has come back.

    `value` is here; `payload` is a reference into the object store, None with an error. `seconds` is how long the task took,
    without the making of what it works with. `error` is an InputError that names the node, or a RuntimeError with the trace.
    """

    key: Any
    node: Node
    seconds: float
    value: Any
    payload: Any
    error: Exception | None


@dataclass
class _Given:
    """A task under way: what it is, where it is not to run, its number on the board, where it is by now and since when.

    `alone`: it is a single question. `unread` is how often it failed before a process could read it.
    """

    key: Hashable
    task: bytes
    avoid: tuple[str, ...]
    number: int
    alone: bool = False
    unread: int = 0
    payload: Any = None
    at: At | None = None
    since: float = 0.0
    hung: list[str] = field(default_factory=list)


class Crew(Generic[Here]):
    """Tasks on a cluster, as a context; leaving it cancels those under way, and frees the GPUs of what was made there.

    `make` and the tasks must be picklable: functions of modules, `functools.partial` of these.
    """

    def __init__(self, cluster: Cluster, make: Callable[[str], Here], stage: str) -> None:
        self.cluster, self.stage, self.ray = cluster, stage, cluster.ray
        self.made, self.name = self.ray.put(make), uuid.uuid4().hex
        self.board = cluster.beside(Board)
        # Without max_calls a process with a GPU would end after each task, and with it what it has made.
        how = {"max_calls": 0, "max_retries": RETRIES, "num_returns": 2, "scheduling_strategy": "SPREAD", "name": stage}
        self.work = self.ray.remote(**how)(work)
        self.given: dict[Any, _Given] = {}
        self.arrived: deque[Back] = deque()
        self.times: deque[float] = deque(maxlen=REMEMBERED)
        self.asked: Any = None
        self.processes: set[Process] = set()
        self.number = self.deaths = 0
        self.waiting_since: float | None = time.monotonic()

    def __enter__(self) -> Crew[Here]:
        return self

    def __exit__(self, *_: object) -> None:
        for reference in self.given:
            self.ray.cancel(reference, force=True)
        self.given.clear()
        if self.cluster.gpus():  # an idle process holds its GPU's memory, of which Ray knows nothing
            self._hear()
            for process in self.processes:
                self._kill(process)
        self.ray.kill(self.board)

    @property
    def under_way(self) -> set[Hashable]:
        """The keys of tasks that are given and not back."""
        return {each.key for each in self.given.values()}

    @property
    def idle(self) -> int:
        """How many tasks would begin at once, were they given now; one at least where nothing is under way."""
        return max(self.cluster.slots() - len(self.given), 0 if self.given else 1)

    @property
    def room(self) -> int:
        """How many tasks may be given now: twice as many as run at once. Processes that end together, as in the beginning, have
        their next ones at hand, whoever gives tasks being slower; and who starts nodes as they are needed sees that more are.
        """
        slots = self.cluster.slots()
        return max(slots + max(2, slots) - len(self.given), 0)

    def give(self, key: Hashable, task: Task[Here], avoid: Collection[Node] = ()) -> None:
        """Have a task done, on none of some nodes if there are others. It comes back under its key.

        Raises InputError where the task cannot be sent.
        """
        self._give(key, task, avoid)

    def _give(self, key: Hashable, task: Task[Here], avoid: Collection[Node] = (), alone: bool = False) -> None:
        try:
            content = pickle.dumps(task)
        except Exception as e:
            raise InputError(f"what is to run on a cluster cannot be sent: {one_line(e)}") from e
        self.number += 1
        self._hand_out(_Given(key, content, tuple(node.id for node in avoid), self.number, alone))

    def back(self, timeout: float = 1.0) -> list[Back]:
        """Those that have come back; none after so many seconds without. Raises InputError where it leads nowhere."""
        if not self.arrived and self.given:
            ready, _ = self.ray.wait(list(self.given), num_returns=len(self.given), timeout=0)
            if not ready:
                ready, _ = self.ray.wait(list(self.given), num_returns=1, timeout=timeout)
            for reference in ready:
                self._take(reference)
            self._look()
        found, self.arrived = list(self.arrived), deque()
        return found

    def one(self, task: Callable[[Here], R]) -> R:
        """What a single question gives. Raises its error."""
        key = object()
        self._give(key, _Question(task), alone=True)
        others: list[Back] = []
        try:
            while True:
                for each in self.back():
                    if each.key is not key:
                        others.append(each)
                    elif each.error is not None:
                        raise each.error
                    else:
                        answer: R = each.value
                        return answer
        finally:
            self.arrived.extend(others)

    def drop_waiting(self) -> list[Hashable]:
        """Cancel the tasks that no process has taken up; their keys."""
        self._hear()
        waiting = [reference for reference, each in self.given.items() if each.at is None]
        for reference in waiting:
            self.ray.cancel(reference, force=True)
        return [self.given.pop(reference).key for reference in waiting]

    def _hand_out(self, given: _Given) -> None:
        avoid = [*given.avoid, *given.hung]
        if not any(self.cluster.slots_of(node) for node in self.cluster.nodes() if node.id not in avoid):
            avoid = []
        how = {"num_cpus": self.cluster.settings.cpus, "num_gpus": self.cluster.gpus(), **self.cluster.not_on(avoid)}
        device = "0" if self.cluster.gpus() else "cpu"
        trade = Trade(self.name, [self.made], device, versions())
        given.at = None
        reference, given.payload = self.work.options(**how).remote(trade, given.number, given.task, self.board)
        self.given[reference] = given

    def _take(self, reference: Any) -> None:
        """Take in what has come of a task: an answer, or a death."""
        given = self.given.pop(reference)
        errors = self.ray.exceptions
        try:
            summary: Summary = self.ray.get(reference)
        except errors.TaskCancelledError:
            self._hand_out(given)
        except errors.RuntimeEnvSetupError as e:
            raise InputError(f"the files of one's own do not reach the nodes: {one_line(e)}") from e
        except errors.RayTaskError as e:
            self._look_for_unfit(given, e)
        except errors.RayError as e:
            self._mourn(given, e)
        else:
            self._judge(given, summary)

    def _look_for_unfit(self, given: _Given, error: Exception) -> None:
        """Refuse the nodes that cannot run this program, one that has joined say, and give a task again that failed unread."""
        unfit, given.unread = self.cluster.unfit(), given.unread + 1
        # Some may have been on their way to a node that is refused by now.
        if not unfit and (not self.cluster.refused or given.unread > MOST_ENDS):
            raise RuntimeError(f"a task on the cluster failed:\n{error}") from error
        for node, why in unfit.items():
            self.cluster.refuse(node, why, self.stage)
        self._hand_out(given)

    def _judge(self, given: _Given, summary: Summary) -> None:
        node = self.cluster.node(summary.node)
        if summary.moved:
            self._hand_out(given)
        elif summary.unfit is not None:
            self.cluster.refuse(node, summary.unfit, self.stage)
            self._hand_out(given)
        elif summary.error is not None:
            sentence, trace = summary.error
            told = f"on {node.name}: {sentence}" if sentence is not None else f"a task on {node.name} failed:\n{trace}"
            self._answer(given, node, 0.0, None, RuntimeError(told) if sentence is None else InputError(told))
        else:
            if not given.alone:
                self.times.append(summary.seconds)
            self._answer(given, node, summary.seconds, summary.value, None)

    def _answer(self, given: _Given, node: Node, seconds: float, value: Any, error: Exception | None) -> None:
        self.deaths, self.waiting_since = 0, None
        self.arrived.append(Back(given.key, node, seconds, value, None if error else given.payload, error))

    def _mourn(self, given: _Given, error: Exception) -> None:
        """Give a task again whose process has died more often than Ray tries. Raises InputError where nothing comes back."""
        self.deaths += 1
        why = type(error).__name__
        where = "" if given.at is None else f" on {self.cluster.node(given.at.process.node).name}"
        if self.deaths >= MOST_ENDS:
            told = f"the processes of {self.deaths} tasks died{where}, {RETRIES + 1} times each ({why})"
            raise InputError(f"{told}, and nothing came of others' work; Ray's logs on that node say why")
        say(f"{self.stage}: a task's process has died{where}, {RETRIES + 1} times over ({why}); it is tried again")
        self._hand_out(given)

    def _look(self) -> None:
        """See how those under way are: say what they say, and end those that hang."""
        self._hear()
        median = statistics.median(self.times) if len(self.times) >= ENOUGH_TO_TELL else None
        now = time.monotonic()
        for reference, each in list(self.given.items()):
            if each.at is None:
                continue
            limit = MAKING_S
            if each.at.begun:
                if median is None or each.alone:
                    continue
                limit = max(HANG_FLOOR_S, self.cluster.settings.patience * median)
            if now - each.since > limit:
                self._end(reference, each, limit)
        if self.waiting_since is not None and now - self.waiting_since > WORD_AFTER_S:
            self._say_why_nothing_comes()

    def _hear(self) -> None:
        """What processes have said since the last time; nothing where the board does not answer, which is stopped, say."""
        asked = self.asked or self.board.news.remote()
        ready, self.asked = self.ray.wait([asked], timeout=NEWS_WITHIN_S), None
        if not ready[0]:
            self.asked = asked
            return
        news = self.ray.get(asked)
        for node, line in news.lines:
            say(f"{self.cluster.node(node).name}: {line}")
        for each in self.given.values():
            if each.number in news.at:
                each.at, each.since = news.at[each.number], time.monotonic()
        self.processes.update(at.process for at in news.at.values())

    def _end(self, reference: Any, given: _Given, limit: float) -> None:
        """End a task that hangs, with its process, and have it done elsewhere. Raises InputError where it always hangs."""
        assert given.at is not None
        del self.given[reference]
        name = self.cluster.node(given.at.process.node).name
        self.ray.cancel(reference, force=True)
        # A process that was stopped, say, takes no notice of Ray.
        self._kill(given.at.process)
        given.hung.append(given.at.process.node)
        if len(given.hung) >= MOST_ENDS:
            raise InputError(f"a task was ended {MOST_ENDS} times, at last on {name}, for it had no end within {limit:.0f} s")
        say(f"{self.stage}: a task on {name} has no end within {limit:.0f} s; it is ended, and tried elsewhere")
        self._hand_out(given)

    def _kill(self, process: Process) -> None:
        """End a process, whatever it takes notice of."""
        self.ray.remote(end).options(**self.cluster.on(process.node)).remote(process)

    def _say_why_nothing_comes(self) -> None:
        """Say once, of a beginning without any answer, why that may be."""
        self.waiting_since = None
        if not self.cluster.slots():
            wanted = f"{self.cluster.settings.cpus:g} cores and {self.cluster.gpus():g} GPUs"
            say(f"{self.stage}: no node of the cluster has {wanted} for a task; waiting for one")


@dataclass(frozen=True)
class _Question(Generic[Here, R]):
    """A question as a task: its answer is the value, and nothing stays behind."""

    ask: Callable[[Here], R]

    def __call__(self, here: Here) -> tuple[R, None]:
        return self.ask(here), None
