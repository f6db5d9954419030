"""The connection to a Ray cluster: who may take part, what all nodes are sent once, and actors beside this process."""

from __future__ import annotations

import functools
import importlib
import math
import os
import pickle
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from datamodels.cluster.code import Code
from datamodels.cluster.nodes import GPU, Node, difference, fitting, versions
from datamodels.errors import GO_ON, InputError, one_line, shown
from datamodels.machine import megabytes
from datamodels.progress import say
from datamodels.settings import RaySettings

if TYPE_CHECKING:
    from datamodels.cluster.crew import Crew

T = TypeVar("T")
Here = TypeVar("Here")
AUTO, OF_ENVIRONMENT = "auto", "RAY_ADDRESS"
ANSWERS_WITHIN_S = 10.0
LOOK_EVERY_S = 2.0
WITHOUT_HEAD_S = 45.0
"""So long nothing is said of a head that does not answer. After 60 s Ray ends the process, without a sentence."""
VERSIONS_WITHIN_S = 120.0
TOO_LARGE = "exceeds the maximum size"
"""What Ray says of files that it does not send."""
CONNECTED_WITHIN_S = 300.0
"""So long a connection may take, files of one's own and all; Ray itself would try for ever, and not hear Ctrl-C."""
TYPE_AT, SETTINGS = 3, 4
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, SETTINGS, 0, 0, 0, 0, 0])
"""HTTP/2's first words, with settings of which there are none; a server that speaks it answers with its own settings."""


class Shared(Generic[T]):
    """A value that lies in the object store, once on each node that asks for it."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def get(self) -> T:
        """The value, on any node. NumPy's arrays in it are not copied, and can only be read."""
        value: T = ray_here().get(self.reference)
        return value


