"""Regression: masks and margins to weights."""

from datamodels.regress.path import fit_datamodels
from datamodels.regress.results import Datamodels, provenance, save

__all__ = ["Datamodels", "fit_datamodels", "provenance", "save"]
