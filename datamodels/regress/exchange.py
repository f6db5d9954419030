"""Datamodels as the `.pt` files that were published with Ilyas et al., 2022, and back.

Such a file is a dictionary of tensors: `weight` (N, T), `bias` (T,), `lam` (T,)
(https://github.com/MadryLab/datamodels-data). It does not say for which masks they are (see `scales`); ours have two more
tensors that do, `mean` (N,) and `std` (N,): the weights are for (mask − mean)/std. PyTorch writes and reads it, and is loaded
for nothing else here.
"""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from datamodels import __version__
from datamodels.durable import new_file
from datamodels.errors import InputError, shown
from datamodels.progress import say
from datamodels.reading import read_pt, tensor_array
from datamodels.regress.results import FORMAT_VERSION, Datamodels, sparse_bytes, write
from datamodels.regress.scales import BY_STORE, RAW, Scale, scale_named, tried
from datamodels.store import Store
from datamodels.subsets import Array

NAMES, OF_MASKS = ("weight", "bias", "lam"), ("mean", "std")
BLOCK_ITEMS = 2**20


def export_pt(models: Datamodels, file: Path) -> None:
    """Write datamodels as a `.pt` file: the tensors in float32, as the published ones; the weights are for masks of 0 and 1."""
    import torch

    arrays = dict(zip(NAMES, (models.weights, models.bias, models.lam), strict=True))
    arrays |= dict(zip(OF_MASKS, (np.zeros(len(models.weights)), np.ones(len(models.weights))), strict=True))
    tensors = {name: torch.from_numpy(np.array(array, np.float32)) for name, array in arrays.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with new_file(file) as temporary, temporary.open("wb") as opened:
        try:
            torch.save(tensors, opened)
        except RuntimeError as e:  # what PyTorch makes of a disk that is full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from e


def import_pt(file: Path, folder: Path, masks: str | None = None, store: Store | None = None) -> str:
    """Make a folder of datamodels of a `.pt` file; what was made of it, in words.

    It names no store, and has no held-out models and no metrics. `masks` says for which its weights are, where the file does
    not: 'raw', for standardised ones a share α or an .npy file of the masks, or 'store' for ones standardised as those of the
    store. With a store the weights are compared with its models, and a word of warning is said where they do not fit. Raises
    InputError, and writes nothing, when the file cannot be read, its tensors are not of the shapes above, or not finite, nobody
    says for which masks they are, or the store's models say that they are for the other ones.
    """
    content = read_pt(file)
    weight, bias, lam = _checked(file, content)
    scale = _scale(file, content, (weight, bias), masks, store)
    raw, intercept = scale.to_raw(weight, bias)
    said = "" if store is None else _judged(store, scale, (weight, bias), (raw, intercept))
    t = len(bias)
    about = {"format_version": FORMAT_VERSION, "version": __version__, "imported_from": shown(file.name), "targets": [0, t]}
    meta = {**about, "weights_were_for": scale.name, "store_digest": None, "models": None, "regress": {}}
    write(folder, _smaller(raw), intercept, lam.astype(np.float64), np.zeros(0, np.int64), {}, meta)
    constant = f"; {scale.constant} images never vary in these, and have weight 0" if scale.constant else ""
    return f"weights of {len(raw)} images for {t} targets, given for {scale.name}{constant}{said}"


def _scale(file: Path, content: Any, given: tuple[Array, Array], masks: str | None, store: Store | None) -> Scale:
    """For which masks the file's weights are: by its own word, or by the option."""
    n, own = len(given[0]), [name for name in OF_MASKS if name in content]
    if own:
        mean, deviation = _mean_and_deviation(file, content, n)
        if masks is not None:
            raise InputError(f"{file} says itself for which masks its weights are; leave --raw and --standardised out")
        if not mean.any() and (deviation == 1).all():
            return scale_named(RAW, n, store)
        return Scale(mean, deviation, "masks standardised by its own mean and std")
    if masks is not None:
        return scale_named(masks, n, store)
    asked = (
        f"{file} does not say for which masks its weights are: give --standardised 0.5, with the share of images in each mask, "
    )
    asked += "for a file of the published solver, or --raw for weights of masks of 0 and 1"
    if store is not None:
        asked += f"; beside the models of {store.folder}: read as raw {tried(store, *given)}; as standardised "
        asked += str(tried(store, *scale_named(BY_STORE, n, store).to_raw(*given)))
    raise InputError(asked)


def _mean_and_deviation(file: Path, content: Any, n: int) -> tuple[Array, Array]:
    import torch

    found = [content.get(name) for name in OF_MASKS]
    if not all(isinstance(tensor, torch.Tensor) and tensor.shape == (n,) for tensor in found):
        raise InputError(f"{file} must hold both mean and std of the masks, tensors ({n},) each, or neither")
    mean, deviation = (tensor.to(torch.float64).numpy() for tensor in found)
    if not (np.isfinite(mean).all() and np.isfinite(deviation).all() and (deviation >= 0).all()):
        raise InputError(f"{file} has a mean or std of the masks that is not finite, or below 0")
    return mean, deviation


def _judged(store: Store, scale: Scale, given: tuple[Array, Array], raw: tuple[Array, Array]) -> str:
    """What the models say to the weights, in words.

    Where these do not fit, a warning; or InputError, where they would fit better if read the other way.
    """
    found = tried(store, *raw)
    beside = f"beside {found.models} models of {store.folder}: {found}"
    if found.fits:
        return f"; {beside}"
    if scale.raw:
        what, other = "--standardised", tried(store, *scale_named(BY_STORE, len(given[0]), store).to_raw(*given))
    else:
        what, other = "--raw", tried(store, *given)
    unfit = f"{beside}: they do not fit, which takes a slope near 1 and no offset"
    if other.error < found.error:
        told = f"the weights, read as for {scale.name}, are contradicted {unfit}; with {what} it would be {other}"
        raise InputError(f"{told}. Nothing is written; without --store they are taken at the word that is given")
    say(f"warning: the weights {unfit}; they may be of other models, or fitted with a strong penalty")
    return f"; {beside}: they do not fit"


def _checked(file: Path, content: Any) -> list[Array]:
    import torch

    if not isinstance(content, dict) or not all(isinstance(content.get(name), torch.Tensor) for name in NAMES):
        raise InputError(f"{file} must hold a dictionary of three tensors: {', '.join(NAMES)}")
    arrays = [tensor_array(file, name, content[name]) for name in NAMES]
    shapes = [array.shape for array in arrays]
    if len(shapes[0]) != 2 or 0 in shapes[0] or any(shape != shapes[0][1:] for shape in shapes[1:]):
        found = ", ".join(f"{name} {shape}" for name, shape in zip(NAMES, shapes, strict=True))
        raise InputError(f"{file} must hold weight (N, T), bias (T,) and lam (T,), not {found}")
    return arrays


def _blocks(array: Array) -> list[slice]:
    """Rows of an array, so many at a time that what is reckoned of them stays small."""
    size = max(1, BLOCK_ITEMS // max(1, math.prod(array.shape[1:])))
    return [slice(first, first + size) for first in range(0, len(array), size)]


def _smaller(weight: Array) -> Array | csr_matrix:
    """Weights (N, T) as a sparse matrix where that is smaller, made block by block; else as they are, and not copied."""
    n, t = weight.shape
    counts = np.concatenate([np.count_nonzero(weight[rows], axis=1) for rows in _blocks(weight)])
    starts = np.concatenate([[0], np.cumsum(counts)])
    index = np.int32 if max(starts[-1], t) < 2**31 else np.int64
    if sparse_bytes(n, int(starts[-1]), index) >= weight.nbytes:
        return weight
    values, columns = np.empty(starts[-1], np.float32), np.empty(starts[-1], index)
    for rows in _blocks(weight):
        block = weight[rows]
        there, part = np.nonzero(block), slice(starts[rows.start], starts[min(rows.stop, n)])
        values[part], columns[part] = block[there], there[1]
    return csr_matrix((values, columns, starts.astype(index)), shape=(n, t))
