"""Verification: retrain on S∖R, and judge by the margins of several models.

The package is a function as well, `datamodels.verify(config, targets)`: see `verify_run`.
"""

import sys
from types import ModuleType
from typing import Any

from datamodels.verify.call import subject_of, verify_run
from datamodels.verify.run import recheck, verify
from datamodels.verify.subject import built_in_subject, own_subject
from datamodels.verify.targets import draw_targets, read_targets, targets_named, write_targets

__all__ = [
    "built_in_subject",
    "draw_targets",
    "own_subject",
    "read_targets",
    "recheck",
    "subject_of",
    "targets_named",
    "verify",
    "verify_run",
    "write_targets",
]


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See `verify_run`."""
        return verify_run(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
