"""Weights and their exchange, priors, and what a regression had kept."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, save_npz

from datamodels.regress import Datamodels, results
from datamodels.regress.results import read_about
from tests.robustness.case import Call, Case, main_of
from tests.robustness.damage import (
    ARCHIVES,
    FILES,
    HEADERS,
    Damage,
    flipped,
    npz,
    saved,
    text_of_json,
    written,
)
from tests.robustness.material import N, T, run_flags
from tests.robustness.tables import (
    EITHER,
    FUZZ,
    Read,
    all_written,
    damaged,
    random_bytes,
    values,
)

WEIGHTS = ("weights.npy", "bias.npy", "lam.npy", "heldout.npy", "metrics.json", "meta.json")


def _same_weights(material: Path, folder: Path) -> None:
    """What a command left in `out` is what it leaves of the undamaged input."""
    found, wanted = Datamodels.load(folder / "out"), Datamodels.load(material / "weights")
    for name in ("weights", "bias"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name)), f"other {name}"


def weight_cases() -> Iterator[Case]:
    weights = ("weights",)
    exported: Read = lambda folder: main_of("regress", "--export", folder / "w.pt", "--out", folder / "weights")  # noqa: E731
    for file in WEIGHTS:
        yield from damaged(f"weights {file}", weights, f"weights/{file}", {**FILES, **random_bytes(6)}, exported)
        if file.endswith(".npy"):
            yield from damaged(
                f"weights {file} sealed", weights, f"weights/{file}", all_written(HEADERS), exported, sealed="weights"
            )
    yield from damaged("weights meta.json text", weights, "weights/meta.json", text_of_json(), exported)
    yield from damaged("weights metrics.json text", weights, "weights/metrics.json", text_of_json(), exported, sealed="weights")
    yield from damaged("weights meta.json values", weights, "weights/meta.json", values(results.META, False), exported)
    metrics = values(results.METRICS, False)
    yield from damaged("weights metrics.json values", weights, "weights/metrics.json", metrics, exported, sealed="weights")
    arrays: dict[str, dict[str, Any]] = {
        "bias.npy": {"one more": np.zeros(T + 1, np.float32), "float64": np.zeros(T), "NaN": np.full(T, np.nan, np.float32)},
        "lam.npy": {"one fewer": np.zeros(T - 1), "infinite": np.full(T, np.inf), "complex": np.zeros(T, complex)},
        "heldout.npy": {"floats": np.zeros(3), "two dimensions": np.zeros((3, 2), np.int64)},
        "weights.npy": {
            "other T": np.zeros((N, T + 1), np.float32),
            "no images": np.zeros((0, T), np.float32),
            "float64": np.zeros((N, T)),
            "infinite": np.full((N, T), np.inf, np.float32),
            "one dimension": np.zeros(N * T, np.float32),
        },
    }
    for file, others in arrays.items():
        damages = {name: written(saved(array)) for name, array in others.items()}
        yield from damaged(f"weights {file} sealed", weights, f"weights/{file}", damages, exported, sealed="weights")
    yield from _sparse(exported)
    yield from _exchange()
    yield from _scores()

    def with_prior(folder: Path) -> Call:
        prior = ("--regress.prior", folder / "covariates.npy")
        return main_of("regress", "--store", folder / "store", "--out", folder / "out", *prior)

    given = {
        "complex": np.zeros((2, N, T), complex),
        "texts": np.full((2, N, T), "x"),
        "infinite": np.full((2, N, T), np.inf),
        "one dimension fewer": np.zeros((N, T)),
        "another N": np.zeros((2, N + 1, T)),
    }
    for damages in (FILES, all_written(HEADERS), {name: written(saved(array)) for name, array in given.items()}):
        yield from damaged("prior file", ("store", "covariates.npy"), "covariates.npy", damages, with_prior)
    of_run: Read = lambda folder: main_of("regress", *run_flags(folder, regress__gap=1e-3))  # noqa: E731
    for file in ("gradients.npy", "features_train.npy", "test_labels.npy", "meta.json"):
        yield from damaged(f"prior folder {file}", ("run",), f"run/prior/{file}", {**FILES, **random_bytes(4)}, of_run)
        if file.endswith(".npy"):
            header = all_written(HEADERS)
            yield from damaged(f"prior folder {file} sealed", ("run",), f"run/prior/{file}", header, of_run, sealed="run/prior")
    yield from _kept()


def _sparse(exported: Read) -> Iterator[Case]:
    def make_sparse(path: Path) -> None:
        dense = np.load(path.with_name("weights.npy"))
        path.with_name("weights.npy").unlink()
        save_npz(path, csr_matrix(dense), compressed=False)

    def after(damage: Damage) -> Damage:
        def both(path: Path) -> None:
            make_sparse(path)
            damage(path)

        return both

    damages = {
        **ARCHIVES,
        **random_bytes(FUZZ),
        **{f"column {k}": _item("indices", 3, k) for k in (-1, T, 2**31 - 1, -(2**31))},
        **{f"start {k}": _item("indptr", 3, k) for k in (-1, 2**31 - 1, 0, -(2**31))},
        **{f"end {k}": _item("indptr", N, k) for k in (0, 2**31 - 1, -1)},
        **{f"shape {k}": _shape(k) for k in ([N, 2**40], [2**40, T], [N], [-N, T], [N, T, 1])},
        "columns falling": lambda path: npz(path, indices=np.load(path)["indices"][::-1]),
        "column twice": _item("indices", 1, 0),
        "data in objects": lambda path: npz(path, data=np.array([None] * N * T, object)),
        "data complex": lambda path: npz(path, data=np.load(path)["data"] + 1j),
        "data too few": lambda path: npz(path, data=np.load(path)["data"][1:]),
        "data not finite": lambda path: npz(path, data=np.load(path)["data"] * np.float32(np.nan)),
        "columns in floats": lambda path: npz(path, indices=np.load(path)["indices"].astype(float)),
        "another format": lambda path: npz(path, format=np.array(b"bsr")),
        "without shape": lambda path: npz(path, shape=None),
    }
    made = {name: after(damage) for name, damage in damages.items()}
    random = {name: damage for name, damage in made.items() if name.startswith("random")}
    fixed = {name: damage for name, damage in made.items() if name not in random}
    yield from damaged("weights.npz sealed", ("weights",), "weights/weights.npz", fixed, exported, sealed="weights")
    yield from damaged("weights.npz random", ("weights",), "weights/weights.npz", random, exported, EITHER, sealed="weights")


def _item(name: str, at: int, value: int) -> Damage:
    def damage(path: Path) -> None:
        array = np.load(path)[name].copy()
        array[at] = value
        npz(path, **{name: array})

    return damage


def _shape(shape: list[int]) -> Damage:
    return lambda path: npz(path, shape=np.array(shape))


def _exchange() -> Iterator[Case]:
    imported: Read = lambda folder: main_of("regress", "--import", folder / "weights.pt", "--out", folder / "out")  # noqa: E731
    pt = ("weights.pt",)
    yield from damaged(".pt file", pt, "weights.pt", FILES, imported)
    random = {**random_bytes(2 * FUZZ), **{f"pickle, {seed}": _repickled(seed) for seed in range(2 * FUZZ)}}
    yield from damaged(
        ".pt file random", pt, "weights.pt", {k: d for k, d in random.items() if k[0] == "r"}, imported, EITHER, _same_weights
    )
    yield from damaged(".pt file pickle", pt, "weights.pt", {k: d for k, d in random.items() if k[0] == "p"}, imported, EITHER)
    good = {"weight": torch.zeros(N, T), "bias": torch.zeros(T), "lam": torch.ones(T)}
    weights: dict[str, Any] = {
        "complex": torch.zeros(N, T, dtype=torch.complex64),
        "bool": torch.zeros(N, T, dtype=torch.bool),
        "meta": torch.zeros(N, T, device="meta"),
        "expanded": torch.zeros(1).expand(10**9, T),
        "NaN": torch.full((N, T), torch.nan),
        "beyond float32": torch.full((N, T), 1e300, dtype=torch.float64),
        "no images": torch.zeros(0, T),
        "one dimension": torch.zeros(N),
        "three dimensions": torch.zeros(N, T, 1),
        "another T": torch.zeros(N, T + 1),
        "sparse and huge": torch.sparse_coo_tensor(
            torch.tensor([[0], [0]]), torch.tensor([1.0]), (2**40, T), check_invariants=True
        ),
        "a list": [0.0],
        "nothing": None,
    }
    for name, weight in weights.items():
        yield from damaged(".pt tensors", pt, "weights.pt", {name: _torch_saved({**good, "weight": weight})}, imported)
    others = {
        "a tensor": good["weight"],
        "a list": [good],
        "no bias": {k: v for k, v in good.items() if k != "bias"},
        "empty": {},
    }
    for name, content in others.items():
        yield from damaged(".pt content", pt, "weights.pt", {name: _torch_saved(content)}, imported)


def _scores() -> Iterator[Case]:
    """Scores by others, and the masks by which weights were standardised."""

    def evaluated(file: str) -> Read:
        return lambda folder: main_of("evaluate", "--store", folder / "store", "--scores", f"x={folder / file}")

    def made(file: str, damage: Damage) -> Damage:
        def both(path: Path) -> None:
            scores = path.parents[1] / file
            if scores.suffix == ".pt":
                torch.save(torch.ones(N, T), scores)
            elif scores.suffix == ".npz":
                np.savez(scores, scores=np.ones((N, 2)), targets=np.array([3, 1]))
            else:
                np.save(scores, np.ones((N, T)))
            damage(scores)

        return both

    archives = {name: damage for name, damage in ARCHIVES.items() if name != "compressed"}  # np.savez_compressed's are read
    kinds = {"s.npy": {**FILES, **all_written(HEADERS)}, "s.npz": {**FILES, **archives}, "s.pt": FILES}
    for file, damages in kinds.items():
        cases = {name: made(file, damage) for name, damage in damages.items()}
        yield from damaged(f"scores {file}", ("store",), "store/meta.json", cases, evaluated(file))
    random = {name: made("s.npz", damage) for name, damage in random_bytes(FUZZ).items()}
    yield from damaged("scores s.npz random", ("store",), "store/meta.json", random, evaluated("s.npz"), EITHER)

    def standardised(folder: Path) -> Call:
        torch.save({"weight": torch.zeros(N, T), "bias": torch.zeros(T), "lam": torch.ones(T)}, folder / "plain.pt")
        line = ("--import", folder / "plain.pt", "--out", folder / "out", "--standardised", folder / "masks.npy")
        return main_of("regress", *line)

    def masks(damage: Damage) -> Damage:
        def both(path: Path) -> None:
            np.save(path.parents[1] / "masks.npy", np.ones((3, N), bool))
            damage(path.parents[1] / "masks.npy")

        return both

    of_masks = {name: masks(damage) for name, damage in {**FILES, **all_written(HEADERS)}.items()}
    yield from damaged("masks of an import", ("store",), "store/meta.json", of_masks, standardised)


def _torch_saved(content: Any) -> Damage:
    return lambda path: torch.save(content, path)


def _repickled(seed: int) -> Damage:
    """The pickle within a .pt file changed, and the archive whole around it."""

    def damage(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        pickled = path.with_name("data.pkl")
        name = next(name for name in members if name.endswith("data.pkl"))
        pickled.write_bytes(members[name])
        flipped(seed)(pickled)
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, pickled.read_bytes() if member == name else content)

    return damage


def _kept() -> Iterator[Case]:
    """What a regression had kept before it was cut off: whatever it is, the weights are those that they are."""

    def cut_off(folder: Path) -> Path:
        meta, unfinished = read_about(folder / "weights"), folder / ".out.unfinished"
        unfinished.mkdir()
        (unfinished / "meta.json").write_text(json.dumps(meta))
        np.savez(unfinished / f"chosen-0-{T}.npz", lam=np.ones(T))
        return unfinished

    def kept(damage: Damage) -> Damage:
        return lambda path: damage(cut_off(path.parents[1]) / f"chosen-0-{T}.npz")

    def again(folder: Path) -> Call:
        return main_of("regress", "--store", folder / "store", "--out", folder / "out")

    damages = {name: kept(damage) for name, damage in {**FILES, **ARCHIVES}.items()}
    names = ("store", "weights")
    yield from damaged("unfinished regression", names, "weights/meta.json", damages, again, EITHER, _same_weights)
