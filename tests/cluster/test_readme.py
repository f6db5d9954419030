"""The blocks of the text about clusters, without one: scripts run on what stands in for Slurm, YAML by Ray's own schema."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

README = Path(__file__).parents[2] / "datamodels" / "cluster" / "README.md"
STANDINS = {
    "scontrol": "printf 'node7\\nnode8\\n'",
    "sbatch": 'echo "sbatch $*"',
    "make": 'echo "make $*"',
    "ray": 'echo "ray $*"',
    "pip": 'echo "pip $*"',
    "aws": "echo ami-0123456789",
    # Each command on two nodes at once.
    "srun": 'echo "srun $*" >>asked; while [ "${1#--}" != "$1" ]; do shift; done; "$@" & HOSTNAME=other "$@"; wait',
}


def blocks():
    section = README.read_text(encoding="utf-8")
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


def block_with(words):
    (found,) = (block for block in blocks() if words in block)
    return found


@pytest.fixture
def run(tmp_path):
    """Runs a script where Slurm, Ray and make say how they were called."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    (tmp_path / "bin").mkdir()
    for name, line in STANDINS.items():
        file = tmp_path / "bin" / name
        file.write_text(f"#!/bin/bash\n{line}\n")
        file.chmod(0o755)

    def run(script, **environment):
        env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **environment}
        line = ["bash", "-eu", "-c", script]
        done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.splitlines()[0][:40])
def test_every_block_is_bash(block):
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def test_slurms_script_starts_ray_on_every_node_and_the_command_on_the_head(run, tmp_path):
    assert run(block_with("symmetric-run")) == ["sbatch cluster.sh"]
    script = (tmp_path / "cluster.sh").read_text()
    assert re.match(r"#!/bin/bash\n#SBATCH --nodes=4 ", script)
    said = run(script, SLURM_JOB_NODELIST="node[7-8]", SLURM_JOB_NUM_NODES="2", SLURM_CPUS_PER_TASK="32")
    line = "ray symmetric-run --address node7:6379 --min-nodes 2 --num-cpus=32 --num-gpus=8 -- "
    assert said == [f"{line}python -m datamodels.worker --engine ray"] * 2
    # Since version 22.05 srun takes no notice of what sbatch was asked for, and gives a task one core.
    assert (tmp_path / "asked").read_text().startswith("srun --cpus-per-task=32 ")
    if shutil.which("ray"):
        told = subprocess.run(["ray", "symmetric-run", "--help"], capture_output=True, text=True, check=True).stdout
        assert all(flag in told for flag in ("--address", "--min-nodes"))


def test_the_array_of_workers_is_set_up_before_and_each_has_its_gpu(run, tmp_path):
    assert run(block_with("--array")) == ["make setup", "make setup", "sbatch workers.sh"]  # on a node; here srun has two
    assert run((tmp_path / "workers.sh").read_text()) == ["make worker GPU=0"]


def test_the_check_of_locks_tells_where_they_exclude_and_where_they_do_not(run, tmp_path):
    check = block_with("flock")
    check = check.replace("sleep 10", "sleep 1")
    assert sorted(line.partition(" ")[2] for line in run(check)) == ["has it", "is refused"]
    (tmp_path / "bin" / "flock").write_text("#!/bin/bash\n")
    (tmp_path / "bin" / "flock").chmod(0o755)
    assert [line.partition(" ")[2] for line in run(check)] == ["has it", "has it"]


def test_the_clouds_machines_are_such_as_ray_takes(run, tmp_path):
    ray, jsonschema = pytest.importorskip("ray"), pytest.importorskip("jsonschema")
    lines = block_with("aws.yaml")
    assert run(lines.partition("ray exec")[0])[-1] == "ray up -y aws.yaml"
    found = yaml.safe_load((tmp_path / "aws.yaml").read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(found, schema)
    assert found["head_node_type"] in found["available_node_types"]
    assert found["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert all("activate" in line for line in [*found["head_start_ray_commands"], *found["worker_start_ray_commands"]])
    assert found["worker_start_ray_commands"][-1].endswith("--address=$RAY_HEAD_IP:6379")


def test_the_clouds_machines_have_what_make_setup_and_the_autoscaler_need(run, tmp_path):
    """Ray's own image has a Python that is too old, and its default commands do not know of the environment in the checkout."""
    util = pytest.importorskip("ray.autoscaler._private.util")
    run(block_with("aws.yaml").partition("ray exec")[0])
    found = util.prepare_config(yaml.safe_load((tmp_path / "aws.yaml").read_text()))
    util.validate_config(found)
    assert {each["node_config"]["ImageId"] for each in found["available_node_types"].values()} == {"ami-0123456789"}
    installed = [line for line in found["head_setup_commands"] if "boto3" in line]
    assert installed == ["~/datamodels/.venv/bin/pip install boto3"]
    assert all("python3-venv" in "".join(found[f"{kind}_setup_commands"]) for kind in ("head", "worker"))
