"""What is shipped: the wheel holds the CUDA sources and the configs, and the configs are read whole."""

import os
import resource
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from datamodels import __version__
from datamodels.resources import CONFIGS, KERNELS
from datamodels.settings import parse

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_kernels_configs_and_templates(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob(f"datamodels-{__version__}-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"datamodels/{folder.name}/{f.name}" for folder in (KERNELS, CONFIGS) for f in folder.iterdir()}
    assets = ROOT / "datamodels" / "report" / "assets"
    expected |= {f"datamodels/report/assets/{f.name}" for f in assets.iterdir()}
    expected |= {"datamodels/report/page.html.j2", "datamodels/store/FORMAT.md", "datamodels/py.typed"}
    assert expected <= names
    assert not any(name.startswith(("tests", "runs")) for name in names)


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_is_valid(config):
    settings, _ = parse(["-C", str(config)])
    assert settings.run.dir.startswith("runs/")


def little_memory():
    resource.setrlimit(resource.RLIMIT_AS, (200_000 * 1024,) * 2)


@pytest.mark.parametrize("stage", ["", ".worker", ".regress", ".verify", ".data", ".report", ".bench", ".store"])
def test_memory_that_does_not_suffice_for_the_libraries_is_a_sentence(stage, tmp_path):
    line = [sys.executable, "-m", f"datamodels{stage}", "--run.dir", "run"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        line, capture_output=True, text=True, check=False, preexec_fn=little_memory, cwd=tmp_path, timeout=60, env=env
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    if stage != ".store":  # which has room enough
        assert done.stderr.startswith("error: memory does not suffice")


def test_a_fault_of_the_program_keeps_its_traceback_and_who_imports_us_his_hook(tmp_path):
    code = "import sys; hook = sys.excepthook; import datamodels; assert sys.excepthook is hook"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    (tmp_path / "mine.py").write_text("import datamodels\nraise MemoryError\n")
    done = subprocess.run([sys.executable, "-m", "mine"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "MemoryError")


FOLDERS = sorted(path.parent.relative_to(ROOT) for path in (ROOT / "datamodels").rglob("__main__.py"))


@pytest.mark.parametrize("module", [".".join(folder.parts) for folder in FOLDERS])
def test_every_command_explains_itself(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=False)
    assert ended.value.code == 0
    assert module in capsys.readouterr().out


def test_names_of_the_package_are_imported_when_they_are_asked_for():
    script = """
import sys, datamodels, datamodels.worker
assert not {"scipy", "torch", "datamodels.store"} & sys.modules.keys()
from datamodels import Store, evaluate, support, Datamodels, from_dataset
assert (Store.__module__, support.__module__) == ("datamodels.store.reader", "datamodels.verify.measured")
assert set(datamodels.__all__) == {"Store", "evaluate", "support", "Datamodels", "from_dataset", "Run"}
from datamodels import verify
assert type(verify) is type(sys) and callable(verify.verify) and not callable(verify)
assert datamodels.worker.Local.__module__ == "datamodels.worker.engine"
for package in datamodels, datamodels.worker:
    try:
        package.nothing
    except AttributeError as e:
        assert "has no attribute 'nothing'" in str(e)
    else:
        raise AssertionError
    assert all(hasattr(package, name) for name in package.__all__)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
