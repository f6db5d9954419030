"""The worker: claim a block of models, train it, hand its rows to the store, until all are done."""

from datamodels.worker.loop import open_store, train_missing
from datamodels.worker.own import own_function, train_missing_by, use_gpu_of_own
from datamodels.worker.prior import make_prior

__all__ = ["make_prior", "open_store", "own_function", "train_missing", "train_missing_by", "use_gpu_of_own"]
