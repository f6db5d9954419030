"""K ResNet-9s side by side: one set of grouped convolutions computes all of them.

Channels of model k are channels k·C … (k+1)·C-1 of every activation, and every convolution has K groups, so no number of one
model ever meets a number of another. Batch normalisation works per channel and therefore per model by itself.

All parameters of all models live in one matrix (K, P), row k being model k: the optimiser is a few operations on that matrix,
and a model is moved, saved or compared as a row.

The network (Ilyas et al., Datamodels: Predicting Predictions from Training Data, 2022, after the FFCV example): conv width;
conv 2·width, 5×5, stride 2; residual 2·width; conv 4·width, max-pool; residual 4·width; conv 2·width; global max-pool; linear
without bias; ×0.2. Each conv is followed by batch normalisation and ReLU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

LOGIT_SCALE = 0.2
BATCH_NORM_EPS = 1e-5
BATCH_NORM_MOMENTUM = 0.1


class Conv(NamedTuple):
    """One convolution of the network: channels in and out, kernel size, stride and padding in pixels."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    padding: int


class Seen(NamedTuple):
    """One convolution of a forward pass: what came in, what it gave, and what that was after normalisation and ReLU."""

    input: Tensor
    convolved: Tensor
    output: Tensor


@dataclass(frozen=True)
class ResNet9:
    """The architecture of one model; its methods run K of them at once.

    `channels` and `classes` describe the data, `width` is the number of channels after the first convolution. `last_padding`
    0 is the published network; 1 keeps the last map's size, for images so small that nothing would be left of it.
    """

    channels: int
    classes: int
    width: int
    last_padding: int

    @property
    def convs(self) -> dict[str, Conv]:
        """The convolutions by name, in the order of the forward pass."""
        w = self.width
        return {
            "conv1": Conv(self.channels, w, 3, 1, 1),
            "conv2": Conv(w, 2 * w, 5, 2, 2),
            "residual1a": Conv(2 * w, 2 * w, 3, 1, 1),
            "residual1b": Conv(2 * w, 2 * w, 3, 1, 1),
            "conv3": Conv(2 * w, 4 * w, 3, 1, 1),
            "residual2a": Conv(4 * w, 4 * w, 3, 1, 1),
            "residual2b": Conv(4 * w, 4 * w, 3, 1, 1),
            "conv4": Conv(4 * w, 2 * w, 3, 1, self.last_padding),
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter of one model, in their order within a row of the parameter matrix."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, conv in self.convs.items():
            shapes[f"{name}.weight"] = (conv.out_channels, conv.in_channels, conv.kernel, conv.kernel)
            shapes[f"{name}.gain"] = (conv.out_channels,)
            shapes[f"{name}.shift"] = (conv.out_channels,)
        return {**shapes, "linear.weight": (2 * self.width, self.classes)}

    @property
    def num_parameters(self) -> int:
        """P, the parameters of one model."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def largest_map(self, height: int, width: int) -> int:
        """Elements of the largest activation of one image of so many pixels, before a convolution or after it."""
        largest = 0
        for name, conv in self.convs.items():
            largest = max(largest, conv.in_channels * height * width)
            height, width = ((side + 2 * conv.padding - conv.kernel) // conv.stride + 1 for side in (height, width))
            largest = max(largest, conv.out_channels * height * width)
            if name == "conv3":
                height, width = height // 2, width // 2
        return largest

    def initial_parameters(self, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """One model's parameters before training, float32 (P,): PyTorch's own defaults, drawn from `rng`.

        Weights are uniform within ±1/√fan_in; batch normalisation starts as the identity.
        """
        parts = []
        for name, shape in self.shapes.items():
            if name.endswith(".weight"):
                fan_in = shape[0] if name == "linear.weight" else math.prod(shape[1:])
                parts.append(rng.uniform(-1, 1, math.prod(shape)) / math.sqrt(fan_in))
            else:
                parts.append(np.full(shape, 1.0 if name.endswith(".gain") else 0.0))
        return np.concatenate(parts).astype(np.float32)

    def initial_statistics(self, k: int, device: torch.device, dtype: torch.dtype) -> BatchNormStatistics:
        """Running statistics of K fresh models: mean 0, variance 1."""
        sizes = {name: k * conv.out_channels for name, conv in self.convs.items()}
        return BatchNormStatistics(
            {name: torch.zeros(size, device=device, dtype=dtype) for name, size in sizes.items()},
            {name: torch.ones(size, device=device, dtype=dtype) for name, size in sizes.items()},
        )

    def forward(self, parameters: Tensor, statistics: BatchNormStatistics, x: Tensor, training: bool) -> Tensor:
        """Logits (K, B, classes) of K models; arguments as for `features`."""
        return self.logits(parameters, self.features(parameters, statistics, x, training))

    def logits(self, parameters: Tensor, features: Tensor) -> Tensor:
        """Logits (K, B, classes) of what the last layer sees, (K, B, 2·width)."""
        return torch.bmm(features, self.by_name(parameters)["linear.weight"]) * LOGIT_SCALE

    def features(
        self,
        parameters: Tensor,
        statistics: BatchNormStatistics,
        x: Tensor,
        training: bool,
        seen: dict[str, Seen] | None = None,
    ) -> Tensor:
        """What the last, linear layer of K models sees: (K, B, 2·width).

        `parameters` is (K, P); `x` is (B, K·C, H, W), model by model, best in channels_last, of C = `channels` or more: those
        beyond them have no weights. `training` normalises by the batch and updates `statistics`, otherwise `statistics`
        normalise. `seen` is given what each convolution did.

        Convolutions and activations are computed in x's number format (bfloat16, say), batch statistics and logits in that of
        the parameters, which stay float32.
        """
        k = len(parameters)
        p, cast = self.by_name(parameters), self.by_name(parameters.to(x.dtype))

        def conv(name: str, x: Tensor) -> Tensor:
            spec = self.convs[name]
            weight, beyond = cast[f"{name}.weight"].flatten(0, 1), x.shape[1] // k - spec.in_channels
            weight = F.pad(weight, (0, 0, 0, 0, 0, beyond)) if beyond else weight
            convolved = F.conv2d(x, weight, None, spec.stride, spec.padding, 1, k)
            mean, variance = statistics.mean[name], statistics.variance[name]
            gain, shift = p[f"{name}.gain"].flatten(), p[f"{name}.shift"].flatten()
            normalised = F.batch_norm(convolved, mean, variance, gain, shift, training, BATCH_NORM_MOMENTUM, BATCH_NORM_EPS)
            output = F.relu_(normalised)
            if seen is not None:
                seen[name] = Seen(x, convolved, output)
            return output

        x = conv("conv2", conv("conv1", x))
        x = x + conv("residual1b", conv("residual1a", x))
        x = F.max_pool2d(conv("conv3", x), 2)
        x = x + conv("residual2b", conv("residual2a", x))
        x = conv("conv4", x).amax((2, 3))
        return x.view(len(x), k, -1).transpose(0, 1).to(parameters.dtype)

    def by_name(self, parameters: Tensor) -> dict[str, Tensor]:
        """Parameters (K, P) as views (K, …) of their shapes."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        rows = zip(self.shapes.items(), torch.split(parameters, sizes, dim=1), strict=True)
        return {name: row.reshape(len(parameters), *shape) for (name, shape), row in rows}


@dataclass
class BatchNormStatistics:
    """Running mean and variance of each convolution's output, by its name: (K·C,) each, model by model."""

    mean: dict[str, Tensor]
    variance: dict[str, Tensor]

    def clone(self) -> BatchNormStatistics:
        """A copy with tensors of its own."""
        return BatchNormStatistics(*({name: t.clone() for name, t in part.items()} for part in (self.mean, self.variance)))

    def of(self, models: slice, k: int) -> BatchNormStatistics:
        """Views of the statistics of some of the K models."""

        def view(part: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: t.view(k, -1)[models].flatten() for name, t in part.items()}

        return BatchNormStatistics(view(self.mean), view(self.variance))

    def keep(self, source: BatchNormStatistics, models: Tensor) -> None:
        """Take over from `source` the statistics of the models where `models`, bool (K,), is True."""
        for mine, theirs in ((self.mean, source.mean), (self.variance, source.variance)):
            for name in mine:
                chosen = models.repeat_interleave(len(mine[name]) // len(models))
                torch.where(chosen, theirs[name], mine[name], out=mine[name])
