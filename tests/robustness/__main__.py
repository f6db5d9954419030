"""The record: `python -m tests.robustness` tries every hostile input and every fault of the environment, and writes a table."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from datamodels import __version__
from datamodels.durable import write_json
from datamodels.machine import describe_machine

TABLES = ("hostile", "environment")
OUTCOMES = ("sentence", "gone on", "traceback", "signal", "hang", "wrong in silence")
RECORD = Path(__file__).parents[1] / "benchmarks" / "results" / "robustness.json"


def main() -> None:
    """Run every table that is there; exit code 1 where an outcome is not what it should be."""
    tables = [name for name in TABLES if importlib.util.find_spec(f"tests.robustness.{name}")]
    found = {name: _table(name) for name in tables}
    total = _counted([outcome for table in found.values() for outcome in table["outcomes"]])
    result = {
        "bench": "robustness",
        "version": __version__,
        "machine": describe_machine(),
        **total,
        "tables": {name: {key: part for key, part in table.items() if key != "outcomes"} for name, table in found.items()},
    }
    write_json(RECORD, result)
    print(", ".join(f"{what}: {number}" for what, number in total.items()))
    sys.exit(any(table["not as expected"] for table in found.values()))


def _table(name: str) -> dict[str, Any]:
    """Every case of one table: how many came out how, for each reader or stage, and those that should not have."""
    module = importlib.import_module(f"tests.robustness.{name}")
    by_reader: dict[str, list[Any]] = {}
    unexpected = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, case in enumerate(module.CASES):
            outcome = module.run_case(case, Path(scratch) / str(number))
            if outcome is None:  # a fault that cannot be made on this machine
                continue
            by_reader.setdefault(case.reader, []).append(outcome)
            if outcome.what not in case.expected or not outcome.within_limits:
                told = {key: value for key, value in vars(outcome).items() if key != "said"}
                unexpected.append({"case": case.name, **told, "said": outcome.said})
    everything = [outcome for outcomes in by_reader.values() for outcome in outcomes]
    return {
        "outcomes": everything,
        **_counted(everything),
        "most_seconds": round(max(outcome.seconds for outcome in everything), 2),
        "most_mb": round(max(outcome.peak_mb for outcome in everything)),
        "by_reader": {reader: _counted(outcomes) for reader, outcomes in sorted(by_reader.items())},
        "not as expected": unexpected,
    }


def _counted(outcomes: list[Any]) -> dict[str, int]:
    counts = Counter(outcome.what for outcome in outcomes)
    return {"tried": len(outcomes), **{what: counts[what] for what in OUTCOMES}}


main()
