"""Where models are trained, and how many groups at once."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

from datamodels.errors import InputError
from datamodels.machine import cores, free_host_memory

Item = TypeVar("Item")

# More streams hold more activations in memory; a ResNet-9 of the paper's width nearly fills a GPU by itself.
STREAMS = 4


def device_named(gpu: str) -> torch.device:
    """The device for `--gpu`: 'cpu', or the number of a GPU.

    Raises InputError when there is no such GPU here.
    """
    if gpu == "cpu":
        return torch.device("cpu")
    if not gpu.isdigit():
        raise InputError(f"--gpu must be cpu or the number of a GPU, not {gpu!r}")
    if not torch.cuda.is_available():
        raise InputError(f"PyTorch finds no GPU here, so GPU {gpu} cannot be used; GPU=cpu trains on the processor")
    if int(gpu) >= torch.cuda.device_count():
        raise InputError(f"there is no GPU {gpu} here: PyTorch finds {torch.cuda.device_count()}")
    # The same bits from the same block, every time. cuBLAS reads the variable when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda", int(gpu))


def default_gpu() -> str:
    """GPU 0 where PyTorch finds one, the processor otherwise."""
    return "0" if torch.cuda.is_available() else "cpu"


def describe_device(device: torch.device) -> str:
    """The device's name, for figures."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def groups_at_once(device: torch.device) -> int:
    """How many groups of models run side by side: one for each core of a processor, one on a GPU.

    A group on a core of its own, with no threads inside its operations, beats one group over all cores: the operations of
    small networks are too short to share. It also makes a group's result independent of the number of cores.
    """
    return cores() if device.type == "cpu" else 1


def for_each_group(items: Iterable[Item], work: Callable[[Item], None], device: torch.device) -> None:
    """Call `work` with each item, as many at once as the device takes; the first error ends it and is raised.

    On Ctrl-C the items at work are finished, the others are left.
    """
    threads_before, workers = torch.get_num_threads(), groups_at_once(device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(work, item) for item in items]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
            for future in futures:
                if not future.cancelled():
                    future.result()
    finally:
        torch.set_num_threads(threads_before)


@contextmanager
def made_current(device: torch.device) -> Iterator[None]:
    """Make a GPU and a stream of its own current in this thread, as the capture of a CUDA graph wants it; else nothing."""
    if device.type == "cpu":
        yield
        return
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            yield


def side_streams(device: torch.device, items: int) -> list[torch.cuda.Stream]:
    """Streams for so many items to go side by side: none on a processor, and none for a single item."""
    if device.type == "cpu" or items == 1:
        return []
    return [torch.cuda.Stream(device) for _ in range(min(items, STREAMS))]  # type: ignore[no-untyped-call]


def for_each_on_streams(items: Sequence[Item], work: Callable[[Item], None], streams: Sequence[torch.cuda.Stream]) -> None:
    """Call `work` with each item, spread over the CUDA streams, or in turn where there are none.

    On the device all of it comes after what the current stream was given before, and before what it is given next.
    """
    if not streams:
        for item in items:
            work(item)
        return
    current = torch.cuda.current_stream()
    for stream in streams:
        stream.wait_stream(current)
    for item, stream in zip(items, itertools.cycle(streams), strict=False):
        with torch.cuda.stream(stream):
            work(item)
    for stream in streams:
        current.wait_stream(stream)


def free_memory(device: torch.device) -> int:
    """Bytes that could be allocated now: on the GPU, or in the machine without swapping."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return free_host_memory()


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
