"""Where models are trained, and how many groups at once."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import TypeVar

import torch

from datamodels.errors import InputError
from datamodels.machine import cores

Item = TypeVar("Item")

HANDED_OUT = os.environ.get("CUDA_VISIBLE_DEVICES")
"""The GPUs that this process was given, before any was chosen of them."""

# More streams hold more activations in memory; a ResNet-9 of the paper's width nearly fills a GPU by itself.
STREAMS = 4
GROUPS_IN_HAND = 2
"""On a GPU: while one group trains, the batches of the next are drawn and the rows of the last are written."""


def device_named(gpu: str | None) -> torch.device:
    """The device for `--gpu`: 'cpu', or the number of a GPU; without it GPU 0 where PyTorch finds one, else the processor.

    Raises InputError when there is no such GPU here.
    """
    if gpu is None:
        gpu = "0" if torch.cuda.is_available() else "cpu"
    if gpu == "cpu":
        return torch.device("cpu")
    number = gpu_number(gpu)
    if not torch.cuda.is_available():
        raise InputError(
            f"PyTorch finds no GPU here, so GPU {gpu} cannot be used; --gpu cpu (of make, GPU=cpu) trains on the processor"
        )
    if number >= torch.cuda.device_count():
        raise InputError(f"there is no GPU {gpu} here: PyTorch finds {torch.cuda.device_count()}")
    # The same bits from the same block, every time. cuBLAS reads the variable when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    # float32 is meant where it is asked for: cuDNN would convolve in TF32, with 10 bits of precision.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # Inductor's advice to do otherwise
    return torch.device("cuda", number)


def gpu_number(gpu: str) -> int:
    """The number that `--gpu` gives. Raises InputError for anything else than a small whole number."""
    if not (gpu.isascii() and gpu.isdigit() and len(gpu) < 4):
        raise InputError(f"--gpu must be cpu or the number of a GPU, not {gpu!r}")
    return int(gpu)


def number_of_gpus() -> int:
    """How many GPUs this process was given; asked for without a context on any of them."""
    if HANDED_OUT is not None:
        return len([name for name in HANDED_OUT.split(",") if name])
    return torch.cuda.device_count()


def on_gpu(device: torch.device) -> bool:
    """Whether a device is a GPU, with streams, graphs and a memory of its own."""
    return device.type == "cuda"


def require_bfloat16(device: torch.device) -> None:
    """Raise InputError where a GPU does not compute in bfloat16 by itself; emulated it would crawl."""
    if on_gpu(device) and torch.cuda.get_device_capability(device) < (8, 0):
        name = describe_device(device)
        raise InputError(f"training.precision is bfloat16, which {name} does not have; set --training.precision float32")


def describe_device(device: torch.device) -> str:
    """The device's name, for figures."""
    return torch.cuda.get_device_name(device) if on_gpu(device) else "cpu"


def groups_at_once(device: torch.device) -> int:
    """How many groups of models train side by side: one for each core of a processor, one on a GPU.

    A group on a core of its own, with no threads inside its operations, beats one group over all cores: the operations of
    small networks are too short to share. It also makes a group's result independent of the number of cores.
    """
    return 1 if on_gpu(device) else cores()


def for_each_group(items: Iterable[Item], work: Callable[[Item], None], device: torch.device) -> None:
    """Call `work` with each item, as many at once as the device takes; the first error ends it and is raised.

    On a GPU these are two, of which `Trainer.at_work` lets one at a time onto the device. On Ctrl-C the items at work are
    finished, the others are left.
    """
    threads_before, workers = torch.get_num_threads(), GROUPS_IN_HAND if on_gpu(device) else groups_at_once(device)
    if not on_gpu(device):
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


def on_its_thread(device: torch.device, work: Callable[[], Item]) -> Item:
    """What `work` gives, done by the one thread that trains on a GPU; on a processor by this one.

    cuDNN remembers the algorithms that were the fastest for each thread by itself. In one thread a block is trained by the same
    ones every time, and has the same bits.
    """
    return _thread_of(device).submit(work).result() if on_gpu(device) else work()


@cache
def _thread_of(device: torch.device) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix=str(device))


def visible(gpu: str) -> str:
    """What CUDA_VISIBLE_DEVICES is for a process that is to see just the GPU of `--gpu`, or none for 'cpu'.

    Where a scheduler has handed out some GPUs, the number counts these. Raises InputError for what is no number, or none of
    these.
    """
    if gpu == "cpu":
        return ""
    number, there = gpu_number(gpu), None if HANDED_OUT is None else [name for name in HANDED_OUT.split(",") if name]
    if there is not None and number >= len(there):
        raise InputError(f"there is no GPU {gpu} here: CUDA_VISIBLE_DEVICES was {HANDED_OUT!r}")
    return str(number) if there is None else there[number]


@contextmanager
def made_current(device: torch.device) -> Iterator[None]:
    """Make a GPU and a stream of this package's own current in this thread, as a capture wants it; on a processor nothing.

    The stream comes after what was given to the device before, and before what is given to it next.
    """
    if not on_gpu(device):
        yield
        return
    with torch.cuda.device(device):
        before, stream = torch.cuda.current_stream(), _working_stream(device)
        stream.wait_stream(before)
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            before.wait_stream(stream)


@cache
def _working_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all groups: PyTorch keeps freed memory for the stream that had it."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@cache
def _side_streams(device: torch.device) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream(device) for _ in range(STREAMS)]  # type: ignore[no-untyped-call]


def fastest_convolutions(device: torch.device) -> AbstractContextManager[None]:
    """Within it cuDNN times its algorithms for each new convolution and remembers the fastest; on a processor nothing.

    The choice stands for as long as the thread lives. In another one it may differ, and so may the last bits of a model.
    """
    if not on_gpu(device):
        return nullcontext()
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=True, deterministic=True, allow_tf32=False
    )
    return flags


def side_streams(device: torch.device, items: int) -> list[torch.cuda.Stream]:
    """Streams for so many items to go side by side: none on a processor, and none for a single item."""
    return _side_streams(device)[: min(items, STREAMS)] if on_gpu(device) and items > 1 else []


def for_each_on_streams(items: Sequence[Item], work: Callable[[Item], None], streams: Sequence[torch.cuda.Stream]) -> None:
    """Call `work` with each item, spread over the CUDA streams, or in turn where there are none.

    On the device all of it comes after what the current stream was given before, and before what it is given next, also when
    it ends in an error: a capture that is left with streams not joined hides that error behind its own.
    """
    if not streams:
        for item in items:
            work(item)
        return
    current = torch.cuda.current_stream()
    for stream in streams:
        stream.wait_stream(current)
    try:
        for item, stream in zip(items, itertools.cycle(streams), strict=False):
            with torch.cuda.stream(stream):
                work(item)
    finally:
        for stream in streams:
            current.wait_stream(stream)


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if on_gpu(device):
        torch.cuda.synchronize(device)
