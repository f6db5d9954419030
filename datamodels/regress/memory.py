"""How much memory a regression takes at its fullest, reckoned beforehand: what of it is planned here is measured by the tests.

Counted are the arrays on the device that computes: of a GPU its own memory, of the processor everything. Let item be the bytes
of a number, 4 or 8, B the targets of a block, J the models that choose λ. At their fullest hold

    gram           XᵀX, N² item, and XᵀY, 8 N T; beside them the larger of
                     a tile of models as numbers, twice, and its products with some rows,
                     the masks of the J models, packed, with their margins, and 9 matrices (N, B): of the path the weights of
                     the last λ, their best ones, and the next ones; Xᵀy; of FISTA w, Gw, v, Gv, and c
    prior, sparse  as gram, and twice the factors of the penalty
    prior, mean    as gram, but 7 matrices: the mean, the deviation, and five of conjugate gradients
    saga           the table of residuals of all models (m, B), 8 matrices (N, B) and a float64 one, a batch of models

The float64 that a float32 problem is continued in takes the room of the float32 (see `lasso`), `regress.standardise` none. On
the processor the weights that were found are not counted where they are sparse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datamodels.regress import kernels, moments, prior, saga, source
from datamodels.regress.arrays import ROWS_AT_ONCE, number_format
from datamodels.settings import RegressSettings

GRAM, SAGA = "gram", "saga"
EXACT_IN_FLOAT32 = 2**24
GRAM_MATRICES, FACTORS, MEAN_MATRICES = 9, 2, 7
VECTORS = 32
"""Numbers for each target that have no other dimension."""
OF_PYTHON = 2**17
"""What Python's own objects take on the processor."""


