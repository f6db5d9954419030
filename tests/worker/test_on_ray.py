"""The engine on a Ray cluster of three nodes on this machine: the rows of one process, whatever dies, joins or lies."""

import functools
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodels.cluster import Cluster
from datamodels.data import Dataset, Split, prepare
from datamodels.errors import InputError
from datamodels.learners.sources import imported_sources
from datamodels.regress import Datamodels
from datamodels.regress.run import regress
from datamodels.runs import stage_folder
from datamodels.settings import RaySettings, parse
from datamodels.store import ArraySpec, Meta, Store, create, enlist
from datamodels.store.check import check
from datamodels.verify import verify_targets
from datamodels.worker import engine_of, open_store, train_missing
from datamodels.worker.jobs import RandomSubsets
from datamodels.worker.on_ray import OfActor, OnRay, code_of
from tests.cluster.conftest import STORE, a_cluster
from tests.conftest import flags

MODELS = 120
TARGETS = [0, 1, 2, 3, 5, 6]
LINEAR = {
    "store__num_models": MODELS,
    "training__network": "linear",
    "training__epochs": 10,
    "data__train_images": 120,
    "verify__max_size": 40,
    "verify__base_models": 8,
    "verify__most_models": 8,
}
DIGITS = {"store__num_models": MODELS, "training__epochs": 3}


@pytest.fixture(scope="module")
def three_nodes():
    with a_cluster(*3 * [{"num_cpus": 1}]) as cluster:
        yield cluster


def trained_here(folder, **changed):
    """A run as one process on this machine trains it."""
    chosen = parse(flags(folder, **changed))[0]
    prepare(chosen, use_ffcv=False)
    with engine_of(chosen, "cpu") as engine:
        train_missing(chosen, engine)
    return chosen, Store(stage_folder(chosen, "store"))


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The store of one process on this machine."""
    return trained_here(tmp_path_factory.mktemp("local"), **DIGITS)[1]


def verified(settings, engine):
    """Regress, and verify six targets."""
    regress(settings)
    verify_targets(settings, engine, Datamodels.load(stage_folder(settings, "regress")), TARGETS)


def verdicts(settings):
    """What the searches found: all but means of margins, which are rounded by the group in which a model is trained."""
    found = json.loads((stage_folder(settings, "verify") / "verify.json").read_text())
    return [[each[name] for name in ("target", "method", "verdict", "size", "tried")] for each in found["searches"]]


def result_of(settings):
    """All that was found, file by file."""
    files = (file for file in Path(settings.run.dir).rglob("*.*") if file.name != "seconds.json" and file.suffix != ".lock")
    return {file: file.read_bytes() for file in files}


def on_ray(settings, data=None) -> OnRay:
    """The engine on the cluster that the settings name."""
    engine = engine_of(settings, None, data, "ray")
    assert isinstance(engine, OnRay)
    return engine


def test_a_node_dies_and_one_joins_and_every_row_and_verdict_is_that_of_one_process(three_nodes, tmp_path, monkeypatch):
    here, store = trained_here(tmp_path / "here", **LINEAR)
    chosen = parse(flags(tmp_path / "ray", ray__address=three_nodes.address, **LINEAR))[0]
    prepare(chosen, use_ffcv=False)
    changed, written, shown = list[Any](), list[int](), list[int]()

    def show(there):
        shown.append(there)
        if there >= MODELS // 4 and not changed:
            changed.append(next(iter(three_nodes.worker_nodes)))
            three_nodes.remove_node(changed[0])
            three_nodes.add_node(num_cpus=1, object_store_memory=STORE)

    def noted(pen, timeout):
        found = taken(pen, timeout)
        written.append(0 if found is None else found.rows)
        return found

    taken = OfActor.taken
    monkeypatch.setattr(OfActor, "taken", noted)
    with on_ray(chosen) as engine:
        folder = open_store(chosen, engine)
        engine.train(RandomSubsets(folder, MODELS, 4, 0, 0.5), show)
        assert len(re.findall("/(?:s|min)", engine.where)) >= 2
        assert len(engine.cluster.nodes()) == 4
        assert changed
        assert shown[-1] == sum(written) == MODELS
        assert Store(folder).digest() == store.digest()
        assert check(folder) == []
        verified(chosen, engine)
    there = result_of(chosen)
    # It is as good as one of this machine, for those who never heard of Ray.
    alike = parse(flags(tmp_path / "ray", **LINEAR))[0]
    assert alike.ray != chosen.ray
    with engine_of(alike, "cpu") as one:
        train_missing(alike, one)
        verified(alike, one)
    assert result_of(alike) == there
    with engine_of(here, "cpu") as one:
        verified(here, one)
    assert len({target for target, *_ in verdicts(here)}) >= 4
    assert verdicts(chosen) == verdicts(here)
    assert check(stage_folder(chosen, "verify") / "store") == []


def enlist_and_die(folder, masks, known, first):
    """Ends the writer's process the first time, in the moment before its answer."""
    found = enlist(folder, masks, known, first)
    died = folder.parent / "died"
    if not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return found


