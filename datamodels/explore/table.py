"""Columns with names, as text, as HTML, as a data frame of pandas, or in a Parquet file."""

from __future__ import annotations

import html
import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.durable import new_file
from datamodels.errors import InputError, shown
from datamodels.reading import path_of
from datamodels.subsets import Array

MOST_ROWS = 20
"""Of a table as text."""


class Table(Mapping[str, Array]):
    """Columns of one length by name, each an array; None stands where something is not known.

    >>> table = Table({"image": [7, 12], "weight": [0.5, 0.25]})
    >>> table["weight"].sum(), len(table), table.number_of_rows
    (np.float64(0.75), 2, 2)
    >>> table
    image  weight
        7   0.500
       12   0.250
    """

    def __init__(self, columns: Mapping[str, Sequence[Any] | Array]) -> None:
        self._columns = {name: _array(values) for name, values in columns.items()}
        if len({len(values) for values in self._columns.values()}) > 1:
            raise InputError("the columns of a table are of one length")

    def __getitem__(self, name: str) -> Array:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    @property
    def number_of_rows(self) -> int:
        """How many rows there are."""
        return len(next(iter(self._columns.values()), ()))

    def values_of(self, name: str) -> list[Any]:
        """The values of a column, one for each row; None where there is no such column."""
        return self[name].tolist() if name in self else [None] * self.number_of_rows

    def __repr__(self) -> str:
        cells = [[name, *map(_told, self[name][:MOST_ROWS])] for name in self]
        widths = [max(map(len, column)) for column in cells]
        padded = [[cell.rjust(width) for cell in column] for column, width in zip(cells, widths, strict=True)]
        more = self.number_of_rows - MOST_ROWS
        return "\n".join(["  ".join(row) for row in zip(*padded, strict=True)] + [f"… {more} more"] * (more > 0))

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self)
        rows = zip(*(map(_told, self[name]) for name in self), strict=True)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def to_pandas(self) -> Any:
        """As a pandas DataFrame. Raises InputError where pandas is not installed."""
        return _library("pandas").DataFrame({name: list(values) for name, values in self.items()})

    def to_parquet(self, file: Path | str) -> None:
        """Write a Parquet file, whole or not at all. Raises InputError where pyarrow is not installed."""
        pyarrow, parquet = _library("pyarrow"), _library("pyarrow.parquet", "pyarrow")
        content = pyarrow.table({name: values.tolist() for name, values in self.items()})
        with new_file(path_of(file)) as temporary:
            parquet.write_table(content, str(temporary))


def _array(values: Sequence[Any] | Array) -> Array:
    """A column; of numbers where all are, else of objects, so that None stays None."""
    if isinstance(values, np.ndarray):
        return values
    found = list(values)
    numbers = all(isinstance(value, (int, float, np.number)) and value is not None for value in found)
    return np.array(found) if numbers and found else np.array(found, object)


def _told(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, (float, np.floating)) else shown(str(value), 80)


def _library(name: str, package: str = "") -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as e:
        package = package or name
        raise InputError(f"that needs {package}, which is not installed here: pip install {package}") from e
