"""The folder that a regression leaves, and reading it back.

weights.npy   (N, T) float32   weights for raw 0/1 masks, margin per image
bias.npy      (T,) float32     g(S') = 1_S'·w + b
lam.npy       (T,) float64     the λ chosen for each target
heldout.npy   ids of the models that were used for neither fit nor choice
metrics.json  LDS, R², MSE on the held-out models and non-zeros, mean and for each target
meta.json     the store's digest, the settings, the version of this program
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodels import __version__
from datamodels.durable import new_folder, read_json, write_json
from datamodels.errors import InputError
from datamodels.regress.path import Fit
from datamodels.settings import RegressSettings
from datamodels.store import Store
from datamodels.subsets import BoolArray, IndexArray

FORMAT_VERSION = 1
FILES = {"weights.npy", "bias.npy", "lam.npy", "heldout.npy", "metrics.json", "meta.json"}


@dataclass(frozen=True)
class Datamodels:
    """Linear datamodels of all targets: `weights` (N, T), `bias` (T,), `lam` (T,), and what they were made from."""

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
            weights = np.load(path / "weights.npy", mmap_mode="r")
            bias, lam, heldout = (np.load(path / f"{name}.npy") for name in ("bias", "lam", "heldout"))
        except (OSError, ValueError, EOFError, KeyError, TypeError) as e:
            raise InputError(f"there are no datamodels in {path}; run python -m datamodels.regress with the same config") from e
        if version != FORMAT_VERSION:
            raise InputError(f"{path} has format version {version}, this program reads version {FORMAT_VERSION}")
        return cls(weights, bias, lam, heldout, metrics, meta)

    def predict(self, masks: BoolArray) -> npt.NDArray[np.float32]:
        """Margins (m, T) of models trained on `masks`, bool (m, N)."""
        return masks.astype(np.float32) @ self.weights + self.bias


def save(folder: Path, fit: Fit, meta: dict[str, Any]) -> None:
    """Write the folder, whole or not at all; one that stands there is replaced."""
    with new_folder(folder, replace=True) as temporary:
        arrays: dict[str, npt.NDArray[Any]] = {
            "weights": fit.weights,
            "bias": fit.bias,
            "lam": fit.lam,
            "heldout": fit.parts.heldout,
        }
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        write_json(temporary / "metrics.json", _metrics(fit))
        write_json(temporary / "meta.json", meta)


def provenance(store: Store, settings: RegressSettings) -> dict[str, Any]:
    """What decides a regression's result; equal before and after means that there is nothing to do again."""
    deciding = {key: value for key, value in dataclasses.asdict(settings).items() if key not in ("device", "block")}
    return {
        "format_version": FORMAT_VERSION,
        "version": __version__,
        "store_digest": store.digest(),
        "models": len(store.done),
        "regress": deciding,
    }


def _metrics(fit: Fit) -> dict[str, Any]:
    parts = fit.parts
    counts = {"models_fit": len(parts.fit), "models_choice": len(parts.choice), "models_heldout": len(parts.heldout)}
    means = {name: float(values.mean()) for name, values in fit.metrics.items()}
    return {**counts, "mean": means, "per_target": {name: values.tolist() for name, values in fit.metrics.items()}}
