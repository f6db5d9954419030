"""K ResNet-9s side by side: one set of grouped convolutions computes all of them.

Channels of model k are channels k·C … (k+1)·C-1 of every activation, and every convolution has K groups, so no number of one
model ever meets a number of another. Batch normalisation works per channel and therefore per model by itself.

All parameters of all models live in one matrix (K, P), row k being model k: the optimiser is a few operations on that matrix,
and a model is moved, saved or compared as a row.

The network (Ilyas et al., Datamodels: Predicting Predictions from Training Data, 2022, after the FFCV example): conv width;
conv 2·width, 5×5, stride 2; residual 2·width; conv 4·width, max-pool; residual 4·width; conv 2·width; global max-pool; linear
without bias; ×0.2. Each conv is followed by batch normalisation and ReLU.

Gradients of single images come from one forward and one backward pass of a batch. A trained network's images know nothing of
each other, so that the gradient of Σ_b f_b by a convolution's output is, image by image, that of its own f: δ_b. The gradient
by the weights is then Σ δ_b ⊗ a_b over the positions, a_b being the patches of the layer's input (Goodfellow 2015).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodels.training.draws import Key
from datamodels.training.margins import soft_margin

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
    def name(self) -> str:
        """For messages."""
        return f"ResNet-9 of width {self.width}"

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

    @property
    def num_features(self) -> int:
        """What the last layer sees of an image: 2·width numbers."""
        return 2 * self.width

    @property
    def images_at_once(self) -> int:
        """Gradients of single images come layer by layer: as many as are wanted."""
        return sys.maxsize

    @property
    def capturable(self) -> bool:
        """Nothing waits for a number."""
        return True

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Parameters of each layer in the order of a row: a convolution with its gains and shifts; last the linear layer."""
        of_convs = (c.out_channels * (c.in_channels * c.kernel**2 + 2) for c in self.convs.values())
        return (*of_convs, self.num_features * self.classes)

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

    def initial_state(self, keys: Sequence[Key], device: torch.device, dtype: torch.dtype) -> BatchNormStatistics:
        """Running statistics of K fresh models: mean 0, variance 1."""
        sizes = {name: len(keys) * conv.out_channels for name, conv in self.convs.items()}
        return BatchNormStatistics(
            {name: torch.zeros(size, device=device, dtype=dtype) for name, size in sizes.items()},
            {name: torch.ones(size, device=device, dtype=dtype) for name, size in sizes.items()},
        )

    def forward(self, parameters: Tensor, statistics: BatchNormStatistics, x: Tensor, training: bool) -> Tensor:
        """Logits (K, B, classes) of K models; arguments as for `features`."""
        return self.logits(parameters, self.features(parameters, statistics, x, training))

    def evaluate(self, parameters: Tensor, statistics: BatchNormStatistics, images: Tensor) -> Tensor:
        """Logits (K, B, classes) of K trained models, all of the same images (B, C, H, W)."""
        return self.forward(parameters, statistics, for_each(images, len(parameters)), training=False)

    def features_of(self, parameters: Tensor, statistics: BatchNormStatistics, images: Tensor) -> Tensor:
        """What the last layer of K trained models sees of the same images: (K, B, 2·width)."""
        return self.features(parameters, statistics, for_each(images, len(parameters)), training=False)

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

    def slopes(
        self, parameters: Tensor, statistics: BatchNormStatistics, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Iterator[Tensor]]:
        """Soft margins f (B,), what the last layer sees, (B, 2·width), and the gradients (B, P_l) of each f by each layer.

        Their columns go as the parameters do, but for a convolution's weights: by output channel, row, column, input channel.
        """
        row, seen = parameters[None], dict[str, Seen]()
        with torch.enable_grad():
            # It is the outputs' gradients that are wanted; that the images want one makes a graph without any of the weights'.
            x = images.contiguous(memory_format=torch.channels_last).detach().requires_grad_()
            features = self.features(row, statistics, x, training=False, seen=seen)
            logits = self.logits(row, features)[0]
            f = soft_margin(logits, labels)
            by_logits, *by_outputs = torch.autograd.grad(f.sum(), [logits, *(layer.output for layer in seen.values())])
        last = features.detach()[0]

        def of_layers() -> Iterator[Tensor]:
            for (name, layer), by_output in zip(seen.items(), by_outputs, strict=True):
                gain = self.by_name(row)[f"{name}.gain"][0]
                yield _of_conv(self.convs[name], layer, by_output, gain, statistics.mean[name], statistics.variance[name])
            yield torch.bmm(last[:, :, None], by_logits[:, None] * LOGIT_SCALE).flatten(1)

        return f.detach(), last, of_layers()

    def as_module(self) -> nn.Module:
        """One model of PyTorch's own modules."""
        return ResNet9Module(self)

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


class ResNet9Module(nn.Module):
    """One ResNet-9 of PyTorch's own modules: images (B, C, H, W) to logits (B, classes)."""

    def __init__(self, network: ResNet9) -> None:
        super().__init__()
        self.convs = nn.ModuleDict({name: _block(conv) for name, conv in network.convs.items()})
        self.linear = nn.Linear(2 * network.width, network.classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The forward pass."""
        c = self.convs
        x = c["conv2"](c["conv1"](x))
        x = x + c["residual1b"](c["residual1a"](x))
        x = F.max_pool2d(c["conv3"](x), 2)
        x = x + c["residual2b"](c["residual2a"](x))
        logits: Tensor = self.linear(c["conv4"](x).amax((2, 3)))
        return logits * LOGIT_SCALE


def _block(conv: Conv) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel, conv.stride, conv.padding, bias=False),
        nn.BatchNorm2d(conv.out_channels, BATCH_NORM_EPS, BATCH_NORM_MOMENTUM),
        nn.ReLU(inplace=True),
    )


def for_each(images: Tensor, k: int) -> Tensor:
    """The same images (B, C, H, W) for each of K models: (B, K·C, H, W) in channels_last."""
    b, c, h, w = images.shape
    return images.permute(0, 2, 3, 1)[:, :, :, None].expand(b, h, w, k, c).reshape(b, h, w, k * c).permute(0, 3, 1, 2)


def _of_conv(conv: Conv, seen: Seen, by_output: Tensor, gain: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Gradients (B, P_l) of f by a convolution's weights, gains and shifts, from those by its output after ReLU."""
    dtype, one_over_std = gain.dtype, torch.rsqrt(variance + BATCH_NORM_EPS)
    by_normalised = _by_position(by_output * (seen.output > 0)).to(dtype)
    by_gain = (by_normalised * (_by_position(seen.convolved).to(dtype) - mean)).sum(1) * one_over_std
    by_convolved = by_normalised * (gain * one_over_std)
    inputs = seen.input[:, : conv.in_channels]  # padded channels have no weights
    by_weight = torch.bmm(by_convolved.mT, _patches(inputs.to(dtype), conv))
    return torch.cat([by_weight.flatten(1), by_gain, by_normalised.sum(1)], 1)


def _by_position(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H·W, C), which in channels_last it is."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _patches(x: Tensor, conv: Conv) -> Tensor:
    """What each position of a convolution's output sees of x (B, C, H, W): (B, positions, kernel²·C), by row, column and C."""
    padded = F.pad(x, (conv.padding,) * 4).permute(0, 2, 3, 1)
    windows = padded.unfold(1, conv.kernel, conv.stride).unfold(2, conv.kernel, conv.stride)
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(1, 2).flatten(2)
