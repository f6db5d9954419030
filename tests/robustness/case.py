"""One hostile input, and what comes of it: run in a forked child of a process that has everything imported, within limits.

The child may crash, hang, or ask for all memory; what it did is told by its parent. Nothing is forked from the tests' own
process, whose threads a child would not have.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodels.errors import run_command

SENTENCE, GONE_ON, TRACEBACK, SIGNAL, HANG, WRONG = (
    "sentence",
    "gone on",
    "traceback",
    "signal",
    "hang",
    "wrong in silence",
)
OUTCOMES = (SENTENCE, GONE_ON, TRACEBACK, SIGNAL, HANG, WRONG)
MOST_SECONDS, MOST_MB = 5.0, 500.0
"""Of processor time and of memory beside what the program itself takes."""
HANG_S = 30.0
SPARE_BYTES = 2**30

Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """A reader, a damage, and how to make the input: `make(material, folder)` gives the call that reads it.

    `expected` are the outcomes that are well; where going on is one of them, `after(folder)` says whether what came of it is
    right, by raising AssertionError where it is not.
    """

    reader: str
    damage: str
    make: Callable[[Path, Path], Call]
    expected: tuple[str, ...] = (SENTENCE,)
    after: Callable[[Path, Path], None] | None = None

    @property
    def name(self) -> str:
        """Reader and damage."""
        return f"{self.reader}: {self.damage}"


@dataclass(frozen=True)
class Outcome:
    """What came of a case, the seconds of processor time and megabytes that it took, and the last line that it said."""

    what: str
    seconds: float
    peak_mb: float
    said: str

    @property
    def within_limits(self) -> bool:
        """Whether it took no more time and memory than it may."""
        return self.seconds <= MOST_SECONDS and self.peak_mb <= MOST_MB


def main_of(stage: str, *argv: object) -> Call:
    """The command `python -m datamodels.STAGE` as a call in this process."""
    module = f"datamodels.{stage}" if stage else "datamodels"

    def call() -> None:
        sys.argv = [module, *map(str, argv)]
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    return call


class Server:
    """A process that runs cases, each in a child; `material` is what they damage, made once."""

    def __init__(self, material: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        line = [sys.executable, "-m", "tests.robustness.server", str(material)]
        self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def run(self, case: Case, folder: Path) -> Outcome:
        """Run a case in a folder of its own, which is made."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([case.name, str(folder)]), file=self.process.stdin, flush=True)
        told = self.process.stdout.readline()
        if not told:
            raise RuntimeError(f"the process that runs cases ended at {case.name}")
        return Outcome(**json.loads(told))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(cases: Mapping[str, Case], material: Path) -> None:
    """Run the cases that are named on stdin, and tell their outcomes on stdout, one a line."""
    for line in sys.stdin:
        name, folder = json.loads(line)
        print(json.dumps(vars(_run(cases[name], material, Path(folder)))), flush=True)


def _run(case: Case, material: Path, folder: Path) -> Outcome:
    folder.mkdir(parents=True)
    told = folder / "told.json"
    child = os.fork()
    if child == 0:
        _child(case, material, folder, told)
    start = time.monotonic()
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() - start > HANG_S:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Outcome(HANG, HANG_S, 0.0, _last_line(folder))
        time.sleep(0.002)
    if not told.exists():
        if not os.WIFSIGNALED(ended[1]):
            raise RuntimeError(f"{case.name}: the input could not be made: {_last_line(folder)}")
        return Outcome(SIGNAL, time.monotonic() - start, 0.0, _last_line(folder))
    found = json.loads(told.read_text())
    return Outcome(_judged(case, found, folder), found["seconds"], found["peak_mb"], found["wrong"] or _last_line(folder))


def _child(case: Case, material: Path, folder: Path, told: Path) -> None:
    """Make the input and read it; never returns."""
    os.setsid()
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, encoding="utf-8") for number in (1, 2))
    call, wrong, code = case.make(material, folder), "", 0
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory so far is forgotten
    before, start = _memory("VmRSS"), time.process_time()
    limit = _memory("VmSize") + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        run_command(call)
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    found = {"code": code, "seconds": time.process_time() - start, "peak_mb": (_memory("VmHWM") - before) / 1e6}
    if code == 0 and case.after is not None:
        try:
            case.after(material, folder)
        except AssertionError as e:
            wrong = f"what came of it is wrong: {e}"
    told.write_text(json.dumps({**found, "wrong": wrong}))
    os._exit(0)


def _judged(case: Case, found: dict[str, Any], folder: Path) -> str:
    said = (folder / "stdout").read_text() + (folder / "stderr").read_text()
    lines = (folder / "stderr").read_text().splitlines()
    clean = "Traceback" not in said and all(c.isprintable() or c == "\n" for c in said)
    if found["code"] == 2 and clean and [line.startswith("error: ") for line in lines].count(True) == 1:
        return SENTENCE
    if found["code"] == 1 and clean and "bad rows" in said:  # what `store check` promises
        return SENTENCE
    if found["code"] == 0 and clean:
        return GONE_ON if GONE_ON in case.expected and not found["wrong"] else WRONG
    return TRACEBACK


def _last_line(folder: Path) -> str:
    lines = [line for name in ("stdout", "stderr") for line in (folder / name).read_text(errors="replace").splitlines()]
    return lines[-1] if lines else ""


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
