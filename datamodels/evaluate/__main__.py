"""Command: LDS of scores beside the run's weights, as `python -m datamodels.evaluate -C digits --scores a.npy`."""

import sys
from pathlib import Path

import numpy as np

from datamodels.durable import is_there, write_json
from datamodels.errors import InputError, run_command, shown
from datamodels.evaluate.run import evaluate_run, evaluate_store
from datamodels.reading import whole_number
from datamodels.settings import argument_parser, parse
from datamodels.subsets import IndexArray
from datamodels.worker import engine_of

MOST = 2**27
"""Models of a store that can be named, a gigabyte of numbers."""


def main() -> None:
    """Judge scores by models that nothing was fitted on."""
    parser = argument_parser("evaluate")
    of_scores = (
        "files of scores (N, T), larger where an image helps a target more: .npy, TRAK's .mmap, dattri's .pt, or .npz of "
    )
    of_scores += "scores and targets"
    parser.add_argument("--scores", nargs="+", default=[], metavar="[NAME=]FILE", help=of_scores)
    parser.add_argument("--store", dest="any_store", type=Path, metavar="DIR", help="a store of any origin, not the run's")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="with --store: a folder of weights, beside the scores")
    parser.add_argument("--models", metavar="A:B", help="with --store: judge by models A to B-1 only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, each target's among them, as JSON too")
    settings, args = parse(sys.argv[1:], parser)
    _refuse_unwritable(args.json)
    if args.any_store is None:
        if args.weights is not None or args.models is not None:
            raise InputError("--weights and --models go together with --store; a run has its own")
        with engine_of(settings, None) as engine:
            found = evaluate_run(settings, engine.learner, args.scores)
    elif not args.scores and args.weights is None:
        raise InputError("with --store, give --scores FILE, --weights DIR, or both")
    else:
        found = evaluate_store(args.scores, args.any_store, args.weights, _models(args.models))
    print("\n\n".join(evaluation.table() for evaluation in found))
    if args.json is not None:
        write_json(args.json, [evaluation.to_json() for evaluation in found])


def _refuse_unwritable(file: Path | None) -> None:
    """Raise InputError where a new file cannot be: nothing that is there is written over, and nothing is reckoned in vain."""
    if file is None:
        return
    if is_there(file):
        raise InputError(f"--json {file} is there already; give another name, or remove it")
    if not file.parent.is_dir():
        raise InputError(f"--json {file}: there is no folder {file.parent}")


def _models(text: str | None) -> IndexArray | None:
    if text is None:
        return None
    first, colon, last = text.partition(":")
    start, stop = whole_number(first), whole_number(last)
    if not colon or start is None or stop is None or start >= stop or stop > MOST:
        raise InputError(f"--models takes two numbers, as 320:400, not {shown(text, 80)!r}")
    return np.arange(start, stop)


run_command(main)
