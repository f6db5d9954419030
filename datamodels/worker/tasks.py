"""What a node of a cluster is given to do: one block of a job, or a question about the learner.

Nothing here imports PyTorch: a process holds it where its learner wants it. The built-in one is made in `sending`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from datamodels.cluster.code import sentence_on_a_node
from datamodels.learners import Learner
from datamodels.learners.given import of_this_package, side_by_side
from datamodels.settings import GroupSettings
from datamodels.store import Rows
from datamodels.worker.excerpts import Excerpt
from datamodels.worker.jobs import Job
from datamodels.worker.outcomes import Outcome, outcome_of

R = TypeVar("R")


@dataclass(frozen=True)
class Here:
    """The learner as a process has made it; or why its node cannot take part, with a verb before it."""

    learner: Learner | None
    unfit: str | None = None


class Trained(NamedTuple):
    """What came of a block: why models are given up, by id, and the bytes of the others' rows; or why the node is unfit."""

    failures: Mapping[int, str]
    size: int = 0
    unfit: str | None = None


@dataclass(frozen=True)
class Answered(Generic[R]):  # no NamedTuple, which Python 3.10 does not let be generic
    """What a question gives, or why the node of that number cannot take part."""

    value: R | None
    node: str
    unfit: str | None = None


def here(make: Callable[..., Learner], device: str) -> Here:
    """The learner on a device. A node on which it cannot be made, for a reason that can be told, is unfit."""
    try:
        return Here(make(gpu=device))
    except Exception as e:
        sentence = sentence_on_a_node(e)
        if sentence is None:
            raise
        return Here(None, f"cannot take part: {sentence}")


def train_block(
    job: Job, excerpt: Excerpt, ids: range, groups: GroupSettings | None, here: Here
) -> tuple[Trained, Rows | None]:
    """Train a block: what is to be known of it at once, and its rows, which stay in the object store."""
    if here.learner is None:
        return Trained({}, unfit=here.unfit), None
    learner = grouped(here.learner, groups)
    # Whether no model of a store fits its format is seen where the whole store is.
    found = list[Outcome]()
    # As on one machine, where so many threads are at a block: rounding may depend on that, and not on the cores of a task.
    side_by_side(learner)([0], lambda _: found.append(outcome_of(job, excerpt, ids, learner, lambda: True)))
    outcome = found[0]
    keep = [k for k, i in enumerate(ids) if i not in outcome.failures]
    if not keep:
        return Trained(outcome.failures), None
    arrays = {name: array[keep] for name, array in outcome.arrays.items()}
    rows = Rows.of(excerpt.meta, [ids[k] for k in keep], outcome.masks[keep], arrays)
    size = rows.masks.nbytes + sum(array.nbytes for array in rows.arrays.values())
    return Trained(outcome.failures, size), rows


def answer(question: Callable[[Learner], R], groups: GroupSettings | None, here: Here) -> Answered[R]:
    """What a question gives."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    if here.learner is None:
        return Answered(None, node, here.unfit)
    return Answered(question(grouped(here.learner, groups)), node)


def grouped(learner: Learner, groups: GroupSettings | None) -> Learner:
    """The learner, the built-in one told how the models of the run's store are grouped, once there is that store."""
    if groups is not None and of_this_package(learner) and hasattr(type(learner), "groups"):
        learner.groups = groups  # type: ignore[attr-defined]
    return learner
