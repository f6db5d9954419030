"""How well scores, of whatever origin, predict what comes of removing images: LDS on models of a store, with intervals.

`datamodels.evaluate(scores, store)` is `evaluate` below, and so is this module, when it is called: Python binds a submodule's
name in its package, over the function of the same name.
"""

import sys
from types import ModuleType

from datamodels.evaluate.evaluation import evaluate
from datamodels.evaluate.result import Difference, Evaluation, Scored

__all__ = ["Difference", "Evaluation", "Scored", "evaluate"]


class _Called(ModuleType):
    __call__ = staticmethod(evaluate)


sys.modules[__name__].__class__ = _Called
