"""Verification: retrain on S∖R, and judge by the margins of several models.

`verify(config, targets)` is the whole of it by one call, for notebooks; `certify(config, target)` makes a folder that proves
one of its answers to others.
"""

from datamodels.verify.notebook import certify, verify
from datamodels.verify.rechecking import recheck
from datamodels.verify.record import Verified
from datamodels.verify.run import verify_targets
from datamodels.verify.targets import WORDS, draw_targets, read_targets, targets_named, write_targets

__all__ = [
    "WORDS",
    "Verified",
    "certify",
    "draw_targets",
    "read_targets",
    "recheck",
    "targets_named",
    "verify",
    "verify_targets",
    "write_targets",
]
