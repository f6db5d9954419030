"""The commands that there are: what each is for, and which sections of the settings it uses."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from datamodels.errors import refuse_too_little_for_libraries
from datamodels.progress import libraries_are_loaded

SCRIPT = "datamodels"
"""The console script, and the package."""


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
ALL = ("run", "data", "training", "store", "worker", "groups", "prior", "regress", "verify", "ray")
TOLD = ("run", "data", "training", "store", "worker", "verify")
"""Of who tells what others have made: the learner, and the verdicts."""
COMMANDS = {
    command.name: command
    for command in (
        Command(DEMO, "`run` on handwritten digits, on a processor, in minutes", ALL, own=False),
        Command(ROAD, "the whole road on one config: data, models, weights, verdicts, page", ALL, own=False),
        Command("data", "write the images of a run", ("run", "data")),
        Command(
            "worker",
            "train the models of a run",
            ("run", "data", "training", "store", "worker", "groups", "regress", "prior", "ray"),
        ),
        Command(
            "regress",
            "weights from the models of a run, or of any store",
            ("run", "training", "store", "worker", "regress", "ray"),
        ),
        Command(
            "verify",
            "retrain without the images that matter most, and judge",
            ("run", "data", "training", "store", "worker", "groups", "regress", "verify", "ray"),
        ),
        Command("evaluate", "LDS of scores by the models of a run, or of any store", TOLD),
        Command("report", "the page of a run", TOLD),
        Command(STORE, "look at a store, check and repair it, import and export", ()),
        Command("bench", "measure speed, cost and error rates, on this machine", ALL),
    )
}
"""By name, in the order in which they are told."""


def before_libraries(name: str) -> None:
    """What is done before the command of this name loads its libraries. Raises MemoryError where they do not fit."""
    if name != STORE:  # whose libraries are fewer
        refuse_too_little_for_libraries()
    libraries_are_loaded()
