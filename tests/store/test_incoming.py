"""Import: which rows are models, in every layout, for every way in which arrays can be incomplete."""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodels.errors import InputError
from datamodels.regress import fit_datamodels
from datamodels.store import Store
from datamodels.store.transfer import import_arrays
from tests.regress.test_path import SETTINGS, planted

M, N, T = 60, 21, 7


def whole(m=M, n=N, t=T, seed=0):
    rng = np.random.default_rng(seed)
    masks = np.zeros((m, n), bool)
    for row in masks:
        row[rng.permutation(n)[: n // 2]] = True
    return masks, rng.normal(3, 2, (m, t))


# How rows that nobody trained look: what they do to masks and margins.
FILLS = {"zeros": 0.0, "ones": 1.0, "minus one": -1.0, "9999": 9999.0, "a fraction": 0.12345, "nan": np.nan, "inf": np.inf}
MASKS = {"empty": 0, "full": 1, "drawn beforehand": None}
WAYS = [*itertools.product(FILLS, MASKS), *((None, mask) for mask in ("empty", "full"))]

MASK_LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "bool": lambda a: a,
    "uint8": lambda a: a.astype(np.uint8),
    "int64, big-endian": lambda a: a.astype(">i8"),
    "float16": lambda a: a.astype(np.float16),
    "float64": lambda a: a.astype(np.float64),
    "bool, by columns": np.asfortranarray,
    "float32, a view that was turned": lambda a: np.ascontiguousarray(a.T.astype(np.float32)).T,
}
MARGIN_LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "float16": lambda a: a.astype(np.float16),
    "float32": lambda a: a.astype(np.float32),
    "float64": lambda a: a,
    "float32, big-endian": lambda a: a.astype(">f4"),
    "float16, by columns": lambda a: np.asfortranarray(a.astype(np.float16)),
}


def save(folder, masks, margins, mapped=False, **others) -> tuple[Path, Path]:
    folder.mkdir(exist_ok=True)
    for name, array in {"masks": masks, "margins": margins, **others}.items():
        if mapped:
            np.lib.format.open_memmap(folder / f"{name}.npy", "w+", array.dtype, array.shape)[...] = array
        else:
            np.save(folder / f"{name}.npy", array)
    return folder / "masks.npy", folder / "margins.npy"


def spoilt(way, rows, seed=0):
    masks, margins = whole(seed=seed)
    fill, mask = way
    if fill is not None:
        margins[rows] = FILLS[fill]
    if MASKS[mask] is not None:
        masks[rows] = MASKS[mask]
    return masks, margins


