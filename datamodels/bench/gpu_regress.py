"""What `gpu-check` asks of the regression on a GPU: exact counts, solutions at their gap, its speed, and memory as planned."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.bench.fit import fill, matmul_peak
from datamodels.bench.gpu_check import GPU, Line, Sizes, at_least, at_most, checkout, holds
from datamodels.bench.regress import Size
from datamodels.durable import read_json
from datamodels.regress import fit_datamodels
from datamodels.regress.arrays import computing, to_numpy
from datamodels.regress.lasso import relative_gap
from datamodels.regress.memory import planned_bytes
from datamodels.regress.moments import Moments
from datamodels.regress.path import Fit
from datamodels.regress.source import Source
from datamodels.settings import RegressSettings
from datamodels.store import Store
from datamodels.subsets import Array
from datamodels.training.devices import visible

PAPER = Size(50_000, 300_000, 10_000, 100)
GAP_SLACK = 1.5
"""A solution's gap is reckoned in float64 from the raw models, that of the solver from float32 sums."""
LAM_RATIO = 0.1


def regression(sizes: Sizes) -> list[Line]:
    """A whole regression of synthetic models."""
    size = Size(sizes.images, sizes.models, sizes.targets, sizes.lams)
    chosen = RegressSettings(lams=size.lams, lam_ratio=LAM_RATIO, solver="gram", device="gpu" if sizes.on == GPU else "cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        with computing(chosen.device, sizes.gpu) as xp:
            fill(folder, size, xp)
        store = Store(folder)
        lines = [_exact(store, chosen, sizes)]
        peak, fit = _fitted(store, chosen, sizes)
        lines += _rates(fit, size, chosen, sizes)
        gap = float(raw_gap(store, fit, sizes.exact).max())
        lines.append(
            at_most(f"largest gap of {sizes.exact} targets, float64, from the raw models", gap, chosen.gap * GAP_SLACK)
        )
        lines += _memory(fit, chosen, peak, sizes)
    return lines


def _exact(store: Store, chosen: RegressSettings, sizes: Sizes) -> Line:
    """XᵀX of some images against whole numbers counted on the host."""
    source, columns = Source(store, 0, 1), sizes.exact
    with computing(chosen.device, sizes.gpu) as xp:
        moments = Moments(source.n, 1, xp, np.float32)
        for tile in source.tiles(store.done):
            moments.add(source.packed(tile), source.margins(tile, slice(None), xp))
        found = to_numpy(moments.xx[:columns, :columns])
    counted = np.zeros((columns, columns), np.int64)
    for tile in source.tiles(store.done):
        x = store.masks(tile)[:, :columns].astype(np.int64)
        counted += x.T @ x
    upper = np.triu_indices(columns)  # the lower half is filled in when the sums are centred
    wrong = int((found[upper] != counted[upper]).sum())
    return at_most(f"counts of XᵀX that are not exact, of {columns} images, m = {len(store.done)}", wrong, 0)


def _fitted(store: Store, chosen: RegressSettings, sizes: Sizes) -> tuple[int, Fit]:
    """The fit, and the most bytes that CuPy took for it; 0 where it did not compute."""
    with computing(chosen.device, sizes.gpu) as xp:
        if xp is np:
            return 0, fit_datamodels(store, chosen, gpu=sizes.gpu)
        pool, held = xp.get_default_memory_pool(), [0]

        class Peak(xp.cuda.MemoryHook):  # type: ignore[misc,name-defined]
            name = "the most that arrays hold at once"

            def malloc_postprocess(self, **_: Any) -> None:
                held[0] = max(held[0], pool.used_bytes())

        with Peak():
            fit = fit_datamodels(store, chosen, gpu=sizes.gpu)
        return held[0], fit


def _rates(fit: Fit, size: Size, chosen: RegressSettings, sizes: Sizes) -> list[Line]:
    with computing(chosen.device, sizes.gpu) as xp:
        peak = matmul_peak(xp)
    models, seconds = len(fit.parts.fit) + len(fit.parts.choice), fit.seconds
    gram = float(models) * size.images**2
    path = 2.0 * fit.solver["products"] * size.images**2
    path_s = seconds["chosen"] + seconds["fitted"]
    paper = PAPER.models * 0.9 * PAPER.images**2 / gram * seconds["moments"]
    # Work a target does not grow with the number of targets; more values of λ than here take more products.
    paper += path_s * (PAPER.images / size.images) ** 2 * PAPER.targets / size.targets * PAPER.lams / size.lams
    reckoned = Line("at N = 50,000, m = 300,000, T = 10,000, 100 λ, reckoned", paper / 3600, "hours")
    return [
        Line("peak of a large product in float32", peak / 1e12, "TFLOP/s"),
        at_least("XᵀX and XᵀY, reading included, of that peak", gram / seconds["moments"] / peak, sizes.gemm_share),
        at_least("the path, judging included, of that peak", path / path_s / peak, sizes.gemm_share),
        Line("products with XᵀX a target", fit.solver["products"] / size.targets),
        Line("seconds of the whole regression", sum(seconds.values()), "s"),
        *([reckoned] if sizes.on == GPU else []),  # on a processor the sizes are tiny ones, which say nothing of that
        at_least("LDS of synthetic models", float(fit.metrics["lds"].mean()), 0.05),
    ]


def _memory(fit: Fit, chosen: RegressSettings, peak: int, sizes: Sizes) -> list[Line]:
    planned = fit.solver["planned_bytes"]
    lines = [Line("memory planned", planned / 1e9, "GB")]
    if sizes.on == GPU:
        lines.append(at_most("most memory that arrays held, of what was planned", peak / planned, 1.0))
        lines.append(at_least("most memory that arrays held, of what was planned", peak / planned, 1 / 1.3))
    block = fit.solver["block"]
    paper = planned_bytes(PAPER.images, PAPER.models, PAPER.targets, block, chosen)
    return [*lines, Line(f"planned at paper size, {block} targets at once", paper / 1e9, "GB")]


def raw_gap(store: Store, fit: Fit, targets: int) -> Array:
    """The relative duality gap (targets,) of the first targets in float64, from masks and margins by tiles; see `lasso`."""
    source = Source(store, 0, targets)
    ids = np.sort(np.concatenate([fit.parts.fit, fit.parts.choice]))
    weights, lam = fit.columns[:, :targets].toarray().astype(np.float64), fit.lam[:targets]
    sums = np.zeros(source.n), np.zeros(targets)
    for tile in source.tiles(ids):
        sums[0][...] += store.masks(tile).sum(0)
        sums[1][...] += store.margins(tile)[:, :targets].astype(np.float64).sum(0)
    mean_x, mean_y = (total / len(ids) for total in sums)
    square, along, pulled, total = np.zeros(targets), np.zeros(targets), np.zeros((source.n, targets)), np.zeros(targets)
    for tile in source.tiles(ids):
        x = store.masks(tile).astype(np.float64)
        y = store.margins(tile)[:, :targets].astype(np.float64) - mean_y
        r = y - (x @ weights - mean_x @ weights)
        square, along, total = square + (r * r).sum(0), along + (y * r).sum(0), total + r.sum(0)
        pulled += x.T @ r
    pulled -= mean_x[:, None] * total
    m = len(ids)
    norm, steepest = np.abs(weights).sum(0), np.abs(pulled / m).max(0)
    gap: Array = relative_gap(np, square / m, along / m, norm, steepest, lam)
    return gap


def road(sizes: Sizes) -> list[Line]:
    """The whole road of `make demo`, small, and a lasso of its models, as commands."""
    with tempfile.TemporaryDirectory() as name:
        line = ["-C", "configs/digits.yaml", "--run.dir", name, *sizes.road]
        whole = _command("datamodels", sizes, *line)
        lasso = _command("datamodels.regress", sizes, *line, "--regress.prior", "none")
        page = Path(name, "report", "index.html").exists()
        metrics = Path(name, "regress", "metrics.json")
        lds = float(read_json(metrics)["mean"]["lds"]) if metrics.exists() else float("nan")
    return [
        holds("the whole road", _ending(whole), "exit code 0", whole.returncode == 0),
        holds("its page", "there" if page else "not there", "there", page),
        holds("a lasso of its models", _ending(lasso), "exit code 0", lasso.returncode == 0),
        at_least("LDS of the lasso on its few models", lds, -1.0),
    ]


def suite(sizes: Sizes) -> list[Line]:
    """tests/gpu: on a GPU those of its tests that need one."""
    only = ["-m", "gpu"] if sizes.on == GPU else ["-m", "not gpu"]
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "tests.xml"
        options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        done = _pytest(sizes, *sizes.tests, *only, *options)
        counts = _counts(report) if report.exists() else {}
    bad = counts.get("failures", 0) + counts.get("errors", 0)
    ran = counts.get("tests", 0) - counts.get("skipped", 0)
    return [
        holds("pytest", _ending(done), "exit code 0", done.returncode == 0),
        at_least("tests of tests/gpu that ran", ran, 1),
        at_most("of them failed", bad, 0),
        at_most("tests of tests/gpu that were skipped", counts.get("skipped", 0), 0),
    ]


def _counts(report: Path) -> dict[str, int]:
    suite = ElementTree.parse(report).getroot()
    suite = suite if suite.tag == "testsuite" else suite[0]
    return {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}


def _command(module: str, sizes: Sizes, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of this package, on the GPU of the check, which is the only one that it sees."""
    return _run([sys.executable, "-m", module, *arguments, "--gpu", "cpu" if sizes.on != GPU else "0"], sizes)


def _pytest(sizes: Sizes, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _run([sys.executable, "-m", "pytest", *arguments], sizes)


def _run(line: list[str], sizes: Sizes) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(checkout()), "CUDA_VISIBLE_DEVICES": visible(sizes.gpu)}
    return subprocess.run(line, cwd=checkout(), env=environment, capture_output=True, text=True, check=False)


def _ending(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return f"exit code {done.returncode}" + (f": {lines[-1][:200]}" if done.returncode and lines else "")