def stop_a_while(seconds):
    """The writer's process is stopped, and goes on after a while."""
    subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)
    return "went on"


def test_a_writer_that_dies_has_listed_models_once_and_one_that_is_stopped_is_told(three_nodes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datamodels.worker.on_ray.WORD_AFTER_S", 0.5)
    folder, masks = tmp_path / "store", np.eye(3, 40, dtype=bool)
    create(folder, Meta(0, 40, 2, {"margins": ArraySpec("float32", (2,))}, {}))
    with Cluster(RaySettings(address=three_nodes.address)) as cluster:
        pen = OfActor(cluster)
        assert pen.write(enlist_and_die, folder, masks, {}, 0).tolist() == [0, 1, 2]
        assert (tmp_path / "died").exists()
        assert np.array_equal(Store(folder).masks(range(Store(folder).meta.num_models)), masks)
        assert check(folder) == []
        assert pen.write(stop_a_while, 2) == "went on"
    assert capsys.readouterr().err.count("if it is stopped, let it go on, or end it") == 1


def learner_file(folder):
    """A module of one's own: the node whose process finds no file `bad` beside it makes one, and gives NaN from then on."""
    text = """
    import os, time
    from pathlib import Path
    import numpy as np
    from datamodels.learners import Trained
    from tests.worker.slow import Slow

    BAD = Path(FOLDER) / "bad"

    def node():
        import ray
        return ray.get_runtime_context().get_node_id()

    class Own(Slow):
        def train(self, models):
            time.sleep(0.1)
            found = super().train(models)
            if not ray_is_here():
                return found
            try:
                with open(BAD, "x") as file:
                    file.write(node())
            except FileExistsError:
                pass
            if BAD.read_text() == node():
                found.arrays["margins"][:] = np.nan
            return found

    def ray_is_here():
        import sys
        return "ray" in sys.modules
    """
    lines = "\n".join(line[4:] for line in text.replace("FOLDER", repr(str(folder))).splitlines())
    (folder / "own_learner.py").write_text(lines)


def test_a_node_that_gives_nan_is_refused_by_name_and_its_rows_come_from_another(three_nodes, tmp_path, monkeypatch, capsys):
    learner_file(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"worker__main": "own_learner:Own", "store__num_models": 40, "groups__models_at_once": 0}
    chosen = parse(flags(tmp_path / "ray", ray__address=three_nodes.address, **own))[0]
    with on_ray(chosen) as engine:
        assert "40 of 40" in train_missing(chosen, engine)
        bad = engine.cluster.node((tmp_path / "bad").read_text()).name
    assert f"{bad} could not train model" in capsys.readouterr().err
    here = parse(flags(tmp_path / "here", **own))[0]
    monkeypatch.delitem(sys.modules, "ray")
    with engine_of(here, None) as engine:
        train_missing(here, engine)
    assert Store(tmp_path / "ray" / "store").digest() == Store(tmp_path / "here" / "store").digest()


@pytest.mark.slow
def test_a_command_that_is_killed_goes_on_from_the_store_also_with_images_that_lie_on_each_node(
    three_nodes, local, tmp_path, command
):
    where = flags(tmp_path / "ray", ray__address=three_nodes.address, **DIGITS)
    line = [sys.executable, "-m", "datamodels.worker", *where, "--engine", "ray"]
    prepare(parse(where)[0], use_ffcv=False)
    first = subprocess.Popen(line, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    done = functools.partial(_done, tmp_path / "ray" / "store")
    until = time.monotonic() + 60
    while not 0 < done() < MODELS and time.monotonic() < until:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = done()
    assert 0 < before < MODELS
    second = command("worker", *where, "--engine", "ray", "--ray.data", "local")
    assert second.returncode == 0, second.stderr
    assert f"{MODELS} of {MODELS} models are done" in second.stdout
    assert Store(tmp_path / "ray" / "store").digest() == local.digest()


def _done(folder):
    return len(Store(folder).done) if (folder / "meta.json").exists() else 0


def test_images_that_lie_on_a_node_must_be_those_of_the_command(three_nodes, tmp_path):
    chosen = parse(flags(tmp_path / "ray", ray__address=three_nodes.address, ray__data="local"))[0]
    prepare(chosen, use_ffcv=False)
    with (
        on_ray(chosen, of_zeros(1, 8, 8, 1)) as engine,
        pytest.raises(InputError, match="not those of the command, and no other"),
    ):
        engine.ask(str)


def of_zeros(*shape):
    split = Split(torch.zeros(shape, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    return Dataset(split, split, ("0",), "another digest")


def test_images_too_large_for_a_node_are_told_before_anything_is_trained(three_nodes, tmp_path):
    chosen = parse(flags(tmp_path / "ray", ray__address=three_nodes.address))[0]
    told = r"with the images 268 MB are to lie on every node, and the object store of .* has 105 MB"
    with pytest.raises(InputError, match=told), on_ray(chosen, of_zeros(1, 8192, 8192, 2)):
        pass


def told(monkeypatch, capsys, stage, *args):
    """What a command says on stderr, in this process, that ends with exit code 2."""
    monkeypatch.setattr(sys, "argv", [stage, *args])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"datamodels.{stage}", run_name="__main__")
    assert ended.value.code == 2
    return "".join(line for line in capsys.readouterr().err.splitlines(True) if not line.startswith("data: "))


STAGES = ["__main__", "worker.__main__", "verify.__main__", "regress.__main__"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_gpu_is_not_named_with_a_cluster(stage, monkeypatch, capsys, tmp_path):
    more = ("--targets", "0") if "verify" in stage else ()
    line = told(monkeypatch, capsys, stage, *flags(tmp_path), "--engine", "ray", "--gpu", "0", *more)
    assert line == "error: --gpu names devices of this machine; for --engine ray see --ray.gpus and --ray.cpus\n"


@pytest.mark.parametrize("stage", ["__main__", "worker.__main__", "regress.__main__"])
def test_no_cluster_and_no_ray_are_a_sentence(stage, monkeypatch, capsys, tmp_path):
    line = told(monkeypatch, capsys, stage, *flags(tmp_path / "run", ray__address="127.0.0.1:9"), "--engine", "ray")
    assert line.startswith("error: no Ray cluster can be reached at 127.0.0.1:9")
    assert line.count("\n") == 1
    monkeypatch.setitem(sys.modules, "ray", None)
    line = told(monkeypatch, capsys, stage, *flags(tmp_path / "run"), "--engine", "ray")
    assert "error: --engine ray needs Ray, which is not installed here" in line
    assert line.count("\n") == 1


def test_files_of_ones_own_travel_with_their_packages(tmp_path, monkeypatch):
    package = tmp_path / "mine" / "deep"
    package.mkdir(parents=True)
    for file in (tmp_path / "mine" / "__init__.py", package / "__init__.py", tmp_path / "other.py"):
        file.touch()
    (package / "net.py").write_text("import other")
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("mine.deep.net")
    names = ["mine/__init__.py", "mine/deep/__init__.py", "mine/deep/net.py", "other.py"]
    assert sorted(code_of("mine.deep.net").files) == names
    assert set(imported_sources("mine.deep.net")) <= set(names)
    assert code_of("datamodels.examples.convnet").files == {}
    assert code_of("").files == {}
    assert all(code_of("mine.deep.net").files[name].samefile(tmp_path / name) for name in names)
