"""The connection to a cluster, and crews on it, beside real nodes: what comes back, from where, and what becomes of faults."""

import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import datamodels
from datamodels.cluster import Back, Cluster, Code, connection, crew, nodes, serving
from datamodels.cluster.board import Process
from datamodels.cluster.nodes import OWN_FILES, difference, versions
from datamodels.errors import InputError
from datamodels.settings import RaySettings
from datamodels.worker.tasks import here
from tests import cluster_tasks as tasks
from tests.cluster.conftest import STORE

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster(two_nodes):
    with Cluster(RaySettings(address=two_nodes.address)) as found:
        yield found


@pytest.fixture(scope="module")
def team(cluster):
    with cluster.crew(tasks.device, "test") as found:
        yield found


@pytest.fixture
def refused(cluster):
    """Nothing is refused for the tests that come after."""
    yield cluster.refused
    cluster.refused.clear()


def all_back(team, n):
    found: list[Back] = []
    while len(found) < n:
        found += team.back()
    return found


def test_tasks_come_back_from_all_nodes_by_their_keys(cluster, team):
    assert (cluster.slots(), team.idle, team.room) == (2, 2, 4)
    for k in range(6):
        team.give(k, functools.partial(tasks.wait_there, 0.3))
    assert team.under_way == set(range(6))
    assert (team.idle, team.room) == (0, 0)
    found = all_back(team, 6)
    assert sorted(each.key for each in found) == list(range(6))
    assert {each.node for each in found} == {node for node in cluster.nodes() if cluster.slots_of(node)}
    assert all(each.node.id == each.value[0] for each in found)
    assert all(0.3 <= each.seconds < 5 and each.error is None for each in found)
    assert len({node.name for node in cluster.nodes()}) == 3  # though they are one host
    assert (team.idle, not team.under_way) == (2, True)


def test_a_process_makes_what_its_tasks_work_with_once(team):
    first, second = (team.one(tasks.what_is_here) for _ in range(2))
    assert first["device"] == "cpu"
    found = [team.one(tasks.what_is_here) for _ in range(4)]
    assert len({each["pid"] for each in [first, second, *found]}) <= 2
    assert {each["made"] for each in found} == {1}


def test_payloads_stay_in_the_object_store(cluster, team):
    for k in range(3):
        team.give(k, functools.partial(tasks.array_of, k, 1000))
    for each in all_back(team, 3):
        assert each.value == each.key
        assert isinstance(each.payload, ray.ObjectRef)
        np.testing.assert_array_equal(ray.get(each.payload), np.full(1000, each.key))


