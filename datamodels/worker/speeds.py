"""How fast the nodes of a cluster train, for the bar of progress."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque

from datamodels.progress import rate

REMEMBERED_S, NAMED = 60.0, 4
"""The speed of nodes is that of so many seconds; of more nodes than these only the range is shown."""


class Speeds:
    """How many models each node has trained lately."""

    def __init__(self) -> None:
        self.seen: deque[tuple[float, str, int]] = deque()
        self.since = time.monotonic()
        self.lock = threading.Lock()
        """What shows the progress asks from a thread of its own."""

    def begin(self) -> None:
        """Work begins; what was done shortly before counts on."""
        if not self.told():
            self.since = time.monotonic()

    def add(self, node: str, models: int) -> None:
        """A node has trained models."""
        with self.lock:
            self.seen.append((time.monotonic(), node, models))

    def told(self) -> str:
        """Models/s of each node, or of many the range."""
        now = time.monotonic()
        with self.lock:
            while self.seen and now - self.seen[0][0] > REMEMBERED_S:
                self.seen.popleft()
            seen = list(self.seen)
        if not seen:
            return ""
        seconds = max(min(now - self.since, REMEMBERED_S), 1.0)
        counted = Counter[str]()
        for _, node, models in seen:
            counted[node] += models
        speeds = {node: models / seconds for node, models in sorted(counted.items())}
        if len(speeds) <= NAMED:
            return ", ".join(f"{node}: {rate(speed)}" for node, speed in speeds.items())
        return f"{len(speeds)} nodes, {rate(min(speeds.values()))} to {rate(max(speeds.values()), 'models')} each"
