"""Command: weights from the models of a run, as `python -m datamodels.regress -C digits`."""

import dataclasses
import sys
from contextlib import nullcontext
from pathlib import Path

from datamodels.cluster import Cluster
from datamodels.errors import InputError, run_command
from datamodels.processes import ALL, CPU
from datamodels.regress.run import export_weights, import_weights, regress, regress_store
from datamodels.regress.scales import BY_STORE, RAW
from datamodels.runs import stage_folder
from datamodels.settings import RAY, argument_parser, engine_arguments, gpu_of, parse


def main() -> None:
    """Regress margins on masks, unless that is done; or exchange weights with a .pt file."""
    parser = argument_parser("regress")
    # Other names within: fastargs has a section `store`, and `import` is Python's.
    parser.add_argument(
        "--store",
        dest="any_store",
        type=Path,
        metavar="DIR",
        help="a store of any origin, not the run's; with --import: its models are compared",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the weights go, or are, instead of the run's folder")
    parser.add_argument("--import", dest="pt_in", type=Path, metavar="FILE.pt", help="make --out of a published .pt file")
    parser.add_argument(
        "--export", dest="pt_out", type=Path, metavar="FILE.pt", help="write the weights of --out, or the run's"
    )
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--raw", dest="masks", action="store_const", const=RAW, help="--import: weights for masks of 0 and 1")
    of_masks = (
        "--import: weights for standardised masks, with a share ALPHA of images in each; MASKS.npy (M, N): these; neither: "
    )
    of_masks += "those of --store. They are converted to weights for masks of 0 and 1"
    scale.add_argument("--standardised", dest="masks", nargs="?", const=BY_STORE, metavar="ALPHA|MASKS.npy", help=of_masks)
    of_devices = "the GPU to compute on, or cpu (default: the first one that CuPy finds); several with commas between, or all"
    engine_arguments(parser, of_devices, "N[,N…]")
    settings, args = parse(sys.argv[1:], parser)
    gpu = gpu_of(args)
    if args.pt_out is not None and (args.any_store is not None or args.pt_in is not None):
        raise InputError("--export is not done together with --import or --store; give one of them")
    if args.masks is not None and args.pt_in is None:
        raise InputError("--raw and --standardised say for which masks the weights of --import FILE.pt are")
    if args.pt_out is not None:
        print(export_weights(settings, args.out, args.pt_out))
    elif (args.any_store is None and args.pt_in is None) != (args.out is None):
        store, out = args.any_store or stage_folder(settings, "store"), args.out or "DIR"
        like = f"--import FILE.pt --out {out}" if args.pt_in is not None else f"--store {store} --out {out}"
        raise InputError(f"--store DIR and --import FILE.pt go together with --out DIR, as {like}")
    elif args.pt_in is not None:
        print(import_weights(args.pt_in, args.out, args.masks, args.any_store))
    else:
        # Who names GPUs here wants these and nothing else.
        named = settings.regress.device == "auto" and gpu is not None and not {CPU, ALL} & {*gpu.split(",")}
        how = dataclasses.replace(settings.regress, device="gpu") if named else settings.regress
        with Cluster(settings.ray) if args.engine == RAY else nullcontext() as cluster:
            if args.any_store is None:
                print(regress(dataclasses.replace(settings, regress=how), gpu, cluster))
            else:
                print(regress_store(args.any_store, args.out, how, gpu, cluster))


run_command(main)
