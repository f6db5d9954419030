"""The folder that a regression leaves, and reading it back.

weights.npz   (N, T) float32   weights for raw 0/1 masks, margin per image: a SciPy sparse matrix (CSR), or
weights.npy   (N, T) float32   the same as an array, where that is smaller
bias.npy      (T,) float32     g(S') = 1_S'·w + b
lam.npy       (T,) float64     the λ chosen for each target
heldout.npy   ids of the models that were used for neither fit nor choice
metrics.json  LDS, R², MSE on the held-out models and non-zeros, mean and for each target; seconds of each part
meta.json     the store's digest, the settings, the version of this program
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, load_npz, save_npz

from datamodels import __version__
from datamodels.durable import new_folder, read_json, save_array, write_json
from datamodels.errors import InputError
from datamodels.regress.path import Fit
from datamodels.regress.source import targets_named
from datamodels.settings import RegressSettings
from datamodels.store import Store
from datamodels.store.layout import Array
from datamodels.subsets import BoolArray, IndexArray

FORMAT_VERSION = 2
SPARSE, DENSE = "weights.npz", "weights.npy"
FILES = {"bias.npy", "lam.npy", "heldout.npy", "metrics.json", "meta.json"}
"""What the folder holds beside the weights."""


@dataclass(frozen=True)
class Datamodels:
    """Linear datamodels: `weights` (N, T), `bias` (T,), `lam` (T,), and what they were made from.

    `targets` are the store's targets that the T columns belong to: all of them, unless `regress.targets` named some.
    """

    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    lam: npt.NDArray[np.float64]
    heldout: IndexArray
    metrics: dict[str, Any]
    meta: dict[str, Any]

    @classmethod
    def load(cls, folder: Path | str) -> Datamodels:
        """Read what a regression left. Raises InputError when the folder holds nothing of the kind."""
        path = Path(folder)
        try:
            meta, metrics = read_json(path / "meta.json"), read_json(path / "metrics.json")
            version = meta["format_version"]
            if version == FORMAT_VERSION:
                weights = _read_weights(path)
            bias, lam, heldout = (np.load(path / f"{name}.npy") for name in ("bias", "lam", "heldout"))
        except (OSError, ValueError, EOFError, KeyError, TypeError, BadZipFile) as e:
            raise InputError(f"there are no datamodels in {path}; run python -m datamodels.regress with the same config") from e
        if version != FORMAT_VERSION:
            raise InputError(f"{path} has format version {version}, this program reads version {FORMAT_VERSION}")
        return cls(weights, bias, lam, heldout, metrics, meta)

    @property
    def targets(self) -> range:
        """The targets, as the store counts them."""
        return range(*self.meta["targets"])

    def of(self, target: int) -> tuple[npt.NDArray[np.float32], float]:
        """Weights (N,) and bias of one target, as the store counts. Raises InputError for one that is not among them."""
        if target not in self.targets:
            raise InputError(f"the weights are of targets {self.targets.start}:{self.targets.stop}, {target} is not among them")
        column = target - self.targets.start
        return np.asarray(self.weights[:, column]), float(self.bias[column])

    def predict(self, masks: BoolArray) -> npt.NDArray[np.float32]:
        """Margins (m, T) of models trained on `masks`, bool (m, N)."""
        return masks.astype(np.float32) @ self.weights + self.bias


def save(folder: Path, fit: Fit, meta: dict[str, Any]) -> None:
    """Write what a regression found; see `write`."""
    write(folder, fit.columns, fit.bias, fit.lam, fit.parts.heldout, _metrics(fit), meta)


def write(folder: Path, weights: Any, bias: Array, lam: Array, heldout: IndexArray, metrics: Any, meta: Any) -> None:
    """Write the folder, whole or not at all; one that stands there is replaced. The weights (N, T) are sparse, or an array."""
    with new_folder(folder, replace=True) as temporary:
        if isinstance(weights, np.ndarray):
            save_array(temporary / DENSE, weights)
        else:
            _save_sparse(temporary, csr_matrix(weights))
        for name, array in {"bias": bias, "lam": lam, "heldout": heldout}.items():
            save_array(temporary / f"{name}.npy", array)
        write_json(temporary / "metrics.json", metrics)
        write_json(temporary / "meta.json", meta)


def sparse_bytes(n: int, nonzeros: int, index: Any) -> int:
    """Bytes of a sparse matrix (CSR) of n rows, float32, with such indices."""
    return nonzeros * 4 + (nonzeros + n + 1) * int(np.dtype(index).itemsize)


def _save_sparse(folder: Path, rows: csr_matrix) -> None:
    n, t = rows.shape
    if sparse_bytes(n, rows.nnz, rows.indices.dtype) < 4 * n * t:
        save_npz(folder / SPARSE, rows, compressed=False)
    else:
        save_array(folder / DENSE, rows.toarray())


def _read_weights(folder: Path) -> npt.NDArray[np.float32]:
    if (folder / SPARSE).exists():
        weights: npt.NDArray[np.float32] = load_npz(folder / SPARSE).toarray()
        return weights
    return cast("npt.NDArray[np.float32]", np.load(folder / DENSE, mmap_mode="r"))


def provenance(store: Store, settings: RegressSettings) -> dict[str, Any]:
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


def _metrics(fit: Fit) -> dict[str, Any]:
    parts = fit.parts
    counts = {"models_fit": len(parts.fit), "models_choice": len(parts.choice), "models_heldout": len(parts.heldout)}
    means = {name: float(values.mean()) for name, values in fit.metrics.items()}
    how = {"solved_by": fit.solver, "seconds": {part: round(seconds, 3) for part, seconds in fit.seconds.items()}}
    return {**counts, **how, "mean": means, "per_target": {name: values.tolist() for name, values in fit.metrics.items()}}
