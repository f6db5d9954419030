"""What is shipped: the wheel holds the CUDA sources and the configs, and the configs are read whole."""

import ast
import os
import re
import resource
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from datamodels import __version__
from datamodels.commands import COMMANDS
from datamodels.resources import CONFIGS, KERNELS
from datamodels.settings import parse
from tests.conftest import SMALL

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist of this checkout, and what the sdist unpacks to."""
    folder = tmp_path_factory.mktemp("dist")
    build(folder, ROOT)
    (wheel,), (sdist,) = folder.glob("datamodels_lab-*.whl"), folder.glob("datamodels_lab-*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)
    return wheel, folder / sdist.name.removesuffix(".tar.gz")


def build(folder, root, *targets):
    line = [sys.executable, "-m", "hatchling", "build", "-d", str(folder), *targets]
    subprocess.run(line, cwd=root, check=True, capture_output=True)


def test_the_wheel_holds_kernels_configs_and_templates(built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    expected = {f"datamodels/{folder.name}/{f.name}" for folder in (KERNELS, CONFIGS) for f in folder.iterdir()}
    assets = ROOT / "datamodels" / "report" / "assets"
    expected |= {f"datamodels/report/assets/{f.name}" for f in assets.iterdir()}
    expected |= {"datamodels/report/page.html.j2", "datamodels/store/FORMAT.md", "datamodels/py.typed"}
    expected |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "datamodels").rglob("*.py")}
    assert expected <= names
    assert not any(name.startswith(("tests", "runs")) for name in names)


def test_the_sdist_makes_the_same_wheel_and_holds_what_a_contributor_needs(built, tmp_path):
    wheel, source = built
    build(tmp_path, source, "-t", "wheel")
    (again,) = tmp_path.glob("*.whl")
    assert contents(again) == contents(wheel)
    needed = ("Makefile", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md", ".ci/setup.sh")
    assert all((source / name).is_file() for name in needed)
    assert {path.name for path in (ROOT / "tests").glob("*.py")} <= {path.name for path in (source / "tests").glob("*.py")}


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info.CRC for info in archive.infolist()}


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Runs the console script of the wheel, as pip has installed it, in a folder far from the checkout."""
    site, work = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("work")
    line = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", "--target", str(site)]
    subprocess.run([*line, str(built[0])], check=True, capture_output=True)

    def run(*argv):
        command, env = [site / "bin" / "datamodels", *argv], {**os.environ, "PYTHONPATH": str(site)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=work)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run, work


def test_an_installed_package_is_found_outside_the_checkout_with_its_configs_and_its_script(installed):
    run, work = installed
    assert run("--version") == f"datamodels {__version__}\n"
    assert "datamodels demo" in run()
    assert "\n  --store.alpha 0.4\n" in run("worker", "-C", "digits", "--help")
    assert not list(work.iterdir())


@pytest.mark.slow
def test_the_demo_of_an_installed_package_comes_to_its_page(installed):
    few = {**SMALL, "store.num_models": 64, "verify.methods": "datamodel"}
    run, work = installed
    told = run("demo", *(part for key, value in few.items() for part in (f"--{key}", str(value))))
    page = work / "runs" / "digits" / "report" / "index.html"
    assert told.splitlines()[-1] == f"the page is at {page.resolve()}"
    assert "<html" in page.read_text(encoding="utf-8")[:500]


def test_the_distribution_has_its_own_name_and_nobody_is_told_to_install_a_strangers(built):
    metadata = zipfile.ZipFile(built[0]).read(f"datamodels_lab-{__version__}.dist-info/METADATA").decode()
    assert metadata.splitlines()[1:3] == ["Name: datamodels-lab", f"Version: {__version__}"]
    files = [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), ROOT / "pyproject.toml", *(ROOT / "datamodels").rglob("*.*")]
    for file in files:
        if file.suffix in (".md", ".py", ".toml", ".js", ".j2"):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"""(pip|uv)[^\n]* install[^\n]* ['"]?datamodels(?!-lab)\b|["' ]datamodels\[""", text), file


def test_the_citation_names_this_version_and_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["cff-version"], cited["version"], cited["license"]) == ("1.2.0", __version__, "MIT")
    (paper,) = cited["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Ilyas", "Park", "Engstrom", "Leclerc", "Madry"]
    assert "2202.00622" in paper["url"]


def test_the_hosted_workflow_calls_what_there_is():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))["jobs"]
    lines = "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"make ([a-z-]+)", lines)) == {"lint", "test"} <= set(targets)
    for line in re.findall(r"bin/datamodels (.*)", lines):
        name, *more = line.split()
        assert name == "--version" or (name in COMMANDS and parse(more))
    (tested,) = (job["strategy"]["matrix"]["python"] for name, job in jobs.items() if name == "tests")
    supported = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert tested == supported
    assert f'requires-python = ">={supported[0]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


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


def test_no_named_tuple_is_generic_which_python_3_10_refuses():
    for file in (ROOT / "datamodels").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
            assert "NamedTuple" not in bases or len(bases) == 1, (file, bases)


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
