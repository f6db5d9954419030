"""What comes from outside is checked before a file of its name is made or a row of it is written."""

import json
from typing import Any

import numpy as np
import pytest

from datamodels.durable import write_json
from datamodels.errors import InputError
from datamodels.seals import read_sealed, write_sealed
from datamodels.store import ArraySpec, Meta, Rows, Store, create, deliver, merge_if_free, read_meta
from datamodels.store.check import check
from datamodels.store.transfer import export_arrays
from datamodels.subsets import draw_masks

N, T, M = 13, 3, 6
META = Meta(M, N, T, {"margins": ArraySpec("float16", (T,)), "extra": ArraySpec("int32", ())}, {"seed": 3})


def rows(ids):
    arrays = {"margins": np.full((len(ids), T), 1.5, np.float16), "extra": np.arange(len(ids), dtype=np.int32)}
    return draw_masks(0, ids, N, 0.5), arrays


@pytest.fixture
def folder(tmp_path):
    create(tmp_path / "store", META)
    deliver(tmp_path / "store", [1, 2], *rows([1, 2]))
    return tmp_path / "store"


def reseal(folder, **changed):
    content = {**read_sealed(folder / "meta.json"), **changed}
    write_sealed(folder / "meta.json", content)


@pytest.mark.parametrize(
    "name", ["../precious", "/tmp/precious", "a/b", "masks", "done", "checksums", "", "A", "ü", "a" * 65, "x\n"]
)
def test_a_name_of_an_array_that_is_a_path_makes_no_file(folder, tmp_path, name):
    (tmp_path / "precious.npy").write_bytes(b"kept")
    reseal(folder, arrays={"margins": {"dtype": "float16", "shape": [T]}, name: {"dtype": "int32", "shape": []}})
    with pytest.raises(InputError, match="cannot be the name of an array"):
        export_arrays(folder, tmp_path / "out")
    assert (tmp_path / "precious.npy").read_bytes() == b"kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious.npy", "store"]


@pytest.mark.parametrize("wrong", [-1, True, 1.5, "6", None, 2**63, [6]])
@pytest.mark.parametrize("key", ["num_models", "num_train", "num_targets"])
def test_counts_are_whole_numbers_within_bounds(folder, key, wrong):
    reseal(folder, **{key: wrong})
    with pytest.raises(InputError, match=f"{key} is not what it should be"):
        read_meta(folder)


@pytest.mark.parametrize(
    "spec",
    [
        {"dtype": "float16", "shape": [-3]},
        {"dtype": "float16", "shape": [T, True]},
        {"dtype": "float16", "shape": [2**40] * 3},
        {"dtype": "object", "shape": []},
        {"dtype": "f4,f4", "shape": []},
        {"dtype": "complex64", "shape": []},
        {"dtype": "(", "shape": []},
        {"dtype": 3, "shape": []},
        {"shape": []},
    ],
)
def test_types_and_shapes_of_arrays_are_such_as_rows_can_have(folder, spec):
    reseal(folder, arrays={"margins": {"dtype": "float16", "shape": [T]}, "extra": spec})
    with pytest.raises(InputError, match="is damaged"):
        Store(folder)


def test_margins_are_there_and_of_all_targets(folder):
    for arrays in ({}, {"margins": {"dtype": "float16", "shape": [T + 1]}}, {"margins": {"dtype": "int32", "shape": [T]}}):
        reseal(folder, arrays=arrays)
        with pytest.raises(InputError, match="margins"):
            read_meta(folder)


def delivered(path, **changed):
    """A file in the inbox as another process would leave it, but for what is changed; None leaves an array out."""
    masks, arrays = rows([3, 4])
    whole = {"ids": np.array([3, 4]), "masks": np.packbits(masks, axis=-1, bitorder="little"), **arrays, **changed}
    np.savez(path, **{name: array for name, array in whole.items() if array is not None})


WRONG: dict[str, dict[str, Any]] = {
    "negative": {"ids": np.array([-5, 3])},
    "out of range": {"ids": np.array([3, M])},
    "unsorted": {"ids": np.array([4, 3])},
    "twice": {"ids": np.array([3, 3])},
    "floats": {"ids": np.array([3.0, 4.0])},
    "one id": {"ids": np.array(3)},
    "none": {"ids": np.zeros(0, np.int64)},
    "wide masks": {"masks": np.zeros((2, 9), np.uint8)},
    "padding": {"masks": np.full((2, 2), 255, np.uint8)},
    "other margins": {"margins": np.zeros((2, T + 1), np.float16)},
    "float64": {"margins": np.zeros((2, T))},
    "no extra": {"extra": None},
    "one more": {"more": np.zeros(2)},
    "objects": {"extra": np.array([None, None])},
}


@pytest.mark.parametrize("wrong", [*WRONG, "cut", "bit", "text", "folder"])
def test_rows_in_the_inbox_that_are_none_of_this_store_are_set_aside_and_the_others_taken(folder, capsys, wrong):
    before = {path.name: path.read_bytes() for path in folder.glob("*.npy")}
    bad = folder / "inbox" / "0000000003-bad.npz"
    delivered(bad, **WRONG.get(wrong, {}))
    content = bytearray(bad.read_bytes())
    if wrong == "folder":
        bad.unlink()
        bad.mkdir()
    elif wrong not in WRONG:
        content[len(content) // 3] ^= 8
        bad.write_bytes({"cut": content[:-40], "bit": content, "text": b"rows"}[wrong])
    (folder / "inbox" / "0000000005-good.npz").write_bytes(Rows.of(META, [5], *rows([5])).to_bytes())
    merge_if_free(folder)
    assert [path.name for path in (folder / "inbox").iterdir()] == ["refused"]
    assert (folder / "inbox" / "refused" / bad.name).exists()
    said = capsys.readouterr().err
    assert said.count("set aside") == 1
    assert bad.name in said
    store = Store(folder)
    assert store.done.tolist() == [1, 2, 5]
    assert check(folder) == []
    # Not a byte of the rows that were done before is another.
    for name, spec in store.meta.files.items():
        start, end = len(spec.header(0)) + spec.row_bytes, len(spec.header(0)) + 3 * spec.row_bytes
        now = (folder / f"{name}.npy").read_bytes()
        assert now[start:end] == before[f"{name}.npy"][start:end]
        assert now[: len(spec.header(0))] == before[f"{name}.npy"][: len(spec.header(0))]


@pytest.mark.parametrize("content", [{"-1": "x"}, {"٣": "x"}, {str(M): "x"}, {"3": 5}, ["3"], {"9" * 5000: "x"}, {"3": None}])
def test_reasons_in_the_inbox_for_no_model_of_this_store_are_set_aside(folder, capsys, content):
    write_json(folder / "inbox" / "0000000003-bad.json", content)
    write_json(folder / "inbox" / "0000000004-good.json", {"4": "diverged"})
    merge_if_free(folder)
    assert Store(folder).failures == {4: "diverged"}
    assert "set aside" in capsys.readouterr().err
    assert [path.name for path in (folder / "inbox" / "refused").iterdir()] == ["0000000003-bad.json"]


def test_failures_of_no_model_are_refused(folder):
    write_sealed(folder / "failures.json", {"one": "why"})
    with pytest.raises(InputError, match="not all numbers of models"):
        Store(folder)
    assert json.loads((folder / "failures.json").read_text())["one"] == "why"
