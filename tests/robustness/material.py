"""What is damaged: one small run with all that its stages leave, a store of its own, and files as people bring them."""

from __future__ import annotations

import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.data import beton
from datamodels.data.files import prepare
from datamodels.data.raw import RawSplit
from datamodels.regress.run import export_weights, regress_store
from datamodels.seals import read_sealed, write_sealed
from datamodels.settings import RegressSettings, Settings, parse
from datamodels.store import ArraySpec, Meta, Writer, create, deliver
from datamodels.subsets import draw_masks
from tests.conftest import flags
from tests.robustness.case import main_of

RUN = {
    "data__train_images": 60,
    "data__test_images": 20,
    "store__num_models": 60,
    "training__epochs": 1,
    "regress__prior": "gradients",
    "prior__models": 2,
    "verify__methods": "datamodel,relabel",
    "verify__most_models": 2,
    "verify__base_models": 2,
    "verify__max_size": 20,
    "groups__models_at_once": 8,
}
N, T, M = 37, 5, 120
OWN_MODULE = "hostile_own"
OWN = """import numpy as np
RESULT = {}


def train(index, mask):
    return RESULT.get("all", {"margins": mask[:5] * 1.0 + index % 3})
"""
OWN_CONFIG = """run: {dir: own}
data: {train_images: 37, test_images: 5}
worker: {main: "hostile_own:train"}
store: {num_models: 40, margin_dtype: float32, seed: 3}
"""


def run_flags(folder: Path, **changed: Any) -> list[str]:
    """Command-line flags of the run in a folder."""
    return flags(folder / "run", **{**RUN, **changed})


def settings_of(folder: Path, **changed: Any) -> Settings:
    """The run's settings."""
    return parse(run_flags(folder, **changed))[0]


def make_material(material: Path) -> None:
    """Make everything once, in a new folder."""
    making = material.with_name(f"{material.name}.making")
    making.mkdir(parents=True)
    chosen = run_flags(making)
    prepare(settings_of(making), use_ffcv=False)
    main_of("worker", *chosen, "--gpu", "cpu")()
    main_of("regress", *chosen)()
    main_of("verify", *chosen, "--targets", "3,7", "--gpu", "cpu")()
    _planted(making / "run" / "verify" / "verify.json")
    _certificate(making)
    _plain_store(making)
    regress_store(making / "store", making / "weights", RegressSettings())
    export_weights(settings_of(making), making / "weights", making / "weights.pt")
    rng = np.random.default_rng(0)
    np.save(making / "covariates.npy", rng.normal(size=(2, N, T)))
    np.save(making / "embedding.npy", rng.normal(size=(80, 6)))
    (making / "targets.txt").write_text("3\n7\n")
    (making / f"{OWN_MODULE}.py").write_text(OWN)
    (making / "own.yaml").write_text(OWN_CONFIG)
    _batches(making / "batches")
    if beton.available():
        for name, channels in (("grey", 1), ("rgb", 3)):
            images = rng.integers(0, 256, (12, 4, 5, channels), dtype=np.uint8)
            beton.write(making / f"{name}.beton", RawSplit(images, np.arange(12) % 3))
    making.rename(material)


def _planted(file: Path) -> None:
    """Findings of every kind in a run's verify.json; so small a run need not have made them."""
    found = read_sealed(file)
    outcome = {name: value for name, value in found["base"]["3"].items() if name != "label"}
    label, images, weights = found["base"]["3"]["label"], [4, 9, 2], [0.3, 0.2, 0.1]
    about = {"target": 3, "label": label, "size": 3}
    search: dict[str, Any] = {
        **about,
        "method": "datamodel",
        "relabelled": None,
        "verdict": "flipped",
        "order": images,
        "weights": weights,
        "tried": 3,
        "base_margin": 1.0,
        "models": 4,
        "probes": [{"size": 3, "threshold": 0.0, "asked": 4, "verdict": "flipped", **outcome, "predicted_drop": 0.6}],
    }
    removal: dict[str, Any] = {
        **about,
        "rule": "support",
        "control_size": 3,
        "removed_indices": images,
        "removed_weights": weights,
        "predicted_before": 1.0,
        "predicted_after": 0.4,
        "right_before": True,
        "flipped": True,
        "control_flipped": False,
        **dict.fromkeys(("before", "after", "control"), outcome),
    }
    measured = {"predicted_drop": 0.6, "measured_drop": 0.5, "low": 0.4, "high": 0.6, "models": 2}
    drop = {"target": 3, "kind": "top", "size": 3, "indices": images, **measured}
    on_subsets = {"subsets": 2, **dict.fromkeys(("lds", "lds_ceiling", "pooled", "pooled_ceiling"), 0.5)}
    planted = {"searches": [search], "removals": [removal], "counterfactuals": [drop], "random_subsets": on_subsets}
    write_sealed(file, {**found, **planted})


