"""Command: retrain and judge, as `python -m datamodels.verify -C digits --targets file.txt`."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from datamodels.errors import InputError, run_command, shown
from datamodels.estimates import Forecast
from datamodels.regress import Datamodels
from datamodels.runs import read_store, stage_folder
from datamodels.settings import Settings, argument_parser, engine_arguments, gpu_of, parse, yes_argument
from datamodels.verify import WORDS, recheck, targets_named, verify_targets
from datamodels.verify.certificate import Refused, is_certificate
from datamodels.verify.certificate_checking import check
from datamodels.verify.certificate_making import MOST_PUT_BACK, Wanted, certify, told
from datamodels.verify.known import Examples
from datamodels.verify.methods import DATAMODEL
from datamodels.worker import Local, engine_of, prepared

if TYPE_CHECKING:
    from datamodels.worker.on_ray import OnRay

OF_A_CERTIFICATE = ("method", "out", "putback", "with_data")
"""What goes with --certify."""


def main() -> None:
    """Check everything that can be checked at once, then verify."""
    parser = argument_parser("verify")
    parser.add_argument("--targets", metavar="WHICH", help=WORDS)
    again = (
        "retrain what a verify.json calls flipped, with models that no search has seen; or check a certificate, its folder or "
    )
    again += "file, by retraining: of the run it needs config and data only"
    parser.add_argument("--recheck", type=Path, metavar="FILE", help=again)
    made = "make a folder that proves what verify.json says of this target to others"
    parser.add_argument("--certify", metavar="TARGET", help=made)
    own = parser.add_argument_group("with --certify")
    own.add_argument("--method", help=f"whose answer (default: {DATAMODEL})")
    own.add_argument("--out", type=Path, metavar="FOLDER", help="the folder (default: certificates/TARGET-METHOD in the run)")
    few = f"put back at most so many images of R, each by itself (default: {MOST_PUT_BACK}; of more a sample; 0: none)"
    own.add_argument("--putback", type=int, metavar="N", help=few)
    own.add_argument("--with-data", action="store_true", default=None, help="put the images into the folder as well")
    engine_arguments(parser, "number of the GPU, cpu, several with commas between, or all (default: what is there)")
    yes_argument(parser)
    settings, args = parse(sys.argv[1:], parser)
    gpu = gpu_of(args)
    _refuse_other_than_one(args)
    try:
        _do(settings, args, gpu)
    except Refused as e:
        print(f"{'not certified' if args.certify else 'refused'}: {shown(str(e))}")
        sys.exit(1)


def _refuse_other_than_one(args: argparse.Namespace) -> None:
    if sum(given is not None for given in (args.targets, args.recheck, args.certify)) != 1:
        raise InputError(f"give one: --targets WHICH ({WORDS}), --recheck FILE, or --certify TARGET")
    given = next((name for name in OF_A_CERTIFICATE if getattr(args, name) is not None), None)
    if given is not None and args.certify is None:
        raise InputError(f"--{given.replace('_', '-')} goes with --certify")


def _do(settings: Settings, args: argparse.Namespace, gpu: str | None) -> None:
    if args.recheck is not None and is_certificate(args.recheck):
        print(check(settings, functools.partial(_engine_within, settings, args, gpu), args.recheck))
        return
    models = Datamodels.load(stage_folder(settings, "regress")) if args.certify is None else None
    read_store(settings)
    with engine_of(settings, gpu, engine=args.engine) as engine:
        if args.certify is not None:
            put_back = MOST_PUT_BACK if args.putback is None else args.putback
            wanted = Wanted(
                args.certify, DATAMODEL if args.method is None else args.method, args.out, put_back, bool(args.with_data)
            )
            print(told(*certify(settings, engine, wanted)))
        elif models is not None and args.targets is not None:
            targets = targets_named(args.targets, Examples(engine.learner), settings.verify.seed)
            forecast = Forecast(settings, engine, args.yes)
            print(verify_targets(settings, engine, models, targets, forecast.before_verification))
        else:
            print(recheck(settings, engine, args.recheck))


def _engine_within(settings: Settings, args: argparse.Namespace, gpu: str | None, within: Settings) -> Local | OnRay:
    """Who trains under the settings of a check, which has the run's data, made if need be."""
    return engine_of(within, gpu, prepared(settings), args.engine)


run_command(main)
