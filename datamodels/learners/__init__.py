"""Learners: what can be trained, by whom. Read `contract` first, to bring your own."""

from datamodels.learners.contract import (
    Attributes,
    Features,
    Gradients,
    Key,
    Learner,
    Model,
    Named,
    NamesClasses,
    Pictures,
    Relabels,
    SideBySide,
    Trained,
    offered,
)

__all__ = [
    "Attributes",
    "Features",
    "Gradients",
    "Key",
    "Learner",
    "Model",
    "Named",
    "NamesClasses",
    "Pictures",
    "Relabels",
    "SideBySide",
    "Trained",
    "offered",
]
