"""A run looked at from Python: what carries a prediction, what is like it, what another training set would give.

>>> import numpy as np
>>> from datamodels import Run
>>> run = Run("runs/digits")
>>> run                                                # doctest: +ELLIPSIS
<Run: runs/digits, N = ... images, ... targets, ... models, LDS ...>
>>> why = run.explain(3)                               # in a notebook it shows itself as pictures
>>> why.carriers, why.weights[why.carriers]            # doctest: +ELLIPSIS
(array([...]), array([...], dtype=float32))
>>> run.similar(3).table["index"]                      # targets that the same training examples carry # doctest: +ELLIPSIS
array([...])
>>> run.by_class(3)["weights"].argmax()                # doctest: +ELLIPSIS
np.int64(...)
>>> found = run.predict(np.ones(run.store.meta.num_train, bool), [3, 5])
>>> found.low <= found.margins                         # of all of S no model of the store was: `found.extrapolated`
array([[ True,  True]])
>>> run.support(3)                                     # doctest: +ELLIPSIS
<Support: ...>
>>> list(run.table())                                  # for pandas: `run.to_pandas()` # doctest: +ELLIPSIS
['target', 'class', 'lds', ...]
"""

from datamodels.explore.run import Explanation, Neighbours, Prediction, Run
from datamodels.explore.table import Table

__all__ = ["Explanation", "Neighbours", "Prediction", "Run", "Table"]
