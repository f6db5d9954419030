"""Command: the page of a run, as `python -m datamodels.report -C digits`."""

import sys

from datamodels.errors import run_command
from datamodels.report import report
from datamodels.settings import argument_parser, parse
from datamodels.worker import engine_of


def main() -> None:
    """Make the report from what the other stages left."""
    settings, _ = parse(sys.argv[1:], argument_parser("report"))
    print(report(settings, engine_of(settings, None).learner))


run_command(main)
