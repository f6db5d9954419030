"""Command: train the models of a run, as `python -m datamodels.worker -C digits --gpu cpu`."""

import sys

from datamodels.errors import run_command
from datamodels.estimates import Forecast
from datamodels.settings import argument_parser, engine_arguments, gpu_of, parse, yes_argument
from datamodels.worker import engine_of, prepared, train_missing

FIRST = "0"
DEVICES = f"number of the GPU to train on (default: {FIRST}), cpu, several with commas between (a process each), or all"


def main() -> None:
    """Train what is missing: by the built-in recipe, after preparing the data if need be, or by `worker.main`."""
    parser = argument_parser("worker")
    engine_arguments(parser, DEVICES)
    yes_argument(parser)
    settings, args = parse(sys.argv[1:], parser)
    gpu = gpu_of(args, FIRST)
    with engine_of(settings, gpu, prepared(settings), args.engine) as engine:
        Forecast(settings, engine, args.yes).before_models()
        print(train_missing(settings, engine))


run_command(main)
