"""Command: train the models of a run on one device, as `python -m datamodels.worker -C configs/digits.yaml --gpu cpu`."""

import sys

from datamodels.data import load, prepare
from datamodels.errors import run_command
from datamodels.settings import BUILT_IN, argument_parser, parse
from datamodels.training import device_named
from datamodels.worker import own_function, train_missing, train_missing_by, use_gpu_of_own


def main() -> None:
    """Train what is missing: by the built-in recipe, after preparing the data if need be, or by `worker.main`."""
    parser = argument_parser("python -m datamodels.worker", "Train the models of a run on one device.")
    parser.add_argument("--gpu", default="0", help="number of the GPU to train on, or cpu")
    settings, args = parse(sys.argv[1:], parser)
    if settings.worker.main != BUILT_IN:
        use_gpu_of_own(args.gpu)
        print(train_missing_by(own_function(settings.worker.main), settings))
        return
    device = device_named(args.gpu)
    print(prepare(settings))
    print(train_missing(settings, load(settings), device))


run_command(main)
