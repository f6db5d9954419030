"""Out of memory, in all its guises, and how to be rid of what a failed try holds."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from datamodels.errors import of_memory
from datamodels.machine import free_host_memory
from datamodels.training.devices import on_gpu

Result = TypeVar("Result")
OF_ITS_PART = 0.95
"""Of its part of a GPU a process takes so much; the rest is for what CUDA needs itself."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, or hides one that does.

    A capture that is cut short by it ends in an error of its own, of which it is the context.
    """
    return any(of_memory(e) for e in _chain(error))


def unless_out_of_memory(work: Callable[[], Result], device: torch.device) -> Result | None:
    """What `work` gives, or None where memory ran out: whatever it held is then gone, and given back to the device.

    An error keeps the variables of every function that it passed through, activations and their graph among them.
    """
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        for e in list(_chain(error)):
            traceback.clear_frames(e.__traceback__)
            e.__traceback__ = e.__context__ = e.__cause__ = None
    give_back(device)
    return None


def give_back(device: torch.device) -> None:
    """Return to the device what PyTorch keeps of it and does not use, for others to take."""
    gc.collect()
    if on_gpu(device):
        torch.cuda.empty_cache()


def free_memory(device: torch.device) -> int:
    """Bytes that could be allocated now: on the GPU, or in the machine without swapping."""
    if on_gpu(device):
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return free_host_memory()


def keep_to_part(device: torch.device, share: float) -> None:
    """Let memory run out for this process where it has its share of a GPU that it has with others, whatever they hold."""
    if on_gpu(device) and share < 1:
        torch.cuda.set_per_process_memory_fraction(share * OF_ITS_PART, device)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it came from."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        e = waiting.pop()
        if e is not None and id(e) not in seen:
            seen.add(id(e))
            yield e
            waiting += [e.__cause__, e.__context__]
