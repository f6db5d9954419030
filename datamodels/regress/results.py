"""The folder that a regression leaves, and reading it back.

weights.npz   (N, T) float32   weights for raw 0/1 masks, margin per image: a SciPy sparse matrix (CSR), or
weights.npy   (N, T) float32   the same as an array, where that is smaller
bias.npy      (T,) float32     g(S') = 1_S'·w + b
lam.npy       (T,) float64     the λ chosen for each target
heldout.npy   ids of the models that were used for neither fit nor choice
metrics.json  LDS, R², MSE on the held-out models and non-zeros, mean and for each target; seconds of each part
meta.json     the store's digest, the settings, the version of this program; and under `files` the SHA-256 of each file above,
              under `sha256` that of meta.json itself, as in the store's (store/FORMAT.md)

Nothing of it is used unless every checksum fits, and the arrays fit each other.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, save_npz

from datamodels import __version__
from datamodels.durable import new_folder, save_array, write_json
from datamodels.errors import InputError
from datamodels.machine import free_host_memory, megabytes
from datamodels.reading import Each, Unreadable, open_npy, path_of, read_json, read_npy, read_npz, require
from datamodels.regress.path import Fit
from datamodels.regress.source import targets_named
from datamodels.seals import read_sealed_folder, seal_folder
from datamodels.settings import RegressSettings
from datamodels.store import Store
from datamodels.subsets import Array, BoolArray, IndexArray

FORMAT_VERSION = 3
SPARSE, DENSE = "weights.npz", "weights.npy"
FILES = {"bias.npy", "lam.npy", "heldout.npy", "metrics.json", "meta.json"}
"""What the folder holds beside the weights."""
META = {"store_digest": (str, None), "targets": [int], "regress": dict}
METRICS = {"mean": {"lds": float, "nonzeros": float}, "per_target": Each([float]), "models_heldout": int}


class Means(TypedDict):
    """Means over targets, on held-out models."""

    lds: float
    r2: float
    mse: float
    nonzeros: float


class Metrics(TypedDict, total=False):
    """What metrics.json tells; imported weights have none of it."""

    models_fit: int
    models_choice: int
    models_heldout: int
    solved_by: dict[str, Any]
    seconds: dict[str, float]
    mean: Means
    per_target: dict[str, list[float]]


class About(TypedDict, total=False):
    """What meta.json tells of weights: from which store, of which targets, under which settings."""

    format_version: int
    version: str
    store_digest: str | None
    models: int | None
    targets: list[int]
    regress: dict[str, Any]
    prior_digest: str
    behaviour: list[int]
    weights_were_for: str
    imported_from: str


@dataclass(frozen=True, repr=False)
class Datamodels:
    """Linear datamodels: `weights` (N, T), `bias` (T,), `lam` (T,), and what they were made from.

    `targets` are the store's targets that the T columns belong to: all of them, unless `regress.targets` named some. `folder`
    is where they were read from, None where they were not.
    """

    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    lam: npt.NDArray[np.float64]
    heldout: IndexArray
    metrics: Metrics
    meta: About
    folder: Path | None = None

    @classmethod
    def load(cls, folder: Path | str) -> Datamodels:
        """Read what a regression left. Raises InputError when the folder holds nothing of the kind."""
        path = path_of(folder)
        meta = read_about(path)
        require(meta, META, path / "meta.json")
        metrics = read_json(path / "metrics.json")
        require(metrics, dict, path / "metrics.json")
        if metrics:  # imported weights have none
            require(metrics, METRICS, path / "metrics.json")
        bias = _read(path, "bias", np.float32, None)
        lam, heldout = _read(path, "lam", np.float64, len(bias)), _read(path, "heldout", np.int64, None)
        first, last = meta["targets"] if len(meta["targets"]) == 2 else (0, 0)
        if not 0 <= first < last == first + len(bias):
            raise InputError(f"{path / 'meta.json'} is damaged: its targets are not those of {len(bias)} weights")
        weights = (
            _read_sparse(path / SPARSE, len(bias)) if (path / SPARSE).exists() else open_npy(path / DENSE, (None, len(bias)))
        )
        if weights.dtype != np.float32 or not len(weights) or not all(_finite(part) for part in (weights, bias, lam)):
            raise InputError(f"{path} is damaged: weights, biases and λ must be finite, the weights float32")
        return cls(weights, bias, lam, heldout, metrics, meta, path)

    def __repr__(self) -> str:
        first, last = self.targets.start, self.targets.stop
        models = self.meta.get("models")
        known = f", from {models} models" * (models is not None)
        known += f", LDS {self.metrics['mean']['lds']:.3f}" if "mean" in self.metrics else ""
        where = "" if self.folder is None else f", in {self.folder}"
        return f"<Datamodels: N = {len(self.weights)} images, targets {first} to {last - 1}{known}{where}>"

    @property
    def targets(self) -> range:
        """The targets, as the store counts them."""
        return range(*self.meta["targets"])

    def of(self, target: int) -> tuple[npt.NDArray[np.float32], float]:
        """Weights (N,) and bias of one target, as the store counts. Raises InputError for one that is not among them."""
        if isinstance(target, bool) or not isinstance(target, (int, np.integer)):
            raise InputError(f"a target is a whole number, not {target!r}")
        if target not in self.targets:
            raise InputError(f"the weights are of targets {self.targets.start}:{self.targets.stop}, {target} is not among them")
        column = target - self.targets.start
        return np.asarray(self.weights[:, column]), float(self.bias[column])

    def refuse_other(self, store: Store) -> None:
        """Raise InputError where these are not datamodels of a store's images, targets and models."""
        meta, (n, t) = store.meta, (len(self.weights), self.targets.stop)
        if n != meta.num_train or t > meta.num_targets:
            have = f"{meta.num_train} images and {meta.num_targets} targets"
            raise InputError(f"the weights are of {n} images and targets up to {t}; {store.folder} has {have}")
        if not np.isin(self.heldout, store.done).all():
            raise InputError(f"the weights tell of held-out models that {store.folder} does not have")

    def predict(self, masks: BoolArray) -> npt.NDArray[np.float32]:
        """Margins (m, T) of models trained on `masks`, bool (m, N).

        Raises InputError for masks of other shape, or of other numbers than 0 and 1.
        """
        masks, n = np.asarray(masks), len(self.weights)
        if masks.ndim != 2 or masks.shape[1] != n:
            raise InputError(f"masks are bool (m, {n}), a row for each model, not of shape {masks.shape}")
        if masks.dtype != np.bool_ and not (masks.dtype.kind in "iuf" and np.isin(masks, (0, 1)).all()):
            raise InputError(f"masks say of each image whether a model saw it, True or False, not {masks.dtype}")
        return masks.astype(np.float32) @ self.weights + self.bias


