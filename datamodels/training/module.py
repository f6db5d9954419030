"""K models of a torch.nn.Module of one's own, side by side: its forward pass under torch.vmap, parameters and buffers stacked.

A module is a function of its parameters, its buffers and a batch (torch.func.functional_call), and vmap makes of it one of K of
each: convolutions become grouped ones, products batched ones, as in `resnet9`. What a forward pass changes in training must be
a buffer, such as the running statistics of batch normalisation; each model has its own. Parameters that want no gradient stay
as they were initialised. Dropout and noise are the model's own too, see `randomness`.

Where vmap cannot take a module, as where what it does depends on numbers (`if x.max() > 1:`), its models go one after another
through the same functions, and the group is only a loop. What of its randomness is not known to `randomness` is then drawn from
PyTorch's generator, set to a seed for each model and step, and so is what it draws from Python's or NumPy's, which vmap would
draw once for all models. Which it is, is tried at the start, and said in a line. A module that gives something else when it is
called again, as with a generator of its own, is refused: its models would not be functions of their keys.
"""

from __future__ import annotations

import copy
import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from datamodels.errors import InputError, one_line, shown
from datamodels.progress import say
from datamodels.training.channels import SideBySide
from datamodels.training.draws import INITIALISATION, RANDOMNESS, Key, generator
from datamodels.training.made import PYTORCH, SETTING, Maker, generators, said_of, seeded
from datamodels.training.margins import soft_margin
from datamodels.training.randomness import Keyed

PROTOTYPE = 0
"""The seed of the modules whose code is run; of what they were initialised to nothing is used."""
TRIED_IMAGES, TRIED_MODELS = 3, 2
SAME = 1e-3
"""Of the largest logit: within it are those of one module that is called again. A GPU's rounding is far below."""
MOST_SLOPES = 2**26
"""Numbers of single images' gradients that are held at once, 256 MB of float32."""

Named = dict[str, Tensor]


@dataclass
class ModuleState:
    """What K models have beside their parameters: buffers and parameters that want no gradient (K, …), by name.

    `seed` and `step`, int64 (K,), decide what is random in a forward pass; `step` counts those in training.
    """

    tensors: Named
    seed: Tensor
    step: Tensor

    def clone(self) -> ModuleState:
        """A copy with tensors of its own."""
        return self._of(torch.clone)

    def of(self, models: slice, _k: int) -> ModuleState:
        """Views of the state of some of the K models."""
        return self._of(lambda t: t[models])

    def keep(self, source: ModuleState, models: Tensor) -> None:
        """Take over from `source` the state of the models where `models`, bool (K,), is True."""
        for mine, theirs in zip(self._all(), source._all(), strict=True):
            mine.copy_(torch.where(models.view(-1, *(1 for _ in mine.shape[1:])), theirs, mine))

    def _of(self, view: Callable[[Tensor], Tensor]) -> ModuleState:
        return ModuleState({name: view(t) for name, t in self.tensors.items()}, view(self.seed), view(self.step))

    def _all(self) -> list[Tensor]:
        return [*self.tensors.values(), self.seed, self.step]


class Passed(NamedTuple):
    """What a forward pass gave: logits (B, classes), what the last layer saw (B, d), and the buffers that it put others for."""

    logits: Tensor
    features: Tensor
    changed: Named


class Tried(NamedTuple):
    """What came of a trial: logits of the last step and of an evaluation, and what the last layer saw in that one; the elements
    of the largest activation of an image.
    """

    of_step: Tensor
    logits: Tensor
    features: Tensor
    largest: int

    def is_as(self, other: Tried) -> bool:
        """Whether both gave the same."""
        pairs = ((self.of_step, other.of_step), (self.logits, other.logits))
        size = max(float(t.detach().nan_to_num().abs().max()) for t in (self.of_step, self.logits))
        return all(torch.allclose(*pair, rtol=SAME, atol=SAME * size, equal_nan=True) for pair in pairs)


