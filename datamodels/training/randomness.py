"""Randomness within a network's forward pass, by the model's key: dropout and noise that know no group, device or thread.

What a model draws from one of PyTorch's generators depends on who drew from it before. Here a number follows from where it
stands: it is a hash (SplitMix64: Steele, Lea & Flood 2014) of the model's seed, the number of the step, the number of the call
within the forward pass, and the number of the element. All of these are tensors or constants, so that the same program runs for
K models at once under `torch.vmap`, and within a CUDA graph.

`Keyed` puts these in the place of PyTorch's own while a forward pass runs. What it does not know, such as torch.multinomial,
goes through to PyTorch, which under vmap refuses it.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
"""SplitMix64's constants, as int64 has them; its products wrap around."""
BITS = {torch.float64: 53}
FEWER_BITS = 24
ALPHA = 1.7580993408473766
"""λα of SELU: what alpha dropout puts in the place of a number is −ALPHA."""


class Keyed(TorchFunctionMode):
    """While it is active in this thread, random functions give what `seed` and `step`, int64 tensors (), say."""

    def __init__(self, seed: Tensor, step: Tensor) -> None:
        super().__init__()
        self.seed, self.step, self.calls = seed, step, 0

    @functools.cached_property
    def key(self) -> Tensor:
        """int64 (), of this model at this step."""
        return mixed(self.seed + mixed(self.step * GOLDEN))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in COMPOSITE:
            with self:
                return _without_check(func)(*args, **kwargs)
        found = RANDOM[func](self, *args, **kwargs) if func in RANDOM and not _given(kwargs) else NotImplemented
        return func(*args, **kwargs) if found is NotImplemented else found

    def bits(self, shape: Sequence[int]) -> Tensor:
        """Random int64 of a shape, other ones at each call."""
        self.calls += 1
        count = torch.arange(1, math.prod(shape) + 1, device=self.key.device)
        return mixed(mixed(self.key + self.calls) + count * GOLDEN).reshape(tuple(shape))

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers from 0 to 1, of which 1 is none: multiples of 2⁻⁵³ in float64, of 2⁻²⁴ in all other formats."""
        bits = BITS.get(dtype, FEWER_BITS)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return (shifted(self.bits(shape), 64 - bits).to(wide) * 2.0**-bits).to(dtype)

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers (Box & Muller 1958)."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        length, angle = 1 - self.uniform(shape, wide), self.uniform(shape, wide)
        return (torch.sqrt(-2 * torch.log(length)) * torch.cos(2 * math.pi * angle)).to(dtype)

    def kept(self, shape: Sequence[int], p: float) -> Tensor:
        """Booleans of a shape, False with chance p."""
        return self.uniform(shape) >= p


def mixed(x: Tensor) -> Tensor:
    """SplitMix64's finaliser of int64."""
    x = (x ^ shifted(x, 30)) * FIRST
    x = (x ^ shifted(x, 27)) * SECOND
    return x ^ shifted(x, 31)


