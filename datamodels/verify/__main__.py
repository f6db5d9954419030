"""Command: retrain and judge, as `python -m datamodels.verify -C configs/digits.yaml --targets file.txt`."""

import sys
from pathlib import Path

from datamodels.errors import InputError, run_command
from datamodels.regress import Datamodels
from datamodels.runs import read_store, stage_folder
from datamodels.settings import argument_parser, parse
from datamodels.verify import recheck, targets_named, verify_targets
from datamodels.worker import engine_of


def main() -> None:
    """Check everything that can be checked at once, then verify."""
    parser = argument_parser("python -m datamodels.verify", "Retrain without the images that matter most, and judge.")
    parser.add_argument("--targets", metavar="WHICH", help="file with a test index a line, or 7,13, or random:300")
    parser.add_argument(
        "--recheck", type=Path, metavar="verify.json", help="retrain what it calls flipped, with models that no search has seen"
    )
    parser.add_argument("--gpu", help="number of the GPU, cpu, several with commas between, or all (default: what is there)")
    settings, args = parse(sys.argv[1:], parser)
    if (args.targets is None) == (args.recheck is None):
        raise InputError(
            "give one: --targets WHICH (a file with a test index a line, or 7,13, or random:300), or --recheck FILE"
        )
    models = Datamodels.load(stage_folder(settings, "regress"))
    t = read_store(settings).meta.num_targets
    targets = [] if args.targets is None else targets_named(args.targets, t, settings.verify.seed)
    with engine_of(settings, args.gpu) as engine:
        print(
            recheck(settings, engine, args.recheck)
            if args.targets is None
            else verify_targets(settings, engine, models, targets)
        )


run_command(main)
