"""Command: retrain and judge, as `python -m datamodels.verify -C configs/digits.yaml --targets file.txt`."""

import sys
from pathlib import Path

from datamodels.errors import InputError, run_command
from datamodels.regress import Datamodels
from datamodels.runs import read_store, stage_folder
from datamodels.settings import argument_parser, engine_arguments, gpu_of, parse
from datamodels.verify import WORDS, recheck, targets_named, verify_targets
from datamodels.verify.known import Examples
from datamodels.worker import engine_of


def main() -> None:
    """Check everything that can be checked at once, then verify."""
    parser = argument_parser("python -m datamodels.verify", "Retrain without the images that matter most, and judge.")
    parser.add_argument("--targets", metavar="WHICH", help=WORDS)
    parser.add_argument(
        "--recheck", type=Path, metavar="verify.json", help="retrain what it calls flipped, with models that no search has seen"
    )
    engine_arguments(parser, "number of the GPU, cpu, several with commas between, or all (default: what is there)")
    settings, args = parse(sys.argv[1:], parser)
    gpu = gpu_of(args)
    if (args.targets is None) == (args.recheck is None):
        raise InputError(f"give one: --targets WHICH ({WORDS}), or --recheck FILE")
    models = Datamodels.load(stage_folder(settings, "regress"))
    read_store(settings)
    with engine_of(settings, gpu, engine=args.engine) as engine:
        if args.targets is None:
            print(recheck(settings, engine, args.recheck))
        else:
            targets = targets_named(args.targets, Examples(engine.learner), settings.verify.seed)
            print(verify_targets(settings, engine, models, targets))


run_command(main)
