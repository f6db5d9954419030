"""PyTorch's files of tensors, as torch.save writes them. PyTorch reads them, without running what they say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodels.errors import InputError
from datamodels.machine import free_host_memory
from datamodels.reading.arrays import check_zip
from datamodels.reading.files import open_file

Array = npt.NDArray[Any]

BLOCK_ITEMS = 2**20


def read_pt(file: Path) -> Any:
    """What torch.load makes of a file, which is looked at first: its members are stored, not compressed, and fit into it.

    Raises InputError for any other file.
    """
    import torch

    refusal = f"{file} is not a file of tensors as torch.save writes it"
    with open_file(file) as opened:
        zipped = opened.read(2) == b"PK"
    if not zipped:
        raise InputError(f"{refusal} (from version 1.6 on)")
    check_zip(file)
    try:
        # Mapped: of a file as large as the memory, a part at a time.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as e:  # damaged files raise whatever their bytes lead to
        raise InputError(refusal) from e


def tensor_array(file: Path, name: str, tensor: Any) -> Array:
    """A tensor's numbers in float32: a parameter's too, and those of a sparse tensor.

    Raises InputError for anything else than finite real numbers, and where the tensor has more of them than the file can hold.
    """
    import torch

    sparse = tensor.layout in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)
    if tensor.device.type != "cpu" or tensor.is_quantized or not (sparse or tensor.layout == torch.strided):
        raise InputError(f"{file} has {name} as a kind of tensor that is no plain array")
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise InputError(f"{file} has {name} of {str(tensor.dtype).removeprefix('torch.')}, and real numbers are wanted")
    most = free_host_memory() // 4 if sparse else file.stat().st_size
    if tensor.numel() * tensor.element_size() > most:
        raise InputError(
            f"{file} has {name} of shape {tuple(tensor.shape)}, which is more than {'memory' if sparse else 'it'} can hold"
        )
    try:
        plain = tensor.detach().to_dense().to(torch.float32)
        array: Array = plain.resolve_neg().numpy()
    except (RuntimeError, TypeError, NotImplementedError) as e:
        raise InputError(f"{file} has {name} as a kind of tensor that is no plain array") from e
    step = max(1, BLOCK_ITEMS // max(1, math.prod(array.shape[1:])))
    if not all(np.isfinite(array[first : first + step]).all() for first in range(0, len(array), step)):
        raise InputError(f"{file} has a value in {name} that is not a number, or beyond float32")
    return array
