"""What an evaluation has found: records, a table of them, and JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from datamodels.evaluate.correlations import Interval


@dataclass(frozen=True)
class Difference:
    """How much larger an LDS is than that of the first of the scores, target by target on the same models, and intervals."""

    lds: float
    over_targets: Interval
    over_models: Interval


@dataclass(frozen=True)
class Scored:
    """The LDS of one set of scores: mean over targets, each target's, and the mean over the targets of each class.

    `over_targets` is its interval over targets drawn again, the models as they are; `over_models` over masks drawn again, these
    targets. `constant` counts the targets whose prediction does not vary, which have 0, and `why` says why they do not. `apart`
    is from the first of the scores; None for that one.
    """

    name: str
    lds: float
    over_targets: Interval
    over_models: Interval
    per_target: tuple[float, ...]
    by_class: dict[str, float]
    constant: int
    why: str
    apart: Difference | None


@dataclass(frozen=True)
class Evaluation:
    """Scores beside each other on the same models of a store and the same targets.

    `models` are the ids, `on` says in words which they are, `masks` how many different masks they have: models on one mask
    count by their mean margin. `ceiling` is the largest LDS that noise admits, None where too few masks have several trainings
    to say. `left_out` counts the margins that are no numbers. `resamples` and `seed` are the bootstrap's.
    """

    store: str
    on: str
    models: tuple[int, ...]
    masks: int
    targets: tuple[int, ...]
    scores: tuple[Scored, ...]
    ceiling: float | None
    left_out: int
    constant_margins: int
    resamples: int
    seed: int

    def table(self) -> str:
        """The figures as text, a line for each set of scores, and below them a line for each class."""
        told = f"{len(self.models)} models, {self.on}, of {self.store}; {self.masks} masks, {len(self.targets)} targets"
        lines = [["scores", "LDS", "95 % over targets", "95 % over models", "less the first's LDS"]]
        lines += [[s.name, f"{s.lds:.3f}", str(s.over_targets), str(s.over_models), _told(s.apart)] for s in self.scores]
        classes = list(dict.fromkeys(name for scored in self.scores for name in scored.by_class))
        parts = [told, _aligned([line if len(self.scores) > 1 else line[:4] for line in lines]), *self._notes()]
        if classes:
            head = ["class", *(scored.name for scored in self.scores)]
            rows = [[name, *(f"{scored.by_class[name]:.3f}" for scored in self.scores)] for name in classes]
            parts.append(_aligned([head, *rows]))
        return "\n".join(parts)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON content, each target's LDS in it."""
        return dataclasses.asdict(self)

    def _notes(self) -> list[str]:
        unknown = "the ceiling that noise sets is unknown: too few masks have several trainings"
        notes = [unknown if self.ceiling is None else f"at best {self.ceiling:.3f}, by the noise between trainings on a mask"]
        t = len(self.targets)
        of = "targets, whose predictions do not vary"
        notes += [f"{s.name}: LDS 0 for {s.constant} of {t} {of}: {s.why}" for s in self.scores if s.constant]
        if self.constant_margins:
            notes.append(f"LDS 0 for {self.constant_margins} of {t} targets, whose margins do not vary")
        if self.left_out:
            notes.append(f"{self.left_out} margins that are no numbers are left out")
        return notes


def _told(apart: Difference | None) -> str:
    return "" if apart is None else f"{apart.lds:+.3f} ({apart.over_targets} targets, {apart.over_models} models)"


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines)
