"""The worker: jobs, which are models wanted in a store, and engines, who train them."""

from datamodels.worker.engine import Engine, Local
from datamodels.worker.prior import make_prior
from datamodels.worker.run import engine_of, open_store, prepared, train_missing

__all__ = ["Engine", "Local", "engine_of", "make_prior", "open_store", "prepared", "train_missing"]