def ray_here() -> Any:
    """The library. Raises InputError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone unasked
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # every error is taken in, or of no more interest
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # and a warning about a change to come is not shown
    try:
        return importlib.import_module("ray")
    except ImportError as e:
        raise InputError(
            f"--engine ray needs Ray, which is not installed here ({one_line(e)}): pip install 'datamodels-lab[ray]'"
        ) from e


class Cluster:
    """A Ray cluster of which this machine is a node, as a context.

    Entering raises InputError where there is none at the address, or one of its nodes has other versions than this process.
    """

    def __init__(self, settings: RaySettings, code: Code | None = None) -> None:
        self.settings, self.code = settings, (code or Code()).and_named(settings.files)
        if not settings.cpus and not settings.gpus:
            raise InputError("ray.cpus and ray.gpus are both 0: a task must take something, for Ray to know how many fit")
        self.names: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.shared_bytes = 0
        self.open = ExitStack()
        self._gpus: float | None = None
        self._looked: tuple[float, list[dict[str, Any]]] = (-math.inf, [])

    def __enter__(self) -> Cluster:
        self.ray = ray_here()
        with self.open:
            folder = self.open.enter_context(self.code.folder())
            self._connect(folder)
            self.open.callback(self.ray.shutdown)
            self.here = self.node(self.ray.get_runtime_context().get_node_id())
            self._refuse_other_versions()
            self.gpus()
            self.open.enter_context(_watched(self.ray.get_runtime_context().gcs_address))
            self.open = self.open.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.open.close()

    def nodes(self) -> list[Node]:
        """The living nodes that may take part."""
        return [self.node(each["NodeID"]) for each in self._allowed()]

    def gpus(self) -> float:
        """GPUs of a task: the same for all, for models trained on a GPU and on a processor are not the same to the last bit."""
        if self._gpus is None:
            there = any(each["Resources"].get(GPU, 0) >= 1 for each in self._living())
            self._gpus = self.settings.gpus if self.settings.gpus >= 0 else float(there)
        return self._gpus

    def slots(self) -> int:
        """How many tasks fit at once on the nodes that may take part, were nothing else on them."""
        return sum(self.slots_of(each) for each in self._allowed())

    def slots_of(self, node: dict[str, Any] | Node) -> int:
        """How many tasks fit at once on a node."""
        if isinstance(node, Node):
            return next((self.slots_of(each) for each in self._allowed() if each["NodeID"] == node.id), 0)
        return fitting(node["Resources"], self.settings.cpus, self.gpus())

    def tasks_here(self) -> Callable[[], int]:
        """What says, asked on a node, how many tasks fit there at once."""
        from datamodels.cluster.serving import tasks_here

        return functools.partial(tasks_here, self.settings.cpus, self.gpus())

    def share(self, value: T, what: str) -> Shared[T]:
        """Put a value into the object store. Raises InputError where that of some node has no room for it, and names both."""
        size = self.shared_bytes + _bytes_of(value)
        for each in self._allowed():
            room = int(each["Resources"].get("object_store_memory", 0))
            if size > room and (self.slots_of(each) or each["NodeID"] == self.here.id):
                name = self.node(each["NodeID"]).name
                room_there = f"the object store of {name} has {megabytes(room)}"
                told = f"with {what} {megabytes(size)} are to lie on every node, and {room_there}"
                raise InputError(f"{told}; start Ray there with a larger --object-store-memory")
        try:
            reference = self.ray.put(value)
        except (self.ray.exceptions.ObjectStoreFullError, self.ray.exceptions.OutOfDiskError) as e:
            raise InputError(f"{what} does not fit into Ray's object store ({one_line(e, 200)})") from e
        self.shared_bytes = size
        return Shared(reference)

    def beside(self, kind: type[Any], *args: Any) -> Any:
        """An actor of a class on this node, that takes no core. Where it dies Ray starts it, and tries its calls, again."""
        near = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(self.here.id, soft=False)
        how = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": near}
        return self.ray.remote(kind).options(**how).remote(*args)

    def crew(self, make: Callable[[str], Here], stage: str) -> Crew[Here]:
        """A crew whose tasks are called with what `make` gives of a device, once in each process."""
        from datamodels.cluster.crew import Crew

        return Crew(self, make, stage)

    def refuse(self, node: Node, why: str, stage: str = "cluster") -> None:
        """Give nothing to a node any more, and say so. Raises InputError where no other one has room for a task."""
        if node.id in self.refused:
            return
        self.refused[node.id] = why
        if not self.slots():
            raise InputError(f"{node.name} {why}, and no other node of the cluster has room for a task")
        say(f"{stage}: {node.name} {why}; nothing more is given to it")

    def not_on(self, nodes: list[str]) -> dict[str, Any]:
        """The options of a task that is not to run on some nodes, by Ray's numbers, nor on one that is refused."""
        out = sorted({*nodes, *self.refused})
        return {"label_selector": {"ray.io/node-id": f"!in({','.join(out)})"}} if out else {}

    def on(self, node: str) -> dict[str, Any]:
        """The options of a small task that is to run on one node, whatever else runs there."""
        near = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        return {"num_cpus": 0, "max_retries": 1, "scheduling_strategy": near}

    def _connect(self, folder: Path | None) -> None:
        address, named = self.settings.address, "ray.address"
        if address == AUTO and os.environ.get(OF_ENVIRONMENT):  # which Ray follows, and would not look at
            address, named = os.environ[OF_ENVIRONMENT], f"{OF_ENVIRONMENT} of the environment"
        if address == AUTO:
            address = _address_here()
        if address.startswith("ray://"):
            raise InputError(f"{named}: the command must run on a node of the cluster, with auto or IP:port, not ray://")
        if address != AUTO:
            _refuse_unreachable(address, named)
        env = {} if folder is None else {"working_dir": str(folder)}
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            how = {"log_to_driver": False, "logging_level": "ERROR", "namespace": f"datamodels-{uuid.uuid4().hex}"}
            with _ends_within(CONNECTED_WITHIN_S, f"there is no connection to a Ray cluster at {shown(address, 80)}"):
                self.ray.init(address=address, runtime_env=env, **how)
        except Exception as e:
            if TOO_LARGE in str(e):
                told = "ray.files and the modules of your own are more than Ray sends to nodes (500 MB, compressed)"
                raise InputError(f"{told}; lay large files on every node, and read them by an absolute path") from e
            if _is_no_node():
                begin = f"`ray start --address={shown(address, 80)}` makes it one"
                raise InputError(f"this machine is no node of the Ray cluster at {shown(address, 80)}; {begin}") from e
            raise InputError(f"there is no connection to a Ray cluster at {shown(address, 80)}: {one_line(e)}") from e
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():  # Ray puts its own in their place
                    signal.signal(number, handler or signal.SIG_DFL)
        _hush(self.ray)

    def unfit(self) -> dict[Node, str]:
        """The living nodes that cannot run this program as this process does, and why, with a verb before it; all are asked."""
        from datamodels.cluster.serving import versions_here

        ask = self.ray.remote(versions_here)
        asked = {ask.options(**self.on(each["NodeID"])).remote(): self.node(each["NodeID"]) for each in self._allowed()}
        done, silent = self.ray.wait(list(asked), num_returns=len(asked), timeout=VERSIONS_WITHIN_S)
        found = {asked[reference]: self._unfit(reference) for reference in done}
        found |= {asked[reference]: f"has not answered within {VERSIONS_WITHIN_S:.0f} s" for reference in silent}
        self._looked = (-math.inf, [])
        living = self.nodes()
        return {node: why for node, why in found.items() if why is not None and node in living}

    def _unfit(self, reference: Any) -> str | None:
        """What is to be said of a node, by what came of asking it."""
        try:
            _, there = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as e:
            return f"cannot run datamodels: {one_line(e.cause, 200)}"
        except self.ray.exceptions.RayError as e:
            told = shown(str(e).strip().splitlines()[-1] if str(e).strip() else "", 200)
            return f"cannot run a task of this program: {type(e).__name__}: {told}"
        return difference(versions(), there)

    def _refuse_other_versions(self) -> None:
        """Raise InputError, which names a node, where one of them has other versions than this process."""
        unfit = self.unfit()
        if unfit:
            node, why = next(iter(unfit.items()))
            raise InputError(f"{node.name} {why}; all nodes need the same")

    def _living(self) -> list[dict[str, Any]]:
        if time.monotonic() - self._looked[0] > LOOK_EVERY_S:
            self._looked = (time.monotonic(), [each for each in self.ray.nodes() if each["Alive"]])
        return self._looked[1]

    def _allowed(self) -> list[dict[str, Any]]:
        return [each for each in self._living() if each["NodeID"] not in self.refused]

    def node(self, number: str) -> Node:
        """The node of Ray's number."""
        if number not in self.names:
            known = next((each for each in self.ray.nodes() if each["NodeID"] == number), None)
            host = "a node" if known is None else str(known["NodeManagerHostname"])
            address = "" if known is None else str(known["NodeManagerAddress"])
            name = f"{host} ({address})"
            taken = name in self.names.values() or sum(_is_at(each, host, address) for each in self.ray.nodes()) > 1
            self.names[number] = f"{host} ({number[:8]})" if taken else name
        return Node(number, self.names[number])


