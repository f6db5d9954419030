"""The commands that there are: what each is for, and which sections of the settings it uses."""

from __future__ import annotations

import sys
from dataclasses import dataclass

SCRIPT = "datamodels"
"""The console script, and the package."""
STAGES_SECTIONS = ("run", "data", "training", "store", "worker")
"""Of any command that opens a run and finds out who made its models: what decides them."""


@dataclass(frozen=True)
class Command:
    """One command: `datamodels NAME` and, if it has a folder of its own, `python -m datamodels.NAME`."""

    name: str
    about: str
    sections: tuple[str, ...]
    """The sections of the settings that it reads, and shows in its help. The others it takes as well: a config is a run's."""
    own: bool = True
    """Whether `python -m datamodels.NAME` is it too."""

    @property
    def module(self) -> str:
        """What `python -m` runs, and takes as its first argument."""
        return f"{SCRIPT}.{self.name}" if self.own else f"{SCRIPT} {self.name}"

    @property
    def prog(self) -> str:
        """How it was called, as its help and its messages repeat it."""
        by_front_door = (f"{SCRIPT} {self.name}", f"python -m {SCRIPT} {self.name}")
        return sys.argv[0] if sys.argv[:1] and sys.argv[0] in by_front_door else f"python -m {self.module}"


ROAD, DEMO, STORE = "run", "demo", "store"
ALL_SECTIONS = (*STAGES_SECTIONS, "groups", "prior", "regress", "verify", "ray")
COMMANDS = {
    command.name: command
    for command in (
        Command(DEMO, "`run` on handwritten digits, on a processor, in minutes", ALL_SECTIONS, own=False),
        Command(ROAD, "the whole road on one config: data, models, weights, verdicts, page", ALL_SECTIONS, own=False),
        Command("data", "write the images of a run", ("run", "data")),
        Command("worker", "train the models of a run", ("run", "data", "training", "store", "worker", "groups", "prior", "ray")),
        Command("regress", "weights from the models of a run, or of any store", ALL_SECTIONS),
        Command("verify", "retrain without the images that matter most, and judge", ALL_SECTIONS),
        Command("evaluate", "LDS of scores by the models of a run, or of any store", ALL_SECTIONS),
        Command("report", "the page of a run", ALL_SECTIONS),
        Command(STORE, "look at a store, check and repair it, import and export", ()),
        Command("bench", "measure speed, cost and error rates, on this machine", ALL_SECTIONS),
    )
}
