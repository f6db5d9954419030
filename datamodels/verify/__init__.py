"""Verification: retrain on S∖R, and judge by the margins of several models."""

from datamodels.verify.run import verify
from datamodels.verify.targets import draw_targets, read_targets, write_targets

__all__ = ["draw_targets", "read_targets", "verify", "write_targets"]
