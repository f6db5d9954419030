"""Verification: retrain on S∖R, and judge by the margins of several models."""

from datamodels.verify.run import recheck, verify
from datamodels.verify.subject import built_in_subject, own_subject
from datamodels.verify.targets import draw_targets, read_targets, targets_named, write_targets

__all__ = [
    "built_in_subject",
    "draw_targets",
    "own_subject",
    "read_targets",
    "recheck",
    "targets_named",
    "verify",
    "write_targets",
]
