"""gpu-check on the processor: every check runs, its lines hold, and what fails, crashes or hangs fails alone."""

import dataclasses
import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from datamodels.bench import gpu_regress
from datamodels.bench.gpu_check import Line, Named, _apart, at_least, at_most, checkout, run_checks, summary
from datamodels.bench.gpu_plan import CHECKS, gpu_check, sizes_on
from datamodels.bench.gpu_regress import raw_gap
from datamodels.bench.gpu_training import _kind
from datamodels.errors import InputError
from datamodels.regress import fit_datamodels
from datamodels.settings import RegressSettings
from tests import started
from tests.regress.test_path import planted, store_of

SIZES = sizes_on("processor", None, None)  # type: ignore[arg-type]


@pytest.mark.slow
def test_all_checks_run_on_the_processor_and_hold(tmp_path, monkeypatch, capsys):
    def quickly(module, sizes, *arguments):
        return started.run(module, *arguments, "--gpu", "cpu", cwd=checkout())

    monkeypatch.setattr(gpu_regress, "_command", quickly)
    monkeypatch.setattr(sys, "argv", ["datamodels.bench", "gpu-check", "--on", "processor", "--out", str(tmp_path)])
    runpy.run_module("datamodels.bench", run_name="__main__")
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "gpu-check-cifar10-cpu.json").read_text())
    assert record["passed"]
    assert [check["check"] for check in record["checks"]] == [named.name for named in CHECKS]
    lines = {line["what"]: line for check in record["checks"] for line in check["lines"]}
    assert lines["models at once that were left of 8"]["value"] <= 4
    assert lines["tests of tests/gpu that ran"]["value"] >= 1
    assert lines["counts of XᵀX that are not exact, of 8 images, m = 400"]["value"] == 0
    assert sum(line["what"].startswith("K = ") for check in record["checks"] for line in check["lines"]) >= 2
    assert all(line["passed"] for line in lines.values())
    # What would take days is reckoned from sizes of that kind only.
    assert not {line["unit"] for line in lines.values()} & {"days", "hours"}
    assert printed.splitlines()[-1].startswith("PASS: ")
    assert "PASS  margins that differ when trained twice, 1 a kernel: 0  [≤ 0]" in printed


def broken(sizes):
    raise RuntimeError("CUDA error: device-side assert triggered\nand more")


def crashing(sizes):
    os._exit(7)


def hanging(sizes):
    time.sleep(60)
    return []


def good(sizes):
    return [at_most("a number", 1, 2, "s"), at_least("another", 0.5, 0.4), Line("told", "in words")]


@pytest.mark.slow
def test_what_fails_crashes_or_hangs_fails_alone():
    cases = {broken: "ended by an error", crashing: "the process ended", hanging: "did not end"}
    for check, what in cases.items():
        (line,) = _apart(Named("x", check, 20 if check is not hanging else 6), SIZES)
        assert line.what == what
        assert not line.passed
    assert _apart(Named("x", good, 30), SIZES) == good(SIZES)


def test_one_line_that_fails_is_the_verdict_and_exit_code_1(capsys, monkeypatch, tmp_path):
    record = run_checks(SIZES, [Named("a", good, 1), Named("b", broken, 1)], apart=False)
    assert record["failed"] == ["ended by an error"]
    printed = capsys.readouterr().out
    assert "PASS  a number: 1 s  [≤ 2]" in printed
    assert "FAIL  ended by an error: RuntimeError: CUDA error: device-side assert triggered  [none]" in printed
    assert summary(record).startswith("\nFAIL (ended by an error): 2 of 3 bounds hold")
    assert not run_checks(SIZES, [Named("a", lambda sizes: [at_least("low", 0.1, 0.4)], 1)], apart=False)["passed"]


def test_bounds_that_are_met_and_missed():
    assert at_least("x", 0.4, 0.4).passed
    assert not at_least("x", float("nan"), 0.4).passed
    assert not at_most("x", float("nan"), 0.4).passed
    assert not at_most("x", 0.41, 0.4).passed


def test_words_that_mean_nothing_are_refused(settings):
    with pytest.raises(InputError, match="--on is gpu or processor, not 'tpu'"):
        gpu_check(settings(), "tpu", None)
    with pytest.raises(InputError, match="--on processor tries the script itself"):
        gpu_check(settings(), "gpu", "cpu")


def test_the_gap_from_the_raw_models_is_small_at_the_solution_and_large_beside_it(tmp_path):
    masks, margins, _ = planted()
    store = store_of(tmp_path / "s", masks, margins)
    fit = fit_datamodels(store, RegressSettings(lams=20, gap=1e-6, device="cpu"))
    t = margins.shape[1]
    gaps = raw_gap(store, fit, t)
    assert gaps.shape == (t,)
    assert (gaps <= 4e-6).all()  # weights are kept in float32
    assert (raw_gap(store, dataclasses.replace(fit, columns=fit.columns * np.float32(1.05)), t) > 1e-5).all()


def test_the_regressions_half_runs_on_cupy_as_it_does_on_numpy(strict):
    lines = {line.what: line for line in gpu_regress.regression(dataclasses.replace(SIZES, on="gpu", gpu="0"))}
    counts = next(line for what, line in lines.items() if what.startswith("counts of XᵀX"))
    gap = next(line for what, line in lines.items() if what.startswith("largest gap"))
    assert counts.passed
    assert gap.passed
    assert float(lines["most memory that arrays held, of what was planned"].value) > 0
    assert strict.live[0] == 0


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("void cudnn::batchnorm_bwtr_nhwc_semiPersist<__nv_bfloat16>", "batch normalisation"),
        ("triton_red_fused_native_batch_norm_backward_convolution_1", "compiled by Inductor"),
        ("sm90_xmma_wgrad_implicit_gemm_indexed_bf16", "convolutions and products"),
        ("void at::native::vectorized_elementwise_kernel<4, add>", "element by element, and copies"),
        ("void at::native::max_pool_forward_nhwc", "pooling and reductions"),
        ("Memcpy DtoD", "element by element, and copies"),
    ],
)
def test_kernels_are_told_apart_by_their_names(kernel, kind):
    assert _kind(kernel) == kind


def starting(sizes):
    subprocess.run([sys.executable, "-c", "import time; time.sleep(77.5)"], check=False)
    return []


def test_what_a_hanging_check_has_started_ends_with_it():
    (line,) = _apart(Named("x", starting, 8), SIZES)
    assert line.what == "did not end"
    time.sleep(0.5)
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [command for command in commands if b"time.sleep(77.5)" in command]
