"""A run as one object: its store, its weights, its examples, and the questions that one asks of them."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodels.brittleness import Outcome, Support
from datamodels.errors import InputError
from datamodels.explore.examples import Shown, as_html, examples_of
from datamodels.explore.table import Table
from datamodels.reading import path_of
from datamodels.regress import Datamodels
from datamodels.store import Store
from datamodels.subsets import Array, IndexArray
from datamodels.verify.measured import Supports

CONFIDENCE = 0.95
TOGETHER = 1024
"""Targets whose weights are compared at once."""


@dataclass(frozen=True, repr=False)
class Neighbours:
    """Examples beside a target, with a number for each: in a notebook they are shown as pictures.

    `groups` are tables with the columns `index`, `name` and `class`, where examples have these, and the number, by what the
    examples are. `of_train` says whether they are training examples or targets.
    """

    target: int
    title: str
    groups: dict[str, Table]
    of_train: bool
    examples: Shown
    number: str

    @property
    def table(self) -> Table:
        """All groups below each other."""
        parts = list(self.groups.items())
        what = [name for name, part in parts for _ in range(part.number_of_rows)]
        names = sorted({name for _, part in parts for name in part}, key=["index", "name", "class", self.number].index)
        columns = {name: [value for _, part in parts for value in part.values_of(name)] for name in names}
        return Table({"what": what, **columns} if len(parts) > 1 else columns)

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame. Raises InputError where pandas is not installed."""
        return self.table.to_pandas()

    def __repr__(self) -> str:
        return f"{self.title}\n{self.table!r}"

    def _repr_html_(self) -> str:
        own = self.examples.pictures(False, [self.target])
        picture = "" if own is None else as_html(own[0], f"target {self.target}")
        parts = [f'<div style="display: flex; gap: 1em; align-items: center">{picture}<p>{html.escape(self.title)}</p></div>']
        for name, table in self.groups.items():
            parts += [f"<p><b>{html.escape(name)}</b></p>", self._in_html(table)]
        return "".join(parts)

    def _in_html(self, table: Table) -> str:
        pictures = self.examples.pictures(self.of_train, table["index"].tolist()) if table.number_of_rows else None
        if pictures is None:
            return table._repr_html_()
        cells = []
        for k, picture in enumerate(pictures):
            told = [
                *(str(table[name][k]) for name in ("index", "name", "class") if name in table),
                f"{table[self.number][k]:.3f}",
            ]
            caption = "<br>".join(map(html.escape, told))
            cells.append(f'<figure style="margin: 0">{as_html(picture, told[0])}<figcaption>{caption}</figcaption></figure>')
        return f'<div style="display: flex; flex-wrap: wrap; gap: .5em; font-size: smaller">{"".join(cells)}</div>'


@dataclass(frozen=True, repr=False)
class Explanation(Neighbours):
    """What carries one target's prediction, and what speaks against it, by its datamodel.

    `weights` (N,) are its datamodel's, `carriers` and `opponents` the training examples of the largest and the smallest ones,
    `support` the set whose removal should flip it, `measured` what networks trained on all of S say, None where that was not
    asked.
    """

    weights: npt.NDArray[np.float32]
    carriers: IndexArray
    opponents: IndexArray
    support: Support

    @property
    def measured(self) -> Outcome | None:
        """See above."""
        return self.support.measured


@dataclass(frozen=True, repr=False)
class Prediction:
    """Margins that datamodels predict, (m, T') for m masks and some `targets`, in logits, each with an interval.

    A network trained on a random mask as the store's has its margin between `low` and `high` in 95 % of cases: the interval is
    the prediction plus and minus the error that so many of the `heldout` models stay below, of those that the regression was
    not fitted to (split conformal prediction: Vovk, Gammerman & Shafer 2005). It is of one network, and holds over random masks
    and targets, whatever the errors' distribution. With fewer than 19 held-out models it is infinite. A mask of another size
    than the store's is no such mask; for those `extrapolated`, bool (m,), is True, and the interval promises nothing.
    """

    targets: IndexArray
    margins: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    extrapolated: npt.NDArray[np.bool_]
    heldout: int

    def __repr__(self) -> str:
        m, t = self.margins.shape
        wide = float(np.median(self.high - self.low)) / 2 if self.margins.size else math.nan
        told = f"{m} mask{'s' * (m != 1)} × {t} target{'s' * (t != 1)}, ± {wide:.2f} at the median"
        out = int(self.extrapolated.sum())
        beyond = f"; {out} of the masks are of another size than the store's: their intervals promise nothing" if out else ""
        return f"<Prediction: margins of {told}, by {self.heldout} held-out models{beyond}>"


