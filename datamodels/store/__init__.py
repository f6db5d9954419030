"""The store: masks and margins of all models as memory-mapped arrays, with one writer. FORMAT.md describes the files."""

from datamodels.store.layout import ArraySpec, Meta, create, create_once, read_meta
from datamodels.store.reader import Store
from datamodels.store.writer import (
    Rows,
    Writer,
    claim,
    deliver,
    delivered,
    enlist,
    forget_claims,
    grow,
    hand_over,
    merge_if_free,
)

__all__ = [
    "ArraySpec",
    "Meta",
    "Rows",
    "Store",
    "Writer",
    "claim",
    "create",
    "create_once",
    "deliver",
    "delivered",
    "enlist",
    "forget_claims",
    "grow",
    "hand_over",
    "merge_if_free",
    "read_meta",
]
