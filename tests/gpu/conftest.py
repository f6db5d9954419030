"""What tests/gpu runs on: always the processor and what stands in for CuPy, and a GPU where there is one."""

import sys

import pytest
import torch

from datamodels.training import device_named
from tests.standins.cuda_cpp import have_compiler
from tests.standins.strict_cupy import StrictCupy

CUPY, STAND_IN = "CuPy", "stand-in for CuPy"


@pytest.fixture(params=["processor", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    """The device that a test of the training runs on."""
    if request.param == "gpu" and not torch.cuda.is_available():
        pytest.skip("PyTorch finds no GPU here")
    return device_named("cpu" if request.param == "processor" else "0")


def cupy_on_a_gpu():
    """CuPy, where it is installed and finds a GPU, or None."""
    try:
        import cupy
    except ImportError:
        return None
    return cupy if cupy.cuda.is_available() else None


@pytest.fixture(params=[STAND_IN, pytest.param(CUPY, marks=pytest.mark.gpu)])
def xp_gpu(request, monkeypatch):
    """The array module that `regress.device` gpu computes with: the strict stand-in, and CuPy itself where it finds a GPU."""
    if request.param == CUPY:
        cupy = cupy_on_a_gpu()
        if cupy is None:
            pytest.skip("CuPy is not installed here or finds no GPU")
        return cupy
    if not have_compiler:
        pytest.skip("no C++ compiler here")
    monkeypatch.setitem(sys.modules, "cupy", StrictCupy())
    return sys.modules["cupy"]


def pytest_terminal_summary(terminalreporter):
    """Say how many tests ran on what."""
    passed = [report.nodeid for report in terminalreporter.stats.get("passed", []) if "tests/gpu/" in report.nodeid]
    on_cupy, on_stand_in = (sum(f"[{where}" in node for node in passed) for where in (CUPY, STAND_IN))
    terminalreporter.write_line(f"tests/gpu, the regression: {on_cupy} passed on CuPy, {on_stand_in} on the {STAND_IN}")
