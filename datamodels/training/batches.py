"""The batches of K models, gathered and augmented on the device from images that lie there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodels.data import Dataset
from datamodels.subsets import IndexArray
from datamodels.training.draws import Augmentation, Draws


class Images:
    """A run's images and labels, resident on one device.

    Images are normalised by the mean and standard deviation of each channel over S; a pixel outside an image is then 0, the
    channel's mean. `pixels` (N·padded area, C) are those of S with a margin of `padding` pixels around each image. With
    `channels` there are so many, C, of which those beyond the images' own are 0. `train` and `test` are (n, C, H, W).

    Features (n, d) in the place of images are normalised number by number, as images of one pixel with d channels; `train` and
    `test` are (n, d) then. A channel that is the same everywhere in S is divided by 1.
    """

    def __init__(
        self, data: Dataset, padding: int, device: torch.device, dtype: torch.dtype, channels: int | None = None
    ) -> None:
        self.of_features = data.train.images.ndim == 2
        own, of_test = (_as_images(split.images) for split in (data.train, data.test))
        self.n, self.height, self.width, self.channels = own.shape
        padding = 0 if self.of_features else padding
        mean, std = _spread(own)

        def normalised(images: Tensor) -> Tensor:
            found = ((images.to(torch.float64) - mean) / std).to(dtype)
            return F.pad(found, (0, 0 if channels is None else channels - found.shape[-1])).to(device)

        padded = F.pad(normalised(own), (0, 0, padding, padding, padding, padding))
        self.padded_width = self.width + 2 * padding
        self.padded_area = self.padded_width * (self.height + 2 * padding)
        self.train = padded[:, padding : padding + self.height, padding : padding + self.width].permute(0, 3, 1, 2)
        self.pixels = padded.reshape(-1, padded.shape[-1]).contiguous()
        self.labels = data.train.labels.to(device)
        self.test = normalised(of_test).permute(0, 3, 1, 2)
        if self.of_features:
            self.train, self.test = self.train.flatten(1), self.test.flatten(1)
        self.test_labels = data.test.labels.to(device)


def _as_images(images: Tensor) -> Tensor:
    """(n, H, W, C) of images, or of features (n, d) as images of one pixel."""
    return images[:, None, None, :] if images.ndim == 2 else images


def _spread(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of each channel, which is 1 where a channel has but one value."""
    pixels, dims = images.to(torch.float64), (0, 1, 2)
    std = pixels.std(dims, correction=0)
    return pixels.mean(dims), torch.where(pixels.amax(dims) > pixels.amin(dims), std, 1.0)


class Batches:
    """The batches of K models as their draws want them; of features, `augmentation` does nothing.

    `labels` (K, N) are each model's own labels of S; without them all learn those that the images have.
    """

    def __init__(
        self, draws: Sequence[Draws], images: Images, augmentation: Augmentation, labels: IndexArray | None = None
    ) -> None:
        self.images, self.side = images, augmentation.cutout
        self.labels = None if labels is None else torch.from_numpy(labels).to(images.labels.device)
        device, steps = images.labels.device, max(len(d.image) for d in draws)

        def stacked(name: str) -> Tensor:
            """(steps, B, K); a model that is done goes over its last batch again, to no effect."""
            arrays = [getattr(d, name) for d in draws]
            rows = [a if len(a) == steps else a[np.minimum(np.arange(steps), len(a) - 1)] for a in arrays]
            return torch.from_numpy(np.stack(rows)).to(device).permute(1, 2, 0).contiguous()

        self.image, self.dy, self.dx = stacked("image"), stacked("dy"), stacked("dx")
        self.flip = stacked("flip") if augmentation.flip else None
        self.cut = (stacked("cut_y"), stacked("cut_x")) if augmentation.cutout else None
        self.rows = torch.arange(images.height, device=device)[:, None, None]
        self.columns = torch.arange(images.width, device=device)[None, :, None]

    def at(self, step: Tensor, models: slice) -> tuple[Tensor, Tensor]:
        """One step's batch for K' of the models: x (B, K'·C, H, W) in channels_last, or features (B, K'·d), labels (K', B).

        `step` is the number of the step as a tensor (1,) on the device: a CUDA graph reads it anew at each replay.
        """

        def now(drawn: Tensor) -> Tensor:
            return drawn.index_select(0, step)[0, :, models]

        images, image = self.images, now(self.image).long()
        labels = images.labels[image].T if self.labels is None else self.labels[models].gather(1, image.T)
        if images.of_features:
            return images.pixels.index_select(0, image.flatten()).view(len(image), -1), labels
        # Bytes would overflow: a shift of 4 rows of 36 pixels is past 127 already.
        corner = image * images.padded_area + now(self.dy).long() * images.padded_width + now(self.dx)
        columns = self.columns
        if self.flip is not None:
            columns = torch.where(now(self.flip)[:, None, None, :], images.width - 1 - columns, columns)
        where = corner[:, None, None, :] + (self.rows * images.padded_width + columns)
        x = images.pixels.index_select(0, where.flatten()).view(*where.shape, -1)
        if self.cut is not None:
            top, left = (now(cut)[:, None, None, :] for cut in self.cut)
            inside_rows = (self.rows >= top) & (self.rows < top + self.side)
            inside = inside_rows & (self.columns >= left) & (self.columns < left + self.side)
            x = x.masked_fill(inside[..., None], 0)
        return x.flatten(3).permute(0, 3, 1, 2), labels
