"""Images and labels: raw data sets, written once as FFCV .beton files, read back as tensors for all models."""

from datamodels.data.files import Dataset, Split, load, prepare

__all__ = ["Dataset", "Split", "load", "prepare"]
