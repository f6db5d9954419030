"""Jobs: these models into this store. What is to be trained stands in the job and in the store's files, and nowhere else.

A job goes through a store in blocks, models that a learner is given together. A block is the same whoever trains it, and when:
rounding differs with the group, and a row must not depend on what was done before.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodels.errors import InputError
from datamodels.learners import Key, Learner, Model, Relabels, Trained, offered
from datamodels.learners.given import logits_of
from datamodels.store import ArraySpec, Store
from datamodels.store.layout import DONE, MISSING
from datamodels.store.precision import BeyondError, rounded
from datamodels.subsets import Array, BoolArray, IndexArray, draw_mask, pack
from datamodels.worker.excerpts import Known

NOT_FINITE = "its training gave margins that are not finite"


@dataclass(frozen=True)
class Job(ABC):
    """Models that are wanted in the store in a folder."""

    folder: Path

    @property
    @abstractmethod
    def stage(self) -> str:
        """The stage that wants them, for messages."""

    @property
    def fixes_format(self) -> bool:
        """Whether a person has chosen the number format of the margins, and is to be told where it is too coarse."""
        return False

    @property
    def listed(self) -> tuple[str, ...]:
        """The store's arrays that say of rows what they are before they are trained."""
        return ()

    @abstractmethod
    def wanted(self, store: Store) -> IndexArray:
        """The rows that are to be there, ids ascending."""

    @abstractmethod
    def blocks(self, store: Store, ids: IndexArray) -> dict[int, range]:
        """The blocks in which some rows lie: their rows by the number under which they are claimed."""

    @abstractmethod
    def models(self, store: Known, ids: range, learner: Learner) -> list[Model]:
        """What the models of some rows are."""

    @abstractmethod
    def rows(self, store: Known, ids: range, trained: Trained, learner: Learner) -> Mapping[str, Array]:
        """The store's arrays of these rows, of what their training gave."""

    def hopeless(self, store: Store, ids: range, failures: Mapping[int, str]) -> str | None:
        """Why nothing will come of the job, where that follows from the failures, by id, of some rows; else None."""
        del store, ids, failures
        return None

    def masks(self, store: Known, ids: range, models: Sequence[Model]) -> BoolArray:
        """The masks of these rows, bool (len(ids), N)."""
        del store, ids
        return np.stack([model.mask for model in models])

    def missing(self, store: Store) -> IndexArray:
        """The wanted rows that are neither done nor given up by now."""
        ids = self.wanted(store)
        missing: IndexArray = ids[store.array("done", ids) == MISSING]
        return missing


