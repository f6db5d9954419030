"""Command: measure, as `python -m datamodels.bench train -C configs/digits.yaml --gpu cpu`."""

import sys
from pathlib import Path

from datamodels.bench.accuracy import bench_accuracy
from datamodels.bench.record import file_name
from datamodels.bench.train import bench_train
from datamodels.data import load, prepare
from datamodels.durable import write_json
from datamodels.errors import run_command
from datamodels.settings import argument_parser, parse
from datamodels.training import default_gpu, device_named

BENCHES = {"train": bench_train, "accuracy": bench_accuracy}


def main() -> None:
    """Prepare the data if need be, measure, print a table, and write it as JSON where `--out` says."""
    parser = argument_parser(
        "python -m datamodels.bench", "train: models per second, at once and one at a time. accuracy: of the recipe's models."
    )
    parser.add_argument("bench", choices=sorted(BENCHES))
    parser.add_argument("--gpu", default=default_gpu(), help="number of the GPU, or cpu (default: what is there)")
    parser.add_argument("--n", type=int, help="train: rounds, 3 by default; accuracy: models of either kind, 8 by default")
    parser.add_argument("--out", type=Path, help="folder to write the result into, as JSON")
    settings, args = parse(sys.argv[1:], parser)
    device = device_named(args.gpu)
    print(prepare(settings), flush=True)
    result, table = BENCHES[args.bench](settings, load(settings), device, *([] if args.n is None else [args.n]))
    print(table)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / file_name(result, settings), result)


run_command(main)