class Run:
    """A run, by its folder: `Run("runs/digits")`.

    `models` are its weights, `store` its store. Pictures, names and classes are those of the run's own images; those of a
    function or learner of one's own come with `config`, the file that describes the run. Raises InputError where the folder has
    no store, or no weights, or the examples are others.
    """

    def __init__(self, folder: Path | str, config: Path | str | None = None) -> None:
        self.folder, self.config = path_of(folder), None if config is None else path_of(config)
        if not self.folder.is_dir():
            raise InputError(f"there is no run in {self.folder}: it is no folder")
        self.store = Store(self.folder / "store")
        self.models = Datamodels.load(self.folder / "regress")
        self.models.refuse_other(self.store)

    def __repr__(self) -> str:
        n, t = self.models.weights.shape
        lds = f", LDS {self.models.metrics['mean']['lds']:.3f}" if "mean" in self.models.metrics else ""
        measured = len(Supports(self.models).before)
        verified = f", {measured} targets verified" if measured else ""
        return f"<Run: {self.folder}, N = {n} images, {t} targets, {len(self.store.done)} models{lds}{verified}>"

    @cached_property
    def examples(self) -> Shown:
        """Pictures, names and classes of training examples and targets."""
        return examples_of(self.folder, self.store.meta, self.config)

    def explain(self, target: int, k: int = 10) -> Explanation:
        """What carries a target's prediction: the k training examples of the largest weights, and of the smallest.

        Raises InputError where there are no weights of that target.
        """
        weights, _ = self.models.of(target)
        order = np.argsort(-weights, kind="stable")[: _some(k)].astype(np.int64)
        carriers = order[weights[order] > 0]
        order = np.argsort(weights, kind="stable")[:k].astype(np.int64)
        opponents, support = order[weights[order] < 0], self.support(target)
        groups = {"carries it": self._table(carriers, weights), "speaks against it": self._table(opponents, weights)}
        title = f"{self._called(target)}. {repr(support)[1:-1]}"
        return Explanation(target, title, groups, True, self.examples, "weight", weights, carriers, opponents, support)

    def similar(self, target: int, k: int = 10) -> Neighbours:
        """The k targets whose datamodels are most alike, by the cosine of their weights: the same training examples carry them.

        Raises InputError where there are no weights of that target.
        """
        near = np.concatenate(list(_cosines(self.models.weights, self.models.of(target)[0])))
        first = self.models.targets.start
        near[target - first] = -np.inf
        order = np.argsort(-near, kind="stable")[: min(_some(k), len(near) - 1)]
        table = self._columns(False, order + first) | {"cosine": near[order]}
        title = f"Targets that the same training examples carry as {self._called(target, False)}"
        return Neighbours(target, title, {"most alike": Table(table)}, False, self.examples, "cosine")

    def by_class(self, target: int | None = None) -> Table:
        """What the training examples of each class give: the sum of their weights, for a target, or the mean over each class.

        Without a target the table has a row for each class of training examples, and a column for each class of targets. Raises
        InputError where classes are not known, or there are no weights of that target.
        """
        labels, of_targets = self.examples.labels(True), self.examples.labels(False)[list(self.models.targets)]
        if (labels < 0).any():
            raise InputError(f"the classes of the examples of {self.folder} are not known; give Run the config of the run")
        classes = np.unique(labels)
        chosen = (labels == classes[:, None]).astype(np.float32)
        names = [self.examples.class_name(label) for label in classes.tolist()]
        if target is not None:
            found = chosen @ self.models.of(target)[0]
            return Table({"class": names, "images": chosen.sum(1).astype(np.int64), "weights": found})
        sums, given = chosen @ self.models.weights, np.unique(of_targets).tolist()
        columns = {f"to {self.examples.class_name(label)}": sums[:, of_targets == label].mean(1) for label in given}
        return Table({"of": names, **columns})

    def predict(self, masks: Array, targets: int | Sequence[int] | None = None) -> Prediction:
        """Margins of networks trained on `masks`, bool (m, N) or one (N,), with intervals; see `Prediction`.

        `targets` are some of those that there are weights of; None: all. Raises InputError for others, or for masks of another
        shape.
        """
        wanted = np.array(self.models.targets if targets is None else np.atleast_1d(np.array(targets, object)).tolist(), object)
        for target in wanted:
            self.models.of(target)
        columns = wanted.astype(np.int64) - self.models.targets.start
        masks = np.atleast_2d(masks)
        margins = self.models.predict(masks)[:, columns].astype(np.float64)
        heldout = self.models.heldout
        errors = np.abs(self.models.predict(self.store.masks(heldout))[:, columns] - self._margins(heldout, columns))
        half = _bound(errors)
        extrapolated = masks.sum(1) != self._size if self._size else np.zeros(len(masks), bool)
        return Prediction(
            columns + self.models.targets.start, margins, margins - half, margins + half, extrapolated, len(heldout)
        )

    def support(self, target: int, max_size: int = 100) -> Support:
        """The training examples whose removal should flip a target, from what was measured where it was; see `Support`."""
        return Supports(self.models).of(target, max_size)

    def table(self) -> Table:
        """A row for each target: what it is, how well its datamodel predicts, and what verifications have found."""
        supports, targets = Supports(self.models), np.array(self.models.targets)
        before = [supports.before.get(target) for target in targets.tolist()]
        proved = [supports.proved(target) for target in targets.tolist()]
        of_each = self.models.metrics.get("per_target", {})
        columns: dict[str, Any] = {
            ("target" if name == "index" else name): c for name, c in self._columns(False, targets).items()
        }
        columns |= {name: np.array(of_each[name]) for name in ("lds", "r2", "nonzeros") if name in of_each}
        if supports.before:
            for name in ("mean_margin", "low", "high", "correct"):
                columns[name] = [None if outcome is None else getattr(outcome, name) for outcome in before]
            columns["verified"] = [None if images is None else len(images) for images in proved]
        return Table(columns)

    def to_pandas(self) -> Any:
        """`table` as a pandas DataFrame. Raises InputError where pandas is not installed."""
        return self.table().to_pandas()

    def to_parquet(self, file: Path | str) -> None:
        """Write `table` as a Parquet file. Raises InputError where pyarrow is not installed."""
        self.table().to_parquet(file)

    @cached_property
    def _size(self) -> int:
        """How many images each model of the store saw; 0 where they differ."""
        first = self.store.masks(self.store.done[:TOGETHER]).sum(1)
        return int(first[0]) if len(first) and (first == first[0]).all() else 0

    def _margins(self, ids: IndexArray, columns: IndexArray) -> Array:
        return self.store.margins(ids)[:, columns + self.models.targets.start].astype(np.float64)

    def _columns(self, of_train: bool, indices: IndexArray) -> dict[str, Any]:
        labels, examples = self.examples.labels(of_train), self.examples
        known = {
            "name": [examples.name(of_train, index) for index in indices.tolist()],
            "class": [examples.class_name(label) for label in labels[indices].tolist()],
        }
        return {"index": indices, **{name: words for name, words in known.items() if any(word is not None for word in words)}}

    def _table(self, indices: IndexArray, weights: Array) -> Table:
        return Table({**self._columns(True, indices), "weight": weights[indices]})

    def _called(self, target: int, capital: bool = True) -> str:
        """A target in a few words: its index, its name, its class."""
        name, label = self.examples.name(False, target), int(self.examples.labels(False)[target])
        told = [f"{'T' if capital else 't'}arget {target}", *([] if name is None else [name])]
        return ", ".join([*told, *([f"of class {self.examples.class_name(label)}"] if label >= 0 else [])])


def _some(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"k is how many are told, 1 or more, not {k!r}")
    return int(k)


def _cosines(weights: Array, own: Array) -> Iterator[Array]:
    """Cosines of some weights (N,) with those of all targets, (N, T), some targets at a time; 0 where there are none."""
    own = own.astype(np.float64)
    for first in range(0, weights.shape[1], TOGETHER):
        part = np.asarray(weights[:, first : first + TOGETHER], np.float64)
        size = np.linalg.norm(part, axis=0) * np.linalg.norm(own)
        yield np.divide(own @ part, size, out=np.zeros(part.shape[1]), where=size > 0)


def _bound(errors: Array) -> Array:
    """What an error of one more model stays below in 95 % of cases, (T,), of the errors (m, T) of models like it."""
    m = len(errors)
    rank = math.ceil((m + 1) * CONFIDENCE)
    if rank > m:
        return np.full(errors.shape[1], np.inf)
    found: Array = np.partition(errors, rank - 1, axis=0)[rank - 1]
    return found
