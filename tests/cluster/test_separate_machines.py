"""Machines with addresses of their own: one loses its power, another one joins; rows and verdicts are those of one machine."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import datamodels
from datamodels.errors import InputError
from datamodels.store import Store
from tests.cluster.namespaces import machines, possible

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not possible(), reason="network namespaces take root, and a kernel that has them"),
]

MODELS = 120
GROUPS = ["--groups.models_at_once", "4", "--groups.models_per_kernel", "4", "--groups.program", "plain"]
FEW = [
    *("--verify.methods", "datamodel", "--verify.sizes", "none", "--verify.counterfactuals", "none", "--verify.subsets", "0"),
    *("--verify.models", "4", "--verify.most_models", "8", "--verify.base_models", "8"),
]
TARGETS = "0,1,2,3,4,5"
ENDS_WITHIN_S = 240


def command(stage, folder, *more):
    digits = str(Path(datamodels.__file__).parents[1] / "configs" / "digits.yaml")
    how = ["-C", digits, "--run.dir", str(folder), "--store.num_models", str(MODELS), *GROUPS, *FEW]
    return [sys.executable, "-m", f"datamodels.{stage}", *how, *more]


def done_in(folder):
    try:
        return len(Store(folder / "store").done)
    except (InputError, OSError):
        return 0


def wait_for(folder, models, running):
    until = time.monotonic() + ENDS_WITHIN_S
    while done_in(folder) < models:
        assert running.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)


def verdicts(folder):
    """What the searches found: all but means of margins, which are rounded by the group in which a model is trained."""
    found = json.loads((folder / "verify" / "verify.json").read_text())
    return [[each[name] for name in ("target", "method", "verdict", "size", "tried")] for each in found["searches"]]


def test_a_machine_that_dies_and_one_that_joins(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for stage, *more in (["worker"], ["regress"], ["verify", "--targets", TARGETS]):
        subprocess.run(command(stage, here, "--gpu", "cpu", *more), check=True, timeout=ENDS_WITHIN_S)
    with machines() as cluster:
        cluster.start("--num-cpus=0")
        lost, _ = (cluster.start("--num-cpus=1") for _ in range(2))
        on_ray = ["--engine", "ray", "--ray.address", cluster.head]
        with (tmp_path / "log").open("w") as log:
            training = cluster.begin(0, *command("worker", there, *on_ray), stdout=log, stderr=log)
            wait_for(there, 20, training)
            cluster.kill(lost)
            assert done_in(there) < MODELS
            cluster.start("--num-cpus=1")
            assert training.wait(ENDS_WITHIN_S) == 0, (tmp_path / "log").read_text()
        for stage, *more in (["regress"], ["verify", "--targets", TARGETS]):
            cluster.on(0, *command(stage, there, *on_ray, *more), timeout=ENDS_WITHIN_S)
    one, other = Store(here / "store"), Store(there / "store")
    np.testing.assert_array_equal(other.done, np.arange(MODELS))
    for name in one.meta.files:
        np.testing.assert_array_equal(one.array(name, one.done), other.array(name, other.done), err_msg=name)
    assert not other.damaged(other.done)
    assert len({target for target, *_ in verdicts(here)}) >= 4
    assert verdicts(there) == verdicts(here)
