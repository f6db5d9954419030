"""Networks of a person's own, as the tests name them in `training.network`: such as train, and such as are refused."""

import math
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

NOT_A_MODULE = {"a": 1}
A_MODULE = nn.Linear(64, 10)


def block(c_in, c_out, kernel, stride, padding):
    return nn.Sequential(nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


class ResNet9(nn.Module):
    """The paper's network of width 4 as one would write it, the last convolution padded."""

    def __init__(self, channels, classes, width=4):
        super().__init__()
        w = width
        self.first = nn.Sequential(block(channels, w, 3, 1, 1), block(w, 2 * w, 5, 2, 2))
        self.residual1 = nn.Sequential(block(2 * w, 2 * w, 3, 1, 1), block(2 * w, 2 * w, 3, 1, 1))
        self.widening = nn.Sequential(block(2 * w, 4 * w, 3, 1, 1), nn.MaxPool2d(2))
        self.residual2 = nn.Sequential(block(4 * w, 4 * w, 3, 1, 1), block(4 * w, 4 * w, 3, 1, 1))
        self.last = nn.Sequential(block(4 * w, 2 * w, 3, 1, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.linear = nn.Linear(2 * w, classes, bias=False)

    def forward(self, x):
        x = self.first(x)
        x = self.widening(x + self.residual1(x))
        return self.linear(self.last(x + self.residual2(x))) * 0.2


class Plain(nn.Module):
    """Convolutions, batch normalisation with and without gains, pools: nothing random."""

    def __init__(self, classes, in_channels):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(in_channels, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.norm3, self.linear = nn.BatchNorm1d(32, affine=False), nn.Linear(32, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.avg_pool2d(F.relu(self.norm2(self.conv2(x))), 2)
        return self.linear(self.norm3(x.flatten(1)))


class Batchwise(Plain):
    """Its batch normalisation keeps no statistics."""

    def __init__(self, classes, in_channels):
        super().__init__(classes, in_channels)
        self.norm2 = nn.BatchNorm2d(8, track_running_stats=False)


class Random(Plain):
    """As above, with all kinds of dropout, and noise."""

    def forward(self, x):
        x = F.dropout2d(F.relu(self.norm1(self.conv1(x + 0.1 * torch.randn_like(x)))), 0.2, self.training)
        x = F.dropout(F.max_pool2d(x, 2), 0.2, self.training)
        x = F.avg_pool2d(F.relu(self.norm2(self.conv2(x))), 2)
        x = F.alpha_dropout(self.norm3(x.flatten(1)), 0.1, self.training)
        return self.linear(x + torch.rand(32, device=x.device))


class Asking(Random):
    """As above; what it does depends on a number, at which vmap gives up."""

    def forward(self, x):
        return super().forward(x if x.abs().mean().item() < 1e6 else -x)


class Drawing(Plain):
    """Random by a function that only PyTorch's generator has."""

    def forward(self, x):
        return super().forward(x + 0.1 * torch.poisson(torch.ones_like(x)))


class Skipping(Plain):
    """Skips its noise by chance, as stochastic depth does layers, by Python's generator."""

    def forward(self, x):
        return super().forward(x + 0.3 if self.training and random.random() < 0.5 else x)


class Shifting(Plain):
    """Random by NumPy's generator, in training and after it."""

    def forward(self, x):
        return super().forward(x + 0.3 * float(np.random.normal()))  # noqa: NPY002


class Averaging(Plain):
    """Its batch normalisation averages over all batches, which it counts in Python."""

    def __init__(self, classes, in_channels):
        super().__init__(classes, in_channels)
        self.norm1.momentum = None


class Buffers(nn.Module):
    """Buffers of all kinds: of the model's own, changed in place, put anew; parameters that are tied, and that are frozen."""

    table: torch.Tensor
    seen: torch.Tensor
    steps: torch.Tensor

    def __init__(self, shape, num_classes):
        super().__init__()
        size = math.prod(shape)
        self.register_buffer("table", torch.randn(size), persistent=False)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.frozen, self.first = nn.Parameter(torch.randn(size, 8), requires_grad=False), nn.Linear(8, 8, bias=False)
        self.second, self.last = nn.Linear(8, 8, bias=False), nn.Linear(8, num_classes)
        self.second.weight = self.first.weight

    def forward(self, x):
        x = x.flatten(1)
        if self.training:
            self.seen = 0.9 * self.seen + x.detach().mean()
            self.steps += 1
        x = (x + self.table + 0.1 * self.seen) @ self.frozen
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Viewing(nn.Module):
    """Looks at its images as one row, which channels last do not allow where there are several."""

    def __init__(self, shape, classes):
        super().__init__()
        self.linear = nn.Linear(math.prod(shape), classes)

    def forward(self, x):
        return self.linear(x.view(len(x), -1))


class Lazy(nn.Sequential):
    """Knows its sizes from its first batch."""

    def __init__(self, classes):
        super().__init__(
            nn.Flatten(), nn.LazyLinear(7), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Dropout(0.3), nn.LazyLinear(classes)
        )


class Attention(nn.Module):
    """Rows of pixels as tokens of a transformer's layer, with its dropout."""

    def __init__(self, size, classes):
        super().__init__()
        self.layer, self.last = nn.TransformerEncoderLayer(size, 2, 8, dropout=0.2, batch_first=True), nn.Linear(size, classes)

    def forward(self, x):
        return self.last(self.layer(x.squeeze(1)).mean(1))


def made(classes, shape):
    """A function that gives a module."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 8), nn.Tanh(), nn.Linear(8, classes))


def no_linear(channels, classes):
    return nn.Sequential(nn.Conv2d(channels, classes, 8), nn.Flatten())


class InPlace(Plain):
    """Changes its images, to save memory."""

    def forward(self, x):
        return super().forward(x.sub_(0.5))


class InPlaceAsking(InPlace):
    def forward(self, x):
        return super().forward(x if x.abs().mean().item() < 1e6 else -x)


class OfPython(Plain):
    """Random by Python's and NumPy's numbers."""

    def forward(self, x):
        noise = random.random() + np.random.rand() if self.training else 0.0  # noqa: NPY002
        return super().forward(x * (1 + noise))


BACKBONE = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU())


class OnOneBackbone(nn.Module):
    """Begins from layers that were made, or loaded, once."""

    def __init__(self, classes):
        super().__init__()
        self.backbone, self.last = BACKBONE, nn.Linear(16, classes)

    def forward(self, x):
        return self.last(self.backbone(x))


# What is refused.


class Counting(Plain):
    """Remembers in Python how often it was called."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1 + 0.01 * self.calls)


class OfItsOwn(Plain):
    """Random by a generator of its own."""

    def __init__(self, classes, in_channels):
        super().__init__(classes, in_channels)
        self.rng = np.random.default_rng(0)

    def forward(self, x):
        return super().forward(x * self.rng.random() if self.training else x)


def nothing():
    return None


def no_parameters():
    return nn.Flatten()


def all_frozen(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).requires_grad_(False)


def of_doubles(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).double()


def too_many_logits(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes + 1))


def no_such_argument(depth, classes):
    return nn.Linear(depth, classes)


def raising(classes):
    raise ValueError("no luck today")


def ending(classes):
    raise SystemExit(3)


class FailingForward(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(63, classes)

    def forward(self, x):
        return self.linear(x.flatten(1))


class Pairs(FailingForward):
    def __init__(self, classes):
        super().__init__(classes)
        self.linear = nn.Linear(64, classes)

    def forward(self, x):
        return super().forward(x), x


class Integers(Pairs):
    def forward(self, x):
        return super().forward(x)[0].long()


class Detached(Pairs):
    def forward(self, x):
        return super().forward(x)[0].detach()


class Alternating(nn.Module):
    """Of another size each time."""

    made = 0

    def __init__(self, classes):
        super().__init__()
        Alternating.made += 1
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 4 + Alternating.made), nn.Linear(4 + Alternating.made, classes))

    def forward(self, x):
        return self.body(x)
