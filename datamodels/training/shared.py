"""A group of K softmax regressions in training, that share their batches: a step is two matrix products for all of them.

All models of one seed take the rows of S in one of a few orders. A step is of the next B = `batch_size` · N/n rows, for a model
that sees n of the N: of these it learns those that it sees, `batch_size` in the mean, by the mean of their losses, and where it
sees none only momentum and weight decay move it. A training is `epochs` passes over S, as many steps as with batches of its
own. Models of an order and of one B share their batches: with X_B (B, d) these rows, W (d, c·K) the weights of all models and R
their residuals, 0 where a model does not see a row,

    R = (softmax(X_B W + b) − labels) · seen / number seen,    ∇W = X_Bᵀ R,    ∇b = 1ᵀ R.

Products of rows that a model does not see are lost, half of them at α = 0.5. What is gained is that no model has a batch of its
own to gather, and that products are as large as a processor or a GPU likes. Which order a model takes follows from its key, so
that models of one mask differ as they would by any random order, and a model is a function of its key and its mask still.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from datamodels.settings import TrainingSettings
from datamodels.subsets import IndexArray
from datamodels.training.batches import Images
from datamodels.training.devices import for_each_on_streams, on_gpu, side_streams
from datamodels.training.draws import INITIALISATION, Key, SharedDraws, generator
from datamodels.training.group import Group, learning_rates
from datamodels.training.linear import Linear


class SharedGroup(Group):
    """K softmax regressions, each on its own subset; otherwise as a `Group`. At most `per_kernel` models share a product."""

    def __init__(
        self,
        network: Linear,
        recipe: TrainingSettings,
        images: Images,
        draws: Sequence[SharedDraws],
        keys: Sequence[Key],
        per_kernel: int,
        labels: IndexArray | None = None,
    ) -> None:
        self.device, self.state = images.labels.device, network.initial_state(keys, images.labels.device, torch.float32)
        self.network, self.recipe, self.num_steps = network, recipe, [len(d.image) for d in draws]
        dtype = torch.promote_types(images.pixels.dtype, torch.float32)
        self.lr = learning_rates(recipe, self.num_steps, dtype).to(self.device)
        self.step = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.shares = [_Share(models, network, recipe, images, draws, labels, dtype) for models in _by_order(draws, per_kernel)]
        self.streams = side_streams(self.device, len(self.shares))
        start = np.stack([network.initial_parameters(generator(key, INITIALISATION)) for key in keys])
        self.parameters = torch.from_numpy(start).to(self.device, dtype)

    @property
    def parameters(self) -> Tensor:
        """Parameters (K, P) as they are now, a copy."""
        k, p = len(self.num_steps), self.network.num_parameters
        found = torch.empty(k, p, device=self.device, dtype=self.lr.dtype)
        for share in self.shares:
            found[share.models] = share.rows_of_parameters()
        return found

    @parameters.setter
    def parameters(self, parameters: Tensor) -> None:
        for share in self.shares:
            share.take(parameters[share.models])

    @property
    def buffer_bytes(self) -> int:
        """Bytes of all that a step works on."""
        return sum(share.nbytes for share in self.shares)

    @torch.no_grad()
    def advance(self) -> None:
        """One step of all models: nothing but operations on the group's tensors; on a GPU the host knows no number in them."""
        lr = self.lr.index_select(0, self.step)[0]
        for_each_on_streams(self.shares, lambda share: share.advance(self.step, lr), self.streams)
        self.step.add_(1)


