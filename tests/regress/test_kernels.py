"""The CUDA sources: they compile for the architectures in use, and do what their NumPy references do.

Neither needs a GPU. The kernels have no shared memory and no barriers, so their source, compiled as C++ with the few names of
CUDA that it uses, runs thread after thread on the processor. tests/gpu runs them on a GPU.
"""

import ctypes
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodels.regress import kernels
from datamodels.regress.kernels import CHUNK_ROWS, REALS, extrapolate, fista_step, gap_sums, saga_residuals, saga_step, unpacked
from datamodels.resources import KERNELS
from datamodels.subsets import pack

SOURCES = sorted(KERNELS.glob("*.cu"))
SHIM = """
#define __global__
#define __restrict__
struct Index { unsigned x, y, z; };
static Index blockIdx, threadIdx, blockDim, gridDim;
#include SOURCE
extern "C" void launch(unsigned gx, unsigned gy, unsigned threads, void** a) {
    gridDim = {gx, gy, 1}; blockDim = {threads, 1, 1};
    for (blockIdx.y = 0; blockIdx.y < gy; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < gx; ++blockIdx.x)
            for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) CALL;
}
"""


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


def _parameters(name):
    """The types of a kernel's parameters, from its source."""
    text = (KERNELS / f"{name}.cu").read_text()
    between = text[text.index(f"void {name}(") :].split("(", 1)[1].split(")", 1)[0]
    return [" ".join(part.split()[:-1]).replace("__restrict__", "").strip() for part in between.split(",")]


@pytest.fixture(scope="session")
def on_the_processor(tmp_path_factory):
    """`RawKernel`s that run on the processor."""
    folder = tmp_path_factory.mktemp("kernels")
    built: dict[tuple[str, str], Any] = {}

    def build(name, dtype):
        real = REALS[np.dtype(dtype).char]
        casts = [
            f"({kind})a[{k}]" if "*" in kind else f"*({kind.removeprefix('const ')}*)a[{k}]"
            for k, kind in enumerate(_parameters(name))
        ]
        (folder / f"{name}-{real}.cpp").write_text(SHIM.replace("CALL", f"{name}({', '.join(casts)})"))
        library = folder / f"{name}-{real}.so"
        flags = ["-O1", "-fPIC", "-shared", f"-DREAL={real}", f'-DSOURCE="{KERNELS / name}.cu"']
        subprocess.run(["g++", *flags, "-o", library, folder / f"{name}-{real}.cpp"], check=True)
        return ctypes.CDLL(str(library)).launch

    def kernel(name, dtype):
        key = (name, np.dtype(dtype).char)
        if key not in built:
            built[key] = build(name, dtype)

        def run(grid, block, arguments):
            assert all(a.flags.c_contiguous for a in arguments if isinstance(a, np.ndarray))
            held = [a if isinstance(a, np.ndarray) else np.array(a) for a in arguments]
            assert len(held) == len(_parameters(name))
            for given_, kind in zip(held, _parameters(name), strict=True):
                word = kind.replace("const ", "").replace("*", "").split()[0]
                wanted = {"REAL": dtype, "double": np.float64, "long": np.int64, "float": np.float32, "unsigned": np.uint8}
                assert given_.dtype == wanted[word], (name, kind)
            pointers = (ctypes.c_void_p * len(held))(*(a.ctypes.data for a in held))
            built[key](*(*grid, 1)[:2], block[0], pointers)

        return run

    return kernel


class Processor:
    """NumPy, but not the module itself: what is called with it launches kernels, as with CuPy."""

    def __getattr__(self, name):
        return getattr(np, name)


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


@needs_compiler
@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (300, 1001)])
def test_unpacking_equals_numpys(on_the_processor, monkeypatch, shape):
    monkeypatch.setattr(kernels, "_kernel", on_the_processor)
    monkeypatch.setattr(kernels, "BLOCKS", 3)
    masks = np.random.default_rng(0).random(shape) < 0.5
    assert np.array_equal(unpacked(pack(masks), shape[1], Processor()), masks)
    assert np.array_equal(unpacked(pack(masks), shape[1], np), masks)


ROWS = st.sampled_from([1, 3, CHUNK_ROWS, CHUNK_ROWS + 1, 2 * CHUNK_ROWS + 5])
CASES = st.tuples(ROWS, st.integers(1, 200), st.integers(0, 9), st.booleans())


@needs_compiler
@settings(max_examples=30, deadline=None)
@given(case=CASES, dtype=st.sampled_from([np.float32, np.float64]))
def test_kernels_do_what_their_references_do(on_the_processor, case, dtype):
    rows, t, seed, of_each = case
    rng = np.random.default_rng(seed)
    a, b, c, d = (rng.normal(size=(rows, t)).astype(dtype) for _ in range(4))
    lam, penalty, beta = rng.random(t), 0.1 + rng.random((rows, t if of_each else 1)), rng.random(t)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kernels, "_kernel", on_the_processor)
        results = []
        for xp in (np, Processor()):
            w, mean, table = a.copy(), b.copy(), d.copy()
            changed = saga_residuals(c, b, table, xp)
            saga_step(w, mean, c, 40, 5, lam, penalty, 0.3, xp)
            stepped = fista_step(a, b, c, d, lam, penalty, 0.7, xp)
            sums = gap_sums(a, np.where(b > 0.5, b, 0).astype(dtype), c, penalty, xp)
            results.append([w, mean, table, changed, *stepped, extrapolate(a, b, beta, xp), *sums])
    tolerance = 1e-4 if dtype == np.float32 else 1e-10
    for reference, kernel in zip(*results, strict=True):
        np.testing.assert_allclose(kernel, reference, rtol=tolerance, atol=tolerance * rows)
    # Exactly zero where the reference is: sparsity is part of the result.
    assert np.array_equal(results[0][4] == 0, results[1][4] == 0)
