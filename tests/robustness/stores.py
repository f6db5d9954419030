"""Stores, and arrays that are imported into one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datamodels.store.layout import COUNT, META
from tests.robustness.case import Call, Case, main_of
from tests.robustness.damage import (
    FILES,
    HEADERS,
    flipped,
    put,
    text_of_json,
    written,
)
from tests.robustness.material import M, N, T
from tests.robustness.tables import (
    EITHER,
    FUZZ,
    Read,
    all_written,
    damaged,
    random_bytes,
    values,
    values_under,
)

STORE_FILES = ("meta.json", "masks.npy", "margins.npy", "checksums.npy", "done.npy", "failures.json")


def store_cases() -> Iterator[Case]:
    store = ("store",)
    checked: Read = lambda folder: main_of("store", "check", folder / "store")  # noqa: E731
    exported: Read = lambda folder: main_of("store", "export", folder / "store", folder / "out")  # noqa: E731
    regressed: Read = lambda folder: main_of("regress", "--store", folder / "store", "--out", folder / "out")  # noqa: E731
    for file in STORE_FILES:
        yield from damaged(f"store {file}", store, f"store/{file}", FILES, checked)
        if file.endswith(".npy"):
            yield from damaged(f"store {file} header", store, f"store/{file}", all_written(HEADERS), exported)
            bits = {f"bytes of row, {seed}": flipped(seed, 128) for seed in range(6)}
            yield from damaged(f"store {file} rows", store, f"store/{file}", bits, checked)
    for file in ("masks.npy", "margins.npy"):
        bits = {f"bytes of row, {seed}": flipped(seed, 128) for seed in range(6)}
        yield from damaged(f"regress, store {file} rows", store, f"store/{file}", bits, regressed)
    yield from damaged("store meta.json text", store, "store/meta.json", text_of_json(), exported)
    yield from damaged("store failures.json text", store, "store/failures.json", text_of_json(), exported)
    form = {**META, "arrays": {"margins": {"dtype": str, "shape": [COUNT]}}, "format": str, "format_version": int}
    del form["provenance"]
    yield from damaged("store meta.json values", store, "store/meta.json", values(form, False), exported)
    fitting = values(form, True)
    yield from damaged("store meta.json other values", store, "store/meta.json", fitting, exported)
    drawn = {"store": {"seed": COUNT, "alpha": float}}
    yield from damaged("store provenance values", store, "store/meta.json", values_under("provenance", drawn), checked, EITHER)
    yield from damaged(
        "store failures.json values", store, "store/failures.json", values({str(M - 1): str}, False), exported, EITHER
    )
    names = [
        "../precious",
        "/tmp/precious",
        "..",
        ".",
        "a/b",
        "A",
        "ü",
        "a\n",
        "masks",
        "done",
        "meta.json",
        "x" * 65,
        "a\x1b[2J",
    ]
    arrays = {"margins": {"dtype": "float32", "shape": [T]}}
    for name in names:
        more = {f"an array {name!r}": put(("arrays",), {**arrays, name: {"dtype": "float32", "shape": []}})}
        yield from damaged("store names of arrays", store, "store/meta.json", more, exported)

    def imported(folder: Path) -> Call:
        return main_of("store", "import", folder / "masks.npy", folder / "margins.npy", folder / "new")

    for file in ("masks.npy", "margins.npy"):
        both = ("masks.npy", "margins.npy")
        yield from damaged(f"import {file}", both, file, FILES, imported)
        yield from damaged(f"import {file} header", both, file, all_written(HEADERS), imported)
        yield from damaged(f"import {file} random header", both, file, random_bytes(FUZZ, 0, 90), imported, EITHER)
    # A store's own marks say which rows are models, too.
    marked: Read = lambda folder: (  # noqa: E731
        main_of(
            "store", "import", folder / "masks.npy", folder / "margins.npy", folder / "new", "--done", folder / "store/done.npy"
        )
    )
    needs = ("masks.npy", "margins.npy", "store")
    yield from damaged("import marks", needs, "store/done.npy", FILES, marked)
    yield from damaged("import marks header", needs, "store/done.npy", all_written(HEADERS), marked)
    arrays_given = {
        "floats for masks": ("masks.npy", np.ones((M, N))),
        "complex masks": ("masks.npy", np.ones((M, N), complex)),
        "one dimension": ("masks.npy", np.ones(M, bool)),
        "three dimensions": ("margins.npy", np.ones((M, T, 1), np.float32)),
        "fewer rows": ("margins.npy", np.ones((M - 1, T), np.float32)),
        "no rows": ("margins.npy", np.ones((0, T), np.float32)),
        "complex margins": ("margins.npy", np.ones((M, T), np.complex64)),
        "float64 margins": ("margins.npy", np.ones((M, T))),
        "twos for masks": ("masks.npy", np.full((M, N), 2, np.uint8)),
    }
    for name, (file, array) in arrays_given.items():
        buffer = io.BytesIO()
        np.save(buffer, array)
        damage = {name: written(buffer.getvalue())}
        yield from damaged("import arrays", ("masks.npy", "margins.npy"), file, damage, imported)
