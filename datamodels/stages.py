"""How long each stage of a run has worked, added up over all its processes, in seconds.json of the run's folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datamodels.durable import Lock, read_json, write_json


@contextmanager
def stage_seconds(run_dir: Path, stage: str) -> Iterator[None]:
    """Add the time that the block takes to the stage's; to be put around work, not around finding it done."""
    start = time.monotonic()
    try:
        yield
    finally:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = Lock(run_dir / ".seconds.lock")
        lock.take(wait=True)
        try:
            seconds = read_seconds(run_dir)
            seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - start, 2)
            write_json(run_dir / "seconds.json", seconds)
        finally:
            lock.release()


def read_seconds(run_dir: Path) -> dict[str, float]:
    """Seconds of work of each stage so far."""
    try:
        return dict(read_json(run_dir / "seconds.json"))
    except (OSError, ValueError):
        return {}
