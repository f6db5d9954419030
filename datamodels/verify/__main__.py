"""Command: retrain and judge, as `python -m datamodels.verify -C configs/digits.yaml --targets file.txt`."""

import sys
from pathlib import Path

from datamodels.data import load
from datamodels.errors import InputError, run_command
from datamodels.regress import Datamodels
from datamodels.runs import stage_folder
from datamodels.settings import BUILT_IN, argument_parser, parse
from datamodels.training import default_gpu, device_named
from datamodels.verify import built_in_subject, own_subject, read_targets, verify
from datamodels.worker import use_gpu_of_own


def main() -> None:
    """Check everything that can be checked at once, then verify."""
    parser = argument_parser("python -m datamodels.verify", "Retrain without the images that matter most, and judge.")
    parser.add_argument("--targets", type=Path, help="file with one test index a line; # begins a comment")
    parser.add_argument("--gpu", default=default_gpu(), help="number of the GPU to train on, or cpu (default: what is there)")
    settings, args = parse(sys.argv[1:], parser)
    if args.targets is None:
        raise InputError("--targets FILE is missing: a file with one test index a line")
    targets = read_targets(args.targets, settings.data.test_images)
    if settings.worker.main == BUILT_IN:
        device = device_named(args.gpu)
        models = Datamodels.load(stage_folder(settings, "regress"))
        subject = built_in_subject(settings, load(settings), device)
    else:
        use_gpu_of_own(args.gpu)
        models = Datamodels.load(stage_folder(settings, "regress"))
        subject = own_subject(settings)
    print(verify(settings, subject, models, targets))


run_command(main)
