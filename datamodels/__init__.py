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
_OURS = [name for name in sys.orig_argv if name.partition(".")[0] == __name__] if sys.argv[:1] == ["-m"] else []
refuse_windows(bool(_OURS) or Path((sys.argv or [""])[0]).stem == __name__)

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


if _OURS:
    from datamodels.errors import tell_in_a_sentence_before_a_command

    tell_in_a_sentence_before_a_command()

    from datamodels.commands import before_libraries

    if _OURS[0] != __name__:  # which looks first which command it is
        before_libraries(_OURS[0].removeprefix(f"{__name__}."))


def __getattr__(name: str) -> Any:
    if name not in _LIES_IN:
        raise AttributeError(f"module 'datamodels' has no attribute {name!r}")
    return getattr(importlib.import_module(_LIES_IN[name]), name)
