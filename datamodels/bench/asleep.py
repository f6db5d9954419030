"""What the cluster's bench lets processes do: next to nothing. They import no PyTorch, so that hundreds fit on a machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.cluster.serving import alive
from datamodels.learners import Model, Trained
from datamodels.store import Meta, Rows
from datamodels.worker.tasks import Here

LOOK_S = 0.5


class Asleep:
    """A learner whose blocks take so many seconds, in which it sleeps; their margins are drawn once."""

    name = "the bench"
    provenance: Mapping[str, Any] = {}

    def __init__(self, n: int, t: int, models_at_once: int, seconds: float, gpu: str = "cpu") -> None:
        del gpu
        self.models_at_once, self.seconds = models_at_once, seconds
        self.train_labels, self.test_labels = np.full(n, -1), np.full(t, -1)
        self.margins = np.random.default_rng().normal(size=(models_at_once, t)).astype(np.float16)

    def train(self, models: Sequence[Model]) -> Trained:
        """The same margins every time."""
        time.sleep(self.seconds)
        return Trained({"margins": self.margins[: len(models)]})


def nothing(here: Any) -> tuple[None, None]:
    """A task, and what makes the tools of tasks that need none."""
    del here
    return None, None


def rehearse(block: Callable[[Any], Any], here: Here) -> None:
    """Do a task, a block of a learner that sleeps, without the sleep."""
    assert isinstance(here.learner, Asleep)
    seconds, here.learner.seconds = here.learner.seconds, 0.0
    block(here)
    here.learner.seconds = seconds


def arrive(folder: Path, processes: int, first: Callable[[Any], Any], here: Here) -> tuple[None, None]:
    """Do a first task, then wait until so many processes have done theirs; each leaves a file in a folder, named by its number.

    A process that waits takes no other task, so that each of them has done one.
    """
    first(here)
    (folder / str(os.getpid())).touch()
    while sum(1 for _ in folder.iterdir()) < processes:
        alive()
        time.sleep(LOOK_S)
    return None, None


def random_rows(meta: Meta, ids: range, here: Any) -> tuple[int, Rows]:
    """Rows of a store drawn at random, and their bytes."""
    del here
    rng = np.random.default_rng(ids.start)
    masks = rng.integers(0, 2, (len(ids), meta.num_train), np.uint8).astype(bool)
    margins = rng.normal(size=(len(ids), meta.num_targets)).astype(np.float16)
    rows = Rows.of(meta, ids, masks, {"margins": margins})
    return rows.masks.nbytes + margins.nbytes, rows
