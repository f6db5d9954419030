"""Command: train the models of a run on one device, as `python -m datamodels.worker -C configs/digits.yaml --gpu cpu`."""

import sys

from datamodels.data import load, prepare
from datamodels.errors import run_command
from datamodels.settings import argument_parser, parse
from datamodels.training import device_named
from datamodels.worker import train_missing


def main() -> None:
    """Prepare the data if need be, then train what is missing."""
    parser = argument_parser("python -m datamodels.worker", "Train the models of a run on one device.")
    parser.add_argument("--gpu", default="0", help="number of the GPU to train on, or cpu")
    settings, args = parse(sys.argv[1:], parser)
    device = device_named(args.gpu)
    print(prepare(settings))
    print(train_missing(settings, load(settings), device))


run_command(main)
