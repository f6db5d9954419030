"""Verification: retrain on S∖R, and judge by the margins of several models."""

from datamodels.verify.run import verify
from datamodels.verify.subject import built_in_subject, own_subject
from datamodels.verify.targets import draw_targets, read_targets, write_targets

__all__ = ["built_in_subject", "draw_targets", "own_subject", "read_targets", "verify", "write_targets"]
