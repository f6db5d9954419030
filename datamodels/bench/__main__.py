"""Command: measure, as `python -m datamodels.bench train -C digits --gpu cpu`."""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

from datamodels.bench.accuracy import bench_accuracy
from datamodels.bench.cluster import BLOCK_SECONDS, PARTS, WORKERS, bench_cluster
from datamodels.bench.cost import ALL, MOST_SECONDS, bench_cost, cost_figure
from datamodels.bench.court import bench_court
from datamodels.bench.devices import bench_devices
from datamodels.bench.fit import DEFAULT, bench_fit, size_named
from datamodels.bench.gpu_check import GPU, PLACES
from datamodels.bench.gpu_plan import gpu_check
from datamodels.bench.page import bench_page, shots
from datamodels.bench.prior import bench_prior
from datamodels.bench.record import Record, file_name
from datamodels.bench.regress import bench_regress
from datamodels.bench.repair import SHARE, bench_repair
from datamodels.bench.samples import bench_samples, samples_figure
from datamodels.bench.shapes import bench_lasso
from datamodels.bench.store import bench_store
from datamodels.bench.train import bench_train
from datamodels.bench.workers import bench_workers
from datamodels.data import load, prepare
from datamodels.durable import write_file, write_json
from datamodels.errors import InputError, run_command
from datamodels.settings import Settings, argument_parser, parse
from datamodels.training import device_named

OF_MODELS = {"train": bench_train, "accuracy": bench_accuracy, "prior": bench_prior}
SYNTHETIC: dict[str, Callable[..., tuple[Record, str]]] = {
    "store": bench_store,
    "page": bench_page,
    "workers": bench_workers,
    "lasso": bench_lasso,
}
OF_A_RUN = {"devices": bench_devices}
OF_WEIGHTS: dict[str, Callable[..., tuple[Record, str]]] = {
    "regress": bench_regress,
    "samples": bench_samples,
    "court": bench_court,
}
GPU_CHECK = "gpu-check"
FIT, REPAIR, CLUSTER, COST, SHOTS = "fit", "repair", "cluster", "cost", "shots"
FIGURES: dict[str, Callable[[Record], bytes]] = {"samples": samples_figure, COST: cost_figure}


