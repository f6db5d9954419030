"""A whole regression by its command, on a store of any size: time of each part, share of the peak, and memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from datamodels import __version__
from datamodels.bench.record import Record, describe
from datamodels.bench.regress import Size, plant, synthetic_rows
from datamodels.durable import read_json
from datamodels.errors import InputError
from datamodels.machine import describe_machine, megabytes
from datamodels.progress import progress, say
from datamodels.regress.arrays import computing
from datamodels.regress.source import TILE_ROWS
from datamodels.runs import stage_folder
from datamodels.settings import Settings
from datamodels.store import ArraySpec, Meta, Rows, Writer, create
from datamodels.subsets import BoolArray

DEFAULT = "10000,60000,1000,100"
PEAK_ROWS, PEAK_S, POLL_S = 4096, 2.0, 0.02
ALLOWANCE = 500e6
"""Bytes beside the matrices: Python, its packages, tiles on their way."""


def size_named(text: str) -> Size:
    """N, m, T and how many λ, with commas between. Raises InputError for anything else."""
    parts = text.split(",")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--size takes images, models, targets and values of λ, as {DEFAULT}, not {text!r}")
    return Size(*map(int, parts))


def bench_fit(settings: Settings, size: Size, gpu: str | None = None) -> tuple[Record, str]:
    """The bench as a record for JSON and as a table; it works in a folder of the run's, which it removes.

    Masks at α = 0.5, 3 % of the true weights not zero, noise; float16 margins; of the models 10 % are held out and 20 % of the
    others choose λ. Raises InputError where a bench's folder is left from before, or the regression refuses.
    """
    folder = stage_folder(settings, "bench")
    if folder.exists():
        raise InputError(f"{folder} is there already; another bench is at work, or was cut off: delete it")
    try:
        with computing(settings.regress.device, gpu) as xp:
            fill(folder / "store", size, xp)
            peak = matmul_peak(xp)
        device = "cpu" if xp is np else "gpu"
        whole, peak_bytes = _run_command(folder, settings, size, device, gpu)
        metrics, meta = (read_json(folder / "out" / f"{name}.json") for name in ("metrics", "meta"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    how, seconds = metrics["solved_by"], metrics["seconds"]
    item = np.dtype(how["number_format"]).itemsize
    matrices = item * size.images * (size.images + size.targets + how["block"])
    fitted = metrics["models_fit"] + metrics["models_choice"]
    # A multiply and an add for each pair of images and model; by symmetry half of them are done, and counted.
    gram_flops, path_flops = float(fitted) * size.images**2, 2.0 * how.get("products", 0) * size.images**2
    record = {
        "bench": "fit",
        "version": __version__,
        "device": device,
        "machine": describe_machine(),
        "size": vars(size),
        "regress": meta["regress"],
        "solved_by": how,
        "seconds": {"whole command": round(whole, 1), **seconds},
        "gram_share_of_peak": round(gram_flops / seconds["moments"] / peak, 3),
        "path_share_of_peak": round(path_flops / (seconds["chosen"] + seconds["fitted"]) / peak, 3),
        "peak_gflops": round(peak / 1e9),
        "products_per_target": round(how.get("products", 0) / size.targets, 1),
        "peak_resident_bytes": peak_bytes,
        "matrices_bytes": matrices,
        "bound_bytes": int(2 * matrices + ALLOWANCE),
        "lds": metrics["mean"]["lds"],
        "nonzeros": metrics["mean"]["nonzeros"],
    }
    return record, _table(record)


def fill(folder: Path, size: Size, xp: Any) -> None:
    """A store of synthetic models of that size."""
    margins = {"margins": ArraySpec("float16", (size.targets,))}
    create(folder, Meta(size.models, size.images, size.targets, margins, {"synthetic": vars(size)}))
    planted = plant(size, xp)
    with Writer(folder) as writer, progress("bench", "rows", size.models) as advance:
        for start in range(0, size.models, TILE_ROWS):
            ids = range(start, min(start + TILE_ROWS, size.models))
            masks, rows = synthetic_rows(ids, size, planted, xp)
            writer.append(_rows(writer, ids, masks, rows))
            advance(len(ids))


def _rows(writer: Writer, ids: range, masks: BoolArray, margins: Any) -> Rows:
    return Rows.of(writer.meta, np.asarray(ids), masks, {"margins": margins.astype(np.float16)})


def _run_command(folder: Path, settings: Settings, size: Size, device: str, gpu: str | None) -> tuple[float, int]:
    """Seconds and peak resident bytes of `python -m datamodels.regress` on the store."""
    line = [sys.executable, "-m", "datamodels.regress", "--store", folder / "store", "--out", folder / "out"]
    chosen = {**vars(settings.regress), "lams": size.lams, "device": device}
    if device == "gpu" and gpu is not None:
        line += ["--gpu", gpu]
    flags = [part for name, value in chosen.items() for part in (f"--regress.{name}", str(value).lower())]
    say(f"bench: python -m datamodels.regress on {(folder / 'store')}")
    start = time.perf_counter()
    process, peak = subprocess.Popen([*map(str, line), *flags], stdout=subprocess.DEVNULL), 0
    while process.poll() is None:
        peak = max(peak, _peak_resident(process.pid))
        time.sleep(POLL_S)
    if process.returncode:
        raise InputError("the regression did not end well; what it said stands above")
    return time.perf_counter() - start, peak


def _peak_resident(pid: int) -> int:
    """The most memory, in bytes, that a process has had resident; 0 where the system does not tell.

    Not what wait4 reports: that counts the memory of the parent at the time of the fork.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def matmul_peak(xp: Any) -> float:
    """Floating-point operations per second of a large product in float32."""
    a = xp.ones((PEAK_ROWS, PEAK_ROWS), np.float32)
    float((a @ a)[0, 0])
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() - start < PEAK_S:
        float((a @ a)[0, 0])
        rounds += 1
    return 2.0 * PEAK_ROWS**3 * rounds / (time.perf_counter() - start)


def _table(record: Record) -> str:
    seconds, how = record["seconds"], record["solved_by"]
    parts = ", ".join(f"{name} {taken:.1f} s" for name, taken in seconds.items())
    used, bound = (megabytes(record[name]) for name in ("peak_resident_bytes", "bound_bytes"))
    lines = [
        describe(record),
        "N = {images}, m = {models}, T = {targets}, {lams} λ; n = 1".format(**record["size"]),
        f"{how['solver']} in {how['number_format']}, {how['block']} targets at once: {parts}",
        f"moments {record['gram_share_of_peak']:.0%} and path {record['path_share_of_peak']:.0%} of the "
        f"{record['peak_gflops']} GFLOP/s of a large matrix product, reading, writing and judging included; "
        f"{record['products_per_target']} products with XᵀX a target",
        f"peak resident memory {used}; 2 × (XᵀX + XᵀY + a block of weights) + 500 MB is {bound}",
        f"LDS {record['lds']:.3f}, {record['nonzeros']:.0f} non-zero weights a target",
    ]
    return "\n".join(lines)
