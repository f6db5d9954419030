"""`make setup` with a GPU's driver and without, where nvidia-smi and Python are scripts that note their use."""

import os
import shutil
import stat
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
SMI = """#!/bin/sh
echo "| NVIDIA-SMI 580.95.05      Driver Version: 580.95.05      CUDA Version: {cuda}     |"
"""
# Stands for the Python of the machine, and for that of the environment which it makes.
PYTHON = """#!/bin/bash
echo "$*" >> "{log}"
case "$*" in
    --version) echo "Python 3.11.7" ;;
    "-m venv "*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo "{torch}" > .venv/torch ;;
    *" install "*--index-url*) echo 12 > .venv/torch; {index} ;;
    *" install "*) ;;
    *torch.version.cuda*) cat .venv/torch ;;
    "-W ignore -") cat > /dev/null; echo "{finds}" ;;
esac
exit 0
"""


@pytest.fixture
def setup(tmp_path):
    """Runs the script in a checkout of its own; the Python calls that it made, and what it printed."""
    shutil.copytree(CHECKOUT / ".ci", tmp_path / ".ci")
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    bin_folder, log = tmp_path / "bin", tmp_path / "log"
    bin_folder.mkdir()

    def executable(name, text):
        path = bin_folder / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run(cuda=None, torch="", finds="", index=":"):
        if cuda:
            executable("nvidia-smi", SMI.format(cuda=cuda))
        executable("python3", PYTHON.format(log=log, torch=torch, finds=finds, index=index))
        environment = {**os.environ, "PATH": f"{bin_folder}:/usr/bin:/bin", "PYTHON": "python3"}
        done = subprocess.run(
            ["bash", ".ci/setup.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        return done, log.read_text().splitlines()

    return run


def installed(calls):
    return [call for call in calls if " install " in call and "--no-deps" not in call]


def test_a_driver_that_fails_is_none(setup, tmp_path):
    broken = tmp_path / "bin" / "nvidia-smi"
    broken.write_text("#!/bin/sh\nexit 9\n")
    broken.chmod(0o755)
    done, calls = setup()
    assert done.returncode == 0, done.stderr
    assert "[dev,kernels-check]" in installed(calls)[0]


def test_without_a_driver_what_pypi_has_is_installed(setup):
    done, calls = setup()
    assert done.returncode == 0, done.stderr
    assert "[dev,kernels-check]" in installed(calls)[0]
    assert not any("index-url" in call for call in calls)
    assert "-W ignore -" not in calls


@pytest.mark.parametrize("cuda", ["12.2", "12.8"])
def test_a_driver_for_cuda_12_gets_the_build_for_it(setup, cuda):
    done, calls = setup(cuda, torch="13")
    assert done.returncode == 0, done.stderr
    first, second = installed(calls)[:2]
    assert "whl/cu126 torch==2.13.0" in first
    assert "--force-reinstall" in first
    assert "[dev,cuda12]" in second


def test_a_build_for_cuda_12_that_is_there_stays(setup):
    _, calls = setup("12.4", torch="12")
    assert not any("index-url" in call for call in calls)
    assert "[dev,cuda12]" in installed(calls)[0]


def test_a_build_for_cuda_12_that_is_not_to_be_had_is_a_sentence(setup):
    done, _ = setup("12.4", torch="13", index="exit 1")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "setup: there is no torch==2.13.0 for CUDA 12 to be had; a driver of version 580"
    )


def test_a_driver_for_cuda_13_gets_cupy_with_the_libraries(setup):
    _, calls = setup("13.0", torch="13")
    assert "[dev,cuda13]" in installed(calls)[0]
    text = (CHECKOUT / "pyproject.toml").read_text()
    assert all(f"cupy-cuda{release}x[ctk]" in text for release in (12, 13))


def test_a_gpu_that_the_packages_do_not_find_is_said_now_and_at_the_next_start(setup):
    note = "CuPy finds no GPU, though the driver shows one"
    first, _ = setup("13.0", finds=note)
    assert f"setup: {note}" in first.stdout
    again, _ = setup("13.0", finds=note)
    assert again.stdout.strip().endswith(note)


def test_the_check_for_a_gpu_says_what_is_missing_here(tmp_path):
    """The real check, run where PyTorch and CuPy are but no GPU."""
    import sys

    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    script = (CHECKOUT / ".ci" / "setup.sh").read_text()
    check = script.split("<<'PYTHON'\n")[1].split("\nPYTHON\n")[0]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", check], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "PyTorch and CuPy find no GPU, though the driver shows one\n"


def test_no_constraint_holds_cudas_libraries_to_another_release_than_pytorchs():
    lines = (CHECKOUT / ".ci" / "constraints.txt").read_text().splitlines()
    assert not [line for line in lines if line.startswith("nvidia-")]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (["cluster"], "datamodels.worker  --engine ray --ray.address auto"),
        (
            ["cluster", "ADDRESS=10.0.0.1:6379", "CONFIG=mine.yaml"],
            "worker -C mine.yaml --engine ray --ray.address 10.0.0.1:6379",
        ),
        (["worker", "GPU=0,1"], "datamodels.worker  --gpu 0,1"),
        (["worker", "GPU=0", "YES=1"], "datamodels.worker  --gpu 0 --yes"),
        (["cluster", "YES=1"], "--ray.address auto --yes"),
    ],
)
def test_targets_of_make_say_what_they_were_told(line, wanted):
    if shutil.which("make") is None:
        pytest.skip("no make here")
    make = ["make", "--no-print-directory", "-n", *line]
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    told = subprocess.run(make, cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=60, env=env)
    assert told.stdout.splitlines()[-1].rstrip().endswith(wanted)


def test_one_version_of_ray_is_asked_for_and_was_tested():
    constraints = (CHECKOUT / ".ci" / "constraints.txt").read_text()
    assert f"\nray=={version('ray')};" in constraints
    assert f'ray = ["ray[default]=={version("ray")}"]' in (CHECKOUT / "pyproject.toml").read_text()


def test_of_several_at_once_one_installs_and_the_others_find_it_done(setup, tmp_path):
    setup()
    shutil.rmtree(tmp_path / ".venv")
    (tmp_path / "log").unlink()
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "PYTHON": "python3"}
    how = {"cwd": tmp_path, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    several = [subprocess.Popen(["bash", ".ci/setup.sh"], **how) for _ in range(4)]
    assert [each.communicate(timeout=60)[1] for each in several] == [""] * 4
    calls = (tmp_path / "log").read_text().splitlines()
    assert sum("[dev,kernels-check]" in call for call in installed(calls)) == 1