def main() -> None:
    """Prepare the data if need be, measure, print a table, and write it as JSON where `--out` says."""
    about = (
        "train: models per second, at once and one at a time. accuracy: of the recipe's models. "
        "prior: seconds of its networks' training and of what is made of them. "
        "store, regress: of synthetic rows, against the disk and against other solvers. fit: a whole regression. "
        "devices: a verification by half of the cores, and by both halves. "
        "workers: how often models are trained that several workers share. "
        "page: how long the page of a run of CIFAR-10's size takes, how large it is, how soon it stands. "
        "shots: of the first screen of a run's page, wide and narrow. "
        "lasso: of few models or many, against scikit-learn. "
        "samples: LDS against the number of models of a run, with a prior and without. "
        "repair: how often the sets that repair wrong predictions name wrongly labelled images. "
        "court: how often searches claim what is not so, on targets whose truth is known. "
        "cost: LDS and verified |R| against processor time, for TRAK and others, the lasso and the prior. "
        "cluster: the engine on a Ray cluster against the local one, its writer's rows per second, and how it scales. "
        "gpu-check: whether a GPU, and this package on it, does what it should."
    )
    benches = [*OF_MODELS, *SYNTHETIC, *OF_A_RUN, *OF_WEIGHTS, FIT, REPAIR, COST, CLUSTER, SHOTS, GPU_CHECK]
    parser = argument_parser("bench", about)
    told = f"one of {', '.join(benches)}"
    parser.add_argument("bench", choices=benches, nargs="?", metavar="BENCH", help=told)  # optional only for --help to work
    parser.add_argument("--gpu", help="number of the GPU, or cpu (default: what is there)")
    counts = "train: rounds (3); accuracy: models of either kind (8); store: rows (10240); regress: scikit-learn's targets (8)"
    counts += "; samples: draws of models (3); prior: networks (4); workers: models (2000); devices: rounds (1)"
    counts += "; lasso: rounds (3); repair: targets (60); page: verified targets (300)"
    counts += "; court: searches (1000); cost: targets whose |R| is verified (5)"
    counts += "; cluster: overhead's rounds (3), ingest's rows (10240), scaling's blocks a worker (4)"
    parser.add_argument("--n", type=int, help=counts)
    parser.add_argument("--size", default=DEFAULT, help=f"fit: images, models, targets, values of λ ({DEFAULT})")
    parser.add_argument("--share", type=float, default=SHARE, help=f"repair: of the labels of S that are wrong ({SHARE})")
    parser.add_argument("--seed", type=int, default=0, help="repair: which labels are wrong, and how (0)")
    told = f"cost: what one method would take longer for is left out ({MOST_SECONDS:g})"
    parser.add_argument("--most-seconds", type=float, default=MOST_SECONDS, help=told)
    parser.add_argument("--methods", default=ALL, help="cost: which, with commas between, as trak,gradients,prior (all)")
    parser.add_argument("--on", choices=PLACES, default=GPU, help="gpu-check: processor tries the check itself, tiny")
    parser.add_argument("--part", choices=PARTS, help="cluster: one of its parts (default: all of them)")
    parser.add_argument("--workers", default=WORKERS, help=f"cluster: numbers of workers that scaling tries ({WORKERS})")
    told = f"cluster: how long a block of scaling takes ({BLOCK_SECONDS:g})"
    parser.add_argument("--block-seconds", type=float, default=BLOCK_SECONDS, help=told)
    parser.add_argument("--out", type=Path, help="folder to write the result into, as JSON")
    settings, args = parse(sys.argv[1:], parser)
    if args.bench is None:
        raise InputError(f"which bench? There are {', '.join(benches)}")
    if args.bench == SHOTS:
        print(*shots(settings, args.out or Path()), sep="\n")
        return
    passed = True
    for result, table in _measured(settings, args):
        print(table, flush=True)
        if args.out:
            _write(args.out, result, settings)
        passed = passed and result.get("passed", True)
    if not passed:
        sys.exit(1)


def _measured(settings: Settings, args: Namespace) -> Iterator[tuple[Record, str]]:
    """The results of a bench, each as a record and as a table: most have one."""
    n = [] if args.n is None else [args.n]
    if args.bench == FIT:
        yield bench_fit(settings, size_named(args.size), args.gpu)
    elif args.bench == REPAIR:
        yield bench_repair(settings, args.share, args.seed, args.gpu, *n)
    elif args.bench == COST:
        yield bench_cost(settings, args.gpu, args.most_seconds, args.methods, *n)
    elif args.bench == GPU_CHECK:
        yield gpu_check(settings, args.on, args.gpu)
    elif args.bench == CLUSTER:
        for part in PARTS if args.part is None else [args.part]:
            yield bench_cluster(settings, part, args.workers, args.block_seconds, args.gpu, *n)
    elif args.bench in {**SYNTHETIC, **OF_A_RUN}:
        yield {**SYNTHETIC, **OF_A_RUN}[args.bench](settings, *n)
    elif args.bench in OF_WEIGHTS:
        yield OF_WEIGHTS[args.bench](settings, *n, gpu=args.gpu)
    else:
        device = device_named(args.gpu)
        print(prepare(settings), flush=True)
        yield OF_MODELS[args.bench](settings, load(settings), device, *n)


def _write(out: Path, result: Record, settings: Settings) -> None:
    out.mkdir(parents=True, exist_ok=True)
    file = out / file_name(result, settings)
    write_json(file, result)
    if result["bench"] in FIGURES:
        write_file(file.with_suffix(".png"), FIGURES[result["bench"]](result))


run_command(main)
