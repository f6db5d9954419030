"""A group of K models in training: from their draws to their last step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodels.settings import TrainingSettings
from datamodels.subsets import IndexArray
from datamodels.training.batches import Batches, Images
from datamodels.training.devices import fastest_convolutions, for_each_on_streams, on_gpu, side_streams, wait_for
from datamodels.training.draws import INITIALISATION, Augmentation, Draws, Key, generator
from datamodels.training.networks import Network, State

# Steps before the capture: they let the libraries underneath allocate what they keep, which a capture may not.
STEPS_BEFORE_CAPTURE = 3


Loss = Callable[[Network, Tensor, State, Tensor, Tensor, float], Tensor]


class Group:
    """K models, each on its own subset, with its own number of steps and its own learning rate at each of them.

    All state lies in tensors that stay where they are, the number of the step among them. A step is therefore the same list of
    kernels every time: on a GPU it is captured once as a CUDA graph and replayed, one call of the host a step and no
    synchronisation. `per_kernel` models share each grouped convolution; where that is less than K, the parts of the group go
    side by side on CUDA streams, or in turn on a processor. `loss` computes what `loss_of` does.
    """

    def __init__(
        self,
        network: Network,
        recipe: TrainingSettings,
        images: Images,
        draws: Sequence[Draws],
        keys: Sequence[Key],
        per_kernel: int,
        labels: IndexArray | None = None,
        loss: Loss | None = None,
    ) -> None:
        k, self.device = len(keys), images.labels.device
        # All but float64, which is for tests, keeps float32 master weights, whatever the images and activations are.
        dtype = torch.promote_types(images.pixels.dtype, torch.float32)
        self.network, self.recipe, self.loss = network, recipe, loss or loss_of
        self.batches = Batches(draws, images, augmentation_of(recipe, images), labels)
        self.num_steps = [len(d.image) for d in draws]
        self.lr = learning_rates(recipe, self.num_steps, dtype).to(self.device)
        start = np.stack([network.initial_parameters(generator(key, INITIALISATION)) for key in keys])
        self.parameters = torch.from_numpy(start).to(self.device, dtype)
        self.velocity, self.gradient = torch.zeros_like(self.parameters), torch.zeros_like(self.parameters)
        self.state = network.initial_state(keys, self.device, dtype)
        self.step = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.parts = [slice(first, min(first + per_kernel, k)) for first in range(0, k, per_kernel)]
        self.streams = side_streams(self.device, len(self.parts))

    @property
    def buffer_bytes(self) -> int:
        """Bytes that a step works on beside what autograd keeps; of these networks next to nothing."""
        return 0

    def train(self) -> tuple[Tensor, State]:
        """Take all steps; parameters (K, P) and state of each model after its own last step.

        What a model is at its last step is set aside, and the group goes on until its largest subset is done.
        """
        final = torch.empty_like(self.parameters)
        final_state = self.state.clone()
        advance: Callable[[], None] = self.advance
        for done in range(1, max(self.num_steps) + 1):
            if done == STEPS_BEFORE_CAPTURE + 1:
                advance = self.captured()
            # The first steps time the convolutions, and the capture takes those that were fastest.
            with fastest_convolutions(self.device) if done <= STEPS_BEFORE_CAPTURE else nullcontext():
                advance()
            if done in self.num_steps:
                ended = torch.tensor([steps == done for steps in self.num_steps]).to(final.device)
                torch.where(ended[:, None], self.parameters, final, out=final)
                final_state.keep(self.state, ended)
        wait_for(final.device)  # a graph must not go while its replays are under way
        return final, final_state

    def warmed_up(self) -> Callable[[], None]:
        """Take the steps that come before a capture, and give `captured`."""
        with fastest_convolutions(self.device):
            for _ in range(STEPS_BEFORE_CAPTURE):
                self.advance()
        return self.captured()

    def advance(self) -> None:
        """One step of all models: nothing but operations on the group's tensors, for the host knows no number in them."""
        for_each_on_streams(self.parts, self._fill_gradient, self.streams)
        self._update()
        self.step.add_(1)

    def captured(self) -> Callable[[], None]:
        """`advance` as a CUDA graph, on a GPU, to be called after a few steps without it; elsewhere `advance` itself.

        The capture runs nothing; a replay runs the step's kernels on the tensors as they then are.
        """
        if not on_gpu(self.device) or not self.network.capturable:
            return self.advance
        graph = torch.cuda.CUDAGraph()
        with fastest_convolutions(self.device), torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            self.advance()
        return graph.replay

    def _fill_gradient(self, models: slice) -> None:
        x, labels = self.batches.at(self.step, models)
        parameters = self.parameters[models].requires_grad_()
        state = self.state.of(models, len(self.parameters))
        loss = self.loss(self.network, parameters, state, x, labels, self.recipe.label_smoothing)
        (self.gradient[models],) = torch.autograd.grad(loss, parameters)

    @torch.no_grad()
    def _update(self) -> None:
        """SGD with momentum, weight decay within the gradient; a model past its last step has learning rate 0."""
        recipe, lr = self.recipe, self.lr.index_select(0, self.step)[0]
        self.gradient.add_(self.parameters, alpha=recipe.weight_decay)
        self.velocity.mul_(recipe.momentum).add_(self.gradient)
        update = self.gradient.add_(self.velocity, alpha=recipe.momentum) if recipe.nesterov else self.velocity
        self.parameters.addcmul_(lr, update, value=-1)


def loss_of(network: Network, parameters: Tensor, state: State, x: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """The sum over K models of each one's mean loss over its batch: parameters (K, P), x (B, K·C, …), labels (K, B).

    Its gradient by the parameters, (K, P), is that of each model's own loss. `state` is moved on.
    """
    logits = network.forward(parameters, state, x, training=True)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=label_smoothing)
    return loss / labels.shape[1]


def augmentation_of(recipe: TrainingSettings, images: Images) -> Augmentation:
    """What the recipe does to a training image; to features nothing, for they have no place and no mirror image."""
    if images.of_features:
        return Augmentation(0, flip=False, cutout=0)
    return Augmentation(recipe.max_shift, recipe.flip, recipe.cutout)


def learning_rates(recipe: TrainingSettings, num_steps: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
    """Learning rate (max steps, K, 1) of K models: linear from 0 to the peak, then linear to 0 after the last step."""
    step, of_each = torch.arange(max(num_steps), dtype=dtype)[:, None] + 1, torch.tensor(num_steps, dtype=dtype)
    peak = of_each * (recipe.peak_epoch / recipe.epochs)
    shape = torch.minimum(step / peak, (of_each + 1 - step) / (of_each + 1 - peak)).clamp(min=0)
    return (recipe.peak_lr * shape)[..., None]
