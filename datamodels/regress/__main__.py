"""Command: weights from the models of a run, as `python -m datamodels.regress -C configs/digits.yaml`."""

import dataclasses
import sys
from pathlib import Path

from datamodels.errors import InputError, run_command
from datamodels.regress.run import export_weights, import_weights, regress, regress_store
from datamodels.settings import argument_parser, parse


def main() -> None:
    """Regress margins on masks, unless that is done; or exchange weights with a .pt file."""
    parser = argument_parser("python -m datamodels.regress", "Weights from the models of a run, or of any store.")
    # Other names within: fastargs has a section `store`, and `import` is Python's.
    parser.add_argument("--store", dest="any_store", type=Path, metavar="DIR", help="a store of any origin, not the run's")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the weights go, or are, instead of the run's folder")
    parser.add_argument("--import", dest="pt_in", type=Path, metavar="FILE.pt", help="make --out of a published .pt file")
    parser.add_argument(
        "--export", dest="pt_out", type=Path, metavar="FILE.pt", help="write the weights of --out, or the run's"
    )
    parser.add_argument("--gpu", metavar="N", help="the GPU to compute on, or cpu (default: the first one that CuPy finds)")
    settings, args = parse(sys.argv[1:], parser)
    if sum(given is not None for given in (args.any_store, args.pt_in, args.pt_out)) > 1:
        raise InputError("--store, --import and --export are three different things to do; give one of them")
    if args.pt_out is not None:
        print(export_weights(settings, args.out, args.pt_out))
    elif (args.any_store is None and args.pt_in is None) != (args.out is None):
        raise InputError("--store DIR and --import FILE.pt go together with --out DIR")
    elif args.pt_in is not None:
        print(import_weights(args.pt_in, args.out))
    else:
        # Who names a GPU here wants that one and nothing else.
        named = settings.regress.device == "auto" and args.gpu not in (None, "cpu")
        how = dataclasses.replace(settings.regress, device="gpu") if named else settings.regress
        if args.any_store is None:
            print(regress(dataclasses.replace(settings, regress=how), args.gpu))
        else:
            print(regress_store(args.any_store, args.out, how, args.gpu))


run_command(main)
