"""Train K models at once on one device, each on its own subset, and measure their margins.

Model k of a group gets its own mask, initialisation, batch order and augmentation, all from its own key; the others of the
group change nothing but the rounding. See `resnet9` for how they share one program, `draws` for what is random.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodels.data import Dataset
from datamodels.settings import TrainingSettings
from datamodels.subsets import BoolArray
from datamodels.training.draws import INITIALISATION, Augmentation, Draws, Key, draw, generator
from datamodels.training.resnet9 import BatchNormStatistics, ResNet9

FloatArray = npt.NDArray[np.float32]

EVALUATION_BATCH = 500


class Trainer:
    """The data of one run, resident on one device, and the recipe that all models on it are trained by.

    Images are normalised by the mean and standard deviation of each channel over S; a pixel outside an image is then 0, the
    channel's mean.
    """

    def __init__(
        self, data: Dataset, recipe: TrainingSettings, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.recipe, self.device, self.dtype = recipe, device, dtype
        n, self.height, self.width, channels = data.train.images.shape
        self.n, self.classes = n, len(data.class_names)
        self.network = ResNet9(channels, self.classes, recipe.width, recipe.last_padding)
        self.augmentation = Augmentation(recipe.max_shift, recipe.flip, recipe.cutout)
        pixels = data.train.images.to(torch.float64)
        mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2), correction=0)

        def normalised(images: Tensor) -> Tensor:
            return ((images.to(torch.float64) - mean) / std).to(dtype).to(device)

        pad = recipe.max_shift
        padded = F.pad(normalised(data.train.images), (0, 0, pad, pad, pad, pad))
        self.padded_width, self.padded_area = self.width + 2 * pad, (self.width + 2 * pad) * (self.height + 2 * pad)
        self.pixels = padded.reshape(-1, channels).contiguous()
        self.labels = data.train.labels.to(device)
        self.test_images = normalised(data.test.images).permute(0, 3, 1, 2)
        self.test_labels = data.test.labels.to(device)

    def margins(self, masks: BoolArray, keys: Sequence[Key]) -> FloatArray:
        """Margins on all targets, float32 (K, T), of K models trained on `masks`, bool (K, N), with `keys`."""
        return self.test_margins(*self.train(masks, keys)).to(torch.float32).cpu().numpy()

    def train(self, masks: BoolArray, keys: Sequence[Key]) -> tuple[Tensor, BatchNormStatistics]:
        """Parameters (K, P) and running statistics of K trained models.

        The subsets may differ in size: each model has its own number of steps and its own learning rate at each of them.
        What a model is at its last step is set aside, and the group goes on until its largest subset is done.
        """
        recipe, k = self.recipe, len(keys)
        draws = [self._draw(key, mask) for key, mask in zip(keys, masks, strict=True)]
        steps = torch.tensor([len(d.image) for d in draws], device=self.device)
        batches = _Batches(draws, self)
        start = np.stack([self.network.initial_parameters(generator(key, INITIALISATION)) for key in keys])
        parameters = torch.from_numpy(start).to(self.device, self.dtype).requires_grad_()
        velocity = torch.zeros_like(parameters)
        statistics = self.network.initial_statistics(k, self.device, self.dtype)
        lr = self._learning_rates(steps)
        ends = {len(d.image) for d in draws}
        final, final_statistics = parameters.detach().clone(), self.network.initial_statistics(k, self.device, self.dtype)
        for step in range(max(ends)):
            gradient = self.gradient(parameters, statistics, *batches[step])
            with torch.no_grad():
                gradient.add_(parameters, alpha=recipe.weight_decay)
                velocity.mul_(recipe.momentum).add_(gradient)
                update = gradient.add_(velocity, alpha=recipe.momentum) if recipe.nesterov else velocity
                parameters.addcmul_(lr[step], update, value=-1)
                if step + 1 in ends:
                    done = steps == step + 1
                    torch.where(done[:, None], parameters, final, out=final)
                    final_statistics.keep(statistics, done)
        return final, final_statistics

    def gradient(self, parameters: Tensor, statistics: BatchNormStatistics, x: Tensor, labels: Tensor) -> Tensor:
        """Gradient (K, P) of each model's mean loss over its batch: x (B, K·C, H, W), labels (K, B)."""
        logits = self.network.forward(parameters, statistics, x, training=True)
        loss = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=self.recipe.label_smoothing
        )
        (gradient,) = torch.autograd.grad(loss / labels.shape[1], parameters)
        return gradient

    @torch.no_grad()
    def test_logits(self, parameters: Tensor, statistics: BatchNormStatistics) -> Tensor:
        """Logits (K, T, classes) on all targets, averaged over an image and its mirror image where the recipe flips."""
        k = len(parameters)
        parts = []
        for images in torch.split(self.test_images, EVALUATION_BATCH):
            views = [images, images.flip(3)] if self.recipe.flip else [images]
            logits = [self.network.forward(parameters, statistics, _for_each(v, k), training=False) for v in views]
            parts.append(torch.stack(logits).mean(0))
        return torch.cat(parts, 1)

    def test_margins(self, parameters: Tensor, statistics: BatchNormStatistics) -> Tensor:
        """Margins (K, T) on all targets: the logit of the right class less the largest other one."""
        return margin(self.test_logits(parameters, statistics), self.test_labels)

    def _draw(self, key: Key, mask: BoolArray) -> Draws:
        recipe = self.recipe
        return draw(key, mask, recipe.batch_size, recipe.epochs, self.augmentation, self.height, self.width)

    def _learning_rates(self, steps: Tensor) -> Tensor:
        """Learning rate (max steps, K, 1) of each model: linear from 0 to the peak, then linear to 0 after its last step."""
        step = torch.arange(int(steps.max()), device=self.device, dtype=self.dtype)[:, None] + 1
        peak = steps * (self.recipe.peak_epoch / self.recipe.epochs)
        shape = torch.minimum(step / peak, (steps + 1 - step) / (steps + 1 - peak)).clamp(min=0)
        return (self.recipe.peak_lr * shape)[..., None]


