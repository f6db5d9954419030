"""Functions of single channels, for K models at once: their channels side by side, as one model of K·C of them.

vmap has rules of its own for these, which copy every activation, and multiply by gains in another pass. What they compute is
the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodels.training.randomness import Keyed


class SideBySide(Keyed):
    """`Keyed` under a vmap of K models, with functions of single channels run on the channels of all of them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in BY_CHANNEL and args and args[0].ndim >= BY_CHANNEL[func] and not kwargs.get("return_indices"):
            return _by_channel(func, *args, **kwargs)
        return super().__torch_function__(func, types, args, kwargs)


def _by_channel(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    if func is not F.batch_norm:
        return _ByChannel.apply(lambda x: func(x, *args, **kwargs), x)  # type: ignore[no-untyped-call]
    names = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = {**dict.fromkeys(names[:4]), **dict(zip(names, args, strict=False)), **kwargs}
    of_channels = [given.pop(name) for name in names[:4]]
    return _ByChannel.apply(lambda x, *own: F.batch_norm(x, *own, **given), x, *of_channels)  # type: ignore[no-untyped-call]


class _ByChannel(torch.autograd.Function):
    """`f` of x (B, C, …) and of tensors (C,), or None, for each channel. Its gradient is that of what `vmap` calls."""

    @staticmethod
    def forward(f: Callable[..., Tensor], x: Tensor, *of_channels: Tensor | None) -> Tensor:
        """Of images that are the same for all models, before any parameter: there is no gradient."""
        return f(x, *of_channels)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, f: Callable[..., Tensor], x: Tensor, *of_channels: Tensor | None) -> tuple[Tensor, int]:
        """Channels (B, K·C, …) and (K·C,), model by model; running statistics are views, for they are written to."""
        k = info.batch_size
        x = x.unsqueeze(1).expand(-1, k, *x.shape[1:]) if in_dims[1] is None else x.movedim(in_dims[1], 1)

        def flat(own: Tensor | None, dim: int | None) -> Tensor | None:
            if own is None:
                return None
            return own.repeat(k) if dim is None else own.movedim(dim, 0).flatten()

        out = f(x.flatten(1, 2), *map(flat, of_channels, in_dims[2:]))
        return out.view(len(out), k, -1, *out.shape[2:]), 1


POOLS = (F.max_pool2d, torch.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d)
BY_CHANNEL = {F.batch_norm: 2, **dict.fromkeys(POOLS, 4)}
"""Functions of single channels, and how many dimensions a batch of theirs has at least."""
