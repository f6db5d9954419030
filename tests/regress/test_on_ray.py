"""A regression on a cluster gives what one device gives, in whatever order its pieces come back, whoever dies."""

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

from datamodels.errors import InputError
from datamodels.progress import no_progress
from datamodels.regress import Datamodels, on_ray, solvers
from datamodels.regress import path as path_module
from datamodels.regress.devices import steps_of
from datamodels.regress.memory import needs
from datamodels.regress.on_ray import Piece, fit_pieces
from datamodels.regress.path import CHOSEN, FITTED, Run, run_of
from datamodels.regress.run import regress_store
from datamodels.regress.solvers import Sharers
from datamodels.regress.source import Source
from datamodels.regress.split import Subsets, split_models
from datamodels.regress.unfinished import Unfinished
from datamodels.settings import RaySettings, RegressSettings
from tests.regress import device_tasks
from tests.regress.test_devices import LASSO, SETTINGS, chosen, folder, known, same
from tests.regress.test_path import planted, store_of
from tests.standins.fake_cluster import FakeCluster

__all__ = ["folder", "known"]


@pytest.fixture
def on(monkeypatch):
    """Regress on a cluster; the process that joins what comes back takes in no models for itself."""

    def regressed(cluster, store, out, settings):
        with monkeypatch.context() as patched:
            patched.setattr(path_module, "run_of", lambda *_: pytest.fail("the process that joins takes in models"))
            return regress_store(store.folder, out, settings, None, cluster)

    return regressed


@pytest.fixture
def begun(monkeypatch):
    """How often models were taken in from the beginning."""
    begin, runs = Run.begin, list[Run]()

    def counted(run):
        runs.append(run)
        begin(run)

    monkeypatch.setattr(Run, "begin", counted)
    return runs


@pytest.mark.parametrize("name", SETTINGS)
def test_any_order_gives_what_one_device_gives(known, folder, on, begun, only_ends_of_bars, capsys, name):
    settings = chosen(name, known)
    said = regress_store(known.folder, folder / "one", settings, "cpu")
    for seed in range(4):
        begun.clear()
        capsys.readouterr()
        cluster, out = FakeCluster("a", "a", "b", seed=seed), folder / f"seed-{seed}"
        assert on(cluster, known, out, settings) == said.replace("/one", f"/seed-{seed}")
        found = same(folder / "one", out)
        assert len(begun) == cluster.made  # whatever the order, no process takes them in again
        reports = found.metrics["solved_by"]["nodes"]
        assert {report["node"] for report in reports} <= {"a", "b"}
        for stage in steps_of(settings):
            assert sum(report["targets"].get(stage, 0) for report in reports) == len(found.targets)
        assert found.metrics["seconds"]["moments"] > 0
        total = len(found.targets)
        shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("regress: ")]
        assert [line.startswith(f"regress: {total} targets in ") for line in shown] == [True]
        assert shown[0].split("(")[1].startswith(("a: targets ", "b: targets "))
        assert not list(folder.glob(".*"))


@pytest.mark.parametrize("prior", ["none", "a.npy"])
def test_blocks_that_nobody_names_give_the_same_within_the_gap(known, folder, on, prior):
    exact = RegressSettings(lams=10, gap=1e-8, prior=prior if prior == "none" else str(known.folder.parent / prior))
    regress_store(known.folder, folder / "one", exact, "cpu")
    on(FakeCluster("a", "b"), known, folder / "two", exact)
    first, other = (Datamodels.load(folder / name) for name in ("one", "two"))
    np.testing.assert_allclose(other.weights, first.weights, atol=1e-4)
    np.testing.assert_allclose(other.lam, first.lam)
    assert sum(each["targets"].get(FITTED, 0) for each in other.metrics["solved_by"]["nodes"]) == 7


@pytest.mark.parametrize("name", ["gram", "mean", "sparse"])
def test_processes_that_die_change_nothing(known, folder, on, name):
    settings = chosen(name, known)
    regress_store(known.folder, folder / "one", settings, "cpu")
    deaths = iter([True, False, True, True, False, True])
    cluster = FakeCluster("a", "b", "c", trouble=lambda _node, _key: "dies" if next(deaths, False) else None)
    on(cluster, known, folder / "two", settings)
    same(folder / "one", folder / "two")
    assert next(deaths, None) is None
    assert len(set(cluster.done)) == len(cluster.done)


