"""Searches for the smallest sets that flip predictions, many at once, so that the trainer's groups stay full.

In every round each search that is not done asks for the models of its next look; they are trained together, and each search
goes on by its own verdict. Models are kept (see `retrain`): a search that was cut off goes through what it knew at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from datamodels.brittleness import Search
from datamodels.subsets import mask_without
from datamodels.verify.judge import FLIPPED, UNDECIDED, judge
from datamodels.verify.retrain import Retrained
from datamodels.verify.subject import Request

Retrain = Callable[[Sequence[Request], str], Retrained]


@dataclass
class Hunt:
    """One target, one method: its search, and what the probes so far have found.

    `relabelled` is the class that the images of R get where they are not removed, else -1; `n` is the size of S.
    """

    target: int
    method: str
    search: Search
    relabelled: int
    n: int
    looks: list[int]
    look: int = 0
    probes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether the search is at its end; one without any image to try is."""
        return not len(self.search.order) or self.search.done

    @property
    def size(self) -> int | None:
        """The smallest number of images that flips the prediction, as far as it is verified, or None."""
        return self.search.high

    def requests(self) -> list[Request]:
        """The models of the present look."""
        return self._models(self.search.size, self.looks[self.look])

    def judged(self, probe: dict[str, Any]) -> list[Request]:
        """The models by which a probe was judged, those that diverged included."""
        return self._models(probe["size"], probe["asked"])

    @property
    def found(self) -> dict[str, Any] | None:
        """The probe of the smallest set that flips the prediction, or None."""
        return next((probe for probe in self.probes if probe["size"] == self.size), None)

    def _models(self, size: int, number: int) -> list[Request]:
        mask = mask_without(self.n, self.search.order[:size])
        return [Request.of(mask, repetition, self.relabelled) for repetition in range(number)]

    def learn(self, found: Retrained) -> None:
        """Judge the present look: decide, or go on to the next one."""
        outcome = judge(*found.of(self.requests(), self.target), len(self.looks))
        if outcome.verdict == UNDECIDED and self.look + 1 < len(self.looks):
            self.look += 1
            return
        about = {"size": self.search.size, "threshold": self.search.level, "asked": self.looks[self.look]}
        self.probes.append({**about, "verdict": outcome.verdict, **dataclasses.asdict(outcome)})
        self.search.learn(outcome.verdict == FLIPPED)
        self.look = 0


def go(hunts: Sequence[Hunt], retrain: Retrain) -> None:
    """All searches to their end."""
    rounds, left = 0, [hunt for hunt in hunts if not hunt.done]
    while left:
        rounds += 1
        wanted = [request for hunt in left for request in hunt.requests()]
        found = retrain(wanted, f"verify: round {rounds}, {len(left)} searches")
        for hunt in left:
            hunt.learn(found)
        left = [hunt for hunt in left if not hunt.done]
