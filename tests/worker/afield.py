"""A cluster for tests that need none: nodes with a learner each, that train one block after another in this process."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from datamodels.cluster import Back, Node
from datamodels.errors import InputError
from datamodels.learners import Trained
from datamodels.worker.tasks import Here
from datamodels.worker.writing import take
from tests.worker.slow import Slow


class Afield:
    """Crew, writer and cluster at once; `learners` by the name of their node. `most` blocks are trained and not written."""

    def __init__(self, **learners):
        self.learners = learners
        self.given = deque[Any]()
        self.refused = dict[str, str]()
        self.trained = list[tuple[int, str]]()
        self.spoil = dict[str, Any]()
        self.under_way_there: Any = None
        self.most = self.unwritten = self.calls = self.slow_writer = 0
        self.room_for = 3

    # The cluster.

    def nodes(self):
        return [Node(name, f"node {name}") for name in self.learners if name not in self.refused]

    def slots_of(self, node):
        return 1

    def refuse(self, node, why, stage="cluster"):
        self.refused[node.id] = why
        if not self.nodes():
            raise InputError(f"{node.name} {why}, and no other node is left")

    # The crew.

    @property
    def idle(self):
        return max(len(self.nodes()) - len(self.given), 0 if self.given else 1)

    @property
    def room(self):
        return max(self.room_for - len(self.given), 0)

    @property
    def under_way(self):
        return {key for key, _, _ in self.given}

    def give(self, key, task, avoid=()):
        self.given.append((key, task, [node.id for node in avoid]))

    def back(self, timeout=1.0):
        if not self.given:
            return []
        key, task, avoid = self.given.popleft()
        free = [node for node in self.nodes() if node.id not in avoid] or self.nodes()
        node = free[len(self.trained) % len(free)]
        self.trained.append((key[1], node.id))
        learner = self.learners[node.id]
        try:
            value, payload = task(learner if isinstance(learner, Here) else Here(learner))
        except Exception as e:
            return [Back(key, node, 0.0, None, None, InputError(f"on {node.name}: {e}"))]
        self.unwritten += 1
        self.most = max(self.most, self.unwritten)
        return [Back(key, node, 0.1, value, self.spoil.pop(node.id, lambda rows: rows)(payload), None)]

    def drop_waiting(self):
        dropped = [key for key, _, _ in self.given]
        self.given.clear()
        return dropped

    # The writer.

    @property
    def busy(self):
        return self.under_way_there is not None

    def begin(self, folder, lots):
        assert not self.busy
        self.under_way_there = (folder, lots, self.slow_writer)

    def taken(self, timeout):
        folder, lots, left = self.under_way_there
        if left:
            self.under_way_there = (folder, lots, left - 1)
            return None
        self.under_way_there = None
        self.unwritten -= len(lots)
        self.calls += 1
        return take(folder, lots, [lot.payload for lot in lots])


class NotFinite(Slow):
    """Gives NaN for the models of some numbers."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def train(self, models):
        found = super().train(models).arrays["margins"]
        bad = [k for k, model in enumerate(models) if model.number in self.numbers]
        found[bad] = np.nan
        return Trained({"margins": found})


class Raising(Slow):
    """Raises at everything."""

    def train(self, models):
        raise ValueError("its driver is broken")


class Narrow(Slow):
    """Gives margins of too few targets."""

    def train(self, models):
        return Trained({"margins": super().train(models).arrays["margins"][:, :-1]})


class Relabelling(Slow):
    """Takes other labels too."""

    train_relabelled = Slow.train
