"""Train K models at once on one device, each on its own subset, and measure their margins.

Model k of a group gets its own mask, initialisation, batch order and augmentation, all from its own key; the others of the
group change nothing but the rounding. See `networks` for what shares one program, `draws` for what is random, `group` for the
training itself.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodels.data import Dataset
from datamodels.errors import InputError
from datamodels.progress import say
from datamodels.settings import COMPILED, COMPILED_PADDED, PADDED, PLAIN, TrainingSettings
from datamodels.subsets import BoolArray, IndexArray
from datamodels.training.batches import Images
from datamodels.training.devices import made_current, on_gpu, on_its_thread, require_bfloat16
from datamodels.training.draws import Key, draw, draw_shared, num_steps, rows_for, second_key
from datamodels.training.group import Group, Loss, augmentation_of, loss_of
from datamodels.training.margins import margin
from datamodels.training.memory import out_of_memory, unless_out_of_memory
from datamodels.training.networks import Network, State, network_of, require_program, shares_batches
from datamodels.training.shared import SharedGroup

FloatArray = npt.NDArray[np.float32]
Outputs = dict[str, FloatArray]
Result = TypeVar("Result")

EVALUATION_BATCH = 500
# The largest margin that a float16 store can hold; a trained network's are below a hundred.
LARGEST_MARGIN = float(np.finfo(np.float16).max)
PADDED_CHANNELS = 8
"""Tensor cores take channels by eights."""
MOST_ELEMENTS = 2**31 - 1
"""Of one tensor: kernels count them in 32 bits."""


class Trainer:
    """The data of one run, resident on one device, and the recipe that all models on it are trained by.

    `per_kernel` models of a group share each kernel, such as a grouped convolution, all of them when it is None. `program` is
    one of `settings.PROGRAMS`. `dtype` float64 is for tests of what must not change; otherwise parameters are float32 and
    activations of the recipe's `precision`. Raises InputError where the device does not have that, or the network is not for
    such data.
    """

    def __init__(
        self,
        data: Dataset,
        recipe: TrainingSettings,
        device: torch.device,
        per_kernel: int | None = None,
        dtype: torch.dtype = torch.float32,
        program: str = PLAIN,
    ) -> None:
        self.recipe, self.device, self.per_kernel = recipe, device, per_kernel
        self.at_once: int | None = None
        activations = torch.bfloat16 if recipe.precision == "bfloat16" and dtype == torch.float32 else dtype
        if activations == torch.bfloat16:
            require_bfloat16(device)
        channels = PADDED_CHANNELS if program in (PADDED, COMPILED_PADDED) else 0
        require_program(recipe, program)
        self.images = Images(data, recipe.max_shift, device, activations, max(channels, data.train.images.shape[-1]))
        self.augmentation = augmentation_of(recipe, self.images)
        side = min(self.images.height, self.images.width)
        if self.augmentation.cutout > side:
            raise InputError(f"training.cutout is {recipe.cutout}, and images of {side} pixels have no room for such a square")
        self.n, self.classes = self.images.n, len(data.class_names)
        self.network = network_of(recipe, self.images, self.classes)
        self.shares_batches = shares_batches(recipe)
        self.loss: Loss = CompiledWhereItWorks() if program in (COMPILED, COMPILED_PADDED) else loss_of
        self.turn = threading.Lock() if on_gpu(device) else nullcontext()

    def margins(self, masks: BoolArray, keys: Sequence[Key]) -> FloatArray:
        """Margins on all targets, float32 (K, T), of K models trained on `masks`, bool (K, N), with `keys`; see `outputs`."""
        return self.outputs(masks, keys)["margins"]

    def outputs(self, masks: BoolArray, keys: Sequence[Key], labels: IndexArray | None = None) -> Outputs:
        """What K models trained on `masks`, bool (K, N), with `keys` say: margins (K, T) and logits (K, T, classes), float32.

        `labels` (K, N) are what each of them is told of S, where that differs from the images' own labels.

        A model with a margin or a logit that is not finite, or beyond float16 (65,504; a network that has learnt anything has
        none above a hundred), has diverged, whatever the store could hold: it is trained once more, with a key that
        follows from its own, and when that diverges too its row is NaN. Out of memory on a GPU, half as many models are trained
        at once from then on. Raises InputError when even one does not fit.
        """
        outputs = self._outputs(masks, keys, labels)
        again = np.flatnonzero(_diverged(outputs)).tolist()
        if again:
            other = [second_key(keys[k]) for k in again]
            second = self._outputs(masks[again], other, None if labels is None else labels[again])
            second["margins"][_diverged(second)] = np.nan
            for name, rows in second.items():
                outputs[name][again] = rows
        return outputs

    def train(self, masks: BoolArray, keys: Sequence[Key], labels: IndexArray | None = None) -> tuple[Tensor, State]:
        """Parameters (K, P) and state of K trained models; their subsets may differ in size."""
        return self.group(masks, keys, labels).train()

    def group(self, masks: BoolArray, keys: Sequence[Key], labels: IndexArray | None = None) -> Group:
        """K models before their first step."""
        return self.group_of(self.draws(masks, keys), keys, labels)

    def draws(self, masks: BoolArray, keys: Sequence[Key]) -> list[Any]:
        """What is random about K models: reckoned on the host, while another group may be on the device."""
        recipe, augmentation = self.recipe, self.augmentation
        if self.shares_batches:
            return [draw_shared(key, mask, recipe.batch_size, recipe.epochs) for key, mask in zip(keys, masks, strict=True)]
        size = (self.images.height, self.images.width)
        pairs = zip(keys, masks, strict=True)
        return [draw(key, mask, recipe.batch_size, recipe.epochs, augmentation, *size) for key, mask in pairs]

    def num_steps(self, images: int) -> int:
        """Steps of a training on so many images of S."""
        return steps_of(self.recipe, self.n, images)

    def group_of(self, draws: Sequence[Any], keys: Sequence[Key], labels: IndexArray | None = None) -> Group:
        """As `group`, of what was drawn before."""
        shared = min(self.per_kernel or len(keys), self.most_per_kernel)
        if self.shares_batches:
            return SharedGroup(self.network, self.recipe, self.images, draws, keys, shared, labels)  # type: ignore[arg-type]
        return Group(self.network, self.recipe, self.images, draws, keys, shared, labels, self.loss)

    @property
    def most_per_kernel(self) -> int:
        """How many models can share a kernel before a tensor has more elements than kernels can count."""
        images = max(self.recipe.batch_size, EVALUATION_BATCH)
        largest = images * self.network.largest_map(self.images.height, self.images.width)
        return max(1, MOST_ELEMENTS // largest)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The device, current and for this thread alone; on a processor threads work side by side."""
        with self.turn, made_current(self.device):
            yield

    def features_of(self, masks: BoolArray, keys: Sequence[Key]) -> Outputs:
        """Of K models trained on `masks`: `features_train` (K, N, d), `features_test` (K, T, d), logits (K, T, classes)."""

        def of_part(part: slice) -> Outputs:
            trained = self.train(masks[part], keys[part])
            sides = {"features_train": self.images.train, "features_test": self.images.test}
            found = {name: self.features(*trained, images) for name, images in sides.items()}
            found["logits"] = self.test_logits(*trained)
            return {name: values.float().cpu().numpy() for name, values in found.items()}

        parts = self.in_parts(of_part, len(keys))
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def in_parts(self, work: Callable[[slice], Result], models: int) -> list[Result]:
        """What `work` gives for K models, in as few parts as the device has had memory for so far.

        Out of memory, half as many models are worked on at once from then on. Raises InputError when even one does not fit.
        """
        found, done = list[Result](), 0
        while done < models:
            part = slice(done, min(done + (self.at_once or models), models))
            result = on_its_thread(self.device, functools.partial(self._attempt, work, part))
            if result is None:
                self._halve(part.stop - part.start)
            else:
                found.append(result)
                done = part.stop
        return found

    @torch.no_grad()
    def features(self, parameters: Tensor, state: State, images: Tensor) -> Tensor:
        """Features (K, B, d) of images (B, …), of length 1 each; in memory once where they are the same for all models."""
        found = [self.network.features_of(parameters, state, part) for part in torch.split(images, EVALUATION_BATCH)]
        own = [F.normalize((part if part.stride(0) else part[:1]).float(), dim=2) for part in found]
        return torch.cat(own, 1).expand(len(parameters), -1, -1)

    @torch.no_grad()
    def test_logits(self, parameters: Tensor, state: State) -> Tensor:
        """Logits (K, T, classes) on all targets, averaged over an image and its mirror image where the recipe flips."""
        k, size = len(parameters), min(self.per_kernel or len(parameters), self.most_per_kernel)
        parts = [slice(first, min(first + size, k)) for first in range(0, k, size)]
        return torch.cat([self._part_logits(parameters[part], state.of(part, k)) for part in parts])

    def test_margins(self, parameters: Tensor, state: State) -> Tensor:
        """Margins (K, T) on all targets: the logit of the right class less the largest other one."""
        return margin(self.test_logits(parameters, state), self.images.test_labels)

    def no_room(self) -> InputError:
        """The error to raise where not even one model fits."""
        return InputError(f"{self.device} has too little memory for one {self.network.name}")

    def _part_logits(self, parameters: Tensor, state: State) -> Tensor:
        logits = []
        for images in torch.split(self.images.test, EVALUATION_BATCH):
            views = [images, images.flip(3)] if self.augmentation.flip else [images]
            of_views = [self.network.evaluate(parameters, state, v) for v in views]
            logits.append(torch.stack(of_views).mean(0))
        return torch.cat(logits, 1)

    def _attempt(self, work: Callable[[slice], Result], part: slice) -> Result | None:
        with self.at_work():
            return unless_out_of_memory(functools.partial(work, part), self.device)

    def _outputs(self, masks: BoolArray, keys: Sequence[Key], labels: IndexArray | None) -> Outputs:
        """As `outputs`, of one training each."""
        draws = self.draws(masks, keys)

        def of_part(part: slice) -> Outputs:
            group = self.group_of(draws[part], keys[part], None if labels is None else labels[part])
            logits = self.test_logits(*group.train())
            margins = margin(logits, self.images.test_labels)
            return {"margins": margins.float().cpu().numpy(), "logits": logits.float().cpu().numpy()}

        parts = self.in_parts(of_part, len(keys))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _halve(self, at_once: int) -> None:
        """Go on with half as many models. The failed group is gone by now, and what it held is given back."""
        if at_once == 1:
            raise self.no_room()
        self.at_once = at_once // 2
        say(f"out of memory on {self.device} with {at_once} models at once: going on with {self.at_once}")


