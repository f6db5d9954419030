"""First-order attribution by the networks' own gradients: what a training image does for a target, from a few trained networks.

Near its trained parameters a network is close to linear in them, so that training it on S′ is close to kernel ridge regression
with the kernel of its gradients (the empirical neural tangent kernel, Jacot, Gabriel & Hongler 2018). The output that is made
linear is the margin with a soft maximum, f = z_y − log Σ_{c≠y} exp z_c, whose loss −log σ(f) weighs an image by 1 − p, the
chance that its network gives to wrong classes. What image j does for target t is then

    s_jt = (1 − p_j) · [(K + ρ tr(K)/N · I)⁻¹ K_T]_jt,   K = Φ Φᵀ (N, N),   K_T = Φ Φ_Tᵀ (N, T),

Φ (N, P) being the gradients of f at the training images, Φ_T (T, P) those at the targets: TRAK's estimator (Park, Georgiev,
Ilyas, Leclerc & Madry 2023, equations 13 to 17), with a ridge ρ in the place of their lack of one and, where that costs little,
with the gradients themselves in the place of random projections of them. Scores are means over networks.

Gradients of single images come from the network (see `networks.Network.slopes`), and are projected layer by layer: no gradients
of all images are ever whole.
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
from datamodels.training.networks import Network, State
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
    """Of B images: gradients (B, P) of f, or their projections (B, D); f (B,); and what the last layer sees, (B, d)."""

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


def attribution(trainer: Trainer, parameters: Tensor, state: State, dimensions: int) -> dict[str, Array]:
    """As `first_order`, of K networks that are trained, (K, P) and their state.

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
        its = state.of(slice(model, model + 1), k)
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
    d, found = trainer.network.num_features, {}
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
    return sketch(trainer.network.layer_sizes, dimensions, trainer.device, dtype)


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


@torch.no_grad()
def gradients(
    network: Network,
    parameters: Tensor,
    state: State,
    images: Tensor,
    labels: Tensor,
    to: Sketch | None = None,
) -> Gradients:
    """Gradients of f at images (B, …) with labels (B,), of one trained network with parameters (P,), projected by `to`.

    Their columns go by layers, in the network's own order.
    """
    columns = sum(network.layer_sizes) if to is None else to.dimensions
    vectors = parameters.new_zeros(len(images), columns)
    outputs, features = [], []
    at_once = min(IMAGES_AT_ONCE, network.images_at_once)
    for first in range(0, len(images), at_once):
        part = slice(first, first + at_once)
        value, seen_last, of_layers = network.slopes(parameters, state, images[part], labels[part])
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