def save(folder: Path, fit: Fit, meta: About) -> None:
    """Write what a regression found; see `write`."""
    write(folder, fit.columns, fit.bias, fit.lam, fit.parts.heldout, _metrics(fit), meta)


def write(folder: Path, weights: Any, bias: Array, lam: Array, heldout: IndexArray, metrics: Any, meta: Any) -> None:
    """Write the folder, whole or not at all; one that stands there is replaced. The weights (N, T) are sparse, or an array.

    Raises InputError, and replaces nothing, where a number is not finite, as weights beyond float32 are.
    """
    numbers = {"weights": weights if isinstance(weights, np.ndarray) else weights.data, "biases": bias, "λ": lam}
    for name, array in numbers.items():
        if not _finite(array):
            raise InputError(f"{name} are beyond the numbers that can be kept; nothing is written to {folder}")
    with new_folder(folder, replace=True) as temporary:
        if isinstance(weights, np.ndarray):
            save_array(temporary / DENSE, weights)
        else:
            _save_sparse(temporary, csr_matrix(weights))
        for name, array in {"bias": bias, "lam": lam, "heldout": heldout}.items():
            save_array(temporary / f"{name}.npy", array)
        write_json(temporary / "metrics.json", metrics)
        seal_folder(temporary, meta)


def sparse_bytes(n: int, nonzeros: int, index: Any) -> int:
    """Bytes of a sparse matrix (CSR) of n rows, float32, with such indices."""
    return nonzeros * 4 + (nonzeros + n + 1) * int(np.dtype(index).itemsize)


