"""Command: write the images of a run, as `python -m datamodels.data -C digits`."""

import sys

from datamodels.data import prepare
from datamodels.errors import run_command
from datamodels.settings import argument_parser, parse


def main() -> None:
    """Write the run's data unless it is there."""
    settings, _ = parse(sys.argv[1:], argument_parser("data"))
    print(prepare(settings))


run_command(main)