def test_shared_arrays_are_not_copied(cluster):
    shared = cluster.share(np.arange(10**6), "numbers")
    with cluster.crew(functools.partial(tasks.with_shared, shared), "test") as team:
        found = team.one(dict)
    assert found == {"sum": 10**6 * (10**6 - 1) // 2, "writable": False, "owns": False}


def test_what_is_larger_than_an_object_store_is_refused_by_its_names(cluster):
    with pytest.raises(
        InputError, match=r"^with the images 1[23]. MB are to lie on every node, and the object store of .+ has 105 MB; "
    ):
        cluster.share(np.zeros(120 * 10**6, np.uint8), "the images")
    with pytest.raises(InputError, match="the masks"):  # what is there already counts
        cluster.share(np.zeros(STORE - 10**6, np.uint8), "the masks")


def test_errors_name_their_node(cluster, team):
    team.give("input", tasks.refuse)
    team.give("fault", tasks.fail)
    found = {each.key: each for each in all_back(team, 2)}
    assert str(found["input"].error) == f"on {found['input'].node.name}: there is no such thing"
    assert isinstance(found["input"].error, InputError)
    assert isinstance(found["fault"].error, RuntimeError)
    assert "a fault of the program" in str(found["fault"].error)
    with pytest.raises(InputError, match="no such thing"):
        team.one(tasks.refuse)


def test_what_cannot_be_sent_is_refused(team):
    with pytest.raises(InputError, match="cannot be sent"):
        team.give("lambda", lambda here: (here, None))
    assert not team.under_way


def test_what_processes_say_is_said_with_their_node(team, capsys):
    team.give("word", tasks.say_something)
    (found,) = all_back(team, 1)
    team.one(tasks.what_is_here)
    assert f"{found.node.name}: a word from afar" in capsys.readouterr().err


def test_a_task_whose_process_dies_is_tried_again_by_ray_and_after_that_by_the_crew(team, tmp_path, capsys):
    deaths = crew.RETRIES + 2
    team.give("dying", functools.partial(tasks.die_until, tmp_path, deaths))
    (found,) = all_back(team, 1)
    assert (found.value, found.error) == (deaths, None)
    assert "is tried again" in capsys.readouterr().err


def test_a_task_that_always_kills_its_process_ends_it(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "MOST_ENDS", 1)
    with cluster.crew(tasks.device, "test") as team:
        team.give("dying", functools.partial(tasks.die_until, tmp_path, 99))
        with pytest.raises(InputError, match=r"died on .+, 4 times each \(WorkerCrashedError\), and nothing came"):
            all_back(team, 1)


@pytest.mark.parametrize("how", ["asleep", "stopped"])
def test_a_task_that_hangs_is_ended_and_tried_elsewhere(team, how, tmp_path, monkeypatch, capsys):
    """Also where its process takes notice of nothing."""
    monkeypatch.setattr(crew, "HANG_FLOOR_S", 1.0)
    team.times.extend([0.01] * crew.ENOUGH_TO_TELL)
    team.give("hanging", functools.partial(tasks.hang_on_first, tmp_path, how))
    (found,) = all_back(team, 1)
    hung, done = found.value
    assert hung != done == found.node.id
    assert "has no end within 1 s; it is ended, and tried elsewhere" in capsys.readouterr().err


def test_a_task_that_always_hangs_ends_it(cluster, monkeypatch):
    monkeypatch.setattr(crew, "HANG_FLOOR_S", 0.5)
    monkeypatch.setattr(crew, "MOST_ENDS", 2)
    with cluster.crew(tasks.device, "test") as team:
        team.times.extend([0.01] * crew.ENOUGH_TO_TELL)
        team.give("hanging", tasks.hang)
        with pytest.raises(InputError, match=r"was ended 2 times, at last on .+, for it had no end within 0 s"):
            all_back(team, 1)


def test_a_task_that_says_that_it_goes_on_may_take_its_time(team, monkeypatch, capsys):
    monkeypatch.setattr(crew, "HANG_FLOOR_S", 1.0)
    team.times.extend([0.01] * crew.REMEMBERED)
    team.give("long", functools.partial(tasks.go_on, 3.0))
    (found,) = all_back(team, 1)
    assert found.seconds >= 3
    assert "has no end" not in capsys.readouterr().err


def test_a_single_question_may_take_its_time_and_tells_nothing_of_tasks(team, monkeypatch, capsys):
    monkeypatch.setattr(crew, "HANG_FLOOR_S", 0.5)
    team.times.clear()
    team.times.extend(before := [0.01] * crew.ENOUGH_TO_TELL)
    (_, pid), _ = team.one(functools.partial(tasks.wait_there, 2.0))
    assert pid
    assert "has no end" not in capsys.readouterr().err
    assert list(team.times) == before


def test_a_board_that_is_stopped_stops_nothing(cluster, team, monkeypatch):
    monkeypatch.setattr(crew, "NEWS_WITHIN_S", 0.1)
    board = team.board
    pid = ray.get(board.__ray_call__.remote(tasks.pid_of))
    os.kill(pid, signal.SIGSTOP)
    try:
        for k in range(4):
            team.give(k, functools.partial(tasks.wait_there, 0.1))
        assert sorted(each.key for each in all_back(team, 4)) == list(range(4))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert team.one(tasks.node_only) in {node.id for node in cluster.nodes()}


def test_how_many_tasks_fit_on_a_node_is_known_there_too(cluster, team):
    team.give("here", functools.partial(tasks.ask, cluster.tasks_here()))
    (found,) = all_back(team, 1)
    assert found.value == cluster.slots_of(found.node) == 1


def test_the_patience_is_a_multiple_of_the_median(cluster, team, monkeypatch):
    monkeypatch.setattr(crew, "HANG_FLOOR_S", 0.0)
    team.times.clear()
    team.times.extend([0.2] * 9)
    team.give("slow", functools.partial(tasks.wait_there, 1.5))  # ten times the median are 2 s
    (found,) = all_back(team, 1)
    assert found.seconds >= 1.5


def test_nodes_to_avoid_are_avoided_where_there_are_others(cluster, team, refused):
    one, other = [node for node in cluster.nodes() if cluster.slots_of(node)]
    for k in range(3):
        team.give(k, tasks.where, avoid=[one])
    assert {each.node for each in all_back(team, 3)} == {other}
    team.give("any", tasks.where, avoid=[one, other])
    assert all_back(team, 1)[0].node in (one, other)


def test_a_refused_node_gets_nothing_and_the_last_one_ends_it(cluster, team, refused, capsys):
    one, other = [node for node in cluster.nodes() if cluster.slots_of(node)]
    cluster.refuse(one, "gave nonsense", "test")
    assert f"test: {one.name} gave nonsense; nothing more is given to it" in capsys.readouterr().err
    assert cluster.slots() == 1
    for k in range(3):
        team.give(k, tasks.where)
    assert {each.node for each in all_back(team, 3)} == {other}
    with pytest.raises(InputError, match="no other node of the cluster has room"):
        cluster.refuse(other, "gave nonsense")


def test_waiting_tasks_can_be_dropped(team):
    for k in range(4):
        team.give(k, functools.partial(tasks.wait_there, 1.0))
    all_at = [team.back(0.5)]
    dropped = team.drop_waiting()
    assert set(dropped) | team.under_way | {each.key for each in all_at[0]} == {0, 1, 2, 3}
    assert len(dropped) == 2
    assert {each.key for each in all_back(team, 2)}.isdisjoint(dropped)


def test_a_module_of_ones_own_and_other_files_travel(two_nodes, cluster, team, tmp_path, monkeypatch):
    """A process has one connection at a time, so that another one has this."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "travelling.py").write_text("WORD = 'far'\n")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text.txt").write_text("near")
    (tmp_path / "notes" / ".gitignore").write_text("*")  # as for data, which is not to be committed
    monkeypatch.chdir(tmp_path)
    script = f"""
from functools import partial
from pathlib import Path
from datamodels.cluster import Cluster, Code
from datamodels.settings import RaySettings
from tests import cluster_tasks as tasks
code = Code({{"travelling.py": Path({str(folder / "travelling.py")!r})}})
with Cluster(RaySettings(address={two_nodes.address!r}, files="notes"), code) as cluster:
    with cluster.crew(tasks.device, "test") as team:
        print(team.one(partial(tasks.own_module, "travelling")))
"""
    env = {**os.environ, "PYTHONPATH": str(Path(datamodels.__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=120)
    assert run.stdout.strip() == "(('far', 'near'), None)", run.stderr


def test_files_that_are_more_than_ray_sends_are_a_sentence(two_nodes, tmp_path, monkeypatch):
    (tmp_path / "large.bin").write_bytes(os.urandom(1000))
    monkeypatch.chdir(tmp_path)
    script = f"""
from ray._private.runtime_env import packaging
from datamodels.cluster import Cluster
from datamodels.errors import run_command
from datamodels.settings import RaySettings
packaging.GCS_STORAGE_MAX_SIZE = 500
run_command(lambda: Cluster(RaySettings(address={two_nodes.address!r}, files="large.bin")).__enter__())
"""
    env = {**os.environ, "PYTHONPATH": str(Path(datamodels.__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=120)
    assert run.returncode == 2
    assert run.stderr.startswith("error: ray.files and the modules of your own are more than Ray sends to nodes")


def other_version(folder):
    """A node's environment in which this package has another version."""
    copy = folder / "datamodels"
    shutil.copytree(Path(datamodels.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / "__init__.py"
    file.write_text(file.read_text().replace(f'"{datamodels.__version__}"', '"0.0.1"'))
    # Before Ray puts the paths of the process that gives the tasks in front of it.
    (folder / "sitecustomize.py").write_text("import datamodels\n")
    return {"PYTHONPATH": str(folder)}


def test_nodes_of_another_version_are_refused_by_name(two_nodes, cluster, team, tmp_path, capsys):
    """One that joins gets nothing; a command that begins beside it ends."""
    joined = two_nodes.add_node(num_cpus=1, object_store_memory=STORE, env_vars=other_version(tmp_path))
    cluster._looked = (-1e9, [])
    assert cluster.slots() == 3
    for k in range(12):
        team.give(k, functools.partial(tasks.wait_there, 0.3))
    assert {each.node.id for each in all_back(team, 12)}.isdisjoint({joined.node_id})
    assert "has datamodels 0.0.1, not " in capsys.readouterr().err
    assert list(cluster.refused) == [joined.node_id]
    cluster.refused.clear()
    with pytest.raises(InputError, match=r"has datamodels 0\.0\.1, not .+; all nodes need the same"):
        cluster._refuse_other_versions()
    two_nodes.remove_node(joined)


def test_a_node_that_joins_and_cannot_run_the_program_is_refused_by_name(two_nodes, cluster, team, refused, tmp_path, capsys):
    """Nobody else is taken to be at fault."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['datamodels'] = None\n")
    joined = two_nodes.add_node(num_cpus=1, object_store_memory=STORE, env_vars={"PYTHONPATH": str(tmp_path)})
    cluster._looked = (-1e9, [])
    assert cluster.slots() == 3
    for k in range(12):
        team.give(k, functools.partial(tasks.wait_there, 0.3))
    assert all(each.error is None for each in all_back(team, 12))
    assert list(refused) == [joined.node_id]
    assert f"{cluster.node(joined.node_id).name} cannot run datamodels: " in capsys.readouterr().err
    two_nodes.remove_node(joined)


def test_a_node_that_dies_while_a_command_connects_is_left_out(two_nodes, cluster):
    joined = two_nodes.add_node(num_cpus=1, object_store_memory=STORE)
    cluster._looked = (-1e9, [])
    seen = cluster._living()
    assert joined.node_id in {each["NodeID"] for each in seen}
    two_nodes.remove_node(joined)
    cluster._looked = (time.monotonic() + 60, seen)
    try:
        cluster._refuse_other_versions()
    finally:
        cluster._looked = (-1e9, [])


def test_a_process_keeps_to_the_gpu_that_it_began_with(two_nodes, cluster):
    """Ray may give a process another one: then it goes, and the task is done by a fresh one."""
    node = two_nodes.add_node(num_cpus=2, num_gpus=2, object_store_memory=STORE)
    beside = Cluster(RaySettings())
    beside.ray, beside.here = cluster.ray, cluster.here
    assert (beside.gpus(), beside.slots()) == (1.0, 2)
    seen = set()
    with beside.crew(tasks.device, "test") as team:
        for _ in range(4):
            for k in range(2):
                team.give(k, functools.partial(tasks.wait_there, 0.1))
            all_back(team, 2)
            now, made, pid = team.one(tasks.visible_now)
            assert now == made
            assert now in ("0", "1")
            seen.add(pid)
    assert seen
    # Its GPU is given back with the crew: an idle process would hold its memory.
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in seen):
        assert time.monotonic() < until
        time.sleep(0.1)
    # What tasks take does not change in the middle: their rows would.
    assert cluster.gpus() == 0.0
    two_nodes.remove_node(node)


def test_a_process_is_ended_and_no_other_one_of_its_number():
    with subprocess.Popen(["sleep", "60"]) as process:
        born = serving._born(process.pid)
        assert born.isdecimal()
        serving.end(Process("a node", process.pid, str(int(born) - 1)))
        assert process.poll() is None
        serving.end(Process("a node", process.pid, born))
        assert process.wait(10) == -signal.SIGKILL
    assert serving._born(process.pid) == ""
    serving.end(Process("a node", process.pid, born))  # which is gone


def test_builds_for_other_gpus_are_one_version(monkeypatch):
    monkeypatch.setattr(nodes, "version", lambda name: "2.13.0+cu126")
    assert nodes._version("torch") == "2.13.0"


def test_another_gpu_or_crew_is_elsewhere(monkeypatch):
    trade = serving.Trade("a", [], "0", {})
    monkeypatch.setattr(serving, "_kept", serving._Kept())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert not serving._is_elsewhere(trade)  # nothing was begun
    monkeypatch.setattr(serving, "_kept", serving._Kept("a", "1"))  # nothing came of what was to be made
    assert not serving._is_elsewhere(trade)
    assert serving._is_elsewhere(serving.Trade("b", [], "0", {}))
    assert not serving._is_elsewhere(serving.Trade("b", [], "cpu", {}))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert serving._is_elsewhere(trade)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_when_the_head_is_gone_or_stopped_the_command_ends_in_a_sentence(number):
    script = """
import time
from datamodels.cluster import Cluster, connection
from datamodels.settings import RaySettings
from tests.cluster.conftest import a_cluster
connection.LOOK_EVERY_S, connection.WITHOUT_HEAD_S = 0.2, 1.0
with a_cluster() as found, Cluster(RaySettings(address=found.address)):
    gcs = found.head_node.all_processes["gcs_server"][0].process
    print(gcs.pid, flush=True)
    gcs.send_signal(SIGNAL)
    time.sleep(30)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(datamodels.__file__).parents[1])}
    script = script.replace("SIGNAL", str(int(number)))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=120)
    with suppress(ProcessLookupError):
        os.kill(int(run.stdout), signal.SIGKILL)
    assert run.returncode == 2
    told = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert "has not answered for 1 s; when it is up again, run the same command again to go on" in told[0]


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("ray://127.0.0.1:10001", "must run on a node of the cluster"),
        ("nonsense", "must be auto, or IP:port"),
        ("127.0.0.1:99999", "must be auto, or IP:port"),
        ("127.0.0.1:0x1", "must be auto, or IP:port"),
        ("no.such.host.invalid:6379", "no Ray cluster can be reached at no.such.host.invalid:6379"),
    ],
)
def test_addresses_that_are_none(address, told):
    with pytest.raises(InputError, match=told), Cluster(RaySettings(address=address)):
        pass


