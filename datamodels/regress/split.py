"""Which models fit, which choose, and which only measure: whole subsets at a time, for several models may share a mask.

A model that was trained on the same subset as another one has, up to noise, the same margins. What was fitted to the one knows
the other; so all models on one mask go to one part.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from datamodels.errors import InputError
from datamodels.regress.source import TILE_ROWS, Models
from datamodels.settings import RegressSettings
from datamodels.subsets import IndexArray

FEWEST_IN_A_PART = 10
MOST_TRIED = 10**5


@dataclass(frozen=True)
class Parts:
    """Model ids (ascending) to fit on, to choose λ by, and to measure on."""

    fit: IndexArray
    choice: IndexArray
    heldout: IndexArray


@dataclass(frozen=True)
class Subsets:
    """Models `ids` (m,), ascending, and for each the first of them with the same mask, `first` (m,)."""

    ids: IndexArray
    first: IndexArray

    @classmethod
    def of(cls, store: Models, ids: IndexArray) -> Subsets:
        """Models of a store, told apart by their masks."""
        seen: dict[bytes, int] = {}
        first = list[int]()
        for start in range(0, len(ids), TILE_ROWS):
            tile = ids[start : start + TILE_ROWS]
            names = (blake2b(row.data, digest_size=16).digest() for row in store.packed(tile))
            first += [seen.setdefault(name, i) for name, i in zip(names, tile.tolist(), strict=True)]
        return cls(ids, np.array(first, np.int64))

    def __len__(self) -> int:
        """How many different masks there are."""
        return len(np.unique(self.first))

    @property
    def repeated(self) -> bool:
        """Whether any mask comes twice."""
        return len(self) < len(self.ids)

    def shuffled(self, rng: np.random.Generator) -> list[IndexArray]:
        """The models of each mask, ascending, mask after mask in random order."""
        order = np.argsort(self.first, kind="stable")
        names, starts = np.unique(self.first[order], return_index=True)
        groups = np.split(self.ids[order], starts[1:])
        return [groups[k] for k in rng.permutation(len(names))]

    def among(self, ids: IndexArray) -> Subsets:
        """Some of the models."""
        which = np.isin(self.ids, ids)
        return Subsets(self.ids[which], self.first[which])


def split_models(subsets: Subsets, settings: RegressSettings) -> Parts:
    """Split models by the settings' seed and shares, the models on one mask together.

    Raises InputError when one part would have fewer than 10 subsets, or all were trained on one.
    """
    if len(subsets.ids) > 1 and len(subsets) == 1:
        raise InputError(
            f"all {len(subsets.ids)} finished models have one and the same mask; nothing can be learnt of its images"
        )
    groups = subsets.shuffled(np.random.default_rng(settings.seed))
    sizes = _sizes(len(groups), settings)
    heldout, choice, _ = sizes.values()
    if min(sizes.values()) < FEWEST_IN_A_PART:
        on = f" on {len(groups)} different subsets" if subsets.repeated else ""
        found = f"{len(subsets.ids)} finished models{on} are too few"
        raise InputError(f"{found}: {_each_too_few(sizes)}; train more")
    return Parts(joined(groups[heldout + choice :]), joined(groups[heldout : heldout + choice]), joined(groups[:heldout]))


def refuse_too_few(models: int, settings: RegressSettings) -> None:
    """Raise InputError where so many models, each on a mask of its own, will be too few to be split; it names how many are."""
    sizes = _sizes(models, settings)
    if min(sizes.values()) >= FEWEST_IN_A_PART:
        return
    enough = next((m for m in range(models, MOST_TRIED) if min(_sizes(m, settings).values()) >= FEWEST_IN_A_PART), None)
    how = f"store.num_models {enough} is enough" if enough else "change regress.heldout and regress.choice"
    raise InputError(f"{models} models will be too few for the regression: {_each_too_few(sizes)}; {how}")


def _sizes(number: int, settings: RegressSettings) -> dict[str, int]:
    """How many subsets each part has, of so many."""
    heldout = round(settings.heldout * number)
    choice = round(settings.choice * (number - heldout))
    return {"held-out": heldout, "choice": choice, "fit": number - heldout - choice}


def _each_too_few(sizes: dict[str, int]) -> str:
    have = ", ".join(f"{size} {name}" for name, size in sizes.items())
    return f"of {have}, each must be {FEWEST_IN_A_PART} or more"


def joined(groups: list[IndexArray]) -> IndexArray:
    """The models of several masks, ascending."""
    return np.sort(np.concatenate([np.zeros(0, np.int64), *groups]))
