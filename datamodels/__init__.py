"""Datamodels: which training images made my network say this?

>>> from datamodels import Run                                              # doctest: +SKIP
>>> run = Run("runs/digits")                                                # doctest: +SKIP
>>> run.explain(3)                         # what carries target 3, and what speaks against it   # doctest: +SKIP
>>> run.support(3)                         # images whose removal should flip it, and how sure that is   # doctest: +SKIP
>>> from datamodels.verify import verify   # and whether it does: `verify("digits", [3])`   # doctest: +SKIP
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodels.platforms import refuse_windows

# Python has not set the name yet while it looks for what `python -m` is to run: only commands of ours come here so.
_COMMAND = sys.argv[:1] == ["-m"] and any(name.partition(".")[0] == __name__ for name in sys.orig_argv)
_SCRIPT = Path(sys.argv[0]).stem == __name__ if sys.argv else False
refuse_windows(_COMMAND or _SCRIPT)

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


if _COMMAND:
    from datamodels.errors import refuse_too_little_for_libraries, tell_in_a_sentence_before_a_command

    tell_in_a_sentence_before_a_command()
    if not {__name__, f"{__name__}.store"} & set(sys.orig_argv):  # the first looks which command it is, the other needs fewer
        refuse_too_little_for_libraries()


def __getattr__(name: str) -> Any:
    if name not in _LIES_IN:
        raise AttributeError(f"module 'datamodels' has no attribute {name!r}")
    return getattr(importlib.import_module(_LIES_IN[name]), name)