@pytest.mark.parametrize("mask_layout", MASK_LAYOUTS)
def test_rows_that_nobody_trained_are_never_models_in_any_layout(tmp_path, mask_layout):
    # Every layout of masks with every way; the rest goes round beside them, in numbers that have no common factor.
    rest = zip(itertools.cycle(MARGIN_LAYOUTS), itertools.cycle((False, True, False, True, True, False, False)))
    for number, (way, (margin_layout, completed)) in enumerate(zip(WAYS, rest, strict=False)):
        mapped = number % 3 == 0
        rng = np.random.default_rng(number)
        rows = np.sort(rng.permutation(M)[: rng.integers(1, M // 2)])
        masks, margins = (
            layout(a)
            for layout, a in zip(
                (MASK_LAYOUTS[mask_layout], MARGIN_LAYOUTS[margin_layout]), spoilt(way, rows, number), strict=True
            )
        )
        known = {"_completed": ~np.isin(np.arange(M), rows)} if completed else {}
        folder = tmp_path / str(number)
        left_out = import_arrays(*save(folder, masks, margins, mapped, **known), folder / "store")
        store, trained = Store(folder / "store"), np.setdiff1d(np.arange(M), rows)
        assert store.done.tolist() == trained.tolist(), way
        assert sorted(np.concatenate(list(left_out.values()))) == rows.tolist()
        assert np.array_equal(store.masks(trained), masks[trained].astype(bool))
        assert np.array_equal(store.margins(trained), margins[trained].astype(store.margins(trained).dtype))
        # Nothing that is not finite is done, and what has a mask and is not finite was given up, by an old promise.
        assert np.isin(list(store.failures), rows).all()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), share=st.floats(0, 0.9), t=st.sampled_from([1, 2, 3, 4, 50]))
def test_what_is_whole_is_taken_whole_and_a_fill_of_zeros_never_is(tmp_path_factory, seed, share, t):
    folder = tmp_path_factory.mktemp("import")
    masks, margins = whole(t=t, seed=seed)
    margins = margins.astype(np.float32)
    assert not import_arrays(*save(folder, masks, margins), folder / "a")
    rows = np.random.default_rng(seed).random(M) < share
    masks[rows] = margins[rows] = 0
    import_arrays(*save(folder, masks, margins), folder / "b")
    assert Store(folder / "b").done.tolist() == np.flatnonzero(~rows).tolist()


def test_the_bias_of_an_import_that_is_not_finished_is_that_of_the_models(tmp_path):
    masks, margins, _ = planted(noise=0.1, m=1200)
    margins += 3 - margins.mean(0)
    masks[400:], margins[400:] = 0, 0
    import_arrays(*save(tmp_path, masks, margins.astype(np.float16)), tmp_path / "store")
    fit = fit_datamodels(Store(tmp_path / "store"), SETTINGS)
    oracle = margins[:400].mean(0) - masks[:400].mean(0) @ fit.weights
    np.testing.assert_allclose(fit.bias, oracle, atol=0.1)
    assert len(fit.parts.fit) + len(fit.parts.choice) + len(fit.parts.heldout) == 400


def copies(masks, margins):
    margins[7] = margins[3]


def few_values(masks, margins):
    margins[...] = np.where(margins > 3, 1.0, -1.0)
    margins[:9] = 1.0


def one_target_of_zeros(masks, margins):
    margins[:, 1:] = margins[:, :1]
    margins[5:9] = 0


@pytest.mark.parametrize(
    ("spoil", "t", "named"),
    [
        (copies, T, r"2 \(3, 7\): have the margins of others, bit for bit, with other masks"),
        (few_values, T, r"rows have the margin -?1 for every target"),
        (one_target_of_zeros, 1, r"4 rows have the margin 0 for every target"),
    ],
)
def test_where_nobody_can_tell_the_user_is_asked_and_then_decides(tmp_path, spoil, t, named):
    masks, margins = whole(t=t)
    spoil(masks, margins)
    files = save(tmp_path, masks, margins)
    with pytest.raises(InputError, match=named + r".*--done FILE"):
        import_arrays(*files, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    assert not import_arrays(*files, tmp_path / "every", "all")
    assert len(Store(tmp_path / "every").done) == M
    np.save(tmp_path / "mine.npy", np.arange(M) >= 10)
    left_out = import_arrays(*files, tmp_path / "some", str(tmp_path / "mine.npy"))
    assert Store(tmp_path / "some").done.tolist() == list(range(10, M))
    assert {what: rows.tolist() for what, rows in left_out.items()} == {"they are not marked as done": list(range(10))}
    assert Store(tmp_path / "some").meta.provenance["imported"]["done"] == "mine.npy"


def test_equal_rows_on_equal_masks_are_a_model_trained_twice(tmp_path):
    masks, margins = whole()
    masks[7], margins[7] = masks[3], margins[3]
    assert not import_arrays(*save(tmp_path, masks, margins), tmp_path / "store")


def test_nothing_trained_or_nonsense_about_it_is_refused(tmp_path):
    masks, margins = whole()
    files = save(tmp_path, np.zeros_like(masks), np.zeros_like(margins))
    with pytest.raises(InputError, match=r"no row is a model: 60 \(0, 1, 2, 3, 4, …\): their masks are empty"):
        import_arrays(*files, tmp_path / "store")
    files = save(tmp_path, masks, margins)
    wrong = {"short": np.ones(3), "twos": np.full(M, 2), "text": np.array(["yes"] * M), "square": np.ones((M, 1))}
    for name, array in wrong.items():
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(InputError, match=f"{name}.npy must hold for each of 60 rows"):
            import_arrays(*files, tmp_path / "store", str(tmp_path / f"{name}.npy"))
    with pytest.raises(InputError, match=r"nowhere.npy cannot be read"):
        import_arrays(*files, tmp_path / "store", str(tmp_path / "nowhere.npy"))
    (tmp_path / "other").mkdir()
    other = save(tmp_path / "other", masks, margins, _completed=np.zeros(M, bool))[1]
    np.save(tmp_path / "_completed.npy", np.ones(M, bool))
    with pytest.raises(InputError, match="say different things"):
        import_arrays(files[0], other, tmp_path / "store")


def test_the_command_names_what_it_leaves_out(tmp_path, command):
    masks, margins = whole()
    masks[50:], margins[50:] = 0, 0
    margins[4, 2] = np.nan
    files = save(tmp_path, masks, margins.astype(np.float16), _completed=np.arange(M) < 55)
    done = command("store", "import", *files, tmp_path / "store")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'store'}: 49 models imported\n"
    assert done.stderr.splitlines()[-2:] == [
        "import: rows that are no models, and not marked as done: 5 (55, 56, 57, 58, 59): they are not marked as done; "
        "5 (50, 51, 52, 53, 54): their masks are empty",
        "import: models that are given up: 1 (4): their margins are not finite",
    ]
    every = command("store", "import", *files, tmp_path / "every", "--done", "all")
    assert every.stdout == f"{tmp_path / 'every'}: 59 models imported\n"
    assert json.loads((tmp_path / "every" / "meta.json").read_text())["provenance"]["imported"]["done"] == "all"


@pytest.mark.parametrize("t", [1, T])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda y: y + 1e9, r"nothing is left .*: float32 keeps the margins of \d of \d targets coarsely: .* in steps of 64"),
        (lambda y: y * 1e-50, "nothing is left of how margins differ from model to model"),
        (lambda y: y * 1e50, "margins of model 0 reach .*e.50, beyond float32"),
    ],
)
def test_margins_that_float32_cannot_tell_apart_are_refused(tmp_path, change, told, t):
    masks, margins = whole(t=t)
    margins = 1e-3 * margins + 1
    if told.startswith("margins"):
        margins = np.abs(margins)
    with pytest.raises(InputError, match=told):
        import_arrays(*save(tmp_path, masks, change(margins)), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_margins_that_float32_keeps_coarsely_are_told(tmp_path, capsys):
    masks, margins = whole()
    far = margins.copy()
    far[:, 2] += 1e9
    import_arrays(*save(tmp_path, masks, far), tmp_path / "far")
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "coarsely" in line]
    assert "import: float32 keeps the margins of 1 of 7 targets coarsely: those of target 2 in steps of 64, " in told
    far[:, 2] = margins[:, 2]
    far[:, 3] = 0.1  # a margin that is one value, and no rounding of it
    import_arrays(*save(tmp_path, masks, far), tmp_path / "fine")
    assert "coarsely" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["_completed.npy", "mine.npy"])
@pytest.mark.parametrize("spoil", ["a pipe", "a folder", "a pickle", "cut short"])
def test_a_file_of_marks_that_is_none_is_a_sentence_at_once(tmp_path, command, name, spoil):
    files, marks = save(tmp_path, *whole()), tmp_path / name
    if spoil == "a pipe":
        os.mkfifo(marks)
    elif spoil == "a folder":
        marks.mkdir()
    elif spoil == "a pickle":
        marks.write_bytes(b"\x80\x04N.")
    else:
        np.save(marks, np.ones(M, bool))
        marks.write_bytes(marks.read_bytes()[:-7])
    done = command("store", "import", *files, tmp_path / "store", *(() if name.startswith("_") else ("--done", marks)))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {marks} cannot be read as an .npy file that says which rows are models: it is ")
    assert spoil in done.stderr
    assert done.stderr.count("\n") == 1
