"""Command: train the models of a run, as `python -m datamodels.worker -C configs/digits.yaml --gpu cpu`."""

import sys

from datamodels.errors import run_command
from datamodels.settings import argument_parser, parse
from datamodels.worker import engine_of, prepared, train_missing

DEVICES = "number of the GPU to train on, cpu, several with commas between (a process each), or all"


def main() -> None:
    """Train what is missing: by the built-in recipe, after preparing the data if need be, or by `worker.main`."""
    parser = argument_parser("python -m datamodels.worker", "Train the models of a run.")
    parser.add_argument("--gpu", default="0", help=DEVICES)
    settings, args = parse(sys.argv[1:], parser)
    with engine_of(settings, args.gpu, prepared(settings)) as engine:
        print(train_missing(settings, engine))


run_command(main)