class _Instance:
    """One module whose code is run, by one thread at a time; its own parameters are never used."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module, self.seen = name, module, list[Tensor]()
        for part in module.modules():
            if isinstance(part, nn.Linear):
                part.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.seen[:] = args[:1] or list(kwargs.values())[:1]

    def run(self, tensors: Named, x: Tensor, randomness: Any) -> Passed:
        """The forward pass of a batch (B, …). What the last layer sees are the logits where there is no nn.Linear."""
        values = dict(tensors)
        self.seen.clear()
        with randomness:
            logits = functional_call(self.module, values, (x,))
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            given = f"a tensor of {logits.dtype}" if isinstance(logits, Tensor) else shown(type(logits).__name__, 80)
            raise InputError(f"{SETTING} {self.name} gives {given} of images, not a tensor of logits")
        seen, batch = [*self.seen], len(x)
        self.seen.clear()
        features = seen[0] if seen and seen[0].ndim > 1 and len(seen[0]) == batch else logits
        return Passed(
            logits, features.flatten(1), {name: values[name] for name in tensors if values[name] is not tensors[name]}
        )


class ModuleNetwork:
    """A module of one's own as a network; see `networks.Network`. `examples` (B, …) are a few training images on the device.

    Raises InputError where the name names no module, or it cannot be trained on such images.
    """

    def __init__(self, name: str, examples: Tensor, classes: int) -> None:
        examples = examples[:TRIED_IMAGES].contiguous()
        self.name, self.classes, self.maker = name, classes, Maker(name, examples, classes)
        self.dtype = torch.promote_types(examples.dtype, torch.float32)
        module = self.maker(PROTOTYPE)
        self.shapes = {each: tuple(p.shape) for each, p in module.named_parameters() if p.requires_grad}
        self.num_parameters = sum(math.prod(shape) for shape in self.shapes.values())
        self.layer_sizes = tuple(math.prod(shape) for shape in self.shapes.values())
        self.images_at_once = max(1, MOST_SLOPES // self.num_parameters)
        self.has_state = bool(_others(module))
        self.shares = not _tensors(module).isdisjoint(_tensors(self.maker(PROTOTYPE)))
        self._lock, self._free = threading.Lock(), list[_Instance]()
        self.together = self.slopes_together = self.channels_last = False
        self.drawn_from: tuple[str, ...] = ()
        self.num_features, self._largest = self._try_alone(examples)
        self._try_at_once(examples)

    @property
    def capturable(self) -> bool:
        """Whether a step can be a CUDA graph: of a module that goes one at a time it is not known what it waits for."""
        return self.together

    def largest_map(self, _height: int, _width: int) -> int:
        """As it was when tried."""
        return self._largest

    def initial_parameters(self, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """As the module initialises itself, from a seed that is drawn from `rng`."""
        found = dict(self._made(_seed(rng)).named_parameters())
        with torch.no_grad():
            return torch.cat([found[name].flatten() for name in self.shapes]).numpy()

    def initial_state(self, keys: Sequence[Key], device: torch.device, dtype: torch.dtype) -> ModuleState:
        """Buffers, and parameters that want no gradient, as the modules of the same seeds as the parameters have them."""
        of_each = [_others(self._made(_seed(generator(key, INITIALISATION)))) for key in keys] if self.has_state else [Named()]

        def stacked(name: str) -> Tensor:
            rows = torch.stack([each[name] for each in of_each]).to(device)
            return rows.to(dtype) if rows.dtype == torch.float32 else rows

        # Of its own memory, contiguous: they are changed in place.
        tensors = {name: stacked(name).clone(memory_format=torch.contiguous_format) for name in of_each[0]}
        seeds = np.array([_seed(generator(key, RANDOMNESS)) for key in keys])
        return ModuleState(
            tensors, torch.from_numpy(seeds).to(device), torch.zeros(len(keys), dtype=torch.int64, device=device)
        )

    def forward(self, parameters: Tensor, state: ModuleState, x: Tensor, training: bool) -> Tensor:
        """Logits (K, B, classes) of K models, each of its own batch in x, (B, K·C, H, W) or (B, K·d)."""
        return self._passed(parameters, state, x.view(len(x), len(parameters), -1, *x.shape[2:]), training, 1)[0]

    def evaluate(self, parameters: Tensor, state: ModuleState, images: Tensor) -> Tensor:
        """Logits (K, B, classes) of K trained models, all of the same images (B, …)."""
        return self._passed(parameters, state, images, False, None)[0]

    def features_of(self, parameters: Tensor, state: ModuleState, images: Tensor) -> Tensor:
        """What the last nn.Linear that is called sees, (K, B, d); the logits where there is none."""
        return self._passed(parameters, state, images, False, None)[1]

    def slopes(
        self, parameters: Tensor, state: ModuleState, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Iterator[Tensor]]:
        """Soft margins f (B,), what the last layer sees, (B, d), and the gradients (B, P_l) of each f by each parameter."""
        with said_of(self.name), self._instance(False) as instance:
            gradients, f, features = self._slopes(instance, parameters, state, images, labels)
        return f, features, (gradients[name].flatten(1) for name in self.shapes)

    def as_module(self) -> nn.Module:
        """One model as it is written."""
        return self._made(PROTOTYPE)

    def _made(self, seed: int) -> nn.Module:
        """A module of a seed. Raises InputError where its parameters are of other shapes than those of other seeds."""
        module = self.maker(seed)
        if {name: tuple(p.shape) for name, p in module.named_parameters() if p.requires_grad} != self.shapes:
            raise InputError(f"{SETTING} {self.name} makes modules of different parameters, and K models have the same")
        return module

    def _apart(self) -> nn.Module:
        """A module that shares no tensors with others that are made: other ones are put in their place while it runs."""
        module = self.maker(PROTOTYPE)
        if not self.shares:
            return module
        with said_of(self.name):
            return copy.deepcopy(module)

    def _by_name(self, parameters: Tensor) -> Named:
        """Parameters (K, P) as views (K, …) of their shapes."""
        rows = zip(self.shapes.items(), torch.split(parameters, list(self.layer_sizes), dim=1), strict=True)
        return {name: row.reshape(len(parameters), *shape) for (name, shape), row in rows}

    @contextmanager
    def _instance(self, training: bool) -> Iterator[_Instance]:
        """A module for this thread, which sets parameters in it. One in which something failed is used no more."""
        with self._lock:
            instance = self._free.pop() if self._free else None
        instance = instance or _Instance(self.name, self._apart())
        instance.module.train(training)
        yield instance
        with self._lock:
            self._free.append(instance)

    def _passed(
        self, parameters: Tensor, state: ModuleState, x: Tensor, training: bool, dim: int | None
    ) -> tuple[Tensor, Tensor]:
        """Logits (K, B, classes) and features (K, B, d); `dim` is that of the models in x, None where x is for all."""
        tensors = {**self._by_name(parameters), **state.tensors}
        # A single network that is evaluated goes by itself: dattri takes it apart by vmap, and that is enough of it.
        way = self._one_by_one if not self.together or (len(parameters) == 1 and not training) else self._at_once
        # All models' images are not to be changed by one that works on its input in place.
        x = x.to(self.dtype, copy=dim is None)
        with said_of(self.name), self._instance(training) as instance:
            passed = way(instance, tensors, state, x, dim)
        if training:
            with torch.no_grad():
                for name, values in passed.changed.items():
                    state.tensors[name].copy_(values)
                state.step.add_(1)
        return passed.logits.to(parameters.dtype), passed.features.to(parameters.dtype)

    def _at_once(self, instance: _Instance, tensors: Named, state: ModuleState, x: Tensor, dim: int | None) -> Passed:
        def one(tensors: Named, x: Tensor, seed: Tensor, step: Tensor) -> Passed:
            return instance.run(tensors, x, SideBySide(seed, step))

        if not self.channels_last:
            x = x.contiguous()
        elif dim is None:
            x = x.contiguous(memory_format=torch.channels_last)  # which the batches of training are
        passed: Passed = vmap(one, (0, dim, 0, 0), randomness="error")(tensors, x, state.seed, state.step)
        return passed

    def _one_by_one(self, instance: _Instance, tensors: Named, state: ModuleState, x: Tensor, dim: int | None) -> Passed:
        found = []
        for k in range(len(state.seed)):
            own = {name: t[k] for name, t in tensors.items()}
            keyed = Keyed(state.seed[k], state.step[k])
            with self._generator(keyed):
                mine = x if dim is None else x.select(dim, k)
                found.append(instance.run(own, mine.clone(memory_format=torch.contiguous_format), keyed))
        changed = {name: torch.stack([each.changed[name] for each in found]) for name in found[0].changed}
        return Passed(torch.stack([each.logits for each in found]), torch.stack([each.features for each in found]), changed)

    def _generator(self, keyed: Keyed) -> Any:
        """The generators that all share as the model's seed and step have them, where something draws from one of them."""
        return seeded(int(keyed.key) % 2**63, keyed.key.device) if self.drawn_from else nullcontext()

    def _slopes(
        self, instance: _Instance, parameters: Tensor, state: ModuleState, images: Tensor, labels: Tensor
    ) -> tuple[Named, Tensor, Tensor]:
        """Gradients (B, …) by name, f (B,) and features (B, d) of one model."""
        keyed, others = (
            functools.partial(Keyed, state.seed[0], state.step[0]),
            {name: t[0] for name, t in state.tensors.items()},
        )
        own = {name: row[0] for name, row in self._by_name(parameters[None]).items()}

        def f_of(own: Named, image: Tensor, label: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            passed = instance.run({**own, **others}, image[None], keyed())
            f = soft_margin(passed.logits, label[None])[0]
            return f, (f.detach(), passed.features[0].detach())

        x = images.to(self.dtype, copy=True)
        if self.slopes_together:
            gradients, (f, features) = vmap(grad(f_of, has_aux=True), (None, 0, 0), randomness="error")(own, x, labels)
            return gradients, f, features
        found = []
        for image, label in zip(x, labels, strict=True):
            wanted = {name: row.detach().requires_grad_() for name, row in own.items()}
            with torch.enable_grad(), self._generator(keyed()):
                f, parts = f_of(wanted, image, label)
                by_each = torch.autograd.grad(f, list(wanted.values()), allow_unused=True, materialize_grads=True)
            found.append((dict(zip(wanted, by_each, strict=True)), *parts))
        gradients = {name: torch.stack([each[0][name] for each in found]) for name in own}
        return gradients, torch.stack([each[1] for each in found]), torch.stack([each[2] for each in found])

    def _try_alone(self, examples: Tensor) -> tuple[int, int]:
        """The module tried one at a time: how many features it has, and the elements of its largest activation of an image.

        Raises InputError where it fails, its logits are not as they must be, or others when it is called again.
        """
        with seeded(PROTOTYPE, examples.device):
            before = generators(examples.device)
            tried = self._trial(examples, 1)
            self.drawn_from = tuple(name for name, state in generators(examples.device).items() if state != before[name])
            again = [self._trial(examples, 1) for _ in range(2)]
        logits = tried.logits
        if logits.shape[1:] != (len(examples), self.classes):
            given, wanted = tuple(logits.shape[1:]), (len(examples), self.classes)
            raise InputError(f"{SETTING} {self.name} gives logits of shape {given} for {len(examples)} images, not {wanted}")
        if not again[0].is_as(again[1]):
            raise InputError(
                f"{SETTING} {self.name} gives other logits of the same images when it is called again: what it remembers must "
                "be a buffer, and what it draws from a generator of PyTorch's, NumPy's or Python's that is not its own"
            )
        return tried.features.shape[2], tried.largest

    def _try_at_once(self, examples: Tensor) -> None:
        """Choose how models go: at once where two of them can, and single images' gradients likewise; say where not.

        With channels last, as the batches are, where a module takes that: some have views that need them first.
        """
        beyond = [name for name in self.drawn_from if name != PYTORCH]
        if beyond:
            _say_once(self.name, f"it draws from {' and '.join(beyond)}, of which all would get one number")
            return
        reason = ""
        for self.channels_last in (True, False) if examples.ndim == 4 else (False,):
            self.together = True
            try:
                self._trial(examples, TRIED_MODELS)
                break
            except InputError as e:
                self.together, self._free, reason = False, [], _reason(e)  # what failed may have left something in the module
        if not self.together:
            _say_once(self.name, reason)
            return
        self.slopes_together = True
        parameters, state = self._models(1, examples.device)
        try:
            self.slopes(parameters[0], state, examples, torch.zeros(len(examples), dtype=torch.int64, device=examples.device))
        except InputError:
            self.slopes_together, self._free = False, []

    def _trial(self, examples: Tensor, k: int) -> Tried:
        """Two steps of K models without an update, and an evaluation."""
        parameters, state = self._models(k, examples.device)
        batch = torch.cat([examples] * k, 1)
        if batch.ndim == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        with said_of(self.name):
            for _ in range(2):
                with torch.enable_grad():
                    row = parameters.detach().requires_grad_()
                    of_step = self.forward(row, state, batch.clone(), training=True)
                    self._refuse_no_logits(of_step)
                    torch.autograd.grad(of_step.sum(), row)
            with torch.no_grad(), _Largest(len(examples)) as largest:
                logits, features = self._passed(parameters, state, examples, False, None)
        return Tried(of_step, logits, features, max(1, largest.numbers // (k * len(examples))))

    def _models(self, k: int, device: torch.device) -> tuple[Tensor, ModuleState]:
        """Parameters (K, P) and state of some models."""
        keys = [(PROTOTYPE, each) for each in range(k)]
        rows = np.stack([self.initial_parameters(generator(key, INITIALISATION)) for key in keys])
        return torch.from_numpy(rows).to(device, self.dtype), self.initial_state(keys, device, self.dtype)

    def _refuse_no_logits(self, logits: Tensor) -> None:
        if not logits.requires_grad:
            raise InputError(f"{SETTING} {self.name} gives logits that do not depend on its parameters, by a gradient")


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes how many elements the largest tensor has that is one of a batch of so many images."""

    def __init__(self, images: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.images, self.numbers = images, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.ndim and t.shape[0] % self.images == 0]
        self.numbers = max([self.numbers, *(t.numel() for t in made)])
        return out


def _others(module: nn.Module) -> Named:
    """Buffers and parameters that want no gradient, by name."""
    return {**{n: p.detach() for n, p in module.named_parameters() if not p.requires_grad}, **dict(module.named_buffers())}


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**63, dtype=np.uint64))


def _tensors(module: nn.Module) -> set[int]:
    """Which parameters and buffers a module has."""
    return {id(tensor) for tensor in (*module.parameters(), *module.buffers())}


def _reason(e: BaseException) -> str:
    """What an error came from: the first sentence of it."""
    while e.__cause__ is not None:
        e = e.__cause__
    return one_line(e).split(". ")[0]


@functools.cache
def _say_once(name: str, reason: str) -> None:
    say(f"{SETTING} {name}: torch.vmap does not take it ({reason}); its models are trained one after another")
