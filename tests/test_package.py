"""What is shipped: the wheel holds the CUDA sources and the configs, and the configs are read whole."""

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
    expected |= {"datamodels/report/page.html.j2", "datamodels/store/FORMAT.md", "datamodels/py.typed"}
    assert expected <= names
    assert not any(name.startswith(("tests", "runs")) for name in names)


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_is_valid(config):
    settings, _ = parse(["-C", str(config)])
    assert settings.run.dir.startswith("runs/")


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
import sys, datamodels
assert not {"scipy", "torch", "datamodels.store"} & sys.modules.keys()
from datamodels import Store, support, Datamodels
assert (Store.__module__, support.__module__) == ("datamodels.store.reader", "datamodels.brittleness.supports")
assert set(datamodels.__all__) == {"Store", "support", "Datamodels"}
from datamodels import verify
assert type(verify) is type(sys) and callable(verify.verify) and not callable(verify)
try:
    datamodels.nothing
except AttributeError as e:
    assert "has no attribute 'nothing'" in str(e)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True)
