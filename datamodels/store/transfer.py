"""Into and out of the layout in which datamodel data is published: masks [M × N] bool, margins [M × T] float16."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datamodels.durable import InPlace, is_there, new_folder, only_maker, write_json
from datamodels.errors import InputError, shown
from datamodels.progress import progress
from datamodels.reading import open_npy
from datamodels.store.check import chunks
from datamodels.store.layout import MARGIN_TYPES, Array, ArraySpec, Meta, create_in, lay_out
from datamodels.store.reader import Store
from datamodels.store.writer import Rows, Writer, write_rows


def import_arrays(masks_file: Path, margins_file: Path, folder: Path) -> None:
    """A store made of two .npy files, row i of each being model i: masks bool (M, N), margins float16 or float32 (M, T).

    Whole or not at all, in bounded memory. A model whose margins are not finite is recorded as given up. Raises InputError when
    the files are not such arrays, or something stands where the store should be.
    """
    masks, margins = _open(masks_file), _open(margins_file)
    if masks.dtype not in (np.bool_, np.uint8):
        raise InputError(f"{masks_file} holds {masks.dtype}, and masks must be bool, or uint8 of 0 and 1")
    if margins.dtype.name not in MARGIN_TYPES:
        raise InputError(f"{margins_file} holds {margins.dtype}, and margins must be {' or '.join(MARGIN_TYPES)}")
    if len(masks) != len(margins):
        raise InputError(f"{masks_file} has {len(masks)} rows and {margins_file} {len(margins)}")
    if is_there(folder):
        raise InputError(f"{folder} exists already; a store is never created over something")
    provenance = {"imported": {"masks": shown(masks_file.name), "margins": shown(margins_file.name)}}
    specs = {"margins": ArraySpec(margins.dtype.name, margins.shape[1:])}
    with only_maker(folder) as mine, new_folder(folder) as temporary:
        _refuse_others(mine, folder)
        create_in(temporary, Meta(len(masks), masks.shape[1], margins.shape[1], specs, provenance))
        with Writer(temporary) as writer, progress("import", "rows", len(masks)) as advance:
            for ids in chunks(Store(temporary)):
                _import_rows(writer, ids, np.asarray(masks[ids]), np.asarray(margins[ids]), masks_file)
                advance(len(ids))


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


def _import_rows(writer: Writer, ids: Array, masks: Array, margins: Array, masks_file: Path) -> None:
    if masks.dtype == np.uint8 and masks.max() > 1:
        raise InputError(f"{masks_file} holds {masks.max()}, and masks of uint8 must be 0 and 1")
    finite = np.isfinite(margins).all(1)
    rows = Rows.of(writer.meta, ids[finite], masks[finite].astype(bool), {"margins": margins[finite]})
    writer.append(rows)
    writer.give_up(dict.fromkeys(ids[~finite].tolist(), "imported with margins that are not finite"))
