"""The contract between an architecture and its training, and which architecture a recipe names.

A **network** is one architecture; its methods run K models of it at once, on parameters (K, P), a row a model. What a model has
beside its parameters and changes in training, such as running statistics, is its **state**. Whoever trains, evaluates or takes
gradients knows no more of a network than `Network` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from datamodels.errors import InputError
from datamodels.settings import LINEAR, PLAIN, PROGRAMS, RESNET9, TrainingSettings
from datamodels.training.batches import Images
from datamodels.training.draws import Key
from datamodels.training.linear import Linear
from datamodels.training.module import ModuleNetwork
from datamodels.training.resnet9 import ResNet9


class State(Protocol):
    """What K models have beside their parameters, in tensors that stay where they are."""

    def clone(self) -> Any:
        """A copy with tensors of its own."""
        ...

    def of(self, models: slice, k: int, /) -> Any:
        """Views of the state of some of the K models: what they change is changed here."""
        ...

    def keep(self, source: Any, models: Tensor, /) -> None:
        """Take over from `source` the state of the models where `models`, bool (K,), is True."""
        ...


class Network(Protocol):
    """An architecture for B images (B, C, H, W), or features (B, d), of some classes."""

    @property
    def name(self) -> str:
        """What a person calls it, for messages."""
        ...

    @property
    def classes(self) -> int:
        """How many logits it gives."""
        ...

    @property
    def num_parameters(self) -> int:
        """P, the parameters of one model."""
        ...

    @property
    def num_features(self) -> int:
        """How many numbers the last layer sees of an image."""
        ...

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Parameters of each layer, P_l, as `slopes` gives its gradients; they add up to P."""
        ...

    @property
    def images_at_once(self) -> int:
        """Of so many images at once single gradients can be held."""
        ...

    @property
    def capturable(self) -> bool:
        """Whether a step can be captured as a CUDA graph: nothing of it waits for a number."""
        ...

    def largest_map(self, height: int, width: int, /) -> int:
        """Elements of the largest activation of one model for one image of so many pixels (1 × 1 for features)."""
        ...

    def initial_parameters(self, rng: np.random.Generator, /) -> npt.NDArray[np.float32]:
        """One model's parameters before training, float32 (P,), drawn from `rng` alone."""
        ...

    def initial_state(self, keys: Sequence[Key], device: torch.device, dtype: torch.dtype, /) -> Any:
        """The state of K models before training, `dtype` being that of their parameters."""
        ...

    def forward(self, parameters: Tensor, state: Any, x: Tensor, /, training: bool) -> Tensor:
        """Logits (K, B, classes) of K models, each of its own batch in x, (B, K·C, H, W) or (B, K·d), model by model.

        In the format of the parameters, whatever x's is. `training` moves the state on, in place.
        """
        ...

    def evaluate(self, parameters: Tensor, state: Any, images: Tensor, /) -> Tensor:
        """Logits (K, B, classes) of K trained models, all of the same images (B, C, H, W) or (B, d)."""
        ...

    def features_of(self, parameters: Tensor, state: Any, images: Tensor, /) -> Tensor:
        """What the last layer of K trained models sees of the same images: (K, B, num_features)."""
        ...

    def slopes(
        self, parameters: Tensor, state: Any, images: Tensor, labels: Tensor, /
    ) -> tuple[Tensor, Tensor, Iterator[Tensor]]:
        """Soft margins f (B,) of one trained model, parameters (P,), what its last layer sees, and the gradients of each f.

        Images are (B, C, H, W) or (B, d) with labels (B,). The gradients come layer by layer, (B, P_l) each.
        """
        ...

    def as_module(self) -> nn.Module:
        """One model as PyTorch's own module, with initial parameters of its own: for the loop that trains one at a time."""
        ...


def network_of(recipe: TrainingSettings, images: Images, classes: int) -> Network:
    """The network that `training.network` names, for such images. Raises InputError where it does not take them."""
    name = recipe.network
    if name == RESNET9:
        if images.of_features:
            raise InputError(f"training.network {name} takes images, and the data are features, {images.channels} each")
        return ResNet9(images.channels, classes, recipe.width, recipe.last_padding)
    if name == LINEAR:
        if not images.of_features and (recipe.max_shift or recipe.flip or recipe.cutout):
            as_is = "set training.max_shift 0, training.flip false and training.cutout 0"
            raise InputError(f"training.network {name} takes images as they are: {as_is}")
        return Linear(images.pixels.numel() // images.n, classes)
    if images.train.dtype == torch.bfloat16:
        raise InputError(f"training.precision bfloat16 is not for {name}; set --training.precision float32")
    return ModuleNetwork(name, images.train, classes)


def shares_batches(recipe: TrainingSettings) -> bool:
    """Whether the models of a group share their batches: see `shared`."""
    return recipe.network == LINEAR


def programs_for(recipe: TrainingSettings) -> tuple[str, ...]:
    """The programs, of `settings.PROGRAMS`, by which a recipe's network can be trained."""
    return PROGRAMS if recipe.network == RESNET9 else (PLAIN,)


def require_program(recipe: TrainingSettings, program: str) -> None:
    """Raise InputError where the recipe's network has no such program."""
    if program not in programs_for(recipe):
        raise InputError(f"groups.program {program} is of {RESNET9} alone; {recipe.network} is trained by the {PLAIN} one")