def test_nothing_waits_for_the_slowest_piece(known, folder, on, begun):
    settings, slow = chosen("gram", known), Piece(CHOSEN, 2, 4)
    regress_store(known.folder, folder / "one", settings, "cpu")
    begun.clear()

    def trouble(_node, key):
        return "later" if key == slow and sum(done.stage == FITTED for done in cluster.done) < 3 else None

    cluster = FakeCluster("a", "b", trouble=trouble)
    on(cluster, known, folder / "two", settings)
    same(folder / "one", folder / "two")
    assert cluster.done[-2:] == [slow, Piece(FITTED, 2, 4)]
    assert len(begun) == 2  # the other process fits; this one chooses, then fits


def test_a_node_that_joins_helps(known, folder, on):
    settings = dataclasses.replace(LASSO, block=1)
    regress_store(known.folder, folder / "one", settings, "cpu")

    def trouble(_node, _key):
        if len(cluster.done) == 3 and len(cluster.seats) == 1:
            cluster.join("late")

    cluster = FakeCluster("a", trouble=trouble)
    on(cluster, known, folder / "two", settings)
    reports = same(folder / "one", folder / "two").metrics["solved_by"]["nodes"]
    assert [report["node"] for report in reports] == ["a", "late"]


class Lost(Exception):  # noqa: N818
    """The process that gives the pieces ends."""


@pytest.mark.parametrize(("name", "after"), [("gram", 0), ("gram", 3), ("gram", 6), ("mean", 1), ("mean", 3), ("sparse", 3)])
def test_a_run_that_ends_goes_on_with_what_it_kept(known, folder, on, name, after):
    settings = chosen(name, known)
    regress_store(known.folder, folder / "one", settings, "cpu")

    def trouble(_node, _key):
        if len(first.done) == after:
            raise Lost

    first, second = FakeCluster("a", "b", trouble=trouble), FakeCluster("c")
    with pytest.raises(Lost):
        on(first, known, folder / "two", settings)
    assert not (folder / "two").exists()
    on(second, known, folder / "two", settings)
    same(folder / "one", folder / "two")
    assert not set(first.done) & set(second.done)


def test_what_is_kept_but_damaged_is_done_again_on_the_cluster(known, folder):
    settings, kept = LASSO, Unfinished(folder / "kept", {})
    parts = split_models(Subsets.of(known, known.done), settings)

    def done():
        cluster: Any = FakeCluster("a")
        fit_pieces(cluster, known, settings, kept, None, parts, no_progress)
        return sorted(cluster.done)

    assert len(done()) == 8
    assert done() == []
    for name in ("fitted-2-4", "chosen-6-7"):
        (folder / "kept" / f"{name}.npz").write_bytes(b"PK")
    assert done() == [Piece(CHOSEN, 6, 7), Piece(FITTED, 2, 4)]
    (folder / "kept" / "about.npz").unlink()
    assert done() == [Piece(FITTED, 0, 0)]
    assert done() == []


def failing(*nodes, of=lambda _key: True):
    def trouble(node, key):
        if node in nodes and of(key):
            raise InputError("the disk is full")

    return trouble


def test_what_fails_on_one_node_is_done_by_another_and_the_first_gets_nothing_more(known, folder, on, capsys):
    regress_store(known.folder, folder / "one", LASSO, "cpu")
    cluster = FakeCluster("a", "b", "b", trouble=failing("a"))
    on(cluster, known, folder / "two", LASSO)
    reports = same(folder / "one", folder / "two").metrics["solved_by"]["nodes"]
    assert {report["node"] for report in reports} == {"b"}
    assert [node.name for node in cluster.refused] == ["a"]
    assert "regress: on a: the disk is full; another node tries it" in capsys.readouterr().err


@pytest.mark.parametrize("nodes", ["a", "ab"])
def test_what_fails_everywhere_is_told_with_its_node(known, folder, on, nodes):
    last = Piece(FITTED, 6, 7)
    cluster = FakeCluster(*nodes, trouble=failing(*nodes, of=lambda key: key == last))
    with pytest.raises(InputError, match=r"on [ab]: the disk is full"):
        on(cluster, known, folder / "out", LASSO)
    assert not cluster.refused
    on(again := FakeCluster("c"), known, folder / "out", LASSO)
    assert again.done[-1] == last


