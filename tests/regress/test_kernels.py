"""The CUDA sources: they compile for the architectures in use, do what their NumPy references do, and stay within their arrays.

None of it needs a GPU: see tests/standins/cuda_cpp.py. tests/gpu runs them on one.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodels.regress import arrays, kernels
from datamodels.regress.arrays import keep_columns, on_device, put_columns, to_numpy
from datamodels.regress.kernels import CHUNK_ROWS, REALS, unpacked
from datamodels.resources import KERNELS
from datamodels.subsets import pack
from tests.regress.checks import check_kernels
from tests.standins.cuda_cpp import have_compiler, sanitizers
from tests.standins.strict_cupy import StrictCupy

SOURCES = sorted(KERNELS.glob("*.cu"))


def _nvrtc_works():
    try:
        from cupy.cuda import nvrtc

        return nvrtc.getVersion()[0] >= 11
    except Exception:  # CuPy raises errors of its own when the library is missing
        return False


@pytest.mark.skipif(not _nvrtc_works(), reason="CuPy or NVRTC is not installed here")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("real", REALS.values())
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_kernel_compiles(source, real, architecture):
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(source.read_text(), source.name, (), ())
    nvrtc.compileProgram(program, (f"--gpu-architecture={architecture}", f"-DREAL={real}"))
    assert source.stem.encode() in nvrtc.getCUBIN(program)


needs_compiler = pytest.mark.skipif(not have_compiler, reason="no C++ compiler here")


@needs_compiler
@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (300, 1001)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unpacking_equals_numpys(monkeypatch, shape, dtype):
    monkeypatch.setattr(kernels, "BLOCKS", 3)
    masks = np.random.default_rng(0).random(shape) < 0.5
    found = unpacked(pack(masks), shape[1], StrictCupy(), dtype)
    assert found.dtype == dtype
    assert np.array_equal(found.get(), masks)
    assert np.array_equal(unpacked(pack(masks), shape[1], np, dtype), masks)


ROWS = st.sampled_from([1, 3, CHUNK_ROWS, CHUNK_ROWS + 1, 2 * CHUNK_ROWS + 5])
CASES = st.tuples(ROWS, st.integers(1, 200), st.integers(0, 9), st.booleans())


@needs_compiler
@settings(max_examples=30, deadline=None)
@given(case=CASES, dtype=st.sampled_from([np.float32, np.float64]))
def test_kernels_do_what_their_references_do(case, dtype):
    rows, t, seed, of_each = case
    check_kernels(StrictCupy(), (rows, t), dtype, t if of_each else 1, seed)


@needs_compiler
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_columns_are_kept_in_the_place_of_all_of_them(size, monkeypatch):
    monkeypatch.setattr(arrays, "ROWS_AT_ONCE", size)
    rng = np.random.default_rng(size)
    for rows, t, kept in ((1, 1, 1), (7, 5, 3), (6, 4, 4), (5, 3, 0), (9, 6, 1)):
        matrix, keep = rng.normal(size=(rows, t)), np.sort(rng.permutation(t)[:kept])
        for xp in (np, StrictCupy()):
            held = on_device(matrix.copy(), xp)
            found = keep_columns(held, on_device(keep, xp), xp)
            assert found.flags.c_contiguous
            assert np.array_equal(to_numpy(found), matrix[:, keep])
            into = xp.zeros((rows, t + 2))
            put_columns(into, on_device(keep + 2, xp), on_device(matrix, xp), on_device(keep, xp), xp)
            assert np.array_equal(to_numpy(into)[:, keep + 2], matrix[:, keep])
            assert np.count_nonzero(to_numpy(into)) == found.size


EDGES = """
import numpy as np
from datamodels.regress.kernels import _kernel
from tests.regress.checks import check_kernels, check_unpacking
from tests.standins import strict_cupy
from tests.standins.cuda_cpp import SANITIZERS, Launcher

strict_cupy.Launcher = lambda *given: Launcher(*given, SANITIZERS)
for shape in ((1, 1), (1, 129), (255, 1), (256, 128), (257, 127), (513, 2)):
    for dtype in (np.float32, np.float64):
        for factors in {1, shape[1]}:
            check_kernels(strict_cupy.StrictCupy(), shape, dtype, factors, 0)
        check_unpacking(strict_cupy.StrictCupy(), shape, dtype)
print("all within bounds", flush=True)
xp = strict_cupy.StrictCupy()
a, b = xp.zeros((3, 5)), xp.zeros(5)
_kernel(xp, "extrapolate", np.dtype(np.float64))((1, 1), (128,), (a, a.copy(), b, *map(np.int64, (4, 5, 256))))
"""


@pytest.mark.skipif(not sanitizers(), reason="no C++ compiler with sanitizers here")
def test_kernels_stay_within_their_arrays():
    environment = {**os.environ, "LD_PRELOAD": " ".join(sanitizers()), "ASAN_OPTIONS": "detect_leaks=0"}
    line = [sys.executable, "-c", EDGES]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.stdout == "all within bounds\n", done.stderr
    # The last launch, of one row more than there is, is a proof that it would be seen.
    assert "heap-buffer-overflow" in done.stderr
    assert "extrapolate" in done.stderr
    assert done.returncode
