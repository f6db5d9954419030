"""A pretended GPU on the processor: streams, captures and graphs that keep CUDA's rules, for the code that only a GPU takes.

`pretend(monkeypatch)` makes the training code take 'cpu' for a GPU. A stream that a capture forks to must be joined before it
ends. A capture records the operations and leaves every tensor as it was; a replay runs them again on the tensors at the same
places, so that a number which the host put into a step stays what it was at the capture, as on a GPU. A capture refuses what
waits for a number.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from datamodels.bench import train as bench_train
from datamodels.training import devices, group, memory, models, shared, tuning

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default")
MODULES = (devices, group, memory, models, shared, tuning, bench_train)


class Stream:
    """A CUDA stream: whether it takes part in a capture, and whether that capture has waited for it."""

    def __init__(self) -> None:
        self.capturing, self.joined = False, True

    def wait_stream(self, other: Stream) -> None:
        if other.capturing and not self.capturing:
            self.capturing, self.joined = True, False
        elif other.capturing:
            other.joined = True


class Graph:
    """A CUDA graph."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        gpu.replays += 1
        with torch.no_grad():
            for func, args, kwargs, out in self.calls:
                for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, torch.Tensor) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                        old.copy_(new)


class Recorder(TorchDispatchMode):
    """Runs each operation and notes it; what it writes to is noted as it was before."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph, self.before = graph, dict[int, tuple[Any, Any]]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in WAITING) or not gpu.current[-1].capturing:
            raise RuntimeError(f"CUDA error: {func} is not permitted when stream is capturing")
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        out = func(*args, **(kwargs or {}))
        self.graph.calls.append((func, args, kwargs or {}, out))
        return out

    def restore(self) -> None:
        for storage, content in self.before.values():
            storage.copy_(content)


class Gpu:
    """What the pretended GPU has been given: streams, replays, and how often its cache was emptied."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.current = [Stream()]
        self.replays = self.emptied = 0
        self.free = 80 * 10**9

    def stream(self, _device: Any = None) -> Stream:
        self.streams.append(Stream())
        return self.streams[-1]

    @contextlib.contextmanager
    def made_current(self, stream: Stream):
        self.current.append(stream)
        try:
            yield
        finally:
            self.current.pop()

    @contextlib.contextmanager
    def capture(self, graph: Graph, stream: Stream):
        recorder, stream.capturing = Recorder(graph), True
        try:
            with recorder:
                yield
        finally:
            recorder.restore()
            unjoined = [other for other in self.streams if not other.joined]
            for other in (stream, *self.streams):
                other.capturing, other.joined = False, True
            if unjoined:
                raise RuntimeError("CUDA error: capturing stream has unjoined work")

    def empty_cache(self) -> None:
        self.emptied += 1


gpu = Gpu()


def pretend(monkeypatch: Any) -> Gpu:
    """Make the training code take the processor for a GPU until the test ends."""
    gpu.__init__()  # type: ignore[misc]
    for module in MODULES:
        monkeypatch.setattr(module, "on_gpu", lambda device: True)
    stands = {
        "Stream": gpu.stream,
        "stream": gpu.made_current,
        "current_stream": lambda device=None: gpu.current[-1],
        "CUDAGraph": Graph,
        "graph": gpu.capture,
        "device": lambda device: contextlib.nullcontext(),
        "synchronize": lambda device=None: None,
        "empty_cache": gpu.empty_cache,
        "mem_get_info": lambda device=None: (gpu.free, 80 * 10**9),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: "pretended GPU",
    }
    for name, stand in stands.items():
        monkeypatch.setattr(torch.cuda, name, stand)
    for cached in (devices._working_stream, devices._side_streams, devices._thread_of):
        cached.cache_clear()
    return gpu
