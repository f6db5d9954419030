"""What verification needs to know of a run's models, whoever trains them: labels, and how models are trained on given masks."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import softmax

from datamodels.data import Dataset
from datamodels.errors import InputError
from datamodels.progress import say
from datamodels.runs import groups_of, read_store, stage_folder
from datamodels.settings import Settings
from datamodels.store import ArraySpec, Store
from datamodels.store.layout import Array
from datamodels.subsets import BoolArray, IndexArray, pack
from datamodels.training import Trainer, attribute, for_each_group
from datamodels.worker.blocks import SideBySide, in_turn
from datamodels.worker.own import FunctionError, as_array, call, own_function

# Retrained models of one's own get numbers from here on; those of a store are below.
FIRST_RETRAINED = 2**31
FORMAT = 2
"""Of the store of retrained models: what its rows hold beside margins."""


class Request(NamedTuple):
    """One model to be trained: the packed mask of S∖R, its repetition number, and what becomes of R.

    R is left out, or, where `relabelled` is a class and not -1, stays in under that label.
    """

    packed: bytes
    repetition: int
    relabelled: int = -1

    @classmethod
    def of(cls, mask: BoolArray, repetition: int, relabelled: int = -1) -> Request:
        """The request for a mask, bool (N,)."""
        return cls(pack(mask).tobytes(), repetition, relabelled)

    def key(self, seed: int) -> tuple[int, ...]:
        """The model's key: the seed, 64 bits of the mask's SHA-256, the repetition, and 1 + the label if R is relabelled."""
        digest = np.frombuffer(hashlib.sha256(self.packed).digest()[:8], "<u4")
        return (seed, *digest.tolist(), self.repetition, *([self.relabelled + 1] if self.relabelled >= 0 else []))

    def number(self, seed: int) -> int:
        """The model's number for a training function of one's own, 2³¹ … 2³²-1: 31 bits of its key's SHA-256."""
        digest = hashlib.sha256(np.array(self.key(seed), "<u8").tobytes()).digest()
        return FIRST_RETRAINED + int.from_bytes(digest[:4], "little") % FIRST_RETRAINED


Train = Callable[[BoolArray, Sequence[Request]], dict[str, Array]]
Describe = Callable[[Sequence[Request], Sequence[int]], dict[str, Array]]
Attribute = Callable[[str, Sequence[Request], Sequence[int]], Array]


@dataclass(frozen=True)
class Subject:
    """The models of a run.

    `train_labels` (N,) and `test_labels` (T,) are classes; where they are not known all are -1. `provenance` decides a
    retrained model, up to its rounding. `train` gives `margins` and `confidence`, (K, T) each, of K ≤ `models_at_once` models
    on masks, bool (K, N). `describe` trains models too, and gives means over them: `logits` (T, classes), and `similarity`
    (targets, N) of some targets to the training images. `attribute` gives scores (N, targets) by one of dattri's methods, from
    models trained likewise. Both are None where models are one's own.
    """

    train_labels: IndexArray
    test_labels: IndexArray
    provenance: dict[str, Any]
    models_at_once: int
    train: Train
    side_by_side: SideBySide
    describe: Describe | None = None
    attribute: Attribute | None = None


