"""A learner for tests of engines: its margins follow from the key and the mask, and take as long as the environment says."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from datamodels.learners import Trained
from datamodels.subsets import pack

N, T = 40, 6


class Slow:
    """A block takes SLOW_S seconds. Who finds the file DIE_AT removes it and kills itself; with DIE_ALWAYS all do."""

    name, provenance, models_at_once = "slow models", {"learner": "slow"}, 4
    classes = 3
    train_labels, test_labels = np.arange(N) % 3, np.arange(T) % 3

    def train(self, models):
        """Margins of a rule: each target is carried by the images of its class, the first of them most."""
        time.sleep(float(os.environ.get("SLOW_S", "0")))
        if os.environ.get("DIE_ALWAYS") or _taken(os.environ.get("DIE_AT")):
            os.kill(os.getpid(), signal.SIGKILL)
        return Trained({"margins": np.stack([self.margins(model) for model in models])})

    def margins(self, model):
        """Of one model."""
        labels = self.train_labels if model.labels is None else model.labels
        weights = np.where(labels[:, None] == self.test_labels, 1, -0.1) * np.linspace(2, 0.5, N)[:, None] / 12
        noise = np.random.default_rng([*model.key, *pack(model.mask).tolist()]).normal(size=T)
        return model.mask @ weights - 0.6 + 0.15 * noise


class Coarse(Slow):
    """Margins that float16 keeps in steps of 2."""

    def margins(self, model):
        """Of one model."""
        return 3000 + super().margins(model)


class Seeing(Slow):
    """Margins are the number of the GPU that this process may see."""

    def margins(self, model):
        """Of one model, a little apart."""
        return np.full(T, float(os.environ["CUDA_VISIBLE_DEVICES"]))


def _taken(file):
    """Whether this process is the one that removes a file."""
    try:
        Path(file or "").unlink()
    except OSError:
        return False
    return True


def failing(index, mask):
    """A function that fails at each subset."""
    raise ValueError("never")
