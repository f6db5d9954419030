"""What decides the rows of a learner: its own word, and of one's own code its name and its source files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodels.errors import InputError, one_line
from datamodels.learners import Learner
from datamodels.learners.given import said_of
from datamodels.learners.sources import imported_sources, refuse_changed
from datamodels.settings import BUILT_IN, Settings
from datamodels.store import Meta

SOURCES = "sources"


def provenance_of(settings: Settings, learner: Learner) -> dict[str, Any]:
    """What decides a learner's rows: its own word, and of one's own code its name and its source files."""
    sources = own_sources(settings)
    if settings.worker.main == BUILT_IN:
        return {**learner.provenance, **({SOURCES: sources} if sources else {})}
    own = _as_read_again(learner)
    # Under a name of its own: no key of a learner's can stand for one of this program's.
    return {
        **({"learner": own} if own else {}),
        "worker": {"main": settings.worker.main},
        **({SOURCES: sources} if sources else {}),
    }


def own_sources(settings: Settings) -> dict[str, str]:
    """The source files, once imported, of one's own code that makes a run's models: of `worker.main`, or of a network."""
    name = settings.training.network if settings.worker.main == BUILT_IN else settings.worker.main
    return dict(imported_sources(name.partition(":")[0])) if ":" in name else {}


def _as_read_again(learner: Learner) -> dict[str, Any]:
    """The provenance of a learner of one's own as it will be read from a file."""
    with said_of(learner.name):
        found = learner.provenance
        try:
            text = json.dumps(dict(found), allow_nan=False, ensure_ascii=False)
            text.encode()  # half of a surrogate pair is no text that a file could hold
            own: dict[str, Any] = json.loads(text)
        except (TypeError, ValueError, RecursionError) as e:
            raise InputError(f"the provenance of {learner.name} must be plain JSON: {one_line(e, 200)}") from e
    return own


def refuse_other_sizes(folder: Path, meta: Meta, learner: Learner) -> None:
    """Raise InputError where a learner has other numbers of examples than those with which a store was made."""
    made, now = (meta.num_train, meta.num_targets), (len(learner.train_labels), len(learner.test_labels))
    if made != now:
        told = f"{made[0]} training examples and {made[1]} targets, and {learner.name} has {now[0]} and {now[1]} now"
        raise InputError(f"{folder} was made of {told}; use another run.dir")


def with_sources_of(folder: Path, made: Mapping[str, Any], wanted: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """What is wanted, with the source files with which a folder was made, where they are these or are trusted.

    Raises InputError, naming the file, for one that has changed. Where it is other code altogether, its name is what differs.
    """
    before, now = made.get(SOURCES, {}), wanted.get(SOURCES, {})
    if _names(made) != _names(wanted):
        return dict(wanted)
    if before and not settings.worker.trust_changed_code:
        refuse_changed(before, now, folder)
    rest = {key: value for key, value in wanted.items() if key != SOURCES}
    return {**rest, SOURCES: before} if before else rest


def _names(decided: Mapping[str, Any]) -> tuple[Any, Any]:
    """What one's own code is called that made a folder: `worker.main` and `training.network`."""
    return decided.get("worker"), decided.get("training", {}).get("network")