def test_a_closed_port_and_one_that_is_not_ray():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with (
            pytest.raises(InputError, match=f"no Ray cluster can be reached at {address}"),
            Cluster(RaySettings(address=address)),
        ):
            pass


def test_auto_is_looked_at_as_an_address_is(monkeypatch):
    from ray._private import services

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        gone = f"127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(services, "find_gcs_addresses", lambda: [gone])  # of a head that is gone, whose node still runs
        monkeypatch.setattr(services, "find_bootstrap_address", lambda _: None)
        port = gone.rpartition(":")[2]
        with (
            pytest.raises(InputError, match=f"no Ray cluster can be reached at .*:{port}"),
            Cluster(RaySettings()),
        ):
            pass
    monkeypatch.setattr(services, "find_gcs_addresses", list)
    with pytest.raises(InputError, match=r"no Ray cluster runs on this machine; `ray start --head`"), Cluster(RaySettings()):
        pass
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:10001")
    with pytest.raises(InputError, match="must run on a node of the cluster"), Cluster(RaySettings()):
        pass
    monkeypatch.setenv("RAY_ADDRESS", gone)
    with pytest.raises(InputError, match=f"no Ray cluster can be reached at {gone}"), Cluster(RaySettings()):
        pass


def test_a_machine_that_is_no_node_is_told_how_to_become_one(two_nodes, monkeypatch):
    """There Ray connects to the head, and fails at files that only nodes have."""
    from ray._private import services

    def fails(*_, **__):
        raise FileNotFoundError("/tmp/ray/session/sockets/raylet")

    monkeypatch.setattr(ray, "init", fails)
    with pytest.raises(InputError, match=f"no connection to a Ray cluster at {two_nodes.address}: FileNotFoundError"):
        Cluster(RaySettings(address=two_nodes.address)).__enter__()
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    told = f"is no node of the Ray cluster at {two_nodes.address}; `ray start --address={two_nodes.address}` makes it one"
    with pytest.raises(InputError, match=told):
        Cluster(RaySettings(address=two_nodes.address)).__enter__()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0"])
