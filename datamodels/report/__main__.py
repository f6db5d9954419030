"""Command: the page of a run, as `python -m datamodels.report -C configs/digits.yaml`."""

import sys

from datamodels.data import load
from datamodels.errors import run_command
from datamodels.report import report
from datamodels.runs import refuse_own_function
from datamodels.settings import argument_parser, parse


def main() -> None:
    """Make the report from what the other stages left."""
    settings, _ = parse(sys.argv[1:], argument_parser("python -m datamodels.report", "The page of a run."))
    refuse_own_function(settings)
    print(report(settings, load(settings)))


run_command(main)
