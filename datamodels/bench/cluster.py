"""The engine on a Ray cluster: against the local one, how many rows its writer takes, and how many workers it keeps busy.

overhead  models/s on one node by this machine's own engine and through Ray, by turns. Counted is a whole job: from the moment
          at which it is given to processes that have each trained a block, until its last row is in the store. What comes
          before, the start of the cluster and of its processes, is not counted. No cluster is up while the local engine trains.
ingest    rows/s of the writer, of blocks that lie in the object store of another node of this machine: fetched, looked at and
          written, with all that is synced to the disk; as many blocks in a call as `dispatch` gives it when they pile up.
scaling   tasks that sleep for a given time and then give rows, through the same crew, the same dispatch and the same writer.
          Efficiency is blocks × seconds of a block / (workers × seconds of all), from when all workers are up and have made
          a block once. Beside it the processor's seconds of what a cluster has once: the command, the writer, the board.
          All that the nodes do is done by this machine's cores too, which a cluster has many of.

A cluster that is started here is ended here. Ingest and scaling have one of two nodes: one of no cores for the command and the
writer, and one for the workers, so that all rows go from an object store to another.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from datamodels import __version__
from datamodels.bench.asleep import Asleep, arrive, nothing, random_rows, rehearse
from datamodels.bench.record import Record, describe, header
from datamodels.cluster import Cluster, Crew
from datamodels.cluster.connection import ray_here
from datamodels.data import Dataset, load, prepare
from datamodels.errors import InputError
from datamodels.machine import cores, describe_machine, free_host_memory, megabytes
from datamodels.processes import CPU
from datamodels.progress import progress
from datamodels.runs import stage_folder
from datamodels.settings import RAY, GroupSettings, RaySettings, Settings
from datamodels.store import ArraySpec, Meta, Store, create, read_meta
from datamodels.store.check import check
from datamodels.store.writer import MERGE_BYTES
from datamodels.training import device_named
from datamodels.worker import Engine, engine_of, open_store
from datamodels.worker.dispatch import Dispatch, Hands, Nodes
from datamodels.worker.excerpts import Excerpt
from datamodels.worker.jobs import RandomSubsets
from datamodels.worker.on_ray import OfActor, OnRay, allow_many_files
from datamodels.worker.tasks import here, train_block
from datamodels.worker.writing import Lot

N, T, SEED, ALPHA = 50_000, 10_000, 3, 0.5
BLOCKS, ROUNDS = (16, 64, 256), 3
BLOCK = 16
WORKERS, BLOCK_SECONDS = "1,8,64,256", 30.0
WORKER_BYTES = 70e6
"""Memory that a sleeping process takes, most of it Ray's; of what it shares with others its share."""
STORE_BYTES = 2**30
OVERHEAD, INGEST, SCALING = "overhead", "ingest", "scaling"
PARTS = (OVERHEAD, INGEST, SCALING)

L = TypeVar("L")
clock = time.perf_counter


