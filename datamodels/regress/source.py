"""Tiles of a store's models, on their way to a solver.

Solvers square margins, in float32, and take what is below some floor for 0. So each target's margins are reckoned in a unit u_t
of their own where their standard deviation is far from 1: the power of two next to it, by which nothing is rounded. Weights,
bias and λ of the lasso are in this unit then, λ of the prior and the mean squared error in its square; `path` takes them back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from datamodels.errors import InputError
from datamodels.reading import whole_number
from datamodels.regress.arrays import on_device, to_numpy
from datamodels.store import Meta, Store
from datamodels.subsets import Array, ByteArray, IndexArray

TILE_ROWS = 2048
PLAIN = (2.0**-4, 2.0**8)
"""Standard deviations of margins whose unit is 1."""
UNITS = (2.0**-125, 2.0**125)
"""The smallest and the largest unit: so that dividing by it is exact in float32."""
LOOKED_AT = 512
"""How many models tell the standard deviations."""


class Models(Protocol):
    """What a regression asks of a store: a `Store`, or what of it was sent elsewhere."""

    @property
    def folder(self) -> Path:
        """Where the store lies, for messages."""
        ...

    @property
    def meta(self) -> Meta:
        """See `Meta`."""
        ...

    @property
    def done(self) -> IndexArray:
        """See `Store`."""
        ...

    def packed(self, ids: npt.ArrayLike) -> ByteArray:
        """See `Store.packed`."""
        ...

    def margins(self, ids: npt.ArrayLike) -> Array:
        """See `Store.margins`."""
        ...


@dataclass(frozen=True)
class Source:
    """Masks and margins of a store's models, the margins of the targets from `first` up to `last` only.

    `judging` are the models whose margins decide the units: those to fit on, and not the held-out ones; without it all.
    `offset` is the first target whose margins the store has: 0, unless only some were sent.
    """

    store: Models
    first: int
    last: int
    judging: IndexArray | None = None
    offset: int = 0

    @property
    def n(self) -> int:
        """How many training images a mask covers."""
        return self.store.meta.num_train

    @property
    def margin_bytes(self) -> int:
        """Bytes of a margin."""
        kept = np.dtype(self.store.meta.files["margins"].dtype).itemsize
        return kept if self.units is None else max(kept, 4)

    @property
    def t(self) -> int:
        """How many targets."""
        return self.last - self.first

    @cached_property
    def units(self) -> Array | None:
        """The unit u (T,) of each target's margins, float32; None where all are 1."""
        done = self.store.done if self.judging is None else self.judging
        some = done[np.unique(np.linspace(0, len(done) - 1, min(len(done), LOOKED_AT)).astype(np.int64))]
        margins = self._rows(some).astype(np.float64)
        spread = margins[np.isfinite(margins).all(1)].std(0) if len(some) else np.zeros(self.t)
        plain = ~(spread > 0) | ((spread >= PLAIN[0]) & (spread <= PLAIN[1]))
        units = np.exp2(np.round(np.log2(np.where(plain, 1, np.clip(spread, *UNITS)))))
        return None if plain.all() else units.astype(np.float32)

    def unit(self, targets: slice) -> Array:
        """The unit u (T',) of some targets' margins, float64."""
        units = np.ones(self.t) if self.units is None else self.units.astype(np.float64)
        return units[targets]

    def packed(self, ids: IndexArray) -> ByteArray:
        """Packed masks (m, ⌈N/8⌉)."""
        return self.store.packed(ids)

    def margins(self, ids: IndexArray, targets: Any, xp: Any) -> Any:
        """Margins (m, T') on xp's device, of all targets or of some, in their units.

        In the store's number format, or where any unit is not 1 in float32. Raises InputError when one is not a number.
        """
        margins = self.known_margins(ids, targets, xp)
        finite = to_numpy(xp.isfinite(margins).all(1))
        if not finite.all():
            which = ids[~finite][0]
            raise InputError(f"model {which} of {self.store.folder} has a margin that is not a number; train it again")
        return margins

    def known_margins(self, ids: IndexArray, targets: Any, xp: Any) -> Any:
        """As `margins`, of models whose margins have been looked at before."""
        margins = self._rows(ids)[:, targets]
        if self.units is not None:
            margins = np.divide(margins, self.units[targets], dtype=np.float32)
        return on_device(margins, xp)

    def _rows(self, ids: IndexArray) -> Array:
        """Margins (m, T) as the store has them."""
        return self.store.margins(ids)[:, self.first - self.offset : self.last - self.offset]

    def tiles(self, ids: IndexArray) -> Iterator[IndexArray]:
        """The ids, so many at a time as are read together."""
        for start in range(0, len(ids), TILE_ROWS):
            yield ids[start : start + TILE_ROWS]


def targets_named(store: Store, wanted: str) -> tuple[int, int]:
    """The targets that `regress.targets` names, as first and one past the last.

    'all', or 'first:last' as Python counts. Raises InputError for anything else, and for targets that the store does not have.
    """
    total = store.meta.num_targets
    if wanted == "all":
        return 0, total
    first, colon, last = wanted.partition(":")
    start, stop = whole_number(first), whole_number(last)
    if not colon or start is None or stop is None:
        raise InputError(f"regress.targets is 'all' or two numbers as in 0:1000, not {wanted!r}")
    if not start < stop <= total:
        raise InputError(f"regress.targets is {wanted}, but {store.folder} has targets 0:{total}")
    return start, stop
