"""Train K models at once on one device, each on its own subset, and measure their margins.

Model k of a group gets its own mask, initialisation, batch order and augmentation, all from its own key; the others of the
group change nothing but the rounding. See `resnet9` for how they share one program, `draws` for what is random, `group` for the
training itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodels.data import Dataset
from datamodels.errors import InputError
from datamodels.progress import say
from datamodels.settings import TrainingSettings
from datamodels.subsets import BoolArray, IndexArray
from datamodels.training.batches import Images
from datamodels.training.devices import made_current
from datamodels.training.draws import Key, second_key
from datamodels.training.group import Group
from datamodels.training.resnet9 import BatchNormStatistics, ResNet9

FloatArray = npt.NDArray[np.float32]
Outputs = dict[str, FloatArray]

EVALUATION_BATCH = 500
# The largest margin that a float16 store can hold; a trained network's are below a hundred.
LARGEST_MARGIN = float(np.finfo(np.float16).max)


class Trainer:
    """The data of one run, resident on one device, and the recipe that all models on it are trained by.

    `per_kernel` models of a group share each grouped convolution, all of them when it is None. `dtype` float64 is for tests of
    what must not change; otherwise parameters are float32 and activations of the recipe's `precision`.
    """

    def __init__(
        self,
        data: Dataset,
        recipe: TrainingSettings,
        device: torch.device,
        per_kernel: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.recipe, self.device, self.per_kernel = recipe, device, per_kernel
        self.at_once: int | None = None
        activations = torch.bfloat16 if recipe.precision == "bfloat16" and dtype == torch.float32 else dtype
        self.images = Images(data, recipe.max_shift, device, activations)
        side = min(self.images.height, self.images.width)
        if recipe.cutout > side:
            raise InputError(f"training.cutout is {recipe.cutout}, and images of {side} pixels have no room for such a square")
        self.n, self.classes = self.images.n, len(data.class_names)
        self.network = ResNet9(self.images.channels, self.classes, recipe.width, recipe.last_padding)

    def margins(self, masks: BoolArray, keys: Sequence[Key]) -> FloatArray:
        """Margins on all targets, float32 (K, T), of K models trained on `masks`, bool (K, N), with `keys`; see `outputs`."""
        return self.outputs(masks, keys)["margins"]

    def outputs(self, masks: BoolArray, keys: Sequence[Key], labels: IndexArray | None = None) -> Outputs:
        """What K models trained on `masks`, bool (K, N), with `keys` say: margins (K, T) and logits (K, T, classes), float32.

        `labels` (K, N) are what each of them is told of S, where that differs from the images' own labels.

        A model with a margin that is not finite, or beyond float16, has diverged: it is trained once more, with a key that
        follows from its own, and when that diverges too its row is NaN. Out of memory on a GPU, half as many models are trained
        at once from then on. Raises InputError when even one does not fit.
        """
        outputs = self._outputs(masks, keys, labels)
        again = np.flatnonzero(_diverged(outputs["margins"])).tolist()
        if again:
            other = [second_key(keys[k]) for k in again]
            second = self._outputs(masks[again], other, None if labels is None else labels[again])
            second["margins"][_diverged(second["margins"])] = np.nan
            for name, rows in second.items():
                outputs[name][again] = rows
        return outputs

    def train(
        self, masks: BoolArray, keys: Sequence[Key], labels: IndexArray | None = None
    ) -> tuple[Tensor, BatchNormStatistics]:
        """Parameters (K, P) and running statistics of K trained models; their subsets may differ in size."""
        return self.group(masks, keys, labels).train()

    def group(self, masks: BoolArray, keys: Sequence[Key], labels: IndexArray | None = None) -> Group:
        """K models before their first step."""
        return Group(self.network, self.recipe, self.images, masks, keys, self.per_kernel or len(keys), labels)

    def similarity(self, masks: BoolArray, keys: Sequence[Key], targets: Sequence[int]) -> Outputs:
        """Of K models trained on `masks` with `keys`: similarity (len(targets), N) and logits (T, classes), means over models.

        Similarity is the cosine of what the last layer sees of a target and of a training image.
        """
        with made_current(self.device):
            trained = self.train(masks, keys)
            logits = self.test_logits(*trained).mean(0)
            of_targets = self.images.test[torch.as_tensor(targets, device=self.device)]
            ours, theirs = (self.features(*trained, images) for images in (of_targets, self.images.train))
            similarity = torch.bmm(ours, theirs.transpose(1, 2)).mean(0)
        return {"similarity": similarity.float().cpu().numpy(), "logits": logits.float().cpu().numpy()}

    @torch.no_grad()
    def features(self, parameters: Tensor, statistics: BatchNormStatistics, images: Tensor) -> Tensor:
        """Features (K, B, 2·width) of images (B, C, H, W), of length 1 each."""
        k, features = len(parameters), []
        for part in torch.split(images, EVALUATION_BATCH):
            found = self.network.features(parameters, statistics, _for_each(part, k), training=False)
            features.append(F.normalize(found.float(), dim=2))
        return torch.cat(features, 1)

    @torch.no_grad()
    def test_logits(self, parameters: Tensor, statistics: BatchNormStatistics) -> Tensor:
        """Logits (K, T, classes) on all targets, averaged over an image and its mirror image where the recipe flips."""
        k, size = len(parameters), self.per_kernel or len(parameters)
        parts = [slice(first, min(first + size, k)) for first in range(0, k, size)]
        return torch.cat([self._part_logits(parameters[part], statistics.of(part, k)) for part in parts])

    def test_margins(self, parameters: Tensor, statistics: BatchNormStatistics) -> Tensor:
        """Margins (K, T) on all targets: the logit of the right class less the largest other one."""
        return margin(self.test_logits(parameters, statistics), self.images.test_labels)

    def no_room(self) -> InputError:
        """The error to raise where not even one model fits."""
        return InputError(f"{self.device} has too little memory for one model of width {self.recipe.width}")

    def _part_logits(self, parameters: Tensor, statistics: BatchNormStatistics) -> Tensor:
        k, logits = len(parameters), []
        for images in torch.split(self.images.test, EVALUATION_BATCH):
            views = [images, images.flip(3)] if self.recipe.flip else [images]
            of_views = [self.network.forward(parameters, statistics, _for_each(v, k), training=False) for v in views]
            logits.append(torch.stack(of_views).mean(0))
        return torch.cat(logits, 1)

    def _outputs(self, masks: BoolArray, keys: Sequence[Key], labels: IndexArray | None) -> Outputs:
        """As `outputs`, of one training each, with as many models at once as the device has taken so far."""
        parts: list[Outputs] = []
        done = 0
        while done < len(keys):
            part = slice(done, done + (self.at_once or len(keys)))
            rows = self._group_outputs(masks[part], keys[part], None if labels is None else labels[part])
            if rows is None:
                self._halve(len(keys[part]))
                continue
            parts.append(rows)
            done += len(rows["margins"])
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _group_outputs(self, masks: BoolArray, keys: Sequence[Key], labels: IndexArray | None) -> Outputs | None:
        """Outputs of one group, or None where the device has not the memory for it."""
        try:
            with made_current(self.device):
                logits = self.test_logits(*self.train(masks, keys, labels))
                margins = margin(logits, self.images.test_labels)
                return {"margins": margins.float().cpu().numpy(), "logits": logits.float().cpu().numpy()}
        except torch.OutOfMemoryError:
            return None

    def _halve(self, at_once: int) -> None:
        """Go on with half as many models. The failed group is gone by now; what it held is given back first."""
        if at_once == 1:
            raise self.no_room()
        self.at_once = at_once // 2
        say(f"out of memory on {self.device} with {at_once} models at once: going on with {self.at_once}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Correct-class logit less the largest other logit: (…, T, classes) and (T,) to (…, T), in logits."""
    right = F.one_hot(labels, logits.shape[-1]).bool().expand_as(logits)
    correct = logits.masked_fill(~right, 0).sum(-1)
    return correct - logits.masked_fill(right, -torch.inf).amax(-1)


def _diverged(margins: FloatArray) -> BoolArray:
    """Which models, bool (K,), have a margin that is NaN, infinite or too large to be one."""
    return np.asarray(~(np.abs(margins) <= LARGEST_MARGIN).all(1))


def _for_each(images: Tensor, k: int) -> Tensor:
    """The same images (B, C, H, W) for each of K models: (B, K·C, H, W) in channels_last."""
    b, c, h, w = images.shape
    return images.permute(0, 2, 3, 1)[:, :, :, None].expand(b, h, w, k, c).reshape(b, h, w, k * c).permute(0, 3, 1, 2)
