"""Command: weights from the models of a run, as `python -m datamodels.regress -C configs/digits.yaml`."""

import sys

from datamodels.errors import run_command
from datamodels.regress.run import regress
from datamodels.settings import argument_parser, parse


def main() -> None:
    """Regress margins on masks, unless that is done."""
    settings, _ = parse(sys.argv[1:], argument_parser("python -m datamodels.regress", "Weights from the models of a run."))
    print(regress(settings))


run_command(main)
