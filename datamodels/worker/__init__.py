"""The worker: claim a block of models, train it, hand its rows to the store, until all are done."""

from datamodels.worker.loop import open_store, train_missing
from datamodels.worker.own import own_function, train_missing_by

__all__ = ["open_store", "own_function", "train_missing", "train_missing_by"]
