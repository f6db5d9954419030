"""Command: the whole road on one config, as `python -m datamodels -C configs/digits.yaml`; what is done is not done again."""

import sys
from pathlib import Path

from datamodels.errors import run_command
from datamodels.regress import Datamodels
from datamodels.regress.run import regress
from datamodels.report import report
from datamodels.runs import page_folder, stage_folder
from datamodels.settings import BUILT_IN, VERIFY, Settings, argument_parser, parse
from datamodels.verify import draw_targets, verify_targets, write_targets
from datamodels.verify.known import Examples
from datamodels.worker import engine_of, prepared, train_missing


def main() -> None:
    """Data, worker, regress, verify on random targets, report."""
    parser = argument_parser("python -m datamodels", "All stages of one run, one after another.")
    parser.add_argument("--gpu", help="number of the GPU, cpu, several with commas between, or all (default: what is there)")
    settings, args = parse(sys.argv[1:], parser)
    with engine_of(settings, args.gpu, prepared(settings)) as engine:
        print(train_missing(settings, engine), flush=True)
        print(regress(settings, _of_regression(settings, args.gpu)), flush=True)
        targets = draw_targets(settings.verify.random_targets, Examples(engine.learner).tests, settings.verify.seed)
        write_targets(Path(settings.run.dir, _targets_file(settings.verify.name)), targets)
        models = Datamodels.load(stage_folder(settings, "regress"))
        print(verify_targets(settings, engine, models, targets), flush=True)
        print(report(settings, engine.learner))
    print(f"the page is at {(page_folder(settings) / 'index.html').resolve()}")


def _targets_file(name: str) -> str:
    return "targets.txt" if name == VERIFY else f"targets-{name}.txt"


def _of_regression(settings: Settings, gpu: str | None) -> str | None:
    """The device as the regression counts: this process sees the one GPU that one's own code was given, and no other."""
    return "0" if settings.worker.main != BUILT_IN and gpu is not None and gpu.isdigit() else gpu


run_command(main)
