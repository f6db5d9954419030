"""Which device computes, for how long it is taken, and what happens when its memory is full."""

import contextlib
import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from datamodels.errors import InputError, of_memory
from datamodels.regress import fit_datamodels, provenance
from datamodels.regress import path as path_module
from datamodels.regress.arrays import computing, free_memory, refuse_contradiction
from datamodels.regress.path import Run
from datamodels.regress.unfinished import Unfinished
from datamodels.settings import RegressSettings
from tests.regress.test_path import planted, store_of
from tests.regress.test_prior import drawn, of_array
from tests.standins.strict_cupy import OutOfMemoryError

SETTINGS = RegressSettings(lams=6)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    masks, margins, _ = planted(m=300)
    return store_of(tmp_path_factory.mktemp("s") / "s", masks, margins, "float16")


@pytest.mark.parametrize(
    ("device", "gpu", "number"),
    [("auto", None, 0), ("auto", "1", 1), ("auto", "cpu", None), ("gpu", "1", 1), ("gpu", None, 0), ("cpu", "1", None)],
)
def test_the_whole_fit_is_on_the_gpu_that_is_named(store, strict, device, gpu, number):
    strict.devices = 2
    fit_datamodels(store, dataclasses.replace(SETTINGS, device=device), gpu=gpu)
    assert set(+strict.peak) == ({number} - {None})
    assert strict.current == 0
    if number is not None:
        assert strict.held[number] == strict.live[number] == 0


def test_what_cannot_be_is_said_in_a_sentence(store, strict, capsys):
    on_gpu = dataclasses.replace(SETTINGS, device="gpu")
    with pytest.raises(InputError, match=r"--gpu is cpu, but regress.device is gpu"):
        fit_datamodels(store, on_gpu, gpu="cpu")
    with pytest.raises(InputError, match="there is no GPU 1 here: CuPy finds 1"):
        fit_datamodels(store, SETTINGS, gpu="1")
    for wrong in ("x", "-1", "", "1.5"):
        with pytest.raises(InputError, match="--gpu must be cpu or the number of a GPU"):
            refuse_contradiction("auto", wrong)
    strict.devices = 0
    with pytest.raises(InputError, match="CuPy is not installed here or finds none"):
        fit_datamodels(store, on_gpu)
    with computing("auto", "0") as xp:
        assert xp is np
    assert "computing on the processor" in capsys.readouterr().err
    with computing("auto") as xp:
        assert xp is np
    assert not capsys.readouterr().err


class LostError(Exception):
    pass


@pytest.mark.parametrize("error", [LostError, KeyboardInterrupt, RuntimeError, InputError])
def test_the_memory_is_given_back_after_an_error_too(store, strict, monkeypatch, error):
    held = []

    def failing(*_):
        held.append(strict.held[0])
        raise error

    monkeypatch.setattr(path_module, "score", failing)
    with pytest.raises(error) as caught:
        fit_datamodels(store, dataclasses.replace(SETTINGS, device="gpu"))
    assert held[0] > 0
    assert caught.value.__traceback__ is not None
    assert strict.held[0] == strict.live[0] == 0


def test_nested_and_by_hand(strict):
    with computing("gpu") as xp:
        outer = xp.zeros(1000)
        with computing("gpu") as inner:
            inner.zeros(5000)
        assert strict.held[0] == outer.nbytes
        xp.zeros(5000)
        assert free_memory(xp) == strict.capacity - outer.nbytes
        del outer
    assert strict.held[0] == 0


