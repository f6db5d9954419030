"""K softmax regressions side by side: one matrix product computes all of them.

The network is linear with a bias, on features (n, d) or on the pixels of images, row by row and channel by channel. A row of
the parameter matrix (K, P) is the weights (classes, d) of one model, then its bias (classes,). How all models of a group come
to share one product in training too is told in `shared`.

Models start at 0, as one would start a convex problem: what is random about them is which order of S they take.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodels.training.draws import Key
from datamodels.training.margins import soft_margin


class Stateless:
    """The state of models that have none beside their parameters."""

    def clone(self) -> Stateless:
        """Itself."""
        return self

    def of(self, models: slice, k: int) -> Stateless:
        """That of some of the K models."""
        del models, k
        return self

    def keep(self, source: Stateless, models: Tensor) -> None:
        """There is nothing to take over."""


@dataclass(frozen=True)
class Linear:
    """The architecture of one model; its methods run K of them at once. `inputs` is d, of features or of flattened images."""

    inputs: int
    classes: int

    @property
    def name(self) -> str:
        """See `Network`."""
        return f"softmax regression of {self.inputs} inputs"

    @property
    def num_parameters(self) -> int:
        """P, the parameters of one model."""
        return self.classes * (self.inputs + 1)

    @property
    def num_features(self) -> int:
        """What the only layer sees: the inputs themselves."""
        return self.inputs

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Weights, and biases."""
        return (self.classes * self.inputs, self.classes)

    @property
    def images_at_once(self) -> int:
        """Gradients of single images come at once for as many as are wanted."""
        return sys.maxsize

    @property
    def capturable(self) -> bool:
        """Nothing waits for a number."""
        return True

    def largest_map(self, height: int, width: int) -> int:
        """Elements of the largest activation of one model for one image: its inputs, where it has a batch of its own."""
        del height, width
        return max(self.inputs, self.classes)

    def initial_parameters(self, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """Zeros, float32 (P,)."""
        del rng
        return np.zeros(self.num_parameters, np.float32)

    def initial_state(self, keys: Sequence[Key], device: torch.device, dtype: torch.dtype) -> Stateless:
        """There is none."""
        del keys, device, dtype
        return Stateless()

    def forward(self, parameters: Tensor, state: Stateless, x: Tensor, training: bool) -> Tensor:
        """Logits (K, B, classes) of K models, each of its own batch in x, (B, K·C, H, W) or (B, K·d), model by model."""
        del state, training
        k, b = len(parameters), len(x)
        own = x.reshape(b, k, -1) if x.ndim == 2 else _of_each(x, k)
        weights, bias = self.split(parameters)
        return torch.baddbmm(bias[:, None], own.transpose(0, 1).to(parameters.dtype), weights.mT)

    def evaluate(self, parameters: Tensor, state: Stateless, images: Tensor) -> Tensor:
        """Logits (K, B, classes) of K trained models, all of the same images (B, C, H, W) or features (B, d)."""
        del state
        weights, bias = self.split(parameters)
        logits = torch.addmm(bias.flatten(), flat(images).to(parameters.dtype), weights.flatten(0, 1).T)
        return logits.view(len(images), *bias.shape).transpose(0, 1)

    def features_of(self, parameters: Tensor, state: Stateless, images: Tensor) -> Tensor:
        """The inputs, (K, B, d): the same for all models, and so there once."""
        del state
        return flat(images).expand(len(parameters), -1, -1)

    def slopes(
        self, parameters: Tensor, state: Stateless, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Iterator[Tensor]]:
        """Soft margins f (B,), inputs (B, d), gradients: by the weights r ⊗ x, by the bias r, with r = ∂f/∂z (B, classes)."""
        x = flat(images).to(parameters.dtype)
        logits = self.evaluate(parameters[None], state, images)[0]
        right = F.one_hot(labels, self.classes).bool()
        r = right.to(logits.dtype) - torch.softmax(logits.masked_fill(right, -torch.inf), 1)
        return soft_margin(logits, labels), x, iter([(r[:, :, None] * x[:, None]).flatten(1), r])

    def as_module(self) -> nn.Module:
        """One model of PyTorch's own modules."""
        return nn.Sequential(nn.Flatten(), nn.Linear(self.inputs, self.classes))

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters (K, P) as weights (K, classes, d) and biases (K, classes)."""
        weights, bias = torch.split(parameters, list(self.layer_sizes), dim=1)
        return weights.reshape(-1, self.classes, self.inputs), bias


def flat(images: Tensor) -> Tensor:
    """Features (B, d) as they are; images (B, C, H, W) by row, column and channel, as they lie in memory."""
    return images if images.ndim == 2 else images.permute(0, 2, 3, 1).flatten(1)


def _of_each(x: Tensor, k: int) -> Tensor:
    """Images (B, K·C, H, W) of K models as (B, K, H·W·C)."""
    b, channels, height, width = x.shape
    by_model = x.reshape(b, k, channels // k, height, width)
    return by_model.permute(0, 1, 3, 4, 2).flatten(2)