def test_what_takes_a_connection_and_is_no_head_is_told_in_time(answer, monkeypatch):
    """Ray itself would try for ever, deaf to signals."""
    monkeypatch.setattr(connection, "ANSWERS_WITHIN_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        taken = []

        def serve():
            taken.append(server.accept()[0])
            taken[0].sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        told = "timed out" if len(answer) < 4 else "not the head of a Ray cluster"
        with (
            pytest.raises(InputError, match=f"no Ray cluster can be reached at {address} .*{told}"),
            Cluster(RaySettings(address=address)),
        ):
            pass
        for each in taken:
            each.close()


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("ray://127.0.0.1:10001", "RAY_ADDRESS of the environment: the command must run on a node"),
        ("local", "RAY_ADDRESS of the environment must be auto, or IP:port"),
        ("127.0.0.1:9", "no Ray cluster can be reached at 127.0.0.1:9"),
    ],
)
def test_an_address_of_the_environment_is_looked_at_as_well(address, told, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=told), Cluster(RaySettings()):
        pass


def test_a_connection_has_its_time():
    script = """
import time
from datamodels.cluster.connection import _ends_within
with _ends_within(10, "never said"):
    pass
with _ends_within(0.1, "there is no connection"):
    time.sleep(30)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(datamodels.__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=60)
    assert (run.returncode, run.stderr) == (2, "error: there is no connection: it has taken more than 0 s\n")


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(InputError, match=r"--engine ray needs Ray, .+: pip install 'datamodels-lab\[ray\]'"),
        Cluster(RaySettings()),
    ):
        pass


def test_a_task_must_take_something():
    with pytest.raises(InputError, match="both 0"):
        Cluster(RaySettings(cpus=0, gpus=0))


@pytest.mark.parametrize(
    ("files", "told"), [("nothing-here", "is not there"), ("/tmp", "must lie below"), ("..", "must lie below")]
)
def test_files_that_cannot_travel(files, told):
    with pytest.raises(InputError, match=told):
        Code().and_named(files)


def test_a_file_that_did_not_travel_or_a_package_is_told_with_what_helps(team):
    told = "no-such/table.npz is not there; .* where --ray.files names them"
    with pytest.raises(InputError, match=told):
        team.one(functools.partial(tasks.read, "no-such/table.npz"))
    made = here(functools.partial(tasks.read, "no-such/table.npz"), "cpu")
    assert made.learner is None
    assert made.unfit is not None
    assert re.match(f"cannot take part: {told}", made.unfit)
    made = here(functools.partial(tasks.of_a_package, "nosuchpackage"), "cpu")
    assert str(made.unfit).startswith("cannot take part: there is no module nosuchpackage there; install it on the node, or ")
    with pytest.raises(InputError, match=r"/no-such/table.npz is not there; when that is mended"):
        team.one(functools.partial(tasks.read, "/no-such/table.npz"))


def test_what_is_neither_file_nor_folder_does_not_travel_and_no_file_makes_ray_leave_others_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(InputError, match="pipe, which is neither a file nor a folder"):
        Code().and_named("pipe")
    Path("tables").mkdir()
    for name in (".gitignore", ".rayignore", "a.npz"):
        Path("tables", name).write_text("*.npz")
    assert list(Code().and_named("tables").files) == ["tables/a.npz"]


@pytest.mark.parametrize("name", ["datamodels", "torch", "numpy", "Python", OWN_FILES])
def test_versions_that_differ_are_named(name):
    here = dict(versions())
    assert difference(here, dict(here)) is None
    assert here["numpy"] == np.__version__
    told = difference(here, {**here, name: "0.1"})
    assert told is not None
    assert told.startswith("has ")
    assert ("other files" if name == OWN_FILES else f"{name} 0.1, not {here[name]}") in told
    assert difference(here, {other: value for other, value in here.items() if other != name}) is not None
