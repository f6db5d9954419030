"""The whole road on one config, as `datamodels -C digits`; what is done is not done again."""

import sys
from pathlib import Path

from datamodels.commands import COMMANDS, ROAD, Command
from datamodels.estimates import MODELS, PAGE, VERIFICATION, WEIGHTS, Forecast
from datamodels.regress import Datamodels
from datamodels.regress.run import regress
from datamodels.report import report
from datamodels.runs import page_folder, stage_folder
from datamodels.settings import BUILT_IN, VERIFY, Settings, argument_parser, engine_arguments, gpu_of, parse, yes_argument
from datamodels.verify import WORDS, draw_targets, targets_named, verify_targets, write_targets
from datamodels.verify.known import Examples
from datamodels.verify.targets import Asked
from datamodels.worker import engine_of, prepared, train_missing


def road(command: Command = COMMANDS[ROAD]) -> None:
    """Data, worker, regress, verify on random targets or those that are named, report, as the arguments of `command` say."""
    parser = argument_parser(command.name, "All stages of one run, one after another; what is done is not done again.")
    parser.add_argument("--targets", metavar="WHICH", help=f"{WORDS}; default: verify.random_targets test images")
    engine_arguments(parser, "number of the GPU, cpu, several with commas between, or all (default: what is there)")
    yes_argument(parser)
    settings, args = parse(sys.argv[1:], parser)
    gpu = gpu_of(args)
    with engine_of(settings, gpu, prepared(settings), args.engine) as engine:
        targets = _targets(settings, Examples(engine.learner), args.targets)
        forecast = Forecast(settings, engine, args.yes, targets)
        forecast.before_models()
        forecast.stage(MODELS)
        with forecast.while_training():
            print(train_missing(settings, engine), flush=True)
        forecast.stage(WEIGHTS)
        print(regress(settings, _of_regression(settings, gpu), engine.cluster), flush=True)
        models = Datamodels.load(stage_folder(settings, "regress"))
        if args.targets is None:
            write_targets(Path(settings.run.dir, _targets_file(settings.verify.name)), targets)
        forecast.stage(VERIFICATION)
        print(verify_targets(settings, engine, models, targets, forecast.before_verification), flush=True)
        forecast.stage(PAGE)
        print(report(settings, engine.learner))
    print(f"the page is at {(page_folder(settings) / 'index.html').resolve()}")


def _targets(settings: Settings, examples: Examples, wanted: str | None) -> list[Asked]:
    """The targets that are named, or random ones."""
    if wanted is not None:
        return targets_named(wanted, examples, settings.verify.seed)
    return [*draw_targets(settings.verify.random_targets, examples.tests, settings.verify.seed)]


def _targets_file(name: str) -> str:
    return "targets.txt" if name == VERIFY else f"targets-{name}.txt"


def _of_regression(settings: Settings, gpu: str | None) -> str | None:
    """The device as the regression counts: this process sees the one GPU that one's own code was given, and no other."""
    return "0" if settings.worker.main != BUILT_IN and gpu is not None and gpu.isdigit() else gpu
