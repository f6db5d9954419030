"""Where models are trained, and how many groups at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from datamodels.errors import InputError
from datamodels.machine import cores

Item = TypeVar("Item")


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
    return torch.device("cuda", int(gpu))


def default_gpu() -> str:
    """GPU 0 where PyTorch finds one, the processor otherwise."""
    return "0" if torch.cuda.is_available() else "cpu"


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