def workers_named(text: str) -> list[int]:
    """Numbers of workers, with commas between. Raises InputError for anything else."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and 0 < int(word) < 10_000 for word in words):
        raise InputError(f"--workers takes numbers from 1 to 9999 with commas between, as {WORKERS}, not {text!r}")
    return [int(word) for word in words]


def bench_cluster(settings: Settings, part: str, workers: str, seconds: float, gpu: str | None, *n: int) -> tuple[Record, str]:
    """One part of the bench as a record for JSON and as a table; it works in a folder of the run's, which it removes.

    `n` are rounds of overhead, rows of each block size of ingest, or blocks of each worker of scaling. Raises InputError for
    none of these, where Ray is not installed, and where a bench's folder is left from before.
    """
    numbers = workers_named(workers)
    if any(each < 1 for each in n) or seconds <= 0:
        raise InputError("the bench takes a round, a row, a block or more, and seconds above 0")
    ray_here()
    allow_many_files()
    folder = stage_folder(settings, "bench")
    if folder.exists():
        raise InputError(f"{folder} is there already; another bench is at work, or was cut off: delete it")
    folder.mkdir(parents=True)
    try:
        if part == OVERHEAD:
            return bench_overhead(settings, folder, gpu, *n)
        return bench_ingest(settings, folder, *n) if part == INGEST else bench_scaling(settings, folder, numbers, seconds, *n)
    finally:
        shutil.rmtree(folder)


def _header(part: str) -> Record:
    return {
        "bench": f"cluster-{part}",
        "version": __version__,
        "ray": version("ray"),
        "device": "disk",
        "machine": describe_machine(),
    }


@contextmanager
def own_cluster(*nodes: int, memory: int = STORE_BYTES, gpus: int = 0) -> Iterator[str]:
    """The address of a cluster on this machine, of nodes with so many cores; ended whatever happens.

    The command's node is the first, and has the GPUs.
    """
    ray_here()
    kind = importlib.import_module("ray.cluster_utils").Cluster
    how = {"include_dashboard": False, "object_store_memory": memory}
    found = kind(initialize_head=True, head_node_args={**how, "num_cpus": nodes[0], "num_gpus": gpus})
    try:
        for cpus in nodes[1:]:
            found.add_node(**how, num_cpus=cpus)
        yield found.address
    finally:
        found.shutdown()


def at(ray: RaySettings, address: str) -> RaySettings:
    """Tasks of a core each, on a cluster of this bench."""
    return dataclasses.replace(ray, address=address, cpus=1, gpus=0)


def assemble(crew: Hands, processes: int, folder: Path, first: Callable[[Any], Any] = nothing) -> list[int]:
    """Bring so many processes of a crew up and let each do a first task; the numbers of these processes.

    Raises the error of one that fails.
    """
    folder.mkdir()
    for k in range(processes):
        crew.give((folder, k), functools.partial(arrive, folder, processes, first))
    with progress("bench", "workers", processes) as advance:
        while crew.under_way:
            for each in crew.back():
                if each.error is not None:
                    raise each.error
            advance.to(sum(1 for _ in folder.iterdir()))
    return sorted(int(file.name) for file in folder.iterdir())


# Overhead.


def bench_overhead(settings: Settings, folder: Path, gpu: str | None = None, rounds: int = ROUNDS) -> tuple[Record, str]:
    """See the module. The models are those of the run's store; with `ray.address` a cluster of one node that is there.

    Raises InputError where that has more nodes, or the rows of both engines are not the same.
    """
    prepare(settings)
    data, device = load(settings), device_named(gpu)
    settings = dataclasses.replace(settings, run=dataclasses.replace(settings.run, dir=str(folder)))
    if device.type == CPU:
        settings = _with_ray(settings, gpus=0.0)
    ways: dict[str, Callable[[Path], float]] = {
        "local": functools.partial(_locally, settings, data, gpu),
        "ray": functools.partial(_on_ray, settings, data),
    }
    rows: list[Record] = []
    with progress("bench", "rounds", rounds) as advance:
        for number in range(rounds):
            # By turns, so that neither way always has the warmer machine.
            turns = list(ways) if number % 2 == 0 else list(ways)[::-1]
            seconds = {name: ways[name](folder / f"{name}-{number}") for name in turns}
            if len({Store(folder / f"{name}-{number}").digest() for name in ways}) > 1:
                raise InputError("both engines do not come to the same rows")
            rows.append({name: round(settings.store.num_models / seconds[name], 4) for name in ways})
            advance()
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    record = {
        **header("cluster-overhead", settings, data, device),
        "ray": version("ray"),
        "models": settings.store.num_models,
        "counted": "from the job's start, each process having trained a block, until its last row is in the store",
        "rounds": rows,
        "models_per_s": medians,
        "ratio": round(medians["ray"] / medians["local"], 4),
    }
    lines = [f"round {k}: {row['local']:.2f} models/s by one process, {row['ray']:.2f} by Ray" for k, row in enumerate(rows)]
    ratio = f"ratio of medians {record['ratio']:.3f}, n = {rounds} rounds of {record['models']} models"
    return record, "\n".join([describe(record), *lines, ratio])


def _locally(settings: Settings, data: Dataset, gpu: str | None, store: Path) -> float:
    with engine_of(settings, gpu, data) as engine:
        job = _job(settings, engine, store)
        engine.train(_job(settings, engine, store.with_name(f"{store.name}-first"), cores() * job.size))
        return _seconds_of(engine.train, job)


def _on_ray(settings: Settings, data: Dataset, store: Path) -> float:
    with _one_node(settings) as address:
        engine = engine_of(_with_ray(settings, address=address), None, data, RAY)
        assert isinstance(engine, OnRay)
        with engine:
            _refuse_more_nodes(engine.cluster)
            job = _job(settings, engine, store)
            there = store.with_name(f"{store.name}-there")
            assemble(engine.dispatch.hands(), engine.cluster.slots(), there, _first_block(job, engine.groups))
            return _seconds_of(engine.train, job)


def _refuse_more_nodes(cluster: Nodes) -> None:
    if sum(1 for node in cluster.nodes() if cluster.slots_of(node)) > 1:
        raise InputError("the bench compares engines on one node; the cluster at ray.address has more")


@contextmanager
def _one_node(settings: Settings) -> Iterator[str]:
    if settings.ray.address == RaySettings.address:
        with own_cluster(cores(), gpus=1 if settings.ray.gpus else 0) as address:
            yield address
    else:
        yield settings.ray.address


def _with_ray(settings: Settings, **changed: Any) -> Settings:
    return dataclasses.replace(settings, ray=dataclasses.replace(settings.ray, **changed))


def _job(settings: Settings, engine: Engine, store: Path, total: int | None = None) -> RandomSubsets:
    """The run's models, in a store of their own."""
    meta = read_meta(open_store(settings, engine))
    size, total = meta.provenance["groups"]["models_at_once"], total or settings.store.num_models
    engine.write(create, store, dataclasses.replace(meta, num_models=total))
    return RandomSubsets(store, total, size, settings.store.seed, settings.store.alpha)


