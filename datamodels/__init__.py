"""Datamodels: which training images made my network say this?

>>> from datamodels import Datamodels, Store, support                       # doctest: +SKIP
>>> models = Datamodels.load("runs/digits/regress")                         # doctest: +SKIP
>>> support(*models.of(3)).indices         # images whose removal should flip target 3   # doctest: +SKIP
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from datamodels.errors import tell_in_a_sentence_before_a_command

__version__ = "0.1.0"
__all__ = ["Datamodels", "Store", "support", "verify"]

if TYPE_CHECKING:
    from datamodels.brittleness import support
    from datamodels.regress import Datamodels
    from datamodels.store import Store
    from datamodels.verify import verify_run as verify


# Python has not set the name yet while it looks for what `python -m` is to run: only commands of ours come here so.
if sys.argv[:1] == ["-m"] and any(name.partition(".")[0] == __name__ for name in sys.orig_argv):
    tell_in_a_sentence_before_a_command()


def __getattr__(name: str) -> Any:
    # When asked for, not before: a worker needs no SciPy, and --help nothing at all.
    if name == "support":
        from datamodels.brittleness import support

        return support
    if name == "Datamodels":
        from datamodels.regress import Datamodels

        return Datamodels
    if name == "Store":
        from datamodels.store import Store

        return Store
    if name == "verify":
        return importlib.import_module("datamodels.verify")
    raise AttributeError(f"module 'datamodels' has no attribute {name!r}")
