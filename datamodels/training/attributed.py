"""Attribution methods to compare with, by the library dattri (Deng et al. 2024) on this package's networks.

    tracin      TracIn over checkpoints: Σ η ∇ℓ_j · ∇f_t (Pruthi, Liu, Kale & Sundararajan 2020)
    influence   ∇f_t H⁻¹ ∇ℓ_j, H the damped Fisher matrix of the loss (Koh & Liang 2017), in DataInf's closed form (Kwon, Wu,
                Wu & Zou 2024): the inverses of its terms in the place of the inverse of their sum
    trak        TRAK with random projections (Park et al. 2023)

ℓ is the cross-entropy of a training image, f the soft margin of a target (see `gradients`). To remove images of high score
should lower the margin. dattri is not installed with this package: pip install dattri.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from datamodels.errors import InputError
from datamodels.subsets import Array, BoolArray
from datamodels.training.draws import Key
from datamodels.training.models import Trainer
from datamodels.training.networks import Network, State

TRACIN, INFLUENCE, TRAK = "tracin", "influence", "trak"
LIBRARY_METHODS = (TRACIN, INFLUENCE, TRAK)
CHECKPOINTS = 5
"""For TracIn, evenly over the training, the last one at its end."""
DAMPING = 0.1
PROJECTED = 2048
TRAK_RIDGE = 1e-3
BATCH = 100


class Checkpoint(NamedTuple):
    """One network at one time: parameters (P,), state, and the learning rate then."""

    parameters: Tensor
    state: State
    lr: float


class _Module(nn.Module):
    """A network as PyTorch's modules are: what dattri takes apart."""

    def __init__(self, network: Network, at: Checkpoint) -> None:
        super().__init__()
        self.network = network
        self.row = nn.Parameter(at.parameters.clone())
        self.state = at.state

    def load(self, at: Checkpoint) -> _Module:
        """Become another network."""
        self.row.data, self.state = at.parameters.clone(), at.state
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, …)."""
        return self.network.evaluate(self.row[None], self.state, images)[0]


def require_dattri() -> None:
    """Raise InputError where dattri is not installed."""
    if importlib.util.find_spec("dattri") is None:
        raise InputError(f"the methods {', '.join(LIBRARY_METHODS)} are dattri's, which is not installed: pip install dattri")


def attribute(trainer: Trainer, method: str, masks: BoolArray, keys: Sequence[Key], targets: Sequence[int]) -> Array:
    """Scores (N, T') of training images for some targets by one of `LIBRARY_METHODS`, from K networks on `masks` with `keys`.

    Raises InputError where dattri is not installed.
    """
    require_dattri()
    with trainer.at_work():
        found = checkpoints(trainer, masks, keys, CHECKPOINTS if method == TRACIN else 1)
    images, device, dtype = trainer.images, str(trainer.device), found[0].parameters.dtype
    # In the parameters' format whatever the activations' was in training: batch norm under vmap does not take two.
    of_train = DataLoader(TensorDataset(images.train.to(dtype), images.labels), BATCH)
    which = torch.as_tensor(targets, device=trainer.device)
    of_targets = DataLoader(TensorDataset(images.test[which].to(dtype), images.test_labels[which]), BATCH)
    module = _Module(trainer.network, found[0])

    def logits(parameters: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        image, label = data
        values = torch.func.functional_call(module, parameters, (image.reshape(-1, *images.train.shape[1:]),))
        return values, label.reshape(-1)

    def loss(parameters: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(*logits(parameters, data))

    def minus_soft_margin(parameters: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        values, label = logits(parameters, data)
        right = torch.arange(values.shape[1], device=values.device) == label[:, None]
        return (torch.logsumexp(values.masked_fill(right, -torch.inf), 1) - values.masked_fill(~right, 0).sum(1)).mean()

    task = importlib.import_module("dattri.task").AttributionTask(
        loss_func=minus_soft_margin if method == TRAK else loss,
        model=module,
        checkpoints=found,
        target_func=minus_soft_margin,
        checkpoints_load_func=lambda model, at: model.load(at),
    )
    algorithm = importlib.import_module("dattri.algorithm")
    with Path(os.devnull).open("w", encoding="ascii") as nowhere, contextlib.redirect_stderr(nowhere):  # its bars
        if method == TRACIN:
            attributor = algorithm.TracInAttributor(task, torch.tensor([at.lr for at in found]), False, device=device)
            attributor.projector_kwargs = None  # given as None it projects all the same
            scores = attributor.attribute(of_train, of_targets)
        elif method == INFLUENCE:
            attributor = algorithm.IFAttributorDataInf(task, device=device, regularization=DAMPING)
            attributor.cache(of_train)
            scores = attributor.attribute(of_train, of_targets)
        else:
            attributor = algorithm.TRAKAttributor(
                task,
                lambda parameters, data: torch.exp(-loss(parameters, data)),
                {"proj_dim": PROJECTED, "device": device},
                device=device,
                regularization=TRAK_RIDGE,
            )
            attributor.cache(of_train)
            scores = attributor.attribute(of_targets)
    return scores.detach().cpu().numpy()  # type: ignore[no-any-return]


def checkpoints(trainer: Trainer, masks: BoolArray, keys: Sequence[Key], number: int) -> list[Checkpoint]:
    """K networks in training at so many times each, evenly spaced, the last at the end: K · number checkpoints."""
    group = trainer.group(masks, keys)
    found = []
    steps = max(group.num_steps)
    wanted = {round(steps * (k + 1) / number) for k in range(number)}
    for done in range(1, steps + 1):
        group.advance()
        if done in wanted:
            state = group.state.clone()
            lr = float(group.lr[done - 1].max())
            found += [
                Checkpoint(group.parameters[k].clone(), state.of(slice(k, k + 1), len(keys)), lr) for k in range(len(keys))
            ]
    return found
