"""Digests of images as a learner sees them: what a certificate knows its images by, and what a person can compute by hand.

The digest of images (n, …) with labels (n,) is the SHA-256 of one line of text, their type and shape as NumPy writes them, such
as `uint8 (200, 8, 8, 1)`, of the images' bytes in C order, and of the labels' as int64. That of one image is of the array and
the label without their first axis. Of a learner of one's own that shows pictures of its examples, single digests are of these;
digests of all are of the labels alone: what else decides its networks, its provenance must say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from datamodels.learners import Learner
from datamodels.learners.given import pictures_of
from datamodels.learners.recipe import Recipe
from datamodels.subsets import Array
from datamodels.verify.certificate import ImageRecord
from datamodels.verify.known import Examples

IMAGES, PICTURES, LABELS = "images", "pictures", "labels"


def digest_of(images: Array, labels: Array) -> str:
    """SHA-256 of images with their labels, or of one, in hexadecimal."""
    whole = hashlib.sha256(f"{images.dtype} {images.shape}\n".encode())
    whole.update(np.ascontiguousarray(images).data)
    whole.update(np.ascontiguousarray(labels, "<i8").data)
    return whole.hexdigest()


def kind_of(learner: Learner) -> str:
    """What its digests are of."""
    if isinstance(learner, Recipe):
        return IMAGES
    return LABELS if pictures_of(learner, True, [0]) is None else PICTURES


def digest_of_all(learner: Learner, of_train: bool) -> str:
    """The digest of S, or of the targets."""
    labels = np.asarray(learner.train_labels if of_train else learner.test_labels)
    if isinstance(learner, Recipe):
        return digest_of((learner.data.train if of_train else learner.data.test).images.numpy(), labels)
    return digest_of(np.zeros(0, np.uint8), labels)


def image_records(learner: Learner, examples: Examples, of_train: bool, indices: Sequence[int]) -> tuple[ImageRecord, ...]:
    """Some images of S, or some targets, by index, name, label and digest."""
    labels = examples.train_labels if of_train else examples.labels
    shown = _shown(learner, of_train, indices)
    names = [_name(examples, of_train, index) for index in indices]
    return tuple(
        ImageRecord(index, name, int(labels[index]), None if shown is None else digest_of(shown[k], labels[index : index + 1]))
        for k, (index, name) in enumerate(zip(indices, names, strict=True))
    )


def _shown(learner: Learner, of_train: bool, indices: Sequence[int]) -> Array | None:
    if isinstance(learner, Recipe):
        images: Array = (learner.data.train if of_train else learner.data.test).images[list(indices)].numpy()
        return images
    return pictures_of(learner, of_train, indices)


def _name(examples: Examples, of_train: bool, index: int) -> str | None:
    if not of_train:
        return examples.name(index)
    return examples.train_names[index] if examples.train_names else None
