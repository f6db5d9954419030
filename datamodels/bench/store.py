"""Rows per second into and out of a store of CIFAR-10's size, against what the disk does with plain bytes in the same run."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from datamodels import __version__
from datamodels.bench.record import Record, describe
from datamodels.errors import InputError
from datamodels.machine import describe_machine
from datamodels.progress import progress
from datamodels.runs import stage_folder
from datamodels.settings import Settings
from datamodels.store import ArraySpec, Meta, Store, create, deliver
from datamodels.subsets import Array, BoolArray

N, T, ROUNDS = 50_000, 10_000, 3
BLOCKS = (16, 256, 1024)
READ_ROWS = 512
MIB = 2**20


def bench_store(settings: Settings, rows: int = 10_240) -> tuple[Record, str]:
    """The bench as a record for JSON and as a table; it works in a folder of the run's, which it removes, on 13 times the rows.

    Raises InputError for fewer rows than one block, and where a bench's folder is left from before.
    """
    if rows < max(BLOCKS):
        raise InputError(f"the bench takes {max(BLOCKS)} rows or more, not {rows}")
    folder = stage_folder(settings, "bench")
    if folder.exists():
        raise InputError(f"{folder} is there already; another bench is at work, or was cut off: delete it")
    folder.mkdir(parents=True)
    try:
        seconds = _measure(folder, rows)
    finally:
        shutil.rmtree(folder)
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    meta = _meta(rows)
    row_bytes = sum(spec.row_bytes for spec in meta.files.values())
    megabytes = rows * row_bytes / 1e6
    record = {
        "bench": "store",
        "version": __version__,
        "device": "disk",
        "machine": describe_machine(),
        "num_train": N,
        "num_targets": T,
        "rows": rows,
        "row_bytes": row_bytes,
        "rounds": ROUNDS,
        "rows_per_s": {name: round(rows / taken, 1) for name, taken in median.items()},
        "megabytes_per_s": {name: round(megabytes / taken, 1) for name, taken in median.items()},
        "write_share_of_dd": {str(b): round(median["dd conv=fsync"] / median[f"write, blocks of {b}"], 3) for b in BLOCKS},
        "read_share_of_raw": round(median["raw read"] / median["read"], 3),
        "mask_bytes": meta.mask_bytes,
        "mask_share_of_bool": round(meta.mask_bytes / N, 4),
    }
    return record, _table(record)


def _measure(folder: Path, rows: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round; all write, or read, the same number of bytes."""
    seconds: dict[str, list[float]] = {}
    size = rows * sum(spec.row_bytes for spec in _meta(rows).files.values())
    rng = np.random.default_rng(0)
    masks = rng.random((max(BLOCKS), N)) < 0.5
    margins = rng.normal(size=(max(BLOCKS), T)).astype(np.float16)
    # Random bytes, in memory by then: some disks take zeros for less than they are.
    (folder / "random").write_bytes(rng.bytes(size))
    with progress("bench", "rounds", ROUNDS) as advance:
        for number in range(ROUNDS):
            # New files in each round: a disk is at work for a while after large files were deleted.
            stores = {block: folder / f"store-{number}-{block}" for block in BLOCKS}
            files = [stores[max(BLOCKS)] / f"{name}.npy" for name in ("masks", "margins")]
            for store in stores.values():
                create(store, _meta(rows))
            with _timed(seconds, "dd conv=fsync"):
                _dd(folder / "random", folder / f"dd-{number}")
            for block, store in stores.items():
                with _timed(seconds, f"write, blocks of {block}"):
                    _write(store, rows, masks[:block], margins[:block])
            for _ in range(2):  # twice, for what comes first may find the disk still at work
                with _timed(seconds, "raw read", files):
                    _read_raw(files)
                with _timed(seconds, "read", files):
                    _read(stores[max(BLOCKS)])
            advance()
    return seconds


@contextmanager
def _timed(seconds: dict[str, list[float]], name: str, forget: Sequence[Path] = ()) -> Iterator[None]:
    """Time the block, after all that was written before has reached the disk, and nothing of `forget` lies in memory."""
    os.sync()
    for path in forget:
        _forget(path)
    start = time.perf_counter()
    yield
    seconds.setdefault(name, []).append(time.perf_counter() - start)


def _meta(rows: int) -> Meta:
    return Meta(rows, N, T, {"margins": ArraySpec("float16", (T,))}, {"of": "a bench"})


def _dd(source: Path, path: Path) -> None:
    line = ["dd", f"if={source}", f"of={path}", "bs=1M", "conv=fsync"]
    subprocess.run(line, check=True, capture_output=True)


def _write(store: Path, rows: int, masks: BoolArray, margins: Array) -> None:
    for first in range(0, rows, len(masks)):
        k = min(len(masks), rows - first)
        deliver(store, np.arange(first, first + k), masks[:k], {"margins": margins[:k]})


def _read(folder: Path) -> None:
    store = Store(folder)
    for first in range(0, len(store.done), READ_ROWS):
        ids = store.done[first : first + READ_ROWS]
        store.packed(ids)
        store.margins(ids)


def _read_raw(files: list[Path]) -> None:
    buffer = bytearray(8 * MIB)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _forget(path: Path) -> None:
    """Drop a file from the operating system's cache, so that reading it means reading the disk."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def _table(record: Record) -> str:
    lines = [
        f"{describe({**record, 'device': 'cpu'})}; n = {record['rounds']} rounds, medians",
        f"{record['rows']} rows of {record['row_bytes']} bytes: N = {N}, T = {T}; a mask takes {record['mask_bytes']} bytes, "
        f"{record['mask_share_of_bool']} of a bool array's",
        f"{'':<24} {'rows/s':>9} {'MB/s':>8}",
    ]
    speeds = record["megabytes_per_s"]
    lines += [f"{name:<24} {per_s:>9.0f} {speeds[name]:>8.0f}" for name, per_s in record["rows_per_s"].items()]
    shares = ", ".join(f"{share:.0%} in blocks of {block}" for block, share in record["write_share_of_dd"].items())
    lines.append(f"durable writing, of dd: {shares}; reading, of a raw read: {record['read_share_of_raw']:.0%}")
    return "\n".join(lines)