def test_all_guises_of_full_memory():
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(2**62, np.uint8)
    full = [
        of_numpy.value,
        MemoryError(),
        OutOfMemoryError("Out of memory allocating 512 bytes"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
        RuntimeError("CUSOLVER_STATUS_ALLOC_FAILED"),
        RuntimeError("cudaErrorMemoryAllocation: out of memory"),
        RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
    ]
    assert all(map(of_memory, full))
    assert not any(map(of_memory, [RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"), ValueError("out of memory"), OSError()]))


GUISES = [OutOfMemoryError("Out of memory allocating 512 bytes"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), MemoryError()]


@pytest.mark.parametrize("guise", GUISES, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("sparse", [None, False, True])
def test_full_memory_halves_the_block_and_goes_on(strict, tmp_path, monkeypatch, capsys, guise, sparse):
    masks, margins, a, _ = drawn(250, n=40, t=8)
    store = store_of(tmp_path / "s", masks, margins)
    settings = RegressSettings(lams=5, gap=1e-8, device="gpu", sparse=bool(sparse))
    covariates = None if sparse is None else of_array(a)
    whole = fit_datamodels(store, settings, covariates=covariates)
    held = []
    for name in ("choose", "refit", "with_prior"):
        work = getattr(Run, name)

        def full(run, block, *rest, work=work):
            done = work(run, block, *rest)
            if block.stop - block.start > 2:
                much = strict.zeros(10**6)  # the error's frame keeps it
                held.append(much.nbytes)
                raise type(guise)(*guise.args)
            assert strict.held[0] < 8 * 10**6
            return done

        monkeypatch.setattr(Run, name, full)
    left = []

    @contextlib.contextmanager
    def bar(_unit, total):
        left.append(total)
        number = len(left) - 1

        def take(n=1, where=""):
            left[number] -= n

        yield take

    fit = fit_datamodels(store, settings, bar, covariates=covariates)
    np.testing.assert_allclose(fit.weights, whole.weights, atol=1e-4)
    np.testing.assert_allclose(fit.lam, whole.lam, rtol=1e-6)
    assert fit.solver["block"] == 2
    assert fit.solver["planned_bytes"] <= whole.solver["planned_bytes"]
    assert len(held) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [f"regress: memory is full with {size} targets at once; going on with {size // 2}" for size in (8, 4)]
    assert not any(left)


def test_no_room_for_one_target_is_said_in_a_sentence(store, strict, monkeypatch):
    def full(*_):
        raise OutOfMemoryError("Out of memory allocating 512 bytes")

    monkeypatch.setattr(Run, "refit", full)
    with pytest.raises(InputError, match="memory is full with one target at a time"):
        fit_datamodels(store, dataclasses.replace(SETTINGS, device="gpu"))
    monkeypatch.setattr(Run, "take_in", full)
    with pytest.raises(InputError, match="the memory of the GPU is full; a smaller"):
        fit_datamodels(store, dataclasses.replace(SETTINGS, device="gpu"))
    with pytest.raises(InputError, match="the memory of this machine is full; a smaller"):
        fit_datamodels(store, dataclasses.replace(SETTINGS, device="cpu"))
    assert strict.held[0] == 0


def test_memory_that_ends_on_the_way_costs_a_block_and_not_the_regression(strict, tmp_path, monkeypatch, capsys):
    masks, margins, _ = planted(m=300)
    wide = np.tile(margins, 16)
    store = store_of(tmp_path / "s", masks, wide)
    settings = dataclasses.replace(SETTINGS, device="gpu", gap=1e-8)
    whole = fit_datamodels(store, settings)
    assert whole.solver["block"] == 96
    # Another program takes memory once the plan is made: the stand-in has less than planned.
    take_in = Run.take_in

    def shrinking(run, ids):
        take_in(run, ids)
        strict.capacity = min(strict.capacity, strict.live[0] + int(0.7 * (whole.solver["planned_bytes"] - strict.live[0])))

    monkeypatch.setattr(Run, "take_in", shrinking)
    fit = fit_datamodels(store, settings)
    assert "memory is full with 96 targets at once; going on with 48" in capsys.readouterr().err
    np.testing.assert_allclose(fit.weights, whole.weights, atol=1e-4)
    np.testing.assert_allclose(fit.lam, whole.lam)


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (4, 3), (1, 6), (6, 1)])
@pytest.mark.parametrize("crash", range(4))  # before either stage, or after its first block
def test_what_is_done_survives_another_size_of_blocks(store, tmp_path, monkeypatch, before, after, crash):
    settings = dataclasses.replace(SETTINGS, device="cpu", gap=1e-8, targets="0:6")
    whole = fit_datamodels(store, settings)
    meta, done = provenance(store, settings), list[tuple[str, int]]()
    works = {name: getattr(Run, name) for name in ("choose", "refit")}

    def noting(name):
        def work(run, block, *rest):
            if len(done) == crash_at:
                raise LostError
            found = works[name](run, block, *rest)
            done.extend((name, target) for target in range(block.start, block.stop))
            return found

        return work

    for name in works:
        monkeypatch.setattr(Run, name, noting(name))
    crash_at = 6 * (crash // 2) + min(crash % 2 * before, 6)
    with pytest.raises(LostError) if crash_at < 12 else contextlib.nullcontext():
        fit_datamodels(store, dataclasses.replace(settings, block=before), unfinished=Unfinished(tmp_path / "kept", meta))
    assert len(done) == crash_at
    crash_at = 10**9
    fit = fit_datamodels(store, dataclasses.replace(settings, block=after), unfinished=Unfinished(tmp_path / "kept", meta))
    # Every target is solved once in either stage, whatever was kept.
    assert sorted(done) == sorted((name, target) for name in works for target in range(6))
    np.testing.assert_allclose(fit.weights, whole.weights, atol=1e-4)
    np.testing.assert_allclose(fit.lam, whole.lam)
    assert np.array_equal(np.argsort(fit.metrics["lds"]), np.argsort(whole.metrics["lds"]))


def test_a_torn_file_is_done_again_between_others(store, tmp_path):
    settings = dataclasses.replace(SETTINGS, device="cpu", block=2)
    whole = fit_datamodels(store, settings)
    meta = provenance(store, settings)
    fit_datamodels(store, settings, unfinished=Unfinished(tmp_path / "kept", meta))
    (tmp_path / "kept" / "fitted-2-4.npz").write_bytes(b"")
    (tmp_path / "kept" / "chosen-0-2.npz").unlink()
    again = fit_datamodels(store, dataclasses.replace(settings, block=6), unfinished=Unfinished(tmp_path / "kept", meta))
    np.testing.assert_allclose(again.weights, whole.weights, atol=0.02)


def test_importing_and_looking_asks_neither_torch_nor_cuda(tmp_path):
    fake = tmp_path / "cupy.py"
    fake.write_text("raise SystemExit('cupy was imported')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    code = "import sys, datamodels.regress.run, datamodels.regress.exchange; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


CUPY = """
import os
class Seen(Exception): pass
class cuda:
    def is_available():
        raise SystemExit("CUDA was asked with " + os.environ.get("CUDA_VISIBLE_DEVICES", "nothing set"))
"""


def test_the_command_takes_a_gpu(store, tmp_path):
    (tmp_path / "cupy.py").write_text(CUPY)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "CUDA_VISIBLE_DEVICES": "7"}
    line = [
        sys.executable,
        "-m",
        "datamodels.regress",
        "--store",
        store.folder,
        "--out",
        tmp_path / "out",
        "--regress.lams",
        "5",
    ]

    def run(*flags):
        done = subprocess.run([*map(str, line), *flags], env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    assert run("--gpu", "1") == (1, "CUDA was asked with 7\n")
    code, said = run("--gpu", "cpu", "--regress.device", "gpu")
    assert (code, said) == (2, "error: --gpu is cpu, but regress.device is gpu; give one of them\n")
    assert run("--gpu", "1", "--regress.device", "cpu")[0] == 0
    # What is done asks nothing.
    assert run("--gpu", "1")[0] == 0
