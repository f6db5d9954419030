"""Puts the figures of the records in `results/` into the texts: `python -m tests.benchmarks.figures`.

A text names a figure in a comment that no reader sees, and the script writes what stands between it and its end:

    <!--= RECORD: PATH: FORMAT-->0.709<!--/-->        a number
    <!--table NAME-->                                 a table of `TABLES`
    …
    <!--/table-->

RECORD is the name of a file in `results/`, without `.json`. PATH leads to a value: keys with slashes between, and
`rows[way=lasso,models=50]` for the entry of a list. With `reckoned` for RECORD, PATH names a function of `RECKONED`.
FORMAT is Python's; `%` is set off by a space, and `*1e-6` behind it multiplies first. Without one the value stands as it is.

`--check` writes nothing, says which texts have drifted from the records, and ends with exit code 1 where one has.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.benchmarks.records import Records
from tests.benchmarks.tables import TABLES

ROOT = Path(__file__).parents[2]
TEXTS = tuple(
    ROOT / text
    for text in (
        "README.md",
        "configs/README.md",
        "datamodels/README.md",
        "datamodels/cluster/README.md",
        "datamodels/verify/README.md",
        "tests/benchmarks/README.md",
    )
)
INLINE = re.compile(r"<!--= (?P<what>[^>]*?)-->(?P<is>[^<]*)<!--/-->")
FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
BLOCK = re.compile(r"<!--table (?P<name>[a-z0-9-]+)-->\n(?P<is>.*?)<!--/table-->", re.DOTALL)


class UnknownFigureError(Exception):
    """A text asks for a figure that no record has."""


def filled(text: str, records: Records) -> str:
    """The text with every figure as the records have it, code as it is. Raises UnknownFigureError, UnknownRecordError."""
    return "".join(part if FENCED.fullmatch(part) else _filled(part, records) for part in FENCED.split(text))


def _filled(text: str, records: Records) -> str:
    text = BLOCK.sub(lambda found: f"<!--table {found['name']}-->\n{_table(found['name'], records)}<!--/table-->", text)
    return INLINE.sub(lambda found: f"<!--= {found['what']}-->{_figure(found['what'], records)}<!--/-->", text)


def _table(name: str, records: Records) -> str:
    if name not in TABLES:
        raise UnknownFigureError(f"there is no table {name}; there are {', '.join(TABLES)}")
    head, *rows = TABLES[name](records)
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _figure(what: str, records: Records) -> str:
    record, path, form = (*(part.strip() for part in what.split(":", 2)), "")[:3]
    if record == "reckoned":
        if path not in RECKONED:
            raise UnknownFigureError(f"nothing reckons {path}; there are {', '.join(RECKONED)}")
        return written(RECKONED[path](records), form)
    return written(at(records[record], path), form)


def at(value: Any, path: str) -> Any:
    """What lies at a path, such as `rows[way=lasso,models=50]/lds/mean`. Raises UnknownFigureError."""
    for part in path.split("/"):
        key, _, wanted = part.partition("[")
        try:
            value = value[key]
            if wanted:
                value = _entry(value, wanted.rstrip("]"))
        except (KeyError, IndexError, TypeError, StopIteration):
            raise UnknownFigureError(f"nothing lies at {path!r}: {part!r} is not there") from None
    return value


def _entry(values: list[Any], wanted: str) -> Any:
    if wanted.isdigit():
        return values[int(wanted)]
    pairs = [pair.split("=", 1) for pair in wanted.split(",")]
    return next(value for value in values if all(str(value[key]) == of for key, of in pairs))


def written(value: Any, form: str) -> str:
    """A value as it stands in a text."""
    form, _, times = form.partition("*")
    if times:
        value = value * float(times)
    return format(value, form).replace("%", " %") if form else str(value)


def _sum(*paths: str) -> Callable[[Records], float]:
    def of(records: Records) -> float:
        return float(sum(at(records[path.partition(":")[0]], path.partition(":")[2]) for path in paths))

    return of


def _quotient(above: Callable[[Records], float], below: Callable[[Records], float]) -> Callable[[Records], float]:
    return lambda records: above(records) / below(records)


def _growth(twice: str) -> Callable[[Records], float]:
    return _quotient(
        _sum(f"regress-bench-cpu:growth_seconds/2 × {twice}/path"), _sum("regress-bench-cpu:growth_seconds/base/path")
    )


# The full CIFAR-10 of the paper. The seconds are what others publish for one training on all of it, on one A100.
MODELS, IMAGES, TARGETS = 300_000, 50_000, 10_000
AIRBENCH_SECONDS, FFCV_SECONDS = 3.8, 36.0
PRIOR_MODELS, LASSO_MODELS = 200, 1600  # between which the README compares
FITTED = _sum("regress-bench-cpu:seconds/moments", "regress-bench-cpu:seconds/path")
ROWS_PER_S = _sum("cluster-ingest-bench-disk:rows_per_s/256")
RECKONED: dict[str, Callable[[Records], float]] = {
    "models": lambda records: MODELS,
    "prior models": lambda records: PRIOR_MODELS,
    "lasso models": lambda records: LASSO_MODELS,
    "airbench seconds": lambda records: AIRBENCH_SECONDS / 2,
    "airbench whole": lambda records: AIRBENCH_SECONDS,
    "ffcv whole": lambda records: FFCV_SECONDS,
    "least hours": lambda records: MODELS * AIRBENCH_SECONDS / 2 / 3600,
    "most hours": lambda records: MODELS * FFCV_SECONDS / 2 / 3600,
    "store gigabytes": lambda records: MODELS * records["store-bench-disk"]["row_bytes"] / 1e9,
    "gram gigabytes": lambda records: IMAGES**2 * 4 / 1e9,
    "weights gigabytes": lambda records: IMAGES * TARGETS * 4 / 1e9,
    "models a second and GPU": lambda records: 2 / AIRBENCH_SECONDS,
    "GPUs of airbench": lambda records: records["cluster-ingest-bench-disk"]["rows_per_s"]["16"] * AIRBENCH_SECONDS / 2,
    "GPUs of ffcv": lambda records: records["cluster-ingest-bench-disk"]["rows_per_s"]["16"] * FFCV_SECONDS / 2,
    "regress seconds": FITTED,
    "celer times": _quotient(_sum("regress-bench-cpu:on_the_data_matrix/celer/seconds_for_all"), FITTED),
    "skglm times": _quotient(_sum("regress-bench-cpu:on_the_data_matrix/skglm/seconds_for_all"), FITTED),
    "twice the images": _growth("images"),
    "twice the targets": _growth("targets"),
    "twice the lams": _growth("lams"),
    "twice the models": _growth("models"),
    "most times scikit-learn": lambda records: max(
        row["times_scikit_learn_to_our_gap"] for row in records["lasso-bench-cpu"]["rows"]
    ),
    "lasso shapes": lambda records: len(records["lasso-bench-cpu"]["rows"]),
    "first screen seconds": lambda records: max(records["page-bench-cpu"]["first_screen_seconds"]),
    "demo minutes": lambda records: sum(records["digits-demo"]["seconds"].values()) / 60,
    "most wrong claims": lambda records: max(row["wrong"] for row in records["court-digits-cpu"]["rows"]),
}


def drifted(texts: Iterable[Path] = TEXTS, records: Records | None = None) -> list[Path]:
    """The texts that say something else than the records."""
    records = records or Records()
    return [text for text in texts if filled(text.read_text(encoding="utf-8"), records) != text.read_text(encoding="utf-8")]


def main(arguments: list[str]) -> int:
    """Fill the texts, or with --check tell which have drifted."""
    records = Records()
    for text in (found := drifted(records=records)):
        if "--check" in arguments:
            print(f"{text.relative_to(ROOT)} says something else than the records: python -m tests.benchmarks.figures")
            continue
        text.write_text(filled(text.read_text(encoding="utf-8"), records), encoding="utf-8")
        print(f"{text.relative_to(ROOT)}: figures renewed")
    return 1 if found and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
