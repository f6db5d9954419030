"""Every reader of files, settings and arguments × every kind of damage."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

from tests.robustness.arguments import argument_cases
from tests.robustness.case import Case, Outcome, Server
from tests.robustness.images import data_cases
from tests.robustness.stores import store_cases
from tests.robustness.verification import verification_cases
from tests.robustness.weights import weight_cases

CASES: list[Case] = [*argument_cases(), *store_cases(), *weight_cases(), *data_cases(), *verification_cases()]

_server: list[Server] = []


def run_case(case: Case, folder: Path) -> Outcome:
    """Run one case in a folder, which is made; the material is made with the first one."""
    if not _server:
        scratch = tempfile.mkdtemp(prefix="robustness-")
        _server.append(Server(Path(scratch) / "material"))
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
        atexit.register(_server[0].close)
    return _server[0].run(case, folder)
