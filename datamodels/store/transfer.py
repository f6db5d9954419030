"""Into and out of the layout in which datamodel data is published: masks [M × N] bool, margins [M × T] float16."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datamodels.durable import InPlace, is_there, new_folder, only_maker, write_json
from datamodels.errors import InputError, shown
from datamodels.progress import progress, say
from datamodels.reading import open_npy
from datamodels.store.check import chunks
from datamodels.store.incoming import Scan, known_rows
from datamodels.store.layout import ArraySpec, Meta, create_in, lay_out
from datamodels.store.precision import FEWEST, LOOKED_AT, coarse_margins, refuse_lost
from datamodels.store.reader import Store
from datamodels.store.writer import Rows, Writer, write_rows
from datamodels.subsets import Array, BoolArray, IndexArray

MARGIN_TYPES = {"float16": "float16", "float32": "float32", "float64": "float32"}
"""What margins come in, and what they are kept in."""
NOT_FINITE = "imported with margins that are not finite"
GIVEN_UP = "their margins are not finite"


def import_arrays(masks_file: Path, margins_file: Path, folder: Path, done: str | None = None) -> dict[str, IndexArray]:
    """A store made of two .npy files, row i of each being model i: masks (M, N) of 0 and 1, margins (M, T) of floating point.

    Whole or not at all, in bounded memory. `done` says which rows are models: an .npy file (M,), or 'all'; without, it is
    `_completed.npy` beside the files, or else what the rows themselves say, see `incoming`. A row that is no model stays
    missing, and one whose margins are not finite is recorded as given up: returns both, by why. Margins that float32 keeps
    coarsely are told. Raises InputError when the files are not such arrays, nobody can tell which rows are models, their
    margins are lost in float32, or something stands where the store should be.
    """
    masks, margins = _open(masks_file), _open(margins_file)
    if masks.dtype.kind not in "biuf":
        raise InputError(f"{masks_file} holds {masks.dtype}, and masks must be bool, or numbers 0 and 1")
    if margins.dtype.name not in MARGIN_TYPES:
        raise InputError(f"{margins_file} holds {margins.dtype}, and margins must be {', '.join(MARGIN_TYPES)}")
    if len(masks) != len(margins):
        turned = "; are the masks transposed?" if masks.shape[1] == len(margins) else ""
        raise InputError(f"{masks_file} has {len(masks)} rows and {margins_file} {len(margins)}{turned}")
    if is_there(folder):
        raise InputError(f"{folder} exists already; a store is never created over something")
    known = known_rows(done, masks_file, margins_file, len(masks))
    specs = {"margins": ArraySpec(MARGIN_TYPES[margins.dtype.name], margins.shape[1:])}
    provenance = {"imported": {"masks": shown(masks_file.name), "margins": shown(margins_file.name), "done": known.by}}
    with only_maker(folder) as mine, new_folder(folder) as temporary:
        _refuse_others(mine, folder)
        create_in(temporary, Meta(len(masks), masks.shape[1], margins.shape[1], specs, provenance))
        scan, lots = Scan(known), list(chunks(Store(temporary)))
        with Writer(temporary) as writer, progress("import", "rows", 2 * len(masks)) as advance:
            for ids in lots:
                scan.add(ids, _zeros_and_ones(masks[ids], masks_file), np.asarray(margins[ids]))
                advance(len(ids))
            left_out = scan.unlike_models()
            models = np.setdiff1d(np.arange(len(masks)), np.concatenate([np.zeros(0, np.int64), *left_out.values()]))
            some = np.asarray(margins[models[:LOOKED_AT]]).astype(np.float64)
            some = some[np.isfinite(some).all(1)]
            refuse_lost(some, specs["margins"].dtype)
            for lot in lots:
                ids = np.intersect1d(lot, models)
                _import_rows(writer, ids, _zeros_and_ones(masks[ids], masks_file), np.asarray(margins[ids]))
                advance(len(lot))
    found = coarse_margins(some, specs["margins"].dtype) if len(some) >= FEWEST else None
    if found is not None:
        say(f"import: {found}")
    given_up = np.array(sorted(Store(folder).failures), np.int64)
    return {**left_out, **({GIVEN_UP: given_up} if len(given_up) else {})}


def export_arrays(folder: Path, out: Path) -> None:
    """Every finished model of a store as plain arrays in a new folder, whole or not at all, in bounded memory.

    masks.npy bool (m, N), ids.npy int64 (m,), meta.json with the provenance, and each of the store's arrays (m, …). Raises
    InputError when the store is none, or something stands where the folder should be.
    """
    store = Store(folder)
    if is_there(out):
        raise InputError(f"{out} exists already; nothing is written over it")
    specs = {"masks": ArraySpec("bool", (store.meta.num_train,)), "ids": ArraySpec("int64", ()), **store.meta.arrays}
    with only_maker(out) as mine, new_folder(out) as temporary, progress("export", "rows", len(store.done)) as advance:
        _refuse_others(mine, out)
        files = {name: InPlace(temporary / f"{name}.npy", new=True) for name in specs}
        try:
            for name, file in files.items():
                lay_out(file, specs[name], len(store.done))
            written = 0
            for chunk in chunks(store):
                ids = np.intersect1d(chunk, store.done)
                rows = {"masks": store.masks(ids), "ids": ids, **{name: store.array(name, ids) for name in store.meta.arrays}}
                for name, file in files.items():
                    write_rows(file, specs[name], np.arange(written, written + len(ids)), rows[name])
                written += len(ids)
                advance(len(ids))
        finally:
            for file in files.values():
                file.close()
        write_json(temporary / "meta.json", {"store_digest": store.digest(), "provenance": store.meta.provenance})


def _refuse_others(mine: bool, folder: Path) -> None:
    if not mine:
        raise InputError(f"another process is making {folder}")


def _open(file: Path) -> Array:
    array = open_npy(file)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"{file} has shape {array.shape}, and must have two dimensions, none of them empty")
    return array


def _zeros_and_ones(masks: Array, file: Path) -> BoolArray:
    found = masks.astype(bool)
    if masks.dtype != bool and not (masks == found).all():
        odd = masks[masks != found].ravel()[0]
        raise InputError(f"{file} holds {odd:g}, and masks that are not bool must be 0 and 1")
    return found


def _import_rows(writer: Writer, ids: IndexArray, masks: BoolArray, margins: Array) -> None:
    finite = np.isfinite(margins).all(1)
    writer.append(Rows.of(writer.meta, ids[finite], masks[finite], {"margins": margins[finite]}))
    writer.give_up(dict.fromkeys(ids[~finite].tolist(), NOT_FINITE))