def _first_block(job: RandomSubsets, groups: GroupSettings | None = None) -> Callable[[Any], Any]:
    """The training of a job's first block, as the task that it is."""
    ids = range(min(job.size, job.total))
    return functools.partial(train_block, job, Excerpt.of(Store(job.folder), ids, job.listed), ids, groups)


def _seconds_of(train: Callable[[RandomSubsets], None], job: RandomSubsets) -> float:
    """Seconds until a job's last row is in its store."""
    start = clock()
    train(job)
    seconds = clock() - start
    _refuse_gaps(job.folder, job.total)
    return seconds


def _refuse_gaps(store: Path, models: int) -> None:
    if len(Store(store).done) != models:
        raise RuntimeError(f"not all {models} models are there")


# Ingest.


def bench_ingest(settings: Settings, folder: Path, rows: int = 10_240) -> tuple[Record, str]:
    """See the module. Each round writes a store of its own, which is read and checked afterwards."""
    found: dict[int, list[tuple[float, float]]] = {size: [] for size in BLOCKS}
    row_bytes = sum(spec.row_bytes for spec in _meta(rows).files.values())
    with (
        own_cluster(0, cores(), memory=STORE_BYTES + 2 * rows * row_bytes) as address,
        Cluster(at(settings.ray, address)) as cluster,
    ):
        pen = OfActor(cluster)
        with cluster.crew(nothing, "bench") as crew, progress("bench", "rounds", ROUNDS * len(BLOCKS)) as advance:
            for _ in range(ROUNDS):
                for size in BLOCKS:
                    found[size].append(_taken(folder / "store", rows, size, crew, pen))
                    advance()
    seconds = {size: statistics.median(each for each, _ in taken) for size, taken in found.items()}
    record = {
        **_header(INGEST),
        "num_train": N,
        "num_targets": T,
        "rows": rows,
        "row_bytes": row_bytes,
        "rounds": ROUNDS,
        "rows_per_s": {str(size): round(rows / median, 1) for size, median in seconds.items()},
        "rows_per_s_of_rounds": {str(size): [round(rows / each, 1) for each, _ in taken] for size, taken in found.items()},
        "megabytes_per_s": {str(size): round(rows * row_bytes / median / 1e6, 1) for size, median in seconds.items()},
        "share_of_writing": {
            str(size): round(statistics.median(writing / whole for whole, writing in taken), 3) for size, taken in found.items()
        },
    }
    lines = [
        f"blocks of {size:>4}: {per_s:>8.0f} rows/s, {record['megabytes_per_s'][size]:>6.0f} MB/s, "
        f"{record['share_of_writing'][size]:.0%} of the time in writing, the rest in fetching"
        for size, per_s in record["rows_per_s"].items()
    ]
    about = f"{rows} rows of {row_bytes} bytes: N = {N}, T = {T}; Ray {record['ray']}, medians of n = {ROUNDS} rounds"
    return record, "\n".join([describe({**record, "device": "cpu"}), about, *lines])


def _meta(rows: int) -> Meta:
    return Meta(rows, N, T, {"margins": ArraySpec("float16", (T,))}, {"of": "a bench"})


def _taken(store: Path, rows: int, size: int, crew: Crew[Any], pen: OfActor) -> tuple[float, float]:
    """Seconds in which the writer takes rows in, and of these the seconds of writing. The store is whole then, and removed."""
    meta = _meta(rows)
    pen.write(create, store, meta)
    calls = list(_calls(_made(crew, meta, size)))
    os.sync()
    start, writing = clock(), 0.0
    for lots in calls:
        pen.begin(store, lots)
        while (taken := pen.taken(1.0)) is None:
            pass
        if taken.rows != sum(len(lot.ids) for lot in lots):
            raise RuntimeError(f"of a call's rows {taken.rows} were taken: {taken.refused}, {taken.lost}")
        writing += taken.seconds
    seconds = clock() - start
    _refuse_gaps(store, rows)
    if check(store):
        raise RuntimeError("rows of the store do not have their checksums")
    shutil.rmtree(store)
    return seconds, writing