def _save_sparse(folder: Path, rows: csr_matrix) -> None:
    n, t = rows.shape
    if sparse_bytes(n, rows.nnz, rows.indices.dtype) < 4 * n * t:
        save_npz(folder / SPARSE, rows, compressed=False)
    else:
        save_array(folder / DENSE, rows.toarray())


def read_about(folder: Path) -> About:
    """The meta.json of a folder of datamodels, without its checksums, once all of them fit.

    Raises InputError when there are no datamodels, those of another format version, or damaged ones.
    """
    file = folder / "meta.json"
    try:
        content = read_json(file)
        require(content, {"format_version": int}, file)
    except Unreadable as e:
        why = f": {e}" if not e.missing else ""
        raise InputError(
            f"there are no datamodels in {folder}{why}; run python -m datamodels.regress with the same config"
        ) from e
    if content["format_version"] != FORMAT_VERSION:
        version = content["format_version"]
        raise InputError(f"{folder} has format version {version}, this program reads version {FORMAT_VERSION}")
    weights = SPARSE if (folder / SPARSE).exists() else DENSE
    return cast("About", read_sealed_folder(folder, {*FILES, weights} - {"meta.json"}))


def _read(folder: Path, name: str, dtype: npt.DTypeLike, size: int | None) -> Array:
    return read_npy(folder / f"{name}.npy", dtype, (size,))


def _read_sparse(file: Path, t: int) -> npt.NDArray[np.float32]:
    """A CSR matrix (N, T) as SciPy saves it, as an array. SciPy believes its indices; they are checked here before.

    Raises InputError when they are not those of such a matrix, or the array has no room in memory.
    """
    parts = read_npz(file, ("data", "format", "indices", "indptr", "shape"))
    data, indices, starts, shape = (parts[name] for name in ("data", "indices", "indptr", "shape"))
    n = len(starts) - 1 if starts.ndim == 1 else 0
    whole = indices.dtype.kind == starts.dtype.kind == shape.dtype.kind == "i" and parts["format"].tolist() == b"csr"
    fits = whole and n > 0 and shape.tolist() == [n, t] and indices.shape == data.shape == (data.size,)
    if not fits or starts[0] != 0 or starts[-1] != len(data) or (starts[1:] < starts[:-1]).any():
        raise Unreadable(file, f"is no sparse matrix (N, {t}) in rows (CSR)")
    # Within a row columns ascend, so that none comes twice.
    ascends = indices[1:] > indices[:-1]
    ascends[starts[(starts > 0) & (starts < len(data))] - 1] = True
    if len(data) and (indices.min() < 0 or indices.max() >= t or not ascends.all()):
        raise Unreadable(file, f"has columns that are not among 0 to {t - 1}, or not in order")
    if 4 * n * t > free_host_memory():
        raise InputError(f"{file} holds {n} × {t} weights, which take {megabytes(4 * n * t)}, more than is free")
    weights: npt.NDArray[np.float32] = csr_matrix((data, indices, starts), (n, t)).toarray()
    return weights


def _finite(array: Array) -> bool:
    """Whether all numbers are finite; a part at a time, since the array may be a large memory map."""
    step = max(1, 2**22 // max(1, array[:1].size))
    return all(bool(np.isfinite(array[first : first + step]).all()) for first in range(0, len(array), step))


def provenance(store: Store, settings: RegressSettings) -> About:
    """What decides a regression's result; equal before and after means that there is nothing to do again."""
    deciding = {key: value for key, value in dataclasses.asdict(settings).items() if key not in ("device", "block")}
    first, last = targets_named(store, settings.targets)
    return {
        "format_version": FORMAT_VERSION,
        "version": __version__,
        "store_digest": store.digest(),
        "models": len(store.done),
        "targets": [first, last],
        "regress": deciding,
    }


def _metrics(fit: Fit) -> Metrics:
    parts = fit.parts
    means = {name: float(values.mean()) for name, values in fit.metrics.items()}
    return {
        "models_fit": len(parts.fit),
        "models_choice": len(parts.choice),
        "models_heldout": len(parts.heldout),
        "solved_by": fit.solver,
        "seconds": {part: round(seconds, 3) for part, seconds in fit.seconds.items()},
        "mean": cast("Means", means),
        "per_target": {name: values.tolist() for name, values in fit.metrics.items()},
    }
