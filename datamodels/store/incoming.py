"""Arrays from elsewhere: which of their rows are models.

A row that nobody trained is a row all the same: programs allocate arrays for all models at once, filled with zeros, and fill in
one after another. The original `datamodels` package keeps beside them which rows are done, in `_completed.npy`; where nothing
of the kind is known, the rows themselves say what they can.

* A model was trained on some of the images: a mask that is empty, or full, is none.
* Margins differ from target to target: a row with one value throughout was filled, not measured.
* Margins differ from subset to subset: rows alike in every bit, with other masks, are copies of one another.

Where margins have few values, or there are few targets, chance does the same. Then nobody but the user can tell, and is asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from datamodels.errors import InputError
from datamodels.reading import Unreadable, open_npy
from datamodels.subsets import Array, BoolArray, IndexArray

COMPLETED = "_completed.npy"
ALL = "all"
FEWEST_TARGETS = 4
"""With fewer, margins rounded to float16 are alike by chance."""
SAMPLE, FEW_VALUES = 4096, 64
"""Margins of at most so many values in a sample of so many, or of half of it, are counts or classes, and may well be alike."""
SHARE_OF_ALIKE = 0.05
NAMED = 5
ASK = "say by --done FILE which rows are models, or by --done all that every one is"

EMPTY, FULL = "their masks are empty", "their masks are full"
NOT_COMPLETED = "they are not marked as done"


@dataclass(frozen=True)
class Known:
    """Which rows are models, bool (M,), according to whom; or None for both, where nobody says. `binding`: the user said it."""

    done: BoolArray | None = None
    by: str | None = None
    binding: bool = False


def known_rows(given: str | None, masks_file: Path, margins_file: Path, total: int) -> Known:
    """What is known of the rows: from the option, 'all' or an .npy file (M,); else from `_completed.npy` beside the arrays.

    Raises InputError when that is no such array, or the two arrays lie in folders that say different things.
    """
    if given == ALL:
        return Known(np.ones(total, bool), ALL, binding=True)
    if given is not None:
        return Known(_marks(Path(given), total), Path(given).name, binding=True)
    found = {file: _marks(file, total) for file in {f.parent / COMPLETED for f in (masks_file, margins_file)} if file.exists()}
    marks = list(found.values())
    if any(not np.array_equal(marks[0], other) for other in marks[1:]):
        both = " and ".join(map(str, sorted(found)))
        raise InputError(f"{both} say different things; say by --done FILE which rows are models")
    return Known(marks[0], COMPLETED) if marks else Known()


def _marks(file: Path, total: int) -> BoolArray:
    try:
        marks = open_npy(file)
    except Unreadable as e:
        raise InputError(f"{file} cannot be read as an .npy file that says which rows are models: it {e.why}") from e
    if marks.shape != (total,) or marks.dtype.kind not in "biuf" or not np.isin(marks, (0, 1)).all():
        raise InputError(f"{file} must hold for each of {total} rows 1 if it is a model and 0 if not")
    return marks.astype(bool)


@dataclass
class Scan:
    """What the rows themselves say, gathered lot by lot: `add` all of them in order, then ask for `unlike_models`."""

    known: Known
    images: list[IndexArray] = field(default_factory=list)
    fills: list[Array] = field(default_factory=list)
    seen: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)
    copies: list[int] = field(default_factory=list)
    sample: set[float] = field(default_factory=set)
    sampled: int = 0
    targets: int = 0
    n: int = 0

    def add(self, ids: IndexArray, masks: BoolArray, margins: Array) -> None:
        """Look at rows: masks bool (K, N), margins (K, T)."""
        self.n, self.targets = masks.shape[1], margins.shape[1]
        finite, alike = np.isfinite(margins).all(1), (margins == margins[:, :1]).all(1)
        self.images.append(masks.sum(1))
        self.fills.append(np.where(alike & finite, margins[:, 0].astype(np.float64), np.nan))
        if self.known.binding:
            return
        varied = finite & ~alike if self.targets > 1 else finite
        if self.known.done is not None:
            varied &= self.known.done[ids]
        if self.sampled < SAMPLE:
            some = margins[varied].ravel()[: SAMPLE - self.sampled]
            self.sample.update(some.tolist())
            self.sampled += len(some)
        if self.targets >= FEWEST_TARGETS:
            for k in np.flatnonzero(varied):
                self._compare(int(ids[k]), _digest(margins[k]), _digest(masks[k]))

    def _compare(self, i: int, margins: bytes, mask: bytes) -> None:
        first, others = self.seen.setdefault(margins, (i, mask))
        if others != mask:
            self.copies += [first, i]

    def unlike_models(self) -> dict[str, IndexArray]:
        """The rows that are no models, by why they are none; those with margins that are not finite are not among them.

        Raises InputError where some may or may not be models, and names them, or where no row is one.
        """
        images, total = np.concatenate(self.images), sum(map(len, self.images))
        done = np.ones(total, bool) if self.known.done is None else self.known.done
        found = {NOT_COMPLETED: np.flatnonzero(~done)}
        if not self.known.binding:
            inside = (images > 0) & (images < self.n)
            found |= {EMPTY: np.flatnonzero(done & (images == 0)), FULL: np.flatnonzero(done & (images == self.n))}
            found |= self._filled(done & inside)
            self._refuse_copies(total)
        found = {reason: rows for reason, rows in found.items() if len(rows)}
        if sum(map(len, found.values())) == total:
            raise InputError(f"no row is a model: {in_words(found)}; --done FILE, or --done all, says otherwise")
        return found

    def _filled(self, rows: BoolArray) -> dict[str, IndexArray]:
        """Those of the rows whose margins were filled with one value, by the value."""
        ids = np.flatnonzero(rows & ~np.isnan(fills := np.concatenate(self.fills)))
        values, counts = np.unique(fills[ids], return_counts=True)
        filled = [value for value, n in zip(values, counts, strict=True) if self._is_fill(value, n, int(rows.sum()))]
        return {f"their margins are all {value:g}": ids[fills[ids] == value] for value in filled}

    def _is_fill(self, value: float, rows: int, of: int) -> bool:
        """Whether rows with this one margin throughout were filled. Raises InputError where that cannot be told."""
        few = self.sampled > 0 and len(self.sample) <= min(FEW_VALUES, self.sampled // 2)
        if self.targets >= FEWEST_TARGETS and not few:
            return True
        # A value or two may be so by chance; none comes up again and again, and least of all 0.
        if self.targets < FEWEST_TARGETS and rows <= (1 if value == 0 else max(2, SHARE_OF_ALIKE * of)):
            return False
        alike = f"{rows} rows have the margin {value:g} for every target"
        raise InputError(f"{alike}, and may be models or rows that nobody trained; {ASK}")

    def _refuse_copies(self, total: int) -> None:
        if self.copies:
            found = {"have the margins of others, bit for bit, with other masks": np.unique(self.copies)}
            raise InputError(f"of {total} rows {in_words(found)}; {ASK}")


def in_words(found: dict[str, IndexArray]) -> str:
    """Rows by what is to be said of them: how many, and the first few."""

    def some(rows: IndexArray) -> str:
        return ", ".join(map(str, rows[:NAMED])) + ", …" * (len(rows) > NAMED)

    return "; ".join(f"{len(rows)} ({some(rows)}): {what}" for what, rows in found.items())


def _digest(row: Array) -> bytes:
    return blake2b(np.ascontiguousarray(row).view(np.uint8).data, digest_size=16).digest()
