"""The strict stand-in for CuPy, in the place of CuPy."""

import sys

import pytest

from tests.standins.cuda_cpp import have_compiler
from tests.standins.strict_cupy import StrictCupy


@pytest.fixture
def strict(monkeypatch):
    """A strict stand-in with one GPU, which `import cupy` gives; `regress.device` gpu is on it then."""
    if not have_compiler:
        pytest.skip("no C++ compiler here")
    cupy = StrictCupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy
