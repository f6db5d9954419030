"""First-order attribution by the networks' own gradients: what a training image does for a target, from a few trained networks.

Near its trained parameters a network is close to linear in them, so that training it on S′ is close to kernel ridge regression
with the kernel of its gradients (the empirical neural tangent kernel, Jacot, Gabriel & Hongler 2018). The output that is made
linear is the margin with a soft maximum, f = z_y − log Σ_{c≠y} exp z_c, whose loss −log σ(f) weighs an image by 1 − p, the
chance that its network gives to wrong classes. What image j does for target t is then

    s_jt = (1 − p_j) · [(K + ρ tr(K)/N · I)⁻¹ K_T]_jt,   K = Φ Φᵀ (N, N),   K_T = Φ Φ_Tᵀ (N, T),

Φ (N, P) being the gradients of f at the training images, Φ_T (T, P) those at the targets: TRAK's estimator (Park, Georgiev,
Ilyas, Leclerc & Madry 2023, equations 13 to 17), with a ridge ρ in the place of their lack of one and, where that costs little,
with the gradients themselves in the place of random projections of them. Scores are means over networks.

Gradients of single images come from one forward and one backward pass of a batch. A trained network's images know nothing of
each other, so that the gradient of Σ_b f_b by a convolution's output is, image by image, that of its own f: δ_b. The gradient
by the weights is then Σ δ_b ⊗ a_b over the positions, a_b being the patches of the layer's input (Goodfellow 2015), and is
projected layer by layer: no gradients of all images are ever whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodels.subsets import Array, BoolArray
from datamodels.training.draws import Key
from datamodels.training.models import Trainer
from datamodels.training.resnet9 import BATCH_NORM_EPS, LOGIT_SCALE, BatchNormStatistics, Conv, ResNet9, Seen
from datamodels.training.sketch import Sketch, sketch

RIDGES = (0.1, 1.0)
"""The ridges ρ, of which the regression makes what it can: neither is best everywhere."""
IMAGES_AT_ONCE = 128
TARGETS_AT_ONCE = 1024
ROWS_AT_ONCE = 1024
MOST_PRODUCTS = 2**36
"""Gradients are kept as they are while the products of all of them take so many multiplications, about 2 s of one core; that is
at most 2 GB of them. Above, they are projected."""


class Gradients(NamedTuple):
    """Of B images: gradients (B, P) of f, or their projections (B, D); f (B,); and what the last layer sees, (B, 2·width)."""

    vectors: Tensor
    outputs: Tensor
    features: Tensor


def first_order(trainer: Trainer, masks: BoolArray, keys: Sequence[Key], dimensions: int) -> dict[str, Array]:
    """Train K models on `masks`, bool (K, N), with `keys`; what they say of training images and targets.

    `gradients` (2, N, T) are the scores above, one for each of the ridges, sums over models; `features_train` (K', N, d) and
    `features_test` (K', T, d) what the last layer of each of them sees, of length 1. A model that diverged is left out.
    Gradients that would cost too much are projected to so many `dimensions`, D.
    """

    def of_part(part: slice) -> dict[str, Array]:
        return attribution(trainer, *trainer.train(masks[part], keys[part]), dimensions)

    parts = trainer.in_parts(of_part, len(keys))
    features = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "gradients"}
    return {"gradients": np.sum([part["gradients"] for part in parts], 0), **features}


def attribution(trainer: Trainer, parameters: Tensor, statistics: BatchNormStatistics, dimensions: int) -> dict[str, Array]:
    """As `first_order`, of K networks that are trained, (K, P) and their statistics.

    At its peak the device holds, beside images, models and a batch's activations, 4 (N + T) D bytes of gradients and, for
    T' = min(T, 1024) targets at once, 16 D² + 12 N T' + 8 D T' of the solver; where gradients stay whole P is in the place of
    D, and in the solver's the lesser of N and P. At N = 50,000, T = 10,000, D = 4,096 that is 1.0 + 0.9 GB. The host holds the
    scores, 8 N T bytes, 4 GB.
    """
    images, k = trainer.images, len(parameters)
    scores = np.zeros((len(RIDGES), trainer.n, len(images.test)), np.float32)
    features: list[tuple[Tensor, Tensor]] = []
    to = _projection(trainer, dimensions)
    for model, own in enumerate(parameters):
        its = statistics.of(slice(model, model + 1), k)
        of_train = gradients(trainer.network, own, its, images.train, images.labels, to)
        of_test = gradients(trainer.network, own, its, images.test, images.test_labels, to)
        if not (_finite(of_train) and _finite(of_test)):
            continue
        features.append((F.normalize(of_train.features.float()).cpu(), F.normalize(of_test.features.float()).cpu()))
        wrong = torch.sigmoid(-of_train.outputs)[:, None]
        for ridge, targets, found in ridge_scores(of_train.vectors, of_test.vectors, RIDGES):
            scores[ridge, :, targets] += (wrong * found).float().cpu().numpy()
    return {"gradients": scores, **_stacked(features, trainer)}


def _stacked(features: list[tuple[Tensor, Tensor]], trainer: Trainer) -> dict[str, Array]:
    """The networks' features of training images and of targets, (K', N, d) and (K', T, d), where there may be no network."""
    d, found = 2 * trainer.network.width, {}
    for side, (name, images) in enumerate([("train", trainer.n), ("test", len(trainer.images.test))]):
        rows = [pair[side].numpy() for pair in features]
        found[f"features_{name}"] = np.stack(rows) if rows else np.zeros((0, images, d), np.float32)
    return found


def _projection(trainer: Trainer, dimensions: int) -> Sketch | None:
    """How to project, or None where gradients stay as they are."""
    n, t, p = trainer.n, len(trainer.images.test), trainer.network.num_parameters
    if p <= dimensions or (n + t) * p * max(min(n, p), 128) <= MOST_PRODUCTS:
        return None
    dtype = torch.promote_types(trainer.images.train.dtype, torch.float32)
    return sketch(layer_sizes(trainer.network), dimensions, trainer.device, dtype)


def _finite(found: Gradients) -> bool:
    """Whether a network has not diverged. No product of its gradients is larger than the sum of their squares."""
    squares = torch.linalg.vector_norm(found.vectors, dim=1).square().sum()
    return bool(torch.isfinite(found.outputs).all() & torch.isfinite(squares) & (squares > 0))


def ridge_scores(of_train: Tensor, of_test: Tensor, ridges: Sequence[float]) -> Iterator[tuple[int, slice, Tensor]]:
    """(K + ρ tr(K)/N · I)⁻¹ K_T for each ridge ρ, of gradients Φ (N, P) and Φ_T (T, P), by blocks of targets.

    Comes as (number of the ridge, targets, scores (N, T')). With fewer parameters, or dimensions, than images the same comes
    from a P × P system. All is computed in the gradients' own format: its rounding of K, of largest eigenvalue below N, is far
    below ρ in float32 too.
    """
    n, p = of_train.shape
    scale = n / torch.linalg.vector_norm(of_train, dim=1).square().sum()
    system = _gram(of_train if n <= p else of_train.T).mul_(scale)
    factors = [_factor(system, ridge) for ridge in ridges]
    del system
    for first in range(0, len(of_test), TARGETS_AT_ONCE):
        targets = slice(first, min(first + TARGETS_AT_ONCE, len(of_test)))
        part = of_test[targets].T
        right = (of_train @ part if n <= p else part) * scale
        for ridge, factor in enumerate(factors):
            solved = torch.cholesky_solve(right, factor)
            yield ridge, targets, solved if n <= p else of_train @ solved


def _gram(rows: Tensor) -> Tensor:
    """X Xᵀ, of X (n, p): only the blocks on and below the diagonal are computed, the others are theirs."""
    n = len(rows)
    result = rows.new_empty(n, n)
    for first in range(0, n, ROWS_AT_ONCE):
        block = slice(first, min(first + ROWS_AT_ONCE, n))
        result[first:, block] = rows[first:] @ rows[block].T
        result[block, block.stop :] = result[block.stop :, block].T
    return result


def _factor(system: Tensor, ridge: float) -> Tensor:
    ridged = system.clone()
    ridged.diagonal().add_(ridge)
    factor: Tensor = torch.linalg.cholesky_ex(ridged).L
    return factor


def layer_sizes(network: ResNet9) -> tuple[int, ...]:
    """Parameters of each layer, in the order of a row: a convolution with its gains and shifts, and last the linear layer."""
    of_convs = (c.out_channels * (c.in_channels * c.kernel**2 + 2) for c in network.convs.values())
    return (*of_convs, 2 * network.width * network.classes)


@torch.no_grad()
def gradients(
    network: ResNet9,
    parameters: Tensor,
    statistics: BatchNormStatistics,
    images: Tensor,
    labels: Tensor,
    to: Sketch | None = None,
) -> Gradients:
    """Gradients of f at images (B, C, H, W) with labels (B,), of one trained network with parameters (P,), projected by `to`.

    Their columns go as the parameters do, but for a convolution's weights: by output channel, row, column and input channel.
    """
    columns = sum(layer_sizes(network)) if to is None else to.dimensions
    vectors = parameters.new_zeros(len(images), columns)
    outputs, features = [], []
    for first in range(0, len(images), IMAGES_AT_ONCE):
        part = slice(first, first + IMAGES_AT_ONCE)
        value, seen_last, of_layers = _of_batch(network, parameters, statistics, images[part], labels[part])
        outputs.append(value)
        features.append(seen_last)
        done = 0
        for layer, found in enumerate(of_layers):
            if to is None:
                vectors[part, done : done + found.shape[1]] = found
                done += found.shape[1]
            else:
                to.add(vectors[part], found, layer)
    return Gradients(vectors, torch.cat(outputs), torch.cat(features))


def _of_batch(
    network: ResNet9, parameters: Tensor, statistics: BatchNormStatistics, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Iterator[Tensor]]:
    """Values f (B,), what the last layer sees (B, 2·width), and the gradients (B, P_l) by each layer's parameters."""
    row, seen = parameters[None], dict[str, Seen]()
    with torch.enable_grad():
        # It is the outputs' gradients that are wanted; that the images want one makes a graph without any of the weights'.
        x = images.contiguous(memory_format=torch.channels_last).detach().requires_grad_()
        features = network.features(row, statistics, x, training=False, seen=seen)
        logits = network.logits(row, features)[0]
        right = F.one_hot(labels, network.classes).bool()
        f = logits.masked_fill(~right, 0).sum(1) - torch.logsumexp(logits.masked_fill(right, -torch.inf), 1)
        by_logits, *by_outputs = torch.autograd.grad(f.sum(), [logits, *(layer.output for layer in seen.values())])
    last = features.detach()[0]

    def of_layers() -> Iterator[Tensor]:
        for (name, layer), by_output in zip(seen.items(), by_outputs, strict=True):
            gain = network.by_name(row)[f"{name}.gain"][0]
            yield _of_conv(network.convs[name], layer, by_output, gain, statistics.mean[name], statistics.variance[name])
        yield torch.bmm(last[:, :, None], by_logits[:, None] * LOGIT_SCALE).flatten(1)

    return f.detach(), last, of_layers()


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