def built_in_subject(settings: Settings, data: Dataset, device: torch.device) -> Subject:
    """Models of this package, in groups as large as those of the run's store.

    Raises InputError when that was made from other images.
    """
    store = read_store(settings)
    if store.meta.provenance["data_digest"] != data.digest:
        images = stage_folder(settings, "data")
        raise InputError(f"the models in {store.folder} were trained on other images than those in {images}")
    groups, seed = groups_of(store.meta), settings.verify.seed

    @functools.cache
    def trainer() -> Trainer:
        return Trainer(data, settings.training, device, groups.models_per_kernel, program=groups.program)

    own_labels = data.train.labels.numpy()

    def train(masks: BoolArray, requests: Sequence[Request]) -> dict[str, Array]:
        to = np.array([request.relabelled for request in requests])[:, None]
        keys, labels = [request.key(seed) for request in requests], None
        if (to >= 0).any():
            labels, masks = np.where(masks | (to < 0), own_labels, to), masks | (to >= 0)
        outputs = trainer().outputs(masks, keys, labels)
        chances = softmax(outputs["logits"].astype(np.float64), axis=2)
        confidence = np.take_along_axis(chances, data.test.labels.numpy()[None, :, None], axis=2)[..., 0]
        return {"margins": outputs["margins"], "confidence": confidence.astype(np.float16)}

    def side_by_side(blocks: Sequence[int], work: Callable[[int], None]) -> None:
        trainer()  # before several threads ask for it
        for_each_group(blocks, work, device)

    def describe(requests: Sequence[Request], targets: Sequence[int]) -> dict[str, Array]:
        parts = [requests[k : k + groups.models_at_once] for k in range(0, len(requests), groups.models_at_once)]
        found: dict[int, dict[str, Array]] = {}

        def work(number: int) -> None:
            keys = [request.key(seed) for request in parts[number]]
            found[number] = trainer().similarity(np.ones((len(keys), len(own_labels)), bool), keys, targets)

        side_by_side(range(len(parts)), work)
        sizes = [len(part) for part in parts]
        return {name: np.average([found[k][name] for k in range(len(parts))], 0, sizes) for name in found[0]}

    def by_library(method: str, requests: Sequence[Request], targets: Sequence[int]) -> Array:
        keys = [request.key(seed) for request in requests]
        return attribute(trainer(), method, np.ones((len(keys), len(own_labels)), bool), keys, targets)

    return Subject(
        data.train.labels.numpy(),
        data.test.labels.numpy(),
        {"training": dataclasses.asdict(settings.training), "seed": seed, "data_digest": data.digest, "format": FORMAT},
        groups.models_at_once,
        train,
        side_by_side,
        describe,
        by_library,
    )


def own_subject(settings: Settings) -> Subject:
    """Models of one's own. Labels are read from `train_labels` and `test_labels` in the function's module, where it has them.

    Raises InputError when there is no such function, or labels are not as many as the examples.
    """
    main, seed = own_function(settings.worker.main), settings.verify.seed
    meta = read_store(settings).meta
    n, targets = meta.num_train, meta.num_targets
    specs = {**meta.arrays, "margins": ArraySpec("float32", (targets,))}

    def one(request: Request, mask: BoolArray) -> Array:
        try:
            margins = call(main, request.number(seed), mask, specs)["margins"]
        except FunctionError as e:
            # The first models are on all of S: where not even these can be trained, it is not the subset.
            if not (done or any_finite(stage_folder(settings, "verify") / "store")):
                raise InputError(f"the first model of the verification could not be trained: {e}") from e
            if not failed:
                say(f"verify: a model could not be trained, and does not count, nor do others of its kind: {e}")
            failed.append(request)
            return np.full(targets, np.nan, np.float32)
        done.append(request)
        return margins

    done: list[Request] = []
    failed: list[Request] = []

    def train(masks: BoolArray, requests: Sequence[Request]) -> dict[str, Array]:
        margins = np.stack([one(request, mask) for request, mask in zip(requests, masks, strict=True)])
        return {"margins": margins, "confidence": np.full(margins.shape, np.nan, np.float16)}

    module = sys.modules[settings.worker.main.partition(":")[0]]
    train_labels, test_labels = _labels(module, "train_labels", n), _labels(module, "test_labels", targets)
    if (train_labels is None) != (test_labels is None):
        there, lacking = ("train", "test") if test_labels is None else ("test", "train")
        raise InputError(f"{module.__name__} has {there}_labels and no {lacking}_labels; give both, or neither")
    if train_labels is None or test_labels is None:
        train_labels, test_labels = np.full(n, -1), np.full(targets, -1)
    provenance = {"worker": {"main": settings.worker.main}, "seed": seed, "format": FORMAT}
    return Subject(train_labels, test_labels, provenance, 1, train, in_turn)


def any_finite(folder: Path) -> bool:
    """Whether a store of retrained models has one that could be trained."""
    store = Store(folder)
    return any(np.isfinite(store.margins([i])).all() for i in store.done)


def _labels(module: ModuleType, name: str, n: int) -> IndexArray | None:
    found = getattr(module, name, None)
    if found is None:
        return None
    labels = as_array(found, f"{module.__name__} has {name}")
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise InputError(f"{name} in {module.__name__} must be {n} whole numbers, not {labels.dtype} of shape {labels.shape}")
    return labels.astype(np.int64)
