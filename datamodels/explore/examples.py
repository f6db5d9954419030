"""What a run's examples are called, of which classes they are, and what they look like."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from datamodels.data.files import look
from datamodels.errors import InputError, shown
from datamodels.learners import Learner
from datamodels.learners.given import pictures_of
from datamodels.learners.recipe import Recipe
from datamodels.settings import parse
from datamodels.store import Meta
from datamodels.subsets import Array, IndexArray
from datamodels.verify.known import Examples
from datamodels.worker import engine_of

SIDE = 64
"""Pixels of a picture's longer side in a notebook, at least."""


class Shown:
    """The examples of a run, as far as they are known: without a learner they have but their indices."""

    def __init__(self, learner: Learner | None, n: int, t: int) -> None:
        self.learner, self.n, self.t = learner, n, t

    @cached_property
    def _examples(self) -> Examples | None:
        return None if self.learner is None else Examples(self.learner)

    def labels(self, of_train: bool) -> IndexArray:
        """Classes of the training examples (N,), or of the targets (T,); -1 where they are not known."""
        if self._examples is None:
            return np.full(self.n if of_train else self.t, -1)
        return self._examples.train_labels if of_train else self._examples.labels

    def class_name(self, label: int) -> str | None:
        """What a class is called, by its name or its number; None where it is not known."""
        if label < 0:
            return None
        return shown(self._examples.class_name(label), 80) if self._examples is not None else str(label)

    def name(self, of_train: bool, index: int) -> str | None:
        """What an example is called, a training image that is a target too by `train:` before its own; None for an index."""
        if self._examples is None:
            return None
        if of_train:
            names = self._examples.train_names
            return shown(names[index], 80) if names else None
        found = self._examples.name(index)
        return None if found is None else shown(found, 80)

    def pictures(self, of_train: bool, indices: Sequence[int]) -> Array | None:
        """Pictures uint8 (len(indices), H, W, 1 or 3); None where there are none."""
        return None if self.learner is None else pictures_of(self.learner, of_train, list(indices))


def examples_of(folder: Path, meta: Meta, config: Path | str | None) -> Shown:
    """The examples of a run: those of the learner that a config describes, or of the images that lie in the run's folder.

    Raises InputError where these are others than those of the store.
    """
    learner: Learner | None = None
    if config is not None:
        settings, _ = parse(["-C", str(config), "--run.dir", str(folder)])
        learner = engine_of(settings, "cpu").learner
    elif (folder / "data").exists():
        chosen = meta.provenance.get("train_targets", [])
        if not isinstance(chosen, list) or not all(isinstance(image, int) for image in chosen):
            raise InputError(f"{folder / 'store'} tells of targets that are no training images")
        data = look(folder / "data", tuple(chosen))
        if data.digest != meta.provenance.get("data_digest", data.digest):
            raise InputError(f"the images in {folder / 'data'} are not those that the models of {folder / 'store'} are of")
        learner = Recipe(parse([])[0], data, "cpu")
    if learner is not None and (len(learner.train_labels), len(learner.test_labels)) != (meta.num_train, meta.num_targets):
        have = f"{len(learner.train_labels)} training examples and {len(learner.test_labels)} targets"
        told = f"the store has {meta.num_train} and {meta.num_targets}"
        raise InputError(f"{folder} has {have}, and {told}")
    return Shown(learner, meta.num_train, meta.num_targets)


def as_html(picture: Array, alt: str) -> str:
    """A picture uint8 (H, W, 1 or 3) as an HTML image with its PNG inside, small ones enlarged without smoothing."""
    pixels = picture[..., 0] if picture.shape[-1] == 1 else picture
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "png")
    source = base64.b64encode(buffer.getvalue()).decode("ascii")
    width = max(picture.shape[1], round(SIDE * picture.shape[1] / max(picture.shape[:2])))
    style = "image-rendering: pixelated; display: block; flex: none"
    return f'<img src="data:image/png;base64,{source}" width="{width}" alt="{html.escape(alt)}" style="{style}">'
