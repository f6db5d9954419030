"""The worker: claim a block of models, train it, hand its rows to the store, until all are done."""

from datamodels.worker.loop import open_store, train_missing

__all__ = ["open_store", "train_missing"]