def _by_order(draws: Sequence[SharedDraws], at_most: int) -> list[list[int]]:
    """Places of the models of each order, and of as many rows in a step, in lists of at most so many."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for k, d in enumerate(draws):
        alike.setdefault((d.order, d.image.shape), []).append(k)
    return [models[first : first + at_most] for models in alike.values() for first in range(0, len(models), at_most)]


class _Share:
    """Models of a group that share one order, and what a step of them works on.

    Weights are (d + 1, classes · K), the bias their last row, class by class: sums over classes go along K then.
    """

    def __init__(
        self,
        models: list[int],
        network: Linear,
        recipe: TrainingSettings,
        images: Images,
        draws: Sequence[SharedDraws],
        labels: IndexArray | None,
        dtype: torch.dtype,
    ) -> None:
        k, device, image = len(models), images.labels.device, draws[models[0]].image
        self.recipe, self.classes, self.on_gpu = recipe, network.classes, on_gpu(device) or device.type != "cpu"
        self.first, self.models = models[0], torch.tensor(models, device=device)
        self.rows, self.image = images.pixels.view(images.n, -1), torch.from_numpy(image).to(device)
        self.seen = torch.from_numpy(np.stack([draws[i].mask for i in models], 1)).to(device)
        # (N, K), or (N, 1) where all models are told what the data say.
        told = images.labels[:, None] if labels is None else torch.from_numpy(labels[models].T.copy()).to(device)
        self.labels = told.to(torch.int32)
        shape = (network.inputs + 1, network.classes * k)
        self.weights, self.velocity, self.gradient = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(3))
        self.logits, self.residuals = (torch.zeros(image.shape[1], shape[1], device=device, dtype=dtype) for _ in range(2))
        self.minus = torch.full((1, 1, 1), recipe.label_smoothing - 1, device=device, dtype=dtype).expand(len(image[0]), 1, k)

    @property
    def nbytes(self) -> int:
        """Bytes of its own tensors."""
        mine = (self.seen, self.labels, self.weights, self.velocity, self.gradient, self.logits, self.residuals)
        return sum(tensor.nbytes for tensor in mine)

    def rows_of_parameters(self) -> Tensor:
        """Parameters (K, P) of its models."""
        by_model = self._by_class(self.weights).permute(2, 1, 0)
        return torch.cat([by_model[:, :, :-1].flatten(1), by_model[:, :, -1]], 1)

    def take(self, parameters: Tensor) -> None:
        """Become models of parameters (K, P)."""
        weights, bias = parameters[:, : -self.classes], parameters[:, -self.classes :]
        own = self._by_class(self.weights)
        own[:-1] = weights.reshape(len(parameters), self.classes, -1).permute(2, 1, 0)
        own[-1] = bias.T

    def _by_class(self, values: Tensor) -> Tensor:
        """(n, classes · K) as (n, classes, K)."""
        return values.view(len(values), self.classes, -1)

    def advance(self, step: Tensor, lr: Tensor) -> None:
        """One step; the learning rate of all models is lr (models of the group, 1). After the last step there is none."""
        own = lr[self.first]
        if not self.on_gpu and not float(own):
            return
        image = self.image.index_select(0, step.clamp(max=len(self.image) - 1))[0]
        x = self.rows.index_select(0, image)
        self._fill_residuals(x, image)
        weights, bias = self.gradient[:-1], self.gradient[-1]
        if x.dtype == self.residuals.dtype:
            torch.mm(x.T, self.residuals, out=weights)
        else:
            weights.copy_(x.T @ self.residuals.to(x.dtype))
        torch.sum(self.residuals, 0, out=bias)
        self._update(own)

    def _fill_residuals(self, x: Tensor, image: Tensor) -> None:
        weights, bias = self.weights[:-1], self.weights[-1]
        if x.dtype == self.logits.dtype:
            torch.addmm(bias, x, weights, out=self.logits)
        else:
            torch.add(x @ weights.to(x.dtype), bias, out=self.logits)
        logits, residuals = (self._by_class(t) for t in (self.logits, self.residuals))
        torch.softmax(logits, 1, out=residuals)
        told = self.labels.index_select(0, image).long()[:, None].expand(-1, 1, residuals.shape[2])
        residuals.scatter_add_(1, told, self.minus)
        if self.recipe.label_smoothing:
            residuals.sub_(self.recipe.label_smoothing / self.classes)
        seen = self.seen.index_select(0, image).to(residuals.dtype)
        residuals.mul_((seen / seen.sum(0).clamp_(min=1))[:, None])

    def _update(self, lr: Tensor) -> None:
        """SGD with momentum, weight decay within the gradient; on a processor in one pass over memory."""
        recipe, parameters, velocity, gradient = self.recipe, self.weights, self.velocity, self.gradient
        if self.on_gpu:
            gradient.add_(parameters, alpha=recipe.weight_decay)
            velocity.mul_(recipe.momentum).add_(gradient)
            update = gradient.add_(velocity, alpha=recipe.momentum) if recipe.nesterov else velocity
            parameters.addcmul_(lr, update, value=-1)
            return
        torch._fused_sgd_(
            [parameters],
            [gradient],
            [velocity],
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            lr=float(lr),
            dampening=0.0,
            nesterov=recipe.nesterov,
            maximize=False,
            is_first_step=False,
        )