class _Batches:
    """The batches of K models, gathered and augmented on the device from the resident pixels."""

    def __init__(self, draws: Sequence[Draws], trainer: Trainer) -> None:
        self.trainer = trainer
        steps = max(len(d.image) for d in draws)

        def stacked(name: str) -> Tensor:
            """(steps, B, K); a model that is done goes over its last batch again, to no effect."""
            arrays = [getattr(d, name) for d in draws]
            rows = [a[np.minimum(np.arange(steps), len(a) - 1)] for a in arrays]
            return torch.from_numpy(np.stack(rows, -1)).to(trainer.device)

        image, width = stacked("image"), trainer.padded_width
        self.corner = image.long() * trainer.padded_area + stacked("dy").long() * width + stacked("dx").long()
        self.image = image
        self.flip = stacked("flip") if trainer.augmentation.flip else None
        self.cut = (stacked("cut_y"), stacked("cut_x")) if trainer.augmentation.cutout else None
        self.rows = torch.arange(trainer.height, device=trainer.device)[:, None, None]
        self.columns = torch.arange(trainer.width, device=trainer.device)[None, :, None]

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Batch of one step: x (B, K·C, H, W) in channels_last, labels (K, B)."""
        trainer, corner = self.trainer, self.corner[step][:, None, None, :]
        columns = self.columns
        if self.flip is not None:
            columns = torch.where(self.flip[step][:, None, None, :], trainer.width - 1 - columns, columns)
        where = corner + (self.rows * trainer.padded_width + columns)
        x = trainer.pixels.index_select(0, where.flatten()).view(*where.shape, -1)
        if self.cut is not None:
            x = x.masked_fill(self._cut_out(step)[..., None], 0)
        x = x.flatten(3).permute(0, 3, 1, 2)
        return x, trainer.labels[self.image[step].long()].T

    def _cut_out(self, step: int) -> Tensor:
        """True, (B, H, W, K), where a pixel lies in its image's cut-out square."""
        assert self.cut is not None
        side = self.trainer.augmentation.cutout
        top, left = (cut[step][:, None, None, :] for cut in self.cut)
        inside_rows = (self.rows >= top) & (self.rows < top + side)
        return inside_rows & (self.columns >= left) & (self.columns < left + side)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Correct-class logit less the largest other logit: (…, T, classes) and (T,) to (…, T), in logits."""
    right = F.one_hot(labels, logits.shape[-1]).bool().expand_as(logits)
    correct = logits.masked_fill(~right, 0).sum(-1)
    return correct - logits.masked_fill(right, -torch.inf).amax(-1)


def _for_each(images: Tensor, k: int) -> Tensor:
    """The same images (B, C, H, W) for each of K models: (B, K·C, H, W) in channels_last."""
    b, c, h, w = images.shape
    return images.permute(0, 2, 3, 1)[:, :, :, None].expand(b, h, w, k, c).reshape(b, h, w, k * c).permute(0, 3, 1, 2)