def shifted(x: Tensor, by: int) -> Tensor:
    """int64 shifted to the right, with zeros from the left."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _given(kwargs: dict[str, Any]) -> bool:
    """Whether a call is not for us: it names a generator, or a tensor to write to."""
    return any(kwargs.get(name) is not None for name in ("generator", "out"))


@functools.cache
def _without_check(func: Any) -> Callable[..., Any]:
    """A function of torch.nn.functional that does not ask again whether a mode is active, while those that it calls do."""
    checks = {name: _no for name in func.__globals__ if name.startswith("has_torch_function")}
    same = types.FunctionType(func.__code__, {**func.__globals__, **checks}, func.__name__, func.__defaults__, func.__closure__)
    same.__kwdefaults__ = func.__kwdefaults__
    return same


def _no(*_: Any) -> bool:
    return False


def _dropout(keyed: Keyed, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:  # noqa: A002
    return _dropped(keyed, input, p, training, inplace, input.shape)


def _channels(first: int, batched: int | None) -> Callable[..., Any]:
    """Dropout of whole channels: of the first so many dimensions; of one less where images come without a batch."""

    def dropout(keyed: Keyed, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:  # noqa: A002
        dims = first if batched is None or input.ndim == batched else first - 1
        return _dropped(keyed, input, p, training, inplace, _leading(input, dims))

    return dropout


def _leading(x: Tensor, dims: int) -> tuple[int, ...]:
    return (*x.shape[:dims], *(1 for _ in x.shape[dims:]))


def _dropped(keyed: Keyed, x: Tensor, p: float, training: bool, inplace: bool, shape: Sequence[int]) -> Any:
    if not training or not 0 < p <= 1:
        return NotImplemented  # nothing is random about it, or it is an error
    scale = 0.0 if p == 1 else 1 / (1 - p)
    factor = keyed.kept(shape, p).to(x.dtype) * scale
    return x.mul_(factor) if inplace else x * factor


def _alpha(dims: int | None) -> Callable[..., Any]:
    """Alpha dropout (Klambauer, Unterthiner, Mayr & Hochreiter 2017), of elements or of channels; keeps mean and variance."""

    def dropout(keyed: Keyed, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Any:  # noqa: A002
        if not training or not 0 < p < 1:
            return NotImplemented
        kept = keyed.kept(input.shape if dims is None else _leading(input, dims), p).to(input.dtype)
        a = ((1 - p) * (1 + p * ALPHA**2)) ** -0.5
        found = (input * kept - ALPHA * (1 - kept)) * a + a * p * ALPHA
        return input.copy_(found) if inplace else found

    return dropout


def _factory(draw: Callable[..., Tensor]) -> Callable[..., Any]:
    """torch.rand and torch.randn."""

    def made(keyed: Keyed, *size: Any, dtype: torch.dtype | None = None, requires_grad: bool = False, **how: Any) -> Any:
        shape = how.pop("size", size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
        if requires_grad or how.get("names") is not None:
            return NotImplemented
        return draw(keyed, shape, dtype or torch.get_default_dtype())

    return made


def _like(draw: Callable[..., Tensor]) -> Callable[..., Any]:
    """torch.rand_like and torch.randn_like."""

    def made(keyed: Keyed, input: Tensor, *, dtype: torch.dtype | None = None, requires_grad: bool = False, **_: Any) -> Any:  # noqa: A002
        return NotImplemented if requires_grad else draw(keyed, input.shape, dtype or input.dtype)

    return made


def _bernoulli(keyed: Keyed, input: Tensor, p: float | None = None, **_: Any) -> Tensor:  # noqa: A002
    chance = input if p is None else p
    wide = input.dtype if input.dtype.is_floating_point else torch.float32
    return (keyed.uniform(input.shape, wide) < chance).to(input.dtype)


def _bernoulli_(keyed: Keyed, input: Tensor, p: Any = 0.5, **_: Any) -> Tensor:  # noqa: A002
    return input.copy_(keyed.uniform(input.shape) < p)


def _uniform_(keyed: Keyed, input: Tensor, from_: float = 0.0, to: float = 1.0, **how: Any) -> Tensor:  # noqa: A002
    low = how.get("from", from_)
    return input.copy_(keyed.uniform(input.shape, input.dtype) * (to - low) + low)


def _normal_(keyed: Keyed, input: Tensor, mean: float = 0.0, std: float = 1.0, **_: Any) -> Tensor:  # noqa: A002
    return input.copy_(keyed.normal(input.shape, input.dtype) * std + mean)


def _exponential_(keyed: Keyed, input: Tensor, lambd: float = 1.0, **_: Any) -> Tensor:  # noqa: A002
    return input.copy_(-torch.log(1 - keyed.uniform(input.shape, input.dtype)) / lambd)


def _normal(keyed: Keyed, mean: Any = 0.0, std: Any = 1.0, size: Any = None, **how: Any) -> Any:
    like = next((each for each in (mean, std) if isinstance(each, Tensor)), None)
    if like is None:
        return (
            NotImplemented if size is None else keyed.normal(size, how.get("dtype") or torch.get_default_dtype()) * std + mean
        )
    both = torch.broadcast_tensors(*(each for each in (mean, std) if isinstance(each, Tensor)))  # type: ignore[no-untyped-call]
    return keyed.normal(both[0].shape, like.dtype) * std + mean


def _randint(keyed: Keyed, *args: Any, dtype: torch.dtype | None = None, **how: Any) -> Any:
    names = ("high", "size") if len(args) + len({"low", "high", "size"} & set(how)) == 2 else ("low", "high", "size")
    given = {**dict(zip(names, args, strict=False)), **how}
    low, high = given.get("low", 0), given["high"]
    return _below(keyed, given["size"], high - low).add(low).to(dtype or torch.int64)


def _randint_like(keyed: Keyed, input: Tensor, *args: Any, dtype: torch.dtype | None = None, **how: Any) -> Any:  # noqa: A002
    given = {**dict(zip(("low", "high") if len(args) == 2 else ("high",), args, strict=False)), **how}
    low, high = given.get("low", 0), given["high"]
    return _below(keyed, input.shape, high - low).add(low).to(dtype or input.dtype)


def _below(keyed: Keyed, shape: Sequence[int], bound: int) -> Tensor:
    return shifted(keyed.bits(shape), 2) % bound


def _randperm(keyed: Keyed, n: int, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return torch.argsort(keyed.bits((n,))).to(dtype or torch.int64)


def _attention(
    keyed: Keyed,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention as its documentation has it; PyTorch's kernels draw within themselves, and have no rule for vmap."""
    if enable_gqa:
        return NotImplemented
    weights = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).tril()
    if attn_mask is not None:
        bool_mask = attn_mask.dtype == torch.bool
        weights = weights.masked_fill(~attn_mask, -torch.inf) if bool_mask else weights + attn_mask
    weights = torch.softmax(weights, -1)
    dropped = _dropped(keyed, weights, dropout_p, training=True, inplace=False, shape=weights.shape)
    return (weights if dropped is NotImplemented else dropped) @ value


COMPOSITE = {F.multi_head_attention_forward, F.gumbel_softmax}
"""Functions of torch.nn.functional that call random ones of it."""
RANDOM: dict[Any, Callable[..., Any]] = {
    F.dropout: _dropout,
    F.dropout1d: _channels(2, 3),
    F.dropout2d: _channels(2, None),
    F.dropout3d: _channels(2, 5),
    F.alpha_dropout: _alpha(None),
    F.feature_alpha_dropout: _alpha(2),
    torch.dropout: _dropout,
    F.scaled_dot_product_attention: _attention,
    torch.rand: _factory(Keyed.uniform),
    torch.randn: _factory(Keyed.normal),
    torch.rand_like: _like(Keyed.uniform),
    torch.randn_like: _like(Keyed.normal),
    torch.randint: _randint,
    torch.randint_like: _randint_like,
    torch.randperm: _randperm,
    torch.bernoulli: _bernoulli,
    torch.normal: _normal,
    Tensor.bernoulli: _bernoulli,
    Tensor.bernoulli_: _bernoulli_,
    Tensor.uniform_: _uniform_,
    Tensor.normal_: _normal_,
    Tensor.exponential_: _exponential_,
}
