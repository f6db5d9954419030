"""Modules of one's own, made: `training.network: module:Class`, a torch.nn.Module's class, or a function that gives one.

It is called with those of these that its signature names:

    classes, num_classes      how many logits it is to give
    channels, in_channels     C of images (C, H, W); d of features
    shape                     (C, H, W), or (d,) of features
    size                      H of images as high as wide, else (H, W); d of features

What it initialises at random follows from a seed, the model's: the generators of PyTorch, NumPy and Python are set to it.
"""

from __future__ import annotations

import inspect
import pickle
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from datamodels.errors import InputError, shown
from datamodels.own_code import named_in, said

SETTING = "training.network"
PYTORCH = "PyTorch's random"
_TURN = threading.RLock()
"""One thread at a time sets the generators that all share."""


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Let what is random in the block follow from a seed, of 63 bits: on the processor, and on a GPU where that is the device.

    One thread at a time; all generators are afterwards as they were.
    """
    of_torch = _of_torch(device)
    with _TURN:
        before = [generator.get_state() for generator in of_torch], random.getstate(), np.random.get_state()  # noqa: NPY002
        for generator in of_torch:
            generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            for generator, state in zip(of_torch, before[0], strict=True):
                generator.set_state(state)
            random.setstate(before[1])
            np.random.set_state(before[2])  # noqa: NPY002


def generators(device: torch.device) -> dict[str, bytes]:
    """The states of the generators that all share, by whose they are; PyTorch's on the processor and on the device."""
    return {
        PYTORCH: b"".join(bytes(generator.get_state().tolist()) for generator in _of_torch(device)),
        "Python's random": pickle.dumps(random.getstate()),
        "NumPy's random": pickle.dumps(np.random.get_state()),  # noqa: NPY002
    }


def _of_torch(device: torch.device | None) -> list[torch.Generator]:
    found = [torch.default_generator]
    if device is not None and device.type == "cuda":
        found.append(torch.cuda.default_generators[device.index or 0])
    return found


def said_of(name: str) -> AbstractContextManager[None]:
    """Make an InputError of whatever one's own module raises, with its words."""
    return said(f"{SETTING} {name}")


def own_network(name: str) -> Any:
    """The class or function that module:Class names. Raises InputError where there is none, or importing it fails."""
    with said_of(name):
        make = named_in(SETTING, name, "my_module:Net")
    if isinstance(make, nn.Module):
        raise InputError(f"{SETTING} {name} is a module already; name its class, or a function that makes one")
    if not callable(make):
        raise InputError(f"{SETTING} {name} is neither a class nor a function")
    return make


class Maker:
    """Makes modules of `name`, module:Class, for images of a shape (C, H, W), or features (d,), of some classes.

    `example` (B, …) is what lazy modules are shown. Raises InputError where the name names nothing that could make modules.
    """

    def __init__(self, name: str, example: Tensor, classes: int) -> None:
        self.name, self.example = name, example
        self.make = own_network(name)
        self.arguments = self._arguments(_known(tuple(example.shape[1:]), classes))

    def __call__(self, seed: int) -> nn.Module:
        """The module of a seed. Raises InputError where none comes of it that could be trained."""
        with seeded(seed), said_of(self.name):
            module = self.make(**self.arguments)
            if not isinstance(module, nn.Module):
                raise InputError(f"{SETTING} {self.name} gives no torch.nn.Module but {shown(type(module).__name__, 80)}")
            if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
                with torch.no_grad():
                    module.eval()(self.example.to("cpu", torch.float32, copy=True))
        self._refuse_unfit(module)
        return module

    def _refuse_unfit(self, module: nn.Module) -> None:
        """Raise InputError where a module has no parameter to be trained, or one that is not float32."""
        if not any(p.requires_grad for p in module.parameters()):
            raise InputError(f"{SETTING} {self.name} has no parameters that could be trained")
        for name, p in module.named_parameters():
            if is_lazy(p):
                raise InputError(f"{SETTING} {self.name}: the parameter {shown(name, 80)} has no shape after a forward pass")
            if p.dtype != torch.float32 and (p.requires_grad or p.is_floating_point()):
                raise InputError(f"{SETTING} {self.name}: the parameter {shown(name, 80)} is {p.dtype}, not torch.float32")

    def _arguments(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """Those of what is known that the signature names. Raises InputError for another that has no default."""
        try:
            parameters = inspect.signature(self.make).parameters.values()
        except (TypeError, ValueError):
            return {}
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        for p in parameters:
            if p.default is p.empty and p.kind not in optional and (p.kind not in kinds or p.name not in known):
                given = ", ".join(known)
                raise InputError(f"{SETTING} {self.name} asks for {shown(p.name, 80)}, and there are {given} to be given")
        return {p.name: known[p.name] for p in parameters if p.kind in kinds and p.name in known}


def _known(shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    """What can be given, by its names."""
    sides = shape[1:] or shape
    size = sides[0] if len(set(sides)) == 1 else sides
    return {
        **dict.fromkeys(("classes", "num_classes"), classes),
        **dict.fromkeys(("channels", "in_channels"), shape[0]),
        "shape": shape,
        "size": size,
    }
