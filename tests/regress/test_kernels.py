"""The CUDA sources compile for the architectures in use, without a GPU; tests/gpu compares them with their references."""

import pytest

from datamodels.resources import KERNELS

pytest.importorskip("cupy", reason="CuPy is not installed here")
from cupy.cuda import nvrtc


def _nvrtc_works():
    try:
        return nvrtc.getVersion()[0] >= 11
    except Exception:  # CuPy raises errors of its own when the library is missing
        return False


@pytest.mark.skipif(not _nvrtc_works(), reason="NVRTC is not installed here")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("source", sorted(KERNELS.glob("*.cu")), ids=lambda path: path.name)
def test_kernel_compiles(source, architecture):
    program = nvrtc.createProgram(source.read_text(), source.name, (), ())
    nvrtc.compileProgram(program, (f"--gpu-architecture={architecture}",))
    assert source.stem.encode() in nvrtc.getCUBIN(program)