def test_a_margin_that_is_not_a_number_is_told_with_its_model_and_store(tmp_path, on):
    masks, margins, _ = planted(m=300)
    margins[77, 2] = np.nan
    store = store_of(tmp_path / "s", masks, margins)
    with pytest.raises(InputError, match=rf"on a: model 77 of {store.folder} .* train it again"):
        on(FakeCluster("a"), store, tmp_path / "out", LASSO)


def test_too_little_memory_is_told_with_its_node(known, folder, on, monkeypatch):
    monkeypatch.setattr(solvers, "free_memory", lambda _: 2**10)
    with pytest.raises(InputError, match=r"on a: regress.solver gram .* are free"):
        on(FakeCluster("a"), known, folder / "out", LASSO)


def test_whoever_comes_later_has_the_same_part_of_the_memory(known, monkeypatch):
    of, settings = Source(known, 0, 7), dataclasses.replace(LASSO, block=0)
    sizes = needs(of.n, of.t, (180, 45, 25), settings, on_host=True)
    room, taken = sizes.bytes("gram", 3) / solvers.SHARE_OF_MEMORY + 9, list[int]()
    monkeypatch.setattr(solvers, "free_memory", lambda _: int(2 * room) - sum(taken))
    blocks = []
    for _ in range(2):
        planned = solvers.plan(of, settings, sizes, np, Sharers(2, sum(taken)))
        blocks.append(planned.block)
        taken.append(planned.bytes(planned.block))
    assert blocks == [3, 3]
    with pytest.raises(InputError, match="are free"):
        solvers.plan(of, settings, sizes, np, Sharers(2, sum(taken)))


@pytest.mark.parametrize("share", [1.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_a_gpu_of_ones_own_or_a_part_of_one(known, folder, on, strict, monkeypatch, share):
    settings, parts = dataclasses.replace(LASSO, device="gpu", gap=1e-8), list[Any]()
    regress_store(known.folder, folder / "one", settings, "0")

    def noted(*of):
        parts.append(of[-1])
        return run_of(*of)

    monkeypatch.setattr(on_ray, "run_of", noted)
    on(FakeCluster("a", gpus=share), known, folder / "two", settings)
    same(folder / "one", folder / "two")
    assert [each.number for each in parts] == [round(1 / share)]
    with pytest.raises(InputError, match=r"regress.device is gpu, but tasks on this cluster have none"):
        on(FakeCluster("a"), known, folder / "three", settings)


@pytest.mark.parametrize(
    ("targets", "slots", "size"),
    [(7, 2, 4), (10_000, 8, 256), (10_000, 256, 32), (500, 8, 32), (100, 8, 13), (1, 9, 1), (5, 0, 5)],
)
def test_pieces_are_more_than_slots_and_not_too_small(targets, slots, size):
    assert on_ray._size(LASSO, targets, slots) == LASSO.block
    assert on_ray._size(dataclasses.replace(LASSO, block=0), targets, slots) == size


def test_a_cluster_and_devices_are_not_both_named(command, folder):
    done = command("regress", "--store", folder, "--out", folder / "out", "--engine", "ray", "--gpu", 0)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--gpu" in done.stderr


@pytest.mark.slow
def test_a_real_cluster_of_two_nodes_and_a_process_that_is_killed(known, folder, on, monkeypatch):
    pytest.importorskip("ray")
    from datamodels.cluster import Cluster
    from tests.cluster.conftest import a_cluster

    settings = chosen("sparse", known)
    regress_store(known.folder, folder / "one", settings, "cpu")
    monkeypatch.setattr(on_ray, "prepare", functools.partial(device_tasks.leaving, str(folder)))
    with a_cluster({"num_cpus": 1}, {"num_cpus": 1}) as nodes, Cluster(RaySettings(address=nodes.address)) as cluster:
        on(cluster, known, folder / "two", settings)
    reports = same(folder / "one", folder / "two").metrics["solved_by"]["nodes"]
    assert (folder / "left").exists()
    assert len({report["node"] for report in reports}) == 2
