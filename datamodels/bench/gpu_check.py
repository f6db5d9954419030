"""One command that judges a GPU and this package on it: `make gpu-check`, within 8 minutes.

Every line has a number, the bound that it is held to, and PASS or FAIL; a line without a bound tells. Each check runs in a
process of its own with a time limit: one that crashes, hangs or breaks the device fails alone. With `--on processor` the same
checks run on the processor, tiny, so that this script itself is tested where there is no GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from datamodels import __version__
from datamodels.bench.record import Record
from datamodels.errors import InputError
from datamodels.machine import describe_machine
from datamodels.settings import TrainingSettings

GPU, PROCESSOR = "gpu", "processor"
PLACES = (GPU, PROCESSOR)
MOST_S = 480.0
"""Of all checks together, on a GPU."""


@dataclass(frozen=True)
class Line:
    """One thing found out: a number with its unit, or words, and the bound that it is held to, '' where it only tells."""

    what: str
    value: float | str
    unit: str = ""
    bound: str = ""
    passed: bool = True

    @property
    def text(self) -> str:
        """The line as it is printed."""
        number = self.value if isinstance(self.value, str) else f"{self.value:.4g}"
        verdict = "" if not self.bound else f"  [{self.bound}]"
        mark = "FAIL" if not self.passed else "PASS" if self.bound else "    "
        return f"{mark}  {self.what}: {number}{self.unit and ' '}{self.unit}{verdict}"


def at_least(what: str, value: float, bound: float, unit: str = "") -> Line:
    """A number that must not be below its bound."""
    return Line(what, value, unit, f"≥ {bound:g}", value >= bound)


def at_most(what: str, value: float, bound: float, unit: str = "") -> Line:
    """A number that must not be above its bound."""
    return Line(what, value, unit, f"≤ {bound:g}", value <= bound)


def holds(what: str, value: str, wanted: str, passed: bool) -> Line:
    """Words that must be as `wanted` says."""
    return Line(what, value, "", wanted, passed)


@dataclass(frozen=True)
class Sizes:
    """How large everything is, and on which device: that of `--gpu`, a number or 'cpu'.

    `train` and `test` random images of `pixels` a side, in `recipe`. The regression is of `images`, `models`, `targets` and
    `lams` values of λ, and `exact` of its images and targets are reckoned again on the host. `road` are the settings of the
    whole road, `tests` what pytest runs. `matmul_share` and `gemm_share` are the least shares of the peak.
    """

    on: str
    gpu: str
    recipe: TrainingSettings
    train: int
    test: int
    pixels: int
    images: int
    models: int
    targets: int
    lams: int
    exact: int
    road: tuple[str, ...]
    tests: tuple[str, ...]
    matmul_share: float
    gemm_share: float


Check = Callable[[Sizes], list[Line]]


@dataclass(frozen=True)
class Named:
    """A check, its name, and the seconds that it may take on a GPU."""

    name: str
    check: Check
    limit_s: float


def run_checks(sizes: Sizes, checks: Sequence[Named], apart: bool) -> Record:
    """All checks, one after another, each in a process of its own where `apart` is set; the record for JSON.

    Together they take no more than `MOST_S` then: what is left of it is the most that a check may take.
    """
    start, found = time.monotonic(), list[Record]()
    for named in checks:
        begun = time.monotonic()
        left = min(named.limit_s, max(1.0, MOST_S - (begun - start)))
        lines = _apart(replace(named, limit_s=left), sizes) if apart else _guarded(named.check, sizes)
        seconds = round(time.monotonic() - begun, 1)
        print(f"\n{named.name} ({seconds} s)", flush=True)
        for line in lines:
            print(line.text, flush=True)
        found.append({"check": named.name, "seconds": seconds, "lines": [dataclasses.asdict(line) for line in lines]})
    failed = [line["what"] for check in found for line in check["lines"] if not line["passed"]]
    return {
        "bench": "gpu-check",
        "version": __version__,
        "device": _device_of(found, sizes),
        "machine": describe_machine(),
        "on": sizes.on,
        "seconds": round(time.monotonic() - start, 1),
        "passed": not failed,
        "failed": failed,
        "checks": found,
    }


def _device_of(found: Sequence[Record], sizes: Sizes) -> str:
    names = [line["value"] for check in found for line in check["lines"] if line["what"] == "device"]
    return str(names[0]) if names and sizes.on == GPU else "cpu"


def summary(record: Record) -> str:
    """The end of it, in a line."""
    judged = [line for check in record["checks"] for line in check["lines"] if line["bound"] or not line["passed"]]
    good = sum(line["passed"] for line in judged)
    verdict = "PASS" if record["passed"] else f"FAIL ({'; '.join(record['failed'])})"
    return f"\n{verdict}: {good} of {len(judged)} bounds hold, on {record['device']}, in {record['seconds']} s"


def _guarded(check: Check, sizes: Sizes) -> list[Line]:
    """What a check finds; an error is a line that failed."""
    try:
        return check(sizes)
    except Exception as error:  # whatever a driver or a library says is the finding
        words = [line for line in str(error).splitlines() if line.strip()] or [""]
        return [Line("ended by an error", f"{type(error).__name__}: {words[0][:300]}", "", "none", False)]


def _apart(named: Named, sizes: Sizes) -> list[Line]:
    """As `_guarded`, in a process of its own that is ended after its time."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_in_child, args=(theirs, named.check, sizes), daemon=False)
    process.start()
    theirs.close()
    try:
        if not ours.poll(named.limit_s):
            return [Line("did not end", f"after {named.limit_s:g} s", "", f"≤ {named.limit_s:g} s", False)]
        lines: list[Line] = ours.recv()
        return lines
    except EOFError:
        process.join(10)
        return [Line("the process ended", f"with exit code {process.exitcode}", "", "0", False)]
    finally:
        process.join(1)
        # With all that it has started: a command that goes on would share the card with the next check.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.kill()
        process.join()


def _in_child(pipe: Connection, check: Check, sizes: Sizes) -> None:
    os.setsid()
    pipe.send(_guarded(check, sizes))
    pipe.close()


def checkout() -> Path:
    """The folder of the checkout. Raises InputError for an installed package, which has no tests."""
    root = Path(__file__).parents[2]
    if not (root / "tests" / "gpu").is_dir():
        raise InputError("gpu-check runs tests/gpu, which an installed package does not have; run it in a checkout")
    return root
