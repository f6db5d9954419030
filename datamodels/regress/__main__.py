"""Command: weights from the models of a run, as `python -m datamodels.regress -C configs/digits.yaml`."""

import sys
from pathlib import Path

from datamodels.errors import InputError, run_command
from datamodels.regress.run import regress, regress_store
from datamodels.settings import argument_parser, parse


def main() -> None:
    """Regress margins on masks, unless that is done."""
    parser = argument_parser("python -m datamodels.regress", "Weights from the models of a run, or of any store.")
    # Another name within: fastargs has a section `store`.
    parser.add_argument(
        "--store", dest="any_store", type=Path, metavar="DIR", help="a store of any origin, instead of the run's; with --out"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the weights go then")
    settings, args = parse(sys.argv[1:], parser)
    if (args.any_store is None) != (args.out is None):
        raise InputError("--store DIR and --out DIR go together")
    print(regress(settings) if args.any_store is None else regress_store(args.any_store, args.out, settings.regress))


run_command(main)