class CompiledWhereItWorks:
    """`compiled_loss`, or where nothing can be compiled, for lack of a compiler, say, `loss_of`: models then round otherwise.

    A store that was made on another machine may ask for it.
    """

    def __init__(self) -> None:
        self.loss: Loss = compiled_loss()
        self.worked = False

    def __call__(
        self, network: Network, parameters: Tensor, state: State, x: Tensor, labels: Tensor, smoothing: float
    ) -> Tensor:
        """See `loss_of`."""
        try:
            found = self.loss(network, parameters, state, x, labels, smoothing)
        except Exception as e:
            if self.worked or self.loss is loss_of or out_of_memory(e):
                raise
            say(f"a compiled step does not work here ({first_line(e)}); going on with the plain one")
            self.loss = loss_of
            found = self.loss(network, parameters, state, x, labels, smoothing)
        self.worked = True
        return found


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its name."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


@functools.cache
def compiled_loss() -> Loss:
    """`loss_of` by Inductor, which makes one pass of batch normalisation, ReLU and addition. Compiled at its first call."""
    return torch.compile(loss_of, fullgraph=True, dynamic=False)


def _diverged(outputs: Outputs) -> BoolArray:
    """Which models, bool (K,), have a margin or a logit that is NaN, infinite or too large to be one."""
    fine = [(np.abs(rows) <= LARGEST_MARGIN).reshape(len(rows), -1).all(1) for rows in outputs.values()]
    return np.asarray(~np.stack(fine).all(0))


def steps_of(recipe: TrainingSettings, n: int, images: int) -> int:
    """Steps of a training on so many of n images."""
    if shares_batches(recipe):
        return num_steps(n, rows_for(images, n, recipe.batch_size), recipe.epochs)
    return num_steps(images, recipe.batch_size, recipe.epochs)
