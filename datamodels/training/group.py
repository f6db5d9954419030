"""A group of K models in training: from their draws to their last step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodels.settings import TrainingSettings
from datamodels.subsets import BoolArray, IndexArray
from datamodels.training.batches import Batches, Images
from datamodels.training.devices import for_each_on_streams, side_streams, wait_for
from datamodels.training.draws import INITIALISATION, Augmentation, Key, draw, generator
from datamodels.training.resnet9 import BatchNormStatistics, ResNet9

# Steps before the capture: they let the libraries underneath allocate what they keep, which a capture may not.
STEPS_BEFORE_CAPTURE = 3


class Group:
    """K models, each on its own subset, with its own number of steps and its own learning rate at each of them.

    All state lies in tensors that stay where they are, the number of the step among them. A step is therefore the same list of
    kernels every time: on a GPU it is captured once as a CUDA graph and replayed, one call of the host a step and no
    synchronisation. `per_kernel` models share each grouped convolution; where that is less than K, the parts of the group go
    side by side on CUDA streams, or in turn on a processor.
    """

    def __init__(
        self,
        network: ResNet9,
        recipe: TrainingSettings,
        images: Images,
        masks: BoolArray,
        keys: Sequence[Key],
        per_kernel: int,
        labels: IndexArray | None = None,
    ) -> None:
        k, device = len(keys), images.labels.device
        # All but float64, which is for tests, keeps float32 master weights, whatever the images and activations are.
        dtype = torch.promote_types(images.pixels.dtype, torch.float32)
        self.network, self.recipe = network, recipe
        augmentation = Augmentation(recipe.max_shift, recipe.flip, recipe.cutout)
        draws = [
            draw(key, mask, recipe.batch_size, recipe.epochs, augmentation, images.height, images.width)
            for key, mask in zip(keys, masks, strict=True)
        ]
        self.batches = Batches(draws, images, augmentation, labels)
        self.num_steps = [len(d.image) for d in draws]
        self.lr = learning_rates(recipe, torch.tensor(self.num_steps, dtype=dtype)).to(device)
        start = np.stack([network.initial_parameters(generator(key, INITIALISATION)) for key in keys])
        self.parameters = torch.from_numpy(start).to(device, dtype)
        self.velocity, self.gradient = torch.zeros_like(self.parameters), torch.zeros_like(self.parameters)
        self.statistics = network.initial_statistics(k, device, dtype)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.parts = [slice(first, min(first + per_kernel, k)) for first in range(0, k, per_kernel)]
        self.streams = side_streams(device, len(self.parts))

    def train(self) -> tuple[Tensor, BatchNormStatistics]:
        """Take all steps; parameters (K, P) and running statistics of each model after its own last step.

        What a model is at its last step is set aside, and the group goes on until its largest subset is done.
        """
        final = torch.empty_like(self.parameters)
        final_statistics = self.statistics.clone()
        advance: Callable[[], None] = self.advance
        for done in range(1, max(self.num_steps) + 1):
            if done == STEPS_BEFORE_CAPTURE + 1:
                advance = self.captured()
            advance()
            if done in self.num_steps:
                ended = torch.tensor([steps == done for steps in self.num_steps]).to(final.device)
                torch.where(ended[:, None], self.parameters, final, out=final)
                final_statistics.keep(self.statistics, ended)
        wait_for(final.device)  # a graph must not go while its replays are under way
        return final, final_statistics

    def advance(self) -> None:
        """One step of all models: nothing but operations on the group's tensors, for the host knows no number in them."""
        for_each_on_streams(self.parts, self._fill_gradient, self.streams)
        self._update()
        self.step.add_(1)

    def captured(self) -> Callable[[], None]:
        """`advance` as a CUDA graph, on a GPU, to be called after a few steps without it; `advance` itself on a processor.

        The capture runs nothing; a replay runs the step's kernels on the tensors as they then are.
        """
        if not self.parameters.is_cuda:
            return self.advance
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            self.advance()
        return graph.replay

    def _fill_gradient(self, models: slice) -> None:
        x, labels = self.batches.at(self.step, models)
        parameters = self.parameters[models].requires_grad_()
        statistics = self.statistics.of(models, len(self.parameters))
        self.gradient[models] = gradient(self.network, parameters, statistics, x, labels, self.recipe.label_smoothing)

    @torch.no_grad()
    def _update(self) -> None:
        """SGD with momentum, weight decay within the gradient; a model past its last step has learning rate 0."""
        recipe, lr = self.recipe, self.lr.index_select(0, self.step)[0]
        self.gradient.add_(self.parameters, alpha=recipe.weight_decay)
        self.velocity.mul_(recipe.momentum).add_(self.gradient)
        update = self.gradient.add_(self.velocity, alpha=recipe.momentum) if recipe.nesterov else self.velocity
        self.parameters.addcmul_(lr, update, value=-1)


def gradient(
    network: ResNet9, parameters: Tensor, statistics: BatchNormStatistics, x: Tensor, labels: Tensor, label_smoothing: float
) -> Tensor:
    """Gradient (K, P) of each model's mean loss over its batch: x (B, K·C, H, W), labels (K, B)."""
    logits = network.forward(parameters, statistics, x, training=True)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=label_smoothing)
    (result,) = torch.autograd.grad(loss / labels.shape[1], parameters)
    return result


def learning_rates(recipe: TrainingSettings, num_steps: Tensor) -> Tensor:
    """Learning rate (max steps, K, 1) of K models: linear from 0 to the peak, then linear to 0 after the last step."""
    step = torch.arange(int(num_steps.max()), dtype=num_steps.dtype)[:, None] + 1
    peak = num_steps * (recipe.peak_epoch / recipe.epochs)
    shape = torch.minimum(step / peak, (num_steps + 1 - step) / (num_steps + 1 - peak)).clamp(min=0)
    return (recipe.peak_lr * shape)[..., None]
