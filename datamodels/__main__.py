"""Command: the whole road on one config, as `python -m datamodels -C configs/digits.yaml`; what is done is not done again."""

import sys
from pathlib import Path

from datamodels.data import load, prepare
from datamodels.errors import run_command
from datamodels.regress import Datamodels
from datamodels.regress.run import regress
from datamodels.report import report
from datamodels.runs import refuse_own_function, stage_folder
from datamodels.settings import argument_parser, parse
from datamodels.training import device_named
from datamodels.verify import built_in_subject, draw_targets, verify_targets, write_targets
from datamodels.worker import train_missing


def main() -> None:
    """Data, worker, regress, verify on random targets, report."""
    parser = argument_parser("python -m datamodels", "All stages of one run, one after another.")
    parser.add_argument("--gpu", help="number of the GPU to train on, or cpu (default: what is there)")
    settings, args = parse(sys.argv[1:], parser)
    refuse_own_function(settings)
    device = device_named(args.gpu)
    print(prepare(settings), flush=True)
    data = load(settings)
    print(train_missing(settings, data, device), flush=True)
    print(regress(settings, args.gpu), flush=True)
    targets = draw_targets(settings.verify.random_targets, settings.data.test_images, settings.verify.seed)
    write_targets(Path(settings.run.dir, "targets.txt"), targets)
    models = Datamodels.load(stage_folder(settings, "regress"))
    print(verify_targets(settings, built_in_subject(settings, data, device), models, targets), flush=True)
    print(report(settings, data))
    print(f"the page is at {Path(settings.run.dir, 'report', 'index.html').resolve()}")


run_command(main)
