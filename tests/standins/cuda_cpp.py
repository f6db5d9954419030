"""CUDA kernels as C++ on the processor.

The kernels have no shared memory and no barriers, so their source, compiled as C++ with the few names of CUDA that it uses,
runs thread after thread on the processor.
"""

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

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
KINDS = {"double": np.float64, "float": np.float32, "long": np.int64, "unsigned": np.uint8}
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")

have_compiler = shutil.which("g++") is not None


def parameters(source, name):
    """The types of a kernel's parameters, from its source."""
    between = source[source.index(f"void {name}(") :].split("(", 1)[1].split(")", 1)[0]
    return [" ".join(part.split()[:-1]).replace("__restrict__", "").strip() for part in between.split(",")]


class Launcher:
    """A kernel that runs on the processor: called with a grid, a block and NumPy arguments, which it checks as CUDA cannot."""

    def __init__(self, source, name, real, flags=()):
        self.name, self.real = name, {"float": np.float32, "double": np.float64}[real]
        self.kinds = parameters(source, name)
        self.launch = _built(source, name, real, tuple(flags))

    def __call__(self, grid, block, arguments):
        assert len(arguments) == len(self.kinds), (self.name, len(arguments), self.kinds)
        held = list[Any]()
        for given, kind in zip(arguments, self.kinds, strict=True):
            word, pointer = kind.replace("const ", "").replace("*", "").split()[0], "*" in kind
            wanted = self.real if word == "REAL" else KINDS[word]
            # A bare Python number would be passed by CuPy as int64, float64: as what the kernel may not take.
            assert isinstance(given, np.ndarray if pointer else np.generic), (self.name, kind, type(given))
            assert given.dtype == wanted, (self.name, kind, given.dtype)
            if pointer:
                assert given.flags.c_contiguous, (self.name, kind)
                assert given.flags.writeable or kind.startswith("const"), (self.name, kind)
            held.append(given if pointer else np.array(given))
        assert 0 < block[0] <= 1024
        assert all(0 < size <= 65_535 for size in grid[1:]), grid
        pointers = (ctypes.c_void_p * len(held))(*(a.ctypes.data for a in held))
        self.launch(*(*grid, 1)[:2], block[0], pointers)


@cache
def _folder():
    return tempfile.TemporaryDirectory(prefix="kernels-")


@cache
def _built(source, name, real, flags):
    casts = [
        f"({kind})a[{k}]" if "*" in kind else f"*({kind.removeprefix('const ')}*)a[{k}]"
        for k, kind in enumerate(parameters(source, name))
    ]
    stem = Path(_folder().name, f"{name}-{real}-{len(flags)}-{abs(hash(source))}")
    stem.with_suffix(".cu").write_text(source)
    stem.with_suffix(".cpp").write_text(SHIM.replace("CALL", f"{name}({', '.join(casts)})"))
    macros = [f"-DREAL={real}", f'-DSOURCE="{stem}.cu"']
    line = ["g++", "-O1", "-fPIC", "-shared", *flags, *macros, "-o", f"{stem}.so", f"{stem}.cpp"]
    subprocess.run(line, check=True)
    return ctypes.CDLL(f"{stem}.so").launch


@cache
def sanitizers():
    """The libraries of the sanitizers, to be loaded before everything else; none where the compiler has none."""
    if not have_compiler:
        return ()
    names = ("libasan.so", "libubsan.so")
    found = [subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True) for name in names]
    paths = [Path(done.stdout.strip()) for done in found]
    # A compiler without them prints the bare name.
    return tuple(str(path.resolve()) for path in paths) if all(path.is_absolute() for path in paths) else ()
