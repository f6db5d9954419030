"""What is to be known of a store where models are trained: its meta.json, and what it says of the rows beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from datamodels.store import Meta, Store
from datamodels.subsets import Array, BoolArray, unpack


class Known(Protocol):
    """A store, as whoever trains some of its rows asks it: a `Store`, or an `Excerpt` of one that lies elsewhere."""

    @property
    def meta(self) -> Meta:
        """The store's meta.json."""
        ...

    def masks(self, ids: npt.ArrayLike) -> BoolArray:
        """Masks of the given models, bool (len(ids), N)."""
        ...

    def array(self, name: str, ids: npt.ArrayLike) -> Array:
        """Rows of one of the store's arrays, (len(ids), …)."""
        ...


@dataclass(frozen=True)
class Excerpt:
    """Some arrays of neighbouring rows of a store, to be sent to where these are trained; from row `first` on."""

    meta: Meta
    first: int
    arrays: Mapping[str, Array]

    @classmethod
    def of(cls, store: Store, ids: range, names: Sequence[str]) -> Excerpt:
        """Rows `ids` of the arrays of these names."""
        return cls(store.meta, ids.start, {name: store.array(name, ids) for name in names})

    def masks(self, ids: npt.ArrayLike) -> BoolArray:
        """See `Known`."""
        return unpack(self.array("masks", ids), self.meta.num_train)

    def array(self, name: str, ids: npt.ArrayLike) -> Array:
        """See `Known`."""
        rows: Array = self.arrays[name][np.asarray(ids, np.int64) - self.first]
        return rows