def _certificate(making: Path) -> None:
    """A certificate, but for the training that would make it: keys and digests are read before they are compared."""
    judged = {"looks": 1, "verdict": "held", "models": 2, "confidence": None}
    judged |= dict.fromkeys(("mean_margin", "low", "high", "correct", "correct_low", "correct_high"), 0.5)
    networks = [{"repetition": k, "key": [1, 2, 3, k], "margin": 0.5} for k in range(2)]
    image = {"index": 3, "name": None, "label": 1, "digest": "x"}
    back = {
        "images": [3],
        "first": 5,
        "margins": [0.5, 0.4],
        "does": "not",
        **{k: judged[k] for k in judged if k not in ("looks", "verdict")},
    }
    content: dict[str, Any] = {
        "format": "datamodels-certificate",
        "format_version": 1,
        "version": "0",
        "made": "now",
        "name": "3",
        "label": 1,
        "target": 3,
        "targets": [image],
        "method": "datamodel",
        "claim": "flipped",
        "relabelled": None,
        "images": [image],
        "num_train": 60,
        "num_targets": 20,
        "classes": 10,
        "digests_of": "images",
        "train_digest": "x",
        "targets_digest": "x",
        "seed": 1,
        "recipe": {},
        "plain": True,
        "machine": {},
        "groups": {"models_at_once": 8, "models_per_kernel": 8, "program": "plain"},
        **{kind: {"networks": networks, **judged} for kind in ("before", "after")},
        "put_back": {"seed": 1, "looks": [2], "of_images": 1, "of_pairs": 0, "singly": [back], "in_pairs": [back]},
    }
    (making / "certificate").mkdir()
    write_sealed(making / "certificate" / "certificate.json", content)


def _plain_store(making: Path) -> None:
    """A store drawn by a seed, with one model given up, and its rows as files to import."""
    rng, ids = np.random.default_rng(1), np.arange(M - 1)
    masks = draw_masks(3, range(M), N, 0.5)
    margins = (masks @ rng.normal(size=(N, T)) + rng.normal(size=(M, T))).astype(np.float32)
    provenance = {"store": {"seed": 3, "alpha": 0.5}}
    create(making / "store", Meta(M, N, T, {"margins": ArraySpec("float32", (T,))}, provenance))
    deliver(making / "store", ids, masks[ids], {"margins": margins[ids]})
    with Writer(making / "store") as writer:
        writer.give_up({M - 1: "diverged"})
    np.save(making / "masks.npy", masks)
    np.save(making / "margins.npy", margins)


def _batches(folder: Path) -> None:
    """Batches of CIFAR-10 in name, with too few images."""
    folder.mkdir()
    data = np.random.default_rng(2).integers(0, 256, (9, 3072), dtype=np.uint8)
    (folder / "data_batch_1").write_bytes(pickle.dumps({b"data": data, b"labels": list(range(9))}, protocol=4))
    (folder / "data_batch_1.bin").write_bytes(data.tobytes()[:20_000])
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(folder / "data_batch_1", "cifar-10-batches-py/data_batch_1")


def copied(material: Path, folder: Path, *names: str) -> Path:
    """Copies of some of the material, for a case to damage."""
    for name in names:
        source, copy = material / name, folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy)
        else:
            shutil.copyfile(source, copy)
    os.chdir(folder)
    return folder
