"""Datamodels: which training images made my network say this?

>>> from datamodels import Run                                              # doctest: +SKIP
>>> run = Run("runs/digits")                                                # doctest: +SKIP
>>> run.explain(3)                         # what carries target 3, and what speaks against it   # doctest: +SKIP
>>> run.support(3)                         # images whose removal should flip it, and how sure that is   # doctest: +SKIP
>>> from datamodels.verify import verify   # and whether it does: `verify("configs/digits.yaml", [3])`   # doctest: +SKIP
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from datamodels.errors import refuse_too_little_for_libraries, tell_in_a_sentence_before_a_command
from datamodels.progress import libraries_are_loaded

if TYPE_CHECKING:
    from datamodels.data import from_dataset
    from datamodels.evaluate import evaluate
    from datamodels.explore import Run
    from datamodels.regress import Datamodels
    from datamodels.store import Store
    from datamodels.verify.measured import support

__version__ = "0.1.0"
__all__ = ["Datamodels", "Run", "Store", "evaluate", "from_dataset", "support"]

# Imported when asked for, not before: --help needs none of it.
_LIES_IN = {
    "Datamodels": "datamodels.regress",
    "Run": "datamodels.explore",
    "Store": "datamodels.store",
    "evaluate": "datamodels.evaluate",
    "from_dataset": "datamodels.data",
    "support": "datamodels.verify.measured",
}


# Python has not set the name yet while it looks for what `python -m` is to run: only commands of ours come here so.
if sys.argv[:1] == ["-m"] and any(name.partition(".")[0] == __name__ for name in sys.orig_argv):
    tell_in_a_sentence_before_a_command()
    if f"{__name__}.store" not in sys.orig_argv:  # whose libraries are fewer
        refuse_too_little_for_libraries()
    libraries_are_loaded()


def __getattr__(name: str) -> Any:
    if name not in _LIES_IN:
        raise AttributeError(f"module 'datamodels' has no attribute {name!r}")
    return getattr(importlib.import_module(_LIES_IN[name]), name)