def _is_at(node: dict[str, Any], host: str, address: str) -> bool:
    return bool(node["NodeManagerHostname"] == host and node["NodeManagerAddress"] == address)


def _bytes_of(value: object) -> int:
    """How much of an object store a value takes, near enough. Arrays are not copied for it."""
    buffers: list[pickle.PickleBuffer] = []
    cloudpickle = importlib.import_module("ray.cloudpickle")
    return len(cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)) + sum(b.raw().nbytes for b in buffers)


def _address_here() -> str:
    """What `auto` stands for: RAY_ADDRESS, or the head of the cluster that this machine is a node of.

    Ray finds it; told auto it would wait for minutes, with lines of its own, for a head that is gone. Raises InputError where
    there is no such cluster.
    """
    try:
        found: str = importlib.import_module("ray._private.services").get_ray_address_from_environment(AUTO, None)
    except ConnectionError as e:
        begin = "`ray start --head` begins a cluster here, `ray start --address=IP:port` makes this machine a node of one"
        raise InputError(f"no Ray cluster runs on this machine; {begin}") from e
    except Exception:  # its own affair, and might be called otherwise one day
        return AUTO
    return found


def _is_no_node() -> bool:
    """Whether no node of any cluster runs on this machine. Ray may begin all the same, and end at files that are not here."""
    with suppress(Exception):  # its own affair, and might be called otherwise one day
        return not importlib.import_module("ray._private.services").find_gcs_addresses()
    return False


def _refuse_unreachable(address: str, named: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and int(port) < 2**16):
        raise InputError(f"{named} must be auto, or IP:port of the cluster's head, not {shown(address, 80)!r}")
    try:
        _greet(address, ANSWERS_WITHIN_S)
    except (OSError, UnicodeError) as e:
        raise InputError(f"no Ray cluster can be reached at {shown(address, 80)} ({one_line(e)})") from e


def _greet(address: str, seconds: float) -> None:
    """Raise OSError where no head answers: one that is stopped takes a connection, and says nothing."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), seconds) as talk:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return
        talk.sendall(GREETING)
        found = b""
        while len(found) <= TYPE_AT:
            more = talk.recv(TYPE_AT + 1)
            if not more:
                break
            found += more
        if found[TYPE_AT : TYPE_AT + 1] != bytes([SETTINGS]):
            raise ConnectionError("what answers there is not the head of a Ray cluster")


def _hush(ray: Any) -> None:
    """Let Ray's messages about dead processes, screens long, stay in its logs: what matters of them is said by the crew."""
    with suppress(Exception):  # its own affair, and might be called otherwise one day
        ray._private.worker.print_to_stdstream = lambda *_, **__: None


@contextmanager
def _ends_within(seconds: float, told: str) -> Iterator[None]:
    """End this process in a sentence where the block takes longer."""

    def end() -> None:
        say(f"error: {told}: it has taken more than {seconds:.0f} s")
        os._exit(2)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _watched(address: str) -> Iterator[None]:
    """End this process in a sentence when the head of the cluster is gone for good: Ray's own calls would wait for it."""
    ended = threading.Event()

    def watch() -> None:
        answered = time.monotonic()
        while not ended.wait(LOOK_EVERY_S):
            with suppress(OSError):
                _greet(address, min(ANSWERS_WITHIN_S, WITHOUT_HEAD_S))
                answered = time.monotonic()
            if time.monotonic() - answered > WITHOUT_HEAD_S:
                told = f"the head of the Ray cluster at {address} has not answered for {WITHOUT_HEAD_S:.0f} s"
                say(f"error: {told}; when it is up again, {GO_ON}")
                os._exit(2)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
