"""Command: retrain and judge, as `python -m datamodels.verify -C configs/digits.yaml --targets file.txt`."""

import sys
from pathlib import Path

from datamodels.data import load
from datamodels.errors import InputError, run_command
from datamodels.regress import Datamodels
from datamodels.runs import stage_folder
from datamodels.settings import argument_parser, parse
from datamodels.training import default_gpu, device_named
from datamodels.verify import read_targets, verify


def main() -> None:
    """Check everything that can be checked at once, then verify."""
    parser = argument_parser("python -m datamodels.verify", "Retrain without the images that matter most, and judge.")
    parser.add_argument("--targets", type=Path, help="file with one test index a line; # begins a comment")
    parser.add_argument("--gpu", default=default_gpu(), help="number of the GPU to train on, or cpu (default: what is there)")
    settings, args = parse(sys.argv[1:], parser)
    if args.targets is None:
        raise InputError("--targets FILE is missing: a file with one test index a line")
    targets, device = read_targets(args.targets, settings.data.test_images), device_named(args.gpu)
    models = Datamodels.load(stage_folder(settings, "regress"))
    print(verify(settings, load(settings), models, targets, device))


run_command(main)
