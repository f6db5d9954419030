"""Which GPU is used: nothing asks CUDA before CUDA_VISIBLE_DEVICES is set for a function of one's own."""

import os
import sys

import pytest
import torch

from datamodels.errors import InputError
from datamodels.learners.function import use_gpu
from datamodels.training import device_named, devices
from tests.conftest import flags

OWN = """
import os
import numpy as np

def train(index, mask):
    with open("seen", "a") as file:
        file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "unset") + "\\n")
    return {"margins": mask[:20].astype(float) + np.arange(20) + 0.01 * index}
"""


@pytest.fixture
def asked(monkeypatch):
    """What CUDA_VISIBLE_DEVICES was each time that PyTorch was asked for GPUs."""
    found: list[str | None] = []

    def ask():
        found.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
        return False

    for name in ("is_available", "device_count", "init", "current_device"):
        monkeypatch.setattr(torch.cuda, name, ask)
    return found


@pytest.mark.parametrize("stage", ["worker", "verify"])
@pytest.mark.parametrize(("gpu", "seen"), [("cpu", ""), ("1", "1"), ("0", "0")])
def test_a_function_of_ones_own_sees_the_gpu_that_was_named_and_cuda_is_not_asked_before(
    tmp_path, monkeypatch, asked, stage, gpu, seen
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(devices, "HANDED_OUT", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "untouched")
    name = f"own_{stage}_{gpu}"
    (tmp_path / f"{name}.py").write_text(OWN)
    line = flags(
        tmp_path / "run", worker__main=f"{name}:train", store__num_models=60, regress__device="cpu", verify__methods="datamodel"
    )
    for command in ("worker", *(("regress", "verify") if stage == "verify" else ())):
        arguments = {"worker": ["--gpu", gpu if stage == "worker" else "cpu"], "verify": ["--gpu", gpu, "--targets", "3"]}
        monkeypatch.setattr(sys, "argv", [command, *line, *arguments.get(command, [])])
        if command == stage:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "untouched")
            asked.clear()
        _main(command)
    assert set((tmp_path / "seen").read_text().splitlines()[-3:]) == {seen}
    assert "untouched" not in asked


def _main(stage):
    import runpy

    runpy.run_module(f"datamodels.{stage}", run_name="__main__", alter_sys=False)


def test_no_parser_asks_cuda(monkeypatch, asked):
    for stage in ("worker", "verify", "regress", "bench"):
        monkeypatch.setattr(sys, "argv", [stage, "--help"])
        with pytest.raises(SystemExit):
            _main(stage)
    assert asked == []


def test_the_number_counts_the_gpus_that_a_scheduler_has_handed_out(monkeypatch):
    monkeypatch.setattr(devices, "HANDED_OUT", "3,GPU-5e2a")
    for _ in range(2):  # as often as one likes in a process
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5e2a")
        use_gpu("1")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-5e2a"
    use_gpu(None)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-5e2a"
    with pytest.raises(InputError, match="there is no GPU 2 here"):
        use_gpu("2")


@pytest.mark.parametrize("gpu", ["first", "-1", "٣", "1.0", "", "99999999999"])
def test_what_is_no_number_is_refused(gpu, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for named in (device_named, use_gpu):
        with pytest.raises(InputError, match="must be cpu or the number of a GPU"):
            named(gpu)


def test_without_a_name_the_device_is_what_is_there(asked):
    assert device_named(None) == torch.device("cpu")
    assert asked
