"""First-order attribution by the networks' own gradients: what a training image does for a target, from a few trained networks.

Near its trained parameters a network is close to linear in them, so that training it on S′ is close to kernel ridge regression
with the kernel of its gradients (the empirical neural tangent kernel, Jacot, Gabriel & Hongler 2018). The output that is made
linear is the margin with a soft maximum, f = z_y − log Σ_{c≠y} exp z_c, whose loss −log σ(f) weighs an image by 1 − p, the
chance that its network gives to wrong classes. What image j does for target t is then

    s_jt = (1 − p_j) · [(K + ρ tr(K)/N · I)⁻¹ K_T]_jt,   K = Φ Φᵀ (N, N),   K_T = Φ Φ_Tᵀ (N, T),

Φ (N, P) being the gradients of f at the training images, Φ_T (T, P) those at the targets: TRAK's estimator (Park, Georgiev,
Ilyas, Leclerc & Madry 2023, equations 13 to 17), with a ridge ρ in the place of their lack of one and, where memory allows,
with the gradients themselves in the place of random projections of them. Scores are means over networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import grad, vmap

from datamodels.store.layout import Array
from datamodels.subsets import BoolArray
from datamodels.training.devices import made_current
from datamodels.training.draws import Key
from datamodels.training.models import Trainer
from datamodels.training.resnet9 import BatchNormStatistics

RIDGES = (0.1, 1.0)
"""The ridges ρ, of which the regression makes what it can: neither is best everywhere."""
IMAGES_AT_ONCE = 128
MOST_NUMBERS = 2**29
"""Gradients of all images are kept as they are up to so many numbers, 2 GB; above that they are projected."""
PROJECTED_AT_ONCE = 2**14


def first_order(trainer: Trainer, masks: BoolArray, keys: Sequence[Key], dimensions: int) -> dict[str, Array]:
    """Train K models on `masks`, bool (K, N), with `keys`; what they say of training images and targets.

    `gradients` (2, N, T) are the scores above, one for each of the ridges, sums over models; `features_train` (K', N, d) and
    `features_test` (K', T, d) what the last layer of each of them sees, of length 1. A model that diverged is left out.
    Gradients too many to be kept are projected to so many `dimensions`.
    """
    with made_current(trainer.device):
        trained, images = trainer.train(masks, keys), trainer.images
        scores = torch.zeros(len(RIDGES), trainer.n, len(images.test), device=trainer.device)
        whole = []
        for k in range(len(keys)):
            found = _scores(trainer, trained[0][k], trained[1].of(slice(k, k + 1), len(keys)), dimensions)
            if bool(torch.isfinite(found).all()):
                scores += found
                whole.append(k)
        of_train, of_test = (trainer.features(*trained, x)[whole] for x in (images.train, images.test))
    arrays = {"gradients": scores, "features_train": of_train, "features_test": of_test}
    return {name: array.cpu().numpy() for name, array in arrays.items()}


def _scores(trainer: Trainer, parameters: Tensor, statistics: BatchNormStatistics, dimensions: int) -> Tensor:
    """One network's scores, float32 (2, N, T)."""
    images = trainer.images
    total = (trainer.n + len(images.test)) * len(parameters)
    to = None if total <= MOST_NUMBERS else dimensions
    of_train, outputs = gradients(trainer, parameters, statistics, images.train, images.labels, to)
    of_test, _ = gradients(trainer, parameters, statistics, images.test, images.test_labels, to)
    wrong = torch.sigmoid(-outputs)[:, None]
    return torch.stack([(wrong * found).float() for found in ridge_scores(of_train, of_test, RIDGES)])


def ridge_scores(of_train: Tensor, of_test: Tensor, ridges: Sequence[float]) -> list[Tensor]:
    """(K + ρ tr(K)/N · I)⁻¹ K_T, float64 (N, T), for each ridge ρ, of gradients Φ (N, P) and Φ_T (T, P).

    With fewer parameters, or dimensions, than images the same comes from a P × P system.
    """
    n, p = of_train.shape
    scale = n / (of_train.double() ** 2).sum()
    if n <= p:
        kernel, of_targets = ((of_train @ other.T).double() * scale for other in (of_train, of_test))
        return [_solve(kernel, ridge, of_targets) for ridge in ridges]
    covariance = (of_train.T @ of_train).double() * scale
    of_targets = of_test.T.double() * scale
    return [of_train.double() @ _solve(covariance, ridge, of_targets) for ridge in ridges]


def _solve(kernel: Tensor, ridge: float, right: Tensor) -> Tensor:
    eye = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    found: Tensor = torch.cholesky_solve(right, torch.linalg.cholesky_ex(kernel + ridge * eye).L)
    return found


def gradients(
    trainer: Trainer,
    parameters: Tensor,
    statistics: BatchNormStatistics,
    images: Tensor,
    labels: Tensor,
    dimensions: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients (B, P) of f at images (B, C, H, W) with labels (B,), and f itself (B,), of one network with parameters (P,).

    With `dimensions` they are projected to so many, by random signs that are the same for all networks.
    """

    def output(parameters: Tensor, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        logits = trainer.network.forward(parameters[None], statistics, image[None], training=False)[0, 0]
        right = torch.arange(len(logits), device=logits.device) == label
        f = logits.masked_fill(~right, 0).sum() - torch.logsumexp(logits.masked_fill(right, -torch.inf), 0)
        return f, f

    of_each = vmap(grad(output, has_aux=True), in_dims=(None, 0, 0))
    found, values = [], []
    for part, its_labels in zip(torch.split(images, IMAGES_AT_ONCE), torch.split(labels, IMAGES_AT_ONCE), strict=True):
        gradient, value = of_each(parameters, part, its_labels)
        found.append(gradient if dimensions is None else project(gradient, dimensions))
        values.append(value.detach())
    return torch.cat(found), torch.cat(values)


def project(gradient: Tensor, dimensions: int) -> Tensor:
    """Vectors (B, P) times a matrix of random signs over √dimensions, which keeps inner products in the mean."""
    generator = torch.Generator(gradient.device).manual_seed(0)
    result = gradient.new_zeros(len(gradient), dimensions)
    for part in torch.split(gradient, PROJECTED_AT_ONCE, dim=1):
        signs = torch.randint(0, 2, (part.shape[1], dimensions), generator=generator, device=part.device, dtype=torch.int8)
        result += part @ (signs.to(part.dtype) * 2 - 1)
    projected: Tensor = result / dimensions**0.5
    return projected
