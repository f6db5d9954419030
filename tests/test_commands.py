"""The front door: what there is, which command an argument names, and what each command's help shows."""

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import datamodels
from datamodels import cli, settings
from datamodels.commands import COMMANDS, DEMO, ROAD, STORE
from datamodels.configs import config_named
from datamodels.errors import InputError
from datamodels.help import WIDTH
from datamodels.resources import CONFIGS, purpose, shipped_configs
from datamodels.settings import SECTIONS, argument_parser, parse
from tests.conftest import flags

PACKAGE = Path(datamodels.__file__).parent
STAGES = [name for name, command in COMMANDS.items() if command.own]
SCRIPT = "from datamodels.cli import main\nif __name__ == '__main__':\n    main()\n"


def called(module, *argv):
    """Runs `python -m module ARGV` here; its exit code."""
    before, sys.argv = sys.argv, [module, *map(str, argv)]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=False)
    except SystemExit as end:
        return end.code
    finally:
        sys.argv = before
    return 0


def helped(capsys, *argv):
    assert called("datamodels", *argv) == 0
    return capsys.readouterr().out


# What there is.


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_a_bare_call_tells_what_there_is_and_begins_nothing(argv, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = helped(capsys, *argv)
    for name in (*COMMANDS, *(file.stem for file in CONFIGS.glob("*.yaml"))):
        assert re.search(rf"^  {name} +\S", told, re.MULTILINE), name
    assert f"python -m datamodels {DEMO}" in told
    assert max(map(len, told.splitlines())) <= WIDTH
    assert not list(tmp_path.iterdir())


def test_every_folder_with_a_front_door_is_a_command_and_the_other_way_round():
    assert {path.parent.name for path in PACKAGE.glob("*/__main__.py")} == set(STAGES)


def test_the_overview_and_the_version_load_no_libraries(tmp_path):
    script = tmp_path / "datamodels"
    script.write_text(
        SCRIPT + "    assert not {'torch', 'numpy', 'scipy', 'yaml', 'fastargs'} & {*__import__('sys').modules}\n"
    )
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    for argv, told in (([], f"datamodels {DEMO}\n"), (["--version"], f"datamodels {datamodels.__version__}\n")):
        line = [sys.executable, str(script), *argv]
        done = subprocess.run(line, capture_output=True, text=True, check=False, env=env, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert told in done.stdout
        assert "python -m" not in done.stdout


def test_each_shipped_config_says_what_it_is_for():
    assert len(shipped_configs()) > 5
    for name, file in shipped_configs().items():
        assert re.fullmatch(r"[A-Z].{20,160}\.", purpose(file)), name


@pytest.mark.parametrize(("name", "meant"), [("wroker", "; did you mean worker?"), ("7", ""), ("a\x1b[31m", ""), ("", "")])
def test_a_command_that_there_is_not_is_one_sentence(name, meant, capsys):
    assert called("datamodels", name, "--gpu", "cpu") == 2
    shown = name.encode("unicode_escape").decode() or "of no name"
    told = f"error: there is no command {shown}{meant} (python -m datamodels --help lists them)\n"
    assert capsys.readouterr().err == told


# Which command is run, and how.


@pytest.fixture
def ran(monkeypatch):
    """Commands that would have been run, with their arguments."""
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(cli, "before_libraries", lambda name: None)
    monkeypatch.setattr(cli, "_road", lambda command: calls.append((command.name, sys.argv)))
    monkeypatch.setattr(runpy, "run_module", lambda module, run_name: calls.append((module, sys.argv, run_name)))
    return calls


@pytest.mark.parametrize(
    ("argv", "name", "given"),
    [
        (["-C", "digits"], ROAD, ["-C", "digits"]),
        (["-C", "digits", "--help"], ROAD, ["-C", "digits", "--help"]),
        (["--run.dir=x"], ROAD, ["--run.dir=x"]),
        (["run", "--targets", "3"], ROAD, ["--targets", "3"]),
        (["run"], ROAD, []),
        (["demo"], DEMO, ["-C", "digits"]),
        (["demo", "-C", "mine.yaml", "--gpu", "cpu"], DEMO, ["-C", "digits", "-C", "mine.yaml", "--gpu", "cpu"]),
    ],
)
def test_the_road_is_run_by_name_by_flags_and_as_the_demo(argv, name, given, ran, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["datamodels", *argv])
    cli.start("datamodels")
    assert ran == [(name, [f"datamodels {name}", *given])]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_run_as_python_m_runs_it(name, ran, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/datamodels", name, "-C", "digits", "--help"])
    cli.start("datamodels")
    assert ran == [(f"datamodels.{name}", [f"datamodels {name}", "-C", "digits", "--help"], "__main__")]


@pytest.mark.parametrize("front", ["datamodels", "python -m datamodels"])
@pytest.mark.parametrize("name", [STORE, "data", ROAD])
def test_help_repeats_how_the_command_was_called(front, name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [front, name, "--help"])
    with pytest.raises(SystemExit):
        cli.start(front)
    assert capsys.readouterr().out.startswith(f"usage: {front} {name} ")


def test_code_of_ones_own_is_found_from_the_folder_one_stands_in(tmp_path):
    """As `python -m` finds it; a script's own folder comes first where Python starts one."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "bin" / "datamodels").write_text(SCRIPT)
    (tmp_path / "work" / "mine.py").write_text("def images():\n    raise SystemExit('found')\n")
    line = [sys.executable, str(tmp_path / "bin" / "datamodels"), "data", "--data.dataset", "mine:images", "--run.dir", "x"]
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=env, cwd=tmp_path / "work")
    assert "found" in done.stderr, done.stderr


def test_version_is_everywhere(capsys):
    for argv in (["datamodels", "--version"], *([f"datamodels.{name}", "--version"] for name in STAGES)):
        assert called(*argv) == 0
        assert capsys.readouterr().out == f"datamodels {datamodels.__version__}\n", argv


# Windows.

PRETENDED = """
import sys
sys.platform = "win32"
sys.modules.update(dict.fromkeys(["fcntl", "resource", "pwd", "termios"]))  # importing them fails
sys.argv = {argv!r}
import datamodels{imported}
"""


@pytest.mark.parametrize(
    ("argv", "imported", "code"),
    [
        (["C:\\\\env\\\\Scripts\\\\datamodels.exe"], ".cli", 2),
        (["datamodels"], "", 2),
        (["mine.py"], "", 1),
        ([""], ".store", 1),
    ],
)
def test_windows_is_refused_in_one_sentence(argv, imported, code, tmp_path):
    argv = [part.replace("\\\\", "/") for part in argv]  # this system's Path knows no other separator
    script = PRETENDED.format(argv=argv, imported=imported)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, done.stdout) == (code, "")
    assert last.startswith("error: " if code == 2 else "ImportError: ")
    assert "not on Windows; the Windows Subsystem for Linux (WSL)" in last
    assert code == 1 or done.stderr.count("\n") == 1


def test_python_m_is_refused_on_windows_too(tmp_path):
    start = "import sys; sys.platform = 'win32'; sys.modules['fcntl'] = sys.modules['resource'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(start)
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PACKAGE.parent}"}
    for module in ("datamodels", "datamodels.worker"):
        line = [sys.executable, "-m", module, "-C", "digits"]
        done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert done.stderr.startswith("error: datamodels runs on Linux and macOS")


# Configs by name.


def test_a_shipped_config_is_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "digits.yaml", str(CONFIGS / "digits.yaml")):
        assert parse(["-C", name])[0].store.alpha == 0.4
    (tmp_path / "digits").mkdir()  # a folder is no config
    assert config_named("digits") == CONFIGS / "digits.yaml"


def test_a_file_of_ones_own_comes_before_a_shipped_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "digits.yaml"):
        Path(name).write_text("store: {alpha: 0.3}\n")
        assert parse(["-C", name])[0].store.alpha == 0.3
        Path(name).unlink()
    Path("cifar10").write_text("store: {alpha: 0.3}\n")
    assert parse([])[0].store.alpha == 0.5  # the default is the shipped one


@pytest.mark.parametrize("name", ["digit", "configs/digits.yaml", "nowhere/digits", "digits.yml"])
def test_a_name_of_no_config_is_told_which_there_are(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=rf"cannot read the config {name}: it is missing; by name there are .*, digits, "
    ) as told:
        parse(["-C", name])
    assert all(file.stem in str(told.value) for file in CONFIGS.glob("*.yaml"))
    assert not list(tmp_path.iterdir())


def test_a_file_that_shadows_a_shipped_config_and_is_none_is_told_as_such(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits").write_text("[1, 2\n")
    with pytest.raises(InputError, match=r"digits is not YAML: .*; it comes before the shipped config digits$") as told:
        parse(["-C", "digits"])
    assert "unicode string" not in str(told.value)


def test_a_config_without_a_name_is_refused():
    with pytest.raises(InputError, match=r"-C needs a config: a file, or one of .*, digits, "):
        parse(["-C", ""])


# Help.


def shown_sections(text):
    return set(re.findall(r"^  --([a-z]+)\.", text, re.MULTILINE))


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_is_plain_text_of_80_columns_with_the_commands_sections(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "242")
    told = helped(capsys, name, "--help")
    assert all(c.isprintable() or c == "\n" for c in told)
    assert not re.search("[\u2500-\u257f]", told)
    assert max(map(len, told.splitlines())) <= WIDTH
    assert shown_sections(told) == set(COMMANDS[name].sections)
    assert ("--config-file" in told) == (name != STORE)


def test_a_narrow_terminal_gets_narrow_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    told = helped(capsys, "data", "--help")
    assert max(len(line) for line in told.splitlines() if " " in line.strip().partition(" ")[2]) <= 50


def test_help_shows_the_values_of_config_and_flags(capsys, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("store: {seed: 17}\n")
    told = helped(capsys, "worker", "-C", "digits", "-C", str(mine), "--training.width", "5", "--gpu", "9", "--help")
    for line in (
        "--store.alpha 0.4",
        "--store.seed 17",
        "--training.width 5",
        "--training.flip false",
        "--store.margin_dtype float32",
    ):
        assert f"\n  {line}\n" in told
    assert f"values of digits, {mine}," in " ".join(told.split())
    assert "\n  --store.alpha 0.5\n" in helped(capsys, "worker", "--help")
    assert "\n  --store.alpha 0.4\n" in helped(capsys, "demo", "--help")


def test_help_about_a_line_that_is_not_finished_helps(capsys):
    assert "--targets" in helped(capsys, "verify", "--store.alpha", "7", "--nonsense", "--help")
    assert called("datamodels", "verify", "-C", "nowhere", "--help") == 2


def test_settings_of_other_sections_are_taken_and_not_shown(capsys):
    found, _ = parse(["--verify.seed", "3"], argument_parser("data"))
    assert found.verify.seed == 3
    assert "verify" not in shown_sections(helped(capsys, "data", "--help"))


def test_a_parser_of_another_program_shows_all_sections(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"], argument_parser("mine"))
    assert shown_sections(capsys.readouterr().out) == set(SECTIONS)


# Which sections a command reads.


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """The sections that each command reads on a whole road, with a prior, and where a cluster is asked for."""
    folder, now = tmp_path_factory.mktemp("road"), set[str]()
    read = {name: set[str]() for name in STAGES}

    def recording(self, name):
        # What copies or compares settings whole reads all of them, and uses none.
        if name in SECTIONS and sys._getframe(1).f_globals["__name__"] != "dataclasses":
            now.add(name)
        return object.__getattribute__(self, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(settings.Settings, "__getattribute__", recording, raising=False)

        def record(name, *argv, code=0):
            now.clear()
            assert called(f"datamodels.{name}", *argv) == code, (name, argv)
            read[name] |= now

        line = flags(folder / "run", store__num_models=64, regress__prior="gradients", training__epochs=1)
        for name, *more in (("data",), ("worker", "--gpu", "cpu"), ("regress", "--gpu", "cpu"), ("verify", "--targets", "0")):
            record(name, *line, *more)
        record("evaluate", *line)
        record("report", *line)
        # Whatever trains anew by a function of one's own asks how many models it is given together.
        (folder / "mine_alone.py").write_text(OWN)
        patch.syspath_prepend(str(folder))
        own = [*flags(folder / "own", store__num_models=64, verify__methods="datamodel"), "--worker.main", "mine_alone:train"]
        for name, *more in (("worker",), ("regress",), ("verify", "--targets", "0")):
            record(name, *own, *more)
        patch.setitem(sys.modules, "ray", None)
        for name, *more in (("worker",), ("regress",), ("verify", "--targets", "0")):
            record(name, *own, *more, "--engine", "ray", code=2)
    return read


OWN = """
import numpy as np

train_labels = np.arange(60) % 3
test_labels = np.arange(20) % 3

def train(index, mask):
    return {"margins": mask.reshape(20, 3).sum(1) - 0.5 + index % 5 / 100}
"""


@pytest.mark.parametrize("name", [name for name in STAGES if name not in (STORE, "bench")])
def test_a_command_declares_the_sections_that_it_reads_and_no_others(name, read):
    assert read[name] == set(COMMANDS[name].sections)


def test_the_benches_name_the_sections_that_they_declare():
    """The benches are too many to run: what their source names, and `worker`, by which they find out who trains."""
    named = set()
    for file in (PACKAGE / "bench").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", getattr(node.value, "attr", "")) == "settings":
                named.add(node.attr)
    assert (named & set(SECTIONS)) | {"worker"} == set(COMMANDS["bench"].sections)


def test_the_whole_road_declares_what_its_stages_do():
    of_stages = set().union(*(COMMANDS[name].sections for name in STAGES if name != "bench"))
    assert of_stages == set(COMMANDS[ROAD].sections) == set(COMMANDS[DEMO].sections) == set(SECTIONS)
