"""Tiles of a store's models, on their way to a solver."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodels.errors import InputError
from datamodels.reading import whole_number
from datamodels.regress.arrays import on_device, to_numpy
from datamodels.store import Store
from datamodels.subsets import ByteArray, IndexArray

TILE_ROWS = 2048


@dataclass(frozen=True)
class Source:
    """Masks and margins of a store's models, the margins of the targets from `first` up to `last` only."""

    store: Store
    first: int
    last: int

    @property
    def n(self) -> int:
        """How many training images a mask covers."""
        return self.store.meta.num_train

    @property
    def margin_bytes(self) -> int:
        """Bytes of a margin in the store."""
        return np.dtype(self.store.meta.files["margins"].dtype).itemsize

    @property
    def t(self) -> int:
        """How many targets."""
        return self.last - self.first

    def packed(self, ids: IndexArray) -> ByteArray:
        """Packed masks (m, ⌈N/8⌉)."""
        return self.store.packed(ids)

    def margins(self, ids: IndexArray, targets: Any, xp: Any) -> Any:
        """Margins (m, T') on xp's device, in the store's number format, of all targets or of some.

        Raises InputError when one is not a number.
        """
        margins = self.known_margins(ids, targets, xp)
        finite = to_numpy(xp.isfinite(margins).all(1))
        if not finite.all():
            which = ids[~finite][0]
            raise InputError(f"model {which} of {self.store.folder} has a margin that is not a number; train it again")
        return margins

    def known_margins(self, ids: IndexArray, targets: Any, xp: Any) -> Any:
        """As `margins`, of models whose margins have been looked at before."""
        return on_device(self.store.margins(ids)[:, self.first : self.last][:, targets], xp)

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
