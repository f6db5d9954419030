"""The house's order: each stage imports those before it and none after; what is mathematics knows no networks."""

import ast
from pathlib import Path

import pytest

import datamodels

ROOT = Path(datamodels.__file__).parent
BELOW: dict[str, set[str]] = {
    "reading": set(),
    "data": set(),
    "store": set(),
    "cluster": set(),
    "training": {"data"},
    "brittleness": {"store"},
    "learners": {"data", "store", "training"},
    "regress": {"store", "cluster"},
    "worker": {"data", "store", "training", "learners", "cluster"},
    "verify": {"store", "training", "learners", "regress", "brittleness", "worker"},
    "evaluate": {"store", "learners", "regress", "worker", "verify"},
    "report": {"store", "learners", "regress", "brittleness", "verify"},
    "explore": {"data", "store", "learners", "regress", "brittleness", "verify", "worker"},
}
"""Of each stage the ones whose code it may use; `__main__` files are doors and may use all."""
NO_NETWORKS = {"torch", "cupy"}
NOT_FOR = {
    "store": NO_NETWORKS,
    "cluster": NO_NETWORKS,
    "brittleness": NO_NETWORKS,
    "regress": {"torch"},
    "verify": {"torch"},
    "evaluate": {"torch"},
    "report": {"torch"},
    "explore": {"torch"},
}
READS_PT = "exchange.py"
"""Files of PyTorch's are read and written by PyTorch."""


def imported(file):
    """The modules that a file imports, those within functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("stage", BELOW)
def test_no_import_runs_up(stage):
    files = [file for file in (ROOT / stage).rglob("*.py") if file.name != "__main__.py"]
    assert files
    for file in files:
        for name in imported(file):
            top, _, rest = name.partition(".")
            of = rest.partition(".")[0]
            assert "__main__" not in name, (file, name)
            if top == "datamodels" and of in BELOW and of != "reading":
                assert of in BELOW[stage] | {stage}, (file, name)
            assert top not in NOT_FOR.get(stage, set()) or file.name == READS_PT, (file, name)


def test_every_stage_has_its_place():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders - {"bench", "examples"} == set(BELOW)
