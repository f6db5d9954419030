"""The loop that this package is there to beat: one model at a time, as one would write it with PyTorch and FFCV.

The same network, recipe and margins as `datamodels.training`, from PyTorch's own modules and optimiser. Its batches come from
FFCV's Loader with FFCV's augmentations, or from the images on the device, gathered and augmented as for the groups.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodels.data import Dataset, beton
from datamodels.machine import cores
from datamodels.subsets import IndexArray
from datamodels.training import Trainer
from datamodels.training.batches import Batches
from datamodels.training.draws import SharedDraws
from datamodels.training.group import learning_rates
from datamodels.training.margins import margin
from datamodels.training.models import EVALUATION_BATCH

Batch = tuple[Tensor, Tensor]
Feed = Callable[[IndexArray], Generator[Batch, None, None]]


class Loop:
    """One model in training. `batches` yields (images, labels) on the device for as long as it is asked."""

    def __init__(self, trainer: Trainer, subset: IndexArray, batches: Generator[Batch, None, None]) -> None:
        self.trainer, self.batches, recipe = trainer, batches, trainer.recipe
        self.network = trainer.network.as_module().to(trainer.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = torch.optim.SGD(
            self.network.parameters(), 1.0, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
        )
        self.num_steps = trainer.num_steps(len(subset))
        self.lr = learning_rates(recipe, [self.num_steps])[:, 0, 0].tolist()

    def advance(self, step: int) -> None:
        """One step."""
        x, labels = next(self.batches)
        self.optimiser.param_groups[0]["lr"] = self.lr[step % self.num_steps]
        self.optimiser.zero_grad(set_to_none=True)
        with self._precision():
            loss = F.cross_entropy(self.network(x).float(), labels, label_smoothing=self.trainer.recipe.label_smoothing)
        torch.autograd.backward(loss)
        self.optimiser.step()

    @torch.no_grad()
    def margins(self) -> Tensor:
        """Margins (T,) on all targets."""
        self.network.eval()
        logits, images = [], self.trainer.images
        with self._precision():
            for x in torch.split(images.test, EVALUATION_BATCH):
                views = [x, x.flip(3)] if self.trainer.augmentation.flip else [x]
                logits.append(torch.stack([self.network(view).float() for view in views]).mean(0))
        return margin(torch.cat(logits), images.test_labels)

    def _precision(self) -> AbstractContextManager[Any]:
        half = self.trainer.images.pixels.dtype == torch.bfloat16
        return torch.autocast(self.trainer.device.type, torch.bfloat16) if half else nullcontext()


def resident_batches(trainer: Trainer, subset: IndexArray) -> Generator[Batch, None, None]:
    """Batches from the images on the device, again and again through one model's draws."""
    (drawn,) = trainer.draws(np.isin(np.arange(trainer.n), subset)[None], [(0, 0)])
    if trainer.shares_batches:
        yield from _rows_it_sees(trainer, drawn)
    batches = Batches([drawn], trainer.images, trainer.augmentation)
    steps = torch.arange(len(drawn.image), device=trainer.device)
    while True:
        for step in range(len(drawn.image)):
            x, labels = batches.at(steps[step : step + 1], slice(0, 1))
            yield x, labels[0]


def _rows_it_sees(trainer: Trainer, drawn: SharedDraws) -> Generator[Batch, None, None]:
    """Of each batch of S what the model's mask has: which it is was found out before anything is timed."""
    rows = [torch.from_numpy(image[drawn.mask[image]]).to(trainer.device) for image in drawn.image]
    while True:
        for its in rows:
            yield trainer.images.train.index_select(0, its), trainer.images.labels.index_select(0, its)


def ffcv_batches(path: Path, trainer: Trainer, data: Dataset) -> Feed:
    """Batches from FFCV's Loader, as its own examples build it; FFCV compiles here, before anything is timed."""
    with beton.torch_threads_kept():
        from ffcv.loader import OrderOption

        pixels = data.train.images.to(torch.float64)
        mean, std = (t.to(trainer.device, torch.float32) for t in (pixels.mean((0, 1, 2)), pixels.std((0, 1, 2), correction=0)))
        augmentation = _ffcv_augmentation(trainer, pixels) if pixels.shape[3] == 3 else []

        def batches(subset: IndexArray) -> Generator[Batch, None, None]:
            batch_size = min(trainer.recipe.batch_size, len(subset))
            options = {"indices": subset, "order": OrderOption.RANDOM, "drop_last": True}
            with beton.torch_threads_kept():
                loader = beton.loader(path, batch_size, max(1, cores() - 1), augmentation, **options)
            while True:
                with closing(_leaving_nothing(iter(loader))) as epoch:
                    for images, labels, _ in epoch:
                        x = (images.to(trainer.device, non_blocking=True).float() - mean) / std
                        yield x.permute(0, 3, 1, 2), labels.flatten().to(trainer.device).long()

        with closing(batches(np.arange(min(trainer.recipe.batch_size, trainer.n)))) as compiled:
            next(compiled)
    return batches


def _ffcv_augmentation(trainer: Trainer, pixels: Tensor) -> list[Any]:
    from ffcv.transforms import Cutout, RandomHorizontalFlip, RandomTranslate

    recipe, fill = trainer.recipe, tuple(int(v) for v in pixels.mean((0, 1, 2)).round())
    return [
        *([RandomHorizontalFlip()] if recipe.flip else []),
        *([RandomTranslate(padding=recipe.max_shift, fill=fill)] if recipe.max_shift else []),
        *([Cutout(recipe.cutout, fill)] if recipe.cutout else []),
    ]


def _leaving_nothing(epoch: Any) -> Generator[Any, None, None]:
    """An epoch of FFCV's that can be left early: its threads would otherwise stay."""
    try:
        yield from epoch
    finally:
        epoch.close()
        epoch.join()