@dataclass(frozen=True)
class RandomSubsets(Job):
    """The first `total` models of a store of random subsets: model i is what (seed, i) makes it, in blocks of `size`."""

    total: int
    size: int
    seed: int
    alpha: float

    @property
    def stage(self) -> str:
        """See `Job`."""
        return "worker"

    @property
    def fixes_format(self) -> bool:
        """See `Job`."""
        return True

    def wanted(self, store: Store) -> IndexArray:
        """See `Job`."""
        del store
        return np.arange(self.total)

    def blocks(self, store: Store, ids: IndexArray) -> dict[int, range]:
        """See `Job`."""
        del store
        return {
            block: range(block * self.size, min((block + 1) * self.size, self.total))
            for block in np.unique(ids // self.size).tolist()
        }

    def models(self, store: Known, ids: range, learner: Learner) -> list[Model]:
        """See `Job`."""
        del learner
        return [Model((self.seed, i), draw_mask(self.seed, i, store.meta.num_train, self.alpha)) for i in ids]

    def rows(self, store: Known, ids: range, trained: Trained, learner: Learner) -> Mapping[str, Array]:
        """See `Job`."""
        del ids
        lacking = [name for name in store.meta.arrays if name not in trained.arrays]
        if lacking:
            given = ", ".join(sorted(trained.arrays))
            raise InputError(f"the store keeps {lacking[0]}, and {learner.name} gives {given}; mind store.arrays")
        return {name: trained.arrays[name] for name in store.meta.arrays}


REPETITION, RELABELLED, BLOCK = "repetition", "relabelled", "block"
LISTED = {name: ArraySpec("int32", ()) for name in (REPETITION, RELABELLED, BLOCK)}
"""What a store of listed models knows of each beside its mask: see `ListedModels`."""


@dataclass(frozen=True)
class ListedModels(Job):
    """Rows of a store in which models are listed, with their masks, before they are trained.

    A row's mask is that of S∖R. `repetition` tells models of one mask apart. `relabelled` is the class that the images of R
    get, which the model sees then, or -1 where they are left out. `block` is the first row of the block in which it is trained.
    `ids` are the rows that are wanted, in ascending order.
    """

    seed: int
    ids: tuple[int, ...]

    @property
    def stage(self) -> str:
        """See `Job`."""
        return "verify"

    @property
    def listed(self) -> tuple[str, ...]:
        """See `Job`."""
        return ("masks", *LISTED)

    def wanted(self, store: Store) -> IndexArray:
        """See `Job`."""
        del store
        return np.array(self.ids, np.int64)

    def blocks(self, store: Store, ids: IndexArray) -> dict[int, range]:
        """See `Job`."""
        of_rows = store.array(BLOCK, np.arange(store.meta.num_models))
        found = {}
        for block in np.unique(of_rows[ids]).tolist():
            rows = np.flatnonzero(of_rows == block)
            found[block] = range(int(rows[0]), int(rows[-1]) + 1)
        return found

    def models(self, store: Known, ids: range, learner: Learner) -> list[Model]:
        """See `Job`."""
        repetitions, relabelled = (store.array(name, ids).tolist() for name in (REPETITION, RELABELLED))
        return [
            listed_model(self.seed, mask, repetition, to, learner)
            for mask, repetition, to in zip(store.masks(ids), repetitions, relabelled, strict=True)
        ]

    def masks(self, store: Known, ids: range, models: Sequence[Model]) -> BoolArray:
        """See `Job`. Where images are relabelled, the model sees more than these."""
        del models
        return store.masks(ids)

    def hopeless(self, store: Store, ids: range, failures: Mapping[int, str]) -> str | None:
        """See `Job`. Without models on all of S there is nothing to compare with."""
        whole = [i for i, mask in zip(ids, store.masks(ids), strict=True) if mask.all()]
        if not whole or any(i not in failures for i in whole):
            return None
        done = np.flatnonzero(store.array("done", range(store.meta.num_models)) == DONE)
        if any(store.masks([i]).all() for i in done.tolist()):
            return None
        return f"a model on all of S could not be trained: {failures[whole[0]]}"

    def rows(self, store: Known, ids: range, trained: Trained, learner: Learner) -> Mapping[str, Array]:
        """See `Job`."""
        known = {name: store.array(name, ids) for name in LISTED}
        return {"margins": trained.arrays["margins"], "confidence": _confidence(trained, learner), **known}


def listed_key(seed: int, packed: bytes, repetition: int, relabelled: int) -> Key:
    """The seed, 64 bits of the packed mask's SHA-256, the repetition, and 1 + the label where R is relabelled."""
    digest = np.frombuffer(hashlib.sha256(packed).digest()[:8], "<u4")
    return (seed, *digest.tolist(), repetition, *([relabelled + 1] if relabelled >= 0 else []))


def listed_model(seed: int, mask: BoolArray, repetition: int, relabelled: int, learner: Learner) -> Model:
    """The model of a mask, bool (N,), of S∖R; see `ListedModels`."""
    key = listed_key(seed, pack(mask).tobytes(), repetition, relabelled)
    if relabelled < 0:
        return Model(key, mask)
    offered(learner, Relabels, "relabelling")
    return Model(key, np.ones_like(mask), np.where(mask, learner.train_labels, relabelled))


def _confidence(trained: Trained, learner: Learner) -> Array:
    """The softmax of the right class, float16 (K, T); NaN where the learner gives no logits or the labels are not known."""
    from scipy.special import softmax  # 10 MB in each of a cluster's processes, most of which need none

    logits, labels = logits_of(trained, learner), learner.test_labels
    if logits is None or (labels < 0).any():
        return np.full(trained.arrays["margins"].shape, np.nan, np.float16)
    chances = softmax(logits.astype(np.float64), axis=2)
    return np.take_along_axis(chances, labels[None, :, None], axis=2)[..., 0].astype(np.float16)


def fitted(
    arrays: Mapping[str, Array],
    specs: Mapping[str, ArraySpec],
    numbers: Sequence[int],
    failures: Mapping[int, str],
    any_done: bool,
) -> tuple[dict[str, Array], dict[int, str]]:
    """Arrays (K, …) in the store's types, and why models are given up, by their place.

    These are `failures`, and models with numbers that are not finite, or beyond their type. `numbers` (K,) are the models', for
    messages. Raises BeyondError where no model's numbers fit their type, and none is done (`any_done`): then no other's will.
    """
    finite = np.isfinite(arrays["margins"]).reshape(len(numbers), -1).all(1)
    bad = {**dict.fromkeys(np.flatnonzero(~finite).tolist(), NOT_FINITE), **failures}
    found = {which: np.zeros((len(numbers), *spec.shape), spec.dtype) for which, spec in specs.items()}
    beyond: dict[int, BeyondError] = {}
    for k in sorted(set(range(len(numbers))) - set(bad)):
        try:
            for which, spec in specs.items():
                found[which][k] = rounded(arrays[which][k], spec.dtype, f"{which} of model {numbers[k]}")
        except BeyondError as e:  # noqa: PERF203
            beyond[k] = e
    if beyond and not any_done and len(beyond) + len(bad) == len(numbers):
        raise next(iter(beyond.values()))
    return found, {**bad, **{k: str(e) for k, e in beyond.items()}}


def refuse_misfits(arrays: Mapping[str, Array], specs: Mapping[str, ArraySpec], numbers: Sequence[int], name: str) -> None:
    """Raise InputError where `name`, who gave arrays (K, …), gave other types or shapes than a store takes."""
    for which, spec in specs.items():
        array, k = arrays[which], len(numbers)
        if array.dtype.kind not in "biuf":
            raise InputError(f"{name} gave {which} of type {array.dtype}, not real numbers")
        if array.ndim == 0 or len(array) != k:
            raise InputError(f"{name} gave {which} of shape {array.shape} for {k} models, not {(k, *spec.shape)}")
        if array.shape != (k, *spec.shape):
            raise InputError(f"{name} gave {which} of shape {array.shape[1:]} for model {numbers[0]}, not {spec.shape}")
