"""Command: retrain and judge, as `python -m datamodels.verify -C configs/digits.yaml --targets file.txt`."""

import sys
from pathlib import Path

from datamodels.errors import InputError, run_command
from datamodels.regress import Datamodels
from datamodels.runs import stage_folder
from datamodels.settings import argument_parser, parse
from datamodels.verify import recheck, subject_of, targets_named, verify_targets


def main() -> None:
    """Check everything that can be checked at once, then verify."""
    parser = argument_parser("python -m datamodels.verify", "Retrain without the images that matter most, and judge.")
    parser.add_argument("--targets", metavar="WHICH", help="file with a test index a line, or 7,13, or random:300")
    parser.add_argument(
        "--recheck", type=Path, metavar="verify.json", help="retrain what it calls flipped, with models that no search has seen"
    )
    parser.add_argument("--gpu", help="number of the GPU to train on, or cpu (default: what is there)")
    settings, args = parse(sys.argv[1:], parser)
    if (args.targets is None) == (args.recheck is None):
        raise InputError(
            "give one: --targets WHICH (a file with a test index a line, or 7,13, or random:300), or --recheck FILE"
        )
    targets = [] if args.targets is None else targets_named(args.targets, settings.data.test_images, settings.verify.seed)
    models = Datamodels.load(stage_folder(settings, "regress"))
    subject = subject_of(settings, args.gpu)
    print(
        verify_targets(settings, subject, models, targets) if args.recheck is None else recheck(settings, subject, args.recheck)
    )


run_command(main)
