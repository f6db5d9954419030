"""The report: figures and one self-contained page."""

from datamodels.report.run import report

__all__ = ["report"]
