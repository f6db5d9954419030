"""The worker: jobs, which are models wanted in a store, and engines, who train them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodels.worker.engine import Engine, Local
    from datamodels.worker.prior import make_prior
    from datamodels.worker.run import engine_of, open_store, prepared, train_missing

__all__ = ["Engine", "Local", "engine_of", "make_prior", "open_store", "prepared", "train_missing"]

# Imported when asked for, not before: the writer, and nodes that train without PyTorch, need no more than their own module.
_LIES_IN = {
    **dict.fromkeys(("Engine", "Local"), "datamodels.worker.engine"),
    "make_prior": "datamodels.worker.prior",
    **dict.fromkeys(("engine_of", "open_store", "prepared", "train_missing"), "datamodels.worker.run"),
}


def __getattr__(name: str) -> Any:
    if name not in _LIES_IN:
        raise AttributeError(f"module 'datamodels.worker' has no attribute {name!r}")
    return getattr(importlib.import_module(_LIES_IN[name]), name)