def _made(crew: Crew[Any], meta: Meta, size: int) -> list[tuple[Lot, int]]:
    """Blocks of rows made on the nodes, as lots, and their bytes."""
    found: dict[Any, tuple[Lot, int]] = {}
    blocks = [range(first, min(first + size, meta.num_models)) for first in range(0, meta.num_models, size)]
    for ids in blocks:
        crew.give(ids, functools.partial(random_rows, meta, ids))
    while crew.under_way:
        for each in crew.back():
            if each.error is not None:
                raise each.error
            found[each.key] = (Lot(tuple(each.key), each.payload, {}), each.value)
    return [found[ids] for ids in blocks]


def _calls(lots: Sequence[tuple[L, int]]) -> Iterator[list[L]]:
    """As many lots together as `dispatch` gives the writer in one call."""
    call, size = list[L](), 0
    for lot, its in lots:
        call.append(lot)
        size += its
        if size >= MERGE_BYTES:
            yield call
            call, size = [], 0
    if call:
        yield call


# Scaling.


def bench_scaling(
    settings: Settings, folder: Path, workers: Sequence[int], seconds: float = BLOCK_SECONDS, blocks: int = 4
) -> tuple[Record, str]:
    """See the module. Raises InputError where there is no memory for so many processes."""
    most, free = max(workers) * WORKER_BYTES, free_host_memory()
    if most > free:
        raise InputError(f"{max(workers)} workers take some {megabytes(int(most))} of memory, and {megabytes(free)} are free")
    rows = [_scaled(settings.ray, folder / str(number), number, seconds, blocks) for number in workers]
    record = {
        **_header(SCALING),
        "num_train": N,
        "num_targets": T,
        "models_of_block": BLOCK,
        "block_seconds": seconds,
        "blocks_of_worker": blocks,
        "rows": rows,
    }
    lines = [
        f"{'workers':>8} {'up after s':>11} {'MB each':>8} {'wall s':>8} {'rows/s':>8} {'once CPU s':>11} {'efficiency':>11}",
        *(
            f"{row['workers']:>8} {row['start_s']:>11.1f} {row['worker_megabytes']:>8.0f} {row['wall_s']:>8.1f} "
            f"{row['rows_per_s']:>8.1f} {row['once_cpu_s']:>11.1f} {row['efficiency']:>11.4f}"
            for row in rows
        ),
    ]
    about = f"blocks of {BLOCK} models that take {seconds:g} s, {blocks} a worker; N = {N}, T = {T}; Ray {record['ray']}, n = 1"
    return record, "\n".join([describe({**record, "device": "cpu"}), about, *lines])


def _scaled(ray: RaySettings, folder: Path, workers: int, seconds: float, blocks: int) -> Record:
    store, total = folder / "store", workers * blocks * BLOCK
    folder.mkdir()
    start = clock()
    with own_cluster(0, workers) as address, Cluster(at(ray, address)) as cluster:
        pen = OfActor(cluster)
        pen.write(create, store, _meta(total))
        job = RandomSubsets(store, total, BLOCK, SEED, ALPHA)
        make = functools.partial(here, functools.partial(Asleep, N, T, BLOCK, seconds))
        with cluster.crew(make, "bench") as crew, Dispatch(lambda: crew, pen, cluster) as dispatch:
            processes = assemble(crew, workers, folder / "there", functools.partial(rehearse, _first_block(job)))
            up, held = clock() - start, statistics.mean(map(_own_memory, processes))
            once = [os.getpid(), *cluster.ray.get([each.__ray_call__.remote(_process_of) for each in (pen.actor, crew.board)])]
            before = _processor_seconds(once)
            with progress("bench", "models", total) as advance:
                wall = _seconds_of(lambda job: dispatch.train(job, advance.to), job)
            taken = _processor_seconds(once) - before
    shutil.rmtree(folder)
    return {
        "workers": workers,
        "start_s": round(up, 1),
        "worker_megabytes": round(held / 1e6, 1),
        "wall_s": round(wall, 2),
        "rows_per_s": round(total / wall, 1),
        "once_cpu_s": round(taken, 2),
        "efficiency": round(efficiency(workers * blocks, seconds, workers, wall), 4),
    }


def efficiency(blocks: int, seconds: float, workers: int, wall: float) -> float:
    """The share of their time in which workers were at blocks of so many seconds."""
    return blocks * seconds / (workers * wall)


def _process_of(actor: object) -> int:
    del actor
    return os.getpid()


def _processor_seconds(processes: Sequence[int]) -> float:
    """Seconds of the processor that processes of this machine have had, their threads' included."""
    stats = (Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace") for process in processes)
    ticks = (stat.rpartition(")")[2].split()[11:13] for stat in stats)
    return sum(int(user) + int(system) for user, system in ticks) / os.sysconf("SC_CLK_TCK")


def _own_memory(process: int) -> int:
    """Bytes of a process, of what it shares with others its share."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