@dataclass(frozen=True)
class Needs:
    """What decides how much memory a regression takes.

    `n` images, `t` targets, the models `fit`, `choice` and `heldout`; `margin` and `item` are the bytes of a margin in the
    store and of a number in the solver. With a prior there are `covariates` and `terms` of its basis, else `terms` is 0;
    `sparse` is `regress.sparse`. `on_host` is for the processor.
    """

    n: int
    t: int
    fit: int
    choice: int
    heldout: int
    margin: int
    item: int
    covariates: int = 0
    terms: int = 0
    sparse: bool = False
    on_host: bool = False

    def bytes(self, solver: str, block: int) -> int:
        """The most that is held at once with so many targets in a block."""
        more = OF_PYTHON if self.on_host else 0
        if solver == SAGA:
            return more + max(self._tile(0), self._of_saga(block))
        held = self.n * self.n * self.item + self.n * self.t * 8 + 8 * (2 * self.n + 8 * self.t)
        stages = [self._tile(self._products()), self._of_path(block)]
        if self.terms and self.on_host:
            stages.append(self._basis(self.t, 3) + 2 * self.n * self.item)
        return more + held + max(stages)

    def _tile(self, products: int) -> int:
        """A tile of models while it is taken in."""
        rows, n, t = min(source.TILE_ROWS, max(self.fit, self.choice)), self.n, self.t
        masks = rows * n * (4 + self.on_host) + rows * -(-n // 8)
        margins = rows * t * (self.margin + 8)
        return masks + margins + max(rows * t * 8, rows * t * (self.item if self.item < 8 else 0) + products)

    def _products(self) -> int:
        """The product of some rows, and what cuBLAS has to have in one piece for it, which CuPy copies."""
        rows, of_gram = min(source.TILE_ROWS, max(self.fit, self.choice)), min(moments.GRAM_ROWS, self.n)
        copies = 0 if self.on_host else rows * max(self.n - of_gram, 0) * 4 + rows * of_gram * 4 * (self.n > of_gram)
        of_y = of_gram * self.t * self.item + rows * of_gram * (8 if self.item == 8 else 4)
        return max(copies + of_gram * self.n * 4, of_y)

    def _judged(self, models: int, block: int) -> int:
        """Masks, packed, and margins of models that are held while blocks are solved."""
        return models * -(-self.n // 8) + models * block * self.margin

    def _predicted(self, models: int, block: int, item: int) -> int:
        """A tile of models as numbers, and predictions for it."""
        rows = min(source.TILE_ROWS, models)
        return rows * self.n * (item + self.on_host) + rows * block * (item + 24)

    def _vectors(self, block: int) -> int:
        """What a step has beside matrices: the partial sums, columns on their way, numbers for each target."""
        partial = 4 * -(-self.n // kernels.CHUNK_ROWS) * 8
        wide = min(self.n, moments.WIDE_ROWS) * 16
        moved = min(self.n, ROWS_AT_ONCE if not self.on_host else max(ROWS_AT_ONCE, kernels.CHUNK_ROWS)) * self.item
        return block * (max(partial, wide, moved) + VECTORS * 8)

    def _of_path(self, block: int) -> int:
        matrix = self.n * block * self.item
        score = self._score(block)
        if self.terms and not self.sparse:
            solved = MEAN_MATRICES * matrix + self._vectors(block)
            judged = self._judged(self.heldout, 0) + max(solved, 3 * matrix + self._predicted(self.heldout, block, self.item))
            results = 12 * self.n * self.t if self.on_host else 0
            return max(judged + results + self._basis(block, 1), score + results, 2 * results)
        more = FACTORS if self.terms else 0
        # Some rows of a float32 XᵀX in float64.
        wide = min(moments.WIDE_ROWS, self.n) * self.n * 8 if self.item < 8 else 0
        solved = (GRAM_MATRICES + more) * matrix + self._vectors(block) + wide
        looked = (4 + more // 2) * matrix + self._predicted(self.choice, block, self.item)
        return max(self._judged(self.choice, block) + max(solved, looked), self._judged(self.heldout, 0) + score)

    def _score(self, block: int) -> int:
        """On the processor: true and predicted margins of the held-out models, and their ranks."""
        return 7 * 8 * self.heldout * block + 3 * self.n * block * self.item if self.on_host else 0

    def _basis(self, targets: int, terms: int) -> int:
        """On the processor: the basis of the prior for a part of the targets, and what is reckoned from it."""
        if not self.on_host:
            return 0
        each = min(targets, max(1, prior.BASIS_NUMBERS // (self.n * self.terms)))
        return 8 * self.n * each * ((1 + (terms > 1)) * self.terms + self.covariates + 6)

    def _of_saga(self, block: int) -> int:
        n, rows = self.n, max(saga.BATCH_ROWS, 1)
        rows = min(rows, -(-self.fit // saga.FEWEST_BATCHES) if self.fit < rows * saga.FEWEST_BATCHES else rows)
        matrix, sums = n * block * self.item, 8 * (3 * n + 6 * self.t)
        batch = rows * n * (self.item + self.on_host) + rows * -(-n // 8) + rows * block * (self.margin + 8 + 4 * self.item)
        both = self.fit + self.choice
        # Of the path three, w, a, what pulls at w, and the exact one in float64.
        chosen = self._judged(self.choice, block) + self.fit * block * self.item + 6 * matrix
        refitted = self._judged(self.heldout, 0) + both * block * self.item + 4 * matrix
        return sums + max(chosen, refitted) + 8 * n * block + batch + self._vectors(block)


def needs(
    n: int,
    t: int,
    parts: tuple[int, int, int],
    settings: RegressSettings,
    margin: int = 2,
    covariates: int | None = None,
    on_host: bool = False,
) -> Needs:
    """What a regression needs, of `parts` models to fit on, to choose λ by and to measure on; `covariates` None: no prior."""
    fit, choice, heldout = parts
    dtype = number_format(settings.gap) if fit + choice <= EXACT_IN_FLOAT32 else np.float64
    item = np.dtype(dtype).itemsize
    f = covariates or 0
    terms = 0 if covariates is None else 1 + f + f * (f + 1) // 2
    return Needs(n, t, fit, choice, heldout, margin, item, f, terms, settings.sparse, on_host)


def planned_bytes(
    n: int, m: int, t: int, block: int, settings: RegressSettings, margin: int = 2, covariates: int | None = None
) -> int:
    """Bytes of GPU memory that a regression of m models holds at most, for N images and T targets, `block` of them at once.

    Without `regress.solver` saga it is gram's. `covariates` is how many the prior has, None where there is none; `margin` are
    the bytes of a margin in the store.
    """
    heldout = round(settings.heldout * m)
    choice = round(settings.choice * (m - heldout))
    of = needs(n, t, (m - heldout - choice, choice, heldout), settings, margin, covariates)
    return of.bytes(SAGA if settings.solver == SAGA else GRAM, min(block, t))
