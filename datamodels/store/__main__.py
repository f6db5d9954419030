"""Command: look at stores, check and repair them, import and export, as `python -m datamodels.store info runs/digits/store`."""

import argparse
import json
import sys
from pathlib import Path

from datamodels.errors import run_command, shown
from datamodels.progress import say
from datamodels.settings import argument_parser
from datamodels.store.check import check, repair
from datamodels.store.incoming import in_words
from datamodels.store.reader import Store
from datamodels.store.transfer import GIVEN_UP, export_arrays, import_arrays


def main() -> None:
    """One of the tools."""
    parser = argument_parser("store")
    tools = parser.add_subparsers(dest="tool", required=True, metavar="info|check|import|export")
    info = tools.add_parser("info", help="what a store holds")
    checked = tools.add_parser("check", help="every row against its checksum, its mark and the seed; exit code 1 if any is bad")
    checked.add_argument("--repair", action="store_true", help="unmark bad rows, so that a worker trains them again")
    imported = tools.add_parser("import", help="a store from masks.npy (M, N) of 0 and 1 and margins.npy (M, T)")
    imported.add_argument("masks", type=Path, metavar="MASKS.npy")
    imported.add_argument("margins", type=Path, metavar="MARGINS.npy")
    known = "which rows are models: .npy (M,) of 1 and 0, or all (default: _completed.npy beside them, or the rows themselves)"
    imported.add_argument("--done", metavar="FILE.npy|all", help=known)
    exported = tools.add_parser("export", help="the finished rows of a store as such files")
    for tool in (info, checked, imported, exported):
        tool.add_argument("folder", type=Path, metavar="DIR", help="the store")
    exported.add_argument("out", type=Path, metavar="OUT_DIR")
    args = parser.parse_args()
    sys.exit(TOOLS[args.tool](args))


def _info(args: argparse.Namespace) -> int:
    store = Store(args.folder)
    meta, inbox = store.meta, len(list((store.folder / "inbox").glob("[0-9]*")))
    size = sum(file.stat().st_blocks * 512 for file in store.folder.glob("*.npy"))
    print(f"{store.folder}: {len(store.done)} of {meta.num_models} models done, {len(store.failures)} given up")
    print(f"N = {meta.num_train} training examples, T = {meta.num_targets} targets, {size / 1e6:.1f} MB on disk")
    for name, spec in meta.files.items():
        print(f"  {name}.npy: {spec.dtype} ({', '.join(map(str, (meta.num_models, *spec.shape)))})")
    if inbox:
        print(f"{inbox} files in the inbox, to be merged by the next worker")
    for i, why in sorted(store.failures.items()):
        print(f"model {i} was given up: {shown(why)}")
    print(f"digest {store.digest()}")
    print(
        "provenance", "\n".join(shown(line) for line in json.dumps(meta.provenance, indent=2, ensure_ascii=False).splitlines())
    )
    return 0


def _check(args: argparse.Namespace) -> int:
    faults = repair(args.folder) if args.repair else check(args.folder)
    for fault in faults:
        print(f"row {fault.row}: {fault.what}")
    if not faults:
        print(f"{args.folder}: all is well")
        return 0
    if args.repair:
        print(f"{args.folder}: {len(faults)} rows repaired; those that were bad are trained again by the next worker")
        return 0
    print(f"{args.folder}: {len(faults)} bad rows; --repair unmarks them, so that they are trained again")
    return 1


def _import(args: argparse.Namespace) -> int:
    left_out = import_arrays(args.masks, args.margins, args.folder, args.done)
    given_up = left_out.pop(GIVEN_UP, None)
    if left_out:
        say(f"import: rows that are no models, and not marked as done: {in_words(left_out)}")
    if given_up is not None:
        say(f"import: models that are given up: {in_words({GIVEN_UP: given_up})}")
    print(f"{args.folder}: {len(Store(args.folder).done)} models imported")
    return 0


def _export(args: argparse.Namespace) -> int:
    export_arrays(args.folder, args.out)
    print(f"{args.out}: {len(Store(args.folder).done)} models exported")
    return 0


TOOLS = {"info": _info, "check": _check, "import": _import, "export": _export}
run_command(main)
