"""The store's files as anyone would read them: by NumPy, JSON and zlib alone."""

import hashlib
import json
import multiprocessing
import zlib

import numpy as np
import pytest

from datamodels.durable import Lock
from datamodels.errors import InputError
from datamodels.store import ArraySpec, Meta, Store, Writer, create, grow, hand_over

N, T, M = 13, 4, 6
META = Meta(M, N, T, {"margins": ArraySpec("float16", (T,)), "extra": ArraySpec("int32", (2, 2))}, {"recipe": {"width": 8}})


def some_rows(ids, seed=0):
    rng = np.random.default_rng([seed, *ids])
    masks = rng.random((len(ids), N)) < 0.5
    return masks, {"margins": rng.normal(size=(len(ids), T)), "extra": rng.integers(0, 99, (len(ids), 2, 2))}


def add(folder, ids, seed=0):
    masks, arrays = some_rows(ids, seed)
    hand_over(folder, ids, masks, arrays)
    with Writer(folder) as writer:
        writer.merge()
    return masks, arrays


@pytest.fixture
def folder(tmp_path):
    create(tmp_path / "store", META)
    return tmp_path / "store"


def raw(folder, name):
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def test_files_are_what_format_md_says(folder):
    masks, arrays = add(folder, [4, 1])
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["format"], meta["format_version"]) == ("datamodels-store", 1)
    assert (meta["num_models"], meta["num_train"], meta["num_targets"]) == (M, N, T)
    assert meta["arrays"] == {"margins": {"dtype": "float16", "shape": [T]}, "extra": {"dtype": "int32", "shape": [2, 2]}}
    assert meta["provenance"] == {"recipe": {"width": 8}}
    assert (raw(folder, "masks").shape, raw(folder, "masks").dtype) == ((M, 2), np.uint8)
    assert (raw(folder, "margins").shape, raw(folder, "margins").dtype) == ((M, T), np.float16)
    assert (raw(folder, "checksums").dtype, raw(folder, "done").dtype) == (np.uint32, np.uint8)
    assert raw(folder, "done").tolist() == [0, 1, 0, 0, 1, 0]
    for k, i in enumerate([4, 1]):
        packed = raw(folder, "masks")[i]
        assert [bool(packed[j // 8] >> (j % 8) & 1) for j in range(N)] == masks[k].tolist()
        assert packed[-1] >> (N % 8) == 0
        assert np.array_equal(raw(folder, "margins")[i], arrays["margins"][k].astype(np.float16))
        assert np.array_equal(raw(folder, "extra")[i], arrays["extra"][k])
        crc = zlib.crc32(
            raw(folder, "extra")[i].tobytes(), zlib.crc32(raw(folder, "margins")[i].tobytes(), zlib.crc32(packed.tobytes()))
        )
        assert raw(folder, "checksums")[i] == crc


def test_the_reader_returns_what_was_handed_over(folder):
    masks, arrays = add(folder, [0, 3, 5])
    store = Store(folder)
    assert store.done.tolist() == [0, 3, 5]
    assert np.array_equal(store.masks([5, 0]), masks[[2, 0]])
    assert np.array_equal(store.margins([3]), arrays["margins"][[1]].astype(np.float16))
    assert store.damaged(store.done) == []


def test_a_flipped_bit_in_any_array_is_found(folder):
    add(folder, [0, 1, 2])
    for name in ("masks", "margins", "extra"):
        array = np.load(folder / f"{name}.npy", mmap_mode="r+")
        byte = array[1].reshape(-1).view(np.uint8)
        byte[-1] ^= 1
        array.flush()
        assert Store(folder).damaged([0, 1, 2]) == [1], name
        byte[-1] ^= 1
        array.flush()
    assert Store(folder).damaged([0, 1, 2]) == []


def test_merging_twice_is_harmless_and_done_rows_stay(folder):
    add(folder, [2])
    before = {name: np.array(raw(folder, name)) for name in META.files}
    hand_over(folder, [2], *some_rows([2], seed=9))
    with Writer(folder) as writer:
        writer.merge()
        assert writer.merge() == 0
    assert all(np.array_equal(raw(folder, name), before[name]) for name in before)
    assert not list((folder / "inbox").iterdir())


def test_rows_in_the_inbox_are_not_done_and_survive_their_author(folder):
    masks, arrays = some_rows([1, 2])
    hand_over(folder, [1, 2], masks, arrays)
    assert not len(Store(folder).done)
    with Writer(folder) as writer:
        assert writer.merge() == 2
    assert Store(folder).done.tolist() == [1, 2]


def test_rows_that_do_not_fit_are_refused(folder):
    masks, arrays = some_rows([1, 2])
    for bad in (
        (masks[:, :5], arrays),
        (masks, {"margins": arrays["margins"]}),
        (masks, {**arrays, "extra": arrays["extra"][:1]}),
    ):
        with pytest.raises(ValueError, match="the store wants"):
            hand_over(folder, [1, 2], *bad)
    assert not list((folder / "inbox").iterdir())


def test_creating_over_anything_is_refused(folder, tmp_path):
    add(folder, [0])
    digest = Store(folder).digest()
    with pytest.raises(InputError, match="exists already"):
        create(folder, META)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file, where a folder is needed"):
        create(tmp_path / "file", META)
    assert Store(folder).digest() == digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "store"]


def test_of_two_creators_the_first_wins(folder, monkeypatch):
    """Both find nothing there; the second must not replace what the first has made and perhaps filled."""
    add(folder, [0])
    digest = Store(folder).digest()
    with monkeypatch.context() as patch:
        patch.setattr(type(folder), "exists", lambda _: False)
        with pytest.raises(InputError, match="exists already"):
            create(folder, META)
    assert Store(folder).digest() == digest
    assert [p.name for p in folder.parent.iterdir()] == ["store"]


def test_growing_keeps_what_is_there(folder):
    add(folder, [0, 5])
    before = {name: np.array(raw(folder, name)) for name in META.files}
    grow(folder, 20)
    for name in before:
        assert np.array_equal(raw(folder, name)[:M], before[name])
        assert len(raw(folder, name)) == 20
        assert not raw(folder, name)[M:].any()
    add(folder, [19])
    assert Store(folder).done.tolist() == [0, 5, 19]
    with pytest.raises(InputError, match="cannot shrink"):
        grow(folder, 3)


def test_a_growth_that_was_cut_off_leaves_a_store(folder):
    """Arrays are replaced before meta.json: with some of them longer, the store is still the old one."""
    add(folder, [0])
    for name in ("masks", "margins"):
        array = np.load(folder / f"{name}.npy")
        np.save(folder / f"{name}.npy", np.concatenate([array, array]))
    store = Store(folder)
    assert store.done.tolist() == [0]
    assert len(store.arrays["margins"]) == M
    grow(folder, 10)
    assert {len(raw(folder, name)) for name in META.files} == {10}


def test_the_digest_tells_content_apart(folder, tmp_path):
    empty = Store(folder).digest()
    add(folder, [0])
    one = Store(folder).digest()
    create(tmp_path / "other", META)
    add(tmp_path / "other", [0])
    assert Store(tmp_path / "other").digest() == one != empty
    create(tmp_path / "third", META)
    add(tmp_path / "third", [0], seed=1)
    assert Store(tmp_path / "third").digest() != one


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("meta.json", b"{}", "no store"),
        ("meta.json", b"not json", "no store"),
        ("meta.json", b'{"format": "zarr"}', "'zarr', not a store"),
        ("meta.json", b'{"format": "datamodels-store", "format_version": 2}', "store format 2"),
        ("meta.json", b'{"format": "datamodels-store", "format_version": 1}', "damaged"),
        ("margins.npy", b"", "margins.npy is damaged"),
        ("margins.npy", None, "margins.npy is missing"),
        ("done.npy", "cut", "done.npy is cut short"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused_in_one_sentence(folder, file, content, named):
    path = folder / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if content == "cut" else content)
    with pytest.raises(InputError, match=named) as caught:
        Store(folder)
    assert "\n" not in str(caught.value)


def test_an_array_of_another_shape_or_type_is_refused(folder):
    np.save(folder / "margins.npy", np.zeros((M, T), np.float32))
    with pytest.raises(InputError, match=r"not the array .* float16 of shape"):
        Store(folder)
    np.save(folder / "margins.npy", np.zeros((M - 1, T), np.float16))
    with pytest.raises(InputError, match=r"not the array .* shape"):
        Store(folder)


def _write_when_free(folder, entered):
    with Writer(folder) as writer:
        entered.set()
        writer.merge()


def test_a_second_writer_waits_for_the_first(folder):
    hand_over(folder, [3], *some_rows([3]))
    context = multiprocessing.get_context("spawn")
    entered = context.Event()
    with Writer(folder):
        assert not Lock(folder / "writer.lock").take()
        second = context.Process(target=_write_when_free, args=(folder, entered))
        second.start()
        assert not entered.wait(2)
        assert not len(Store(folder).done)
    assert entered.wait(20)
    second.join()
    assert Store(folder).done.tolist() == [3]


def test_a_model_given_up_is_marked_with_its_reason_and_never_counts_as_done(folder):
    add(folder, [0])
    masks, arrays = some_rows([3])
    nothing = {name: part[:0] for name, part in arrays.items()}
    hand_over(folder, [], masks[:0], nothing, {3: "diverged", 0: "late: row 0 is done"})
    digest = Store(folder).digest()
    with Writer(folder) as writer:
        assert writer.merge() == 1
    assert raw(folder, "done").tolist() == [1, 0, 0, 2, 0, 0]
    assert json.loads((folder / "failures.json").read_text())["3"] == "diverged"
    assert list((folder / "inbox").iterdir()) == []
    add(folder, [3])
    with Writer(folder) as writer:
        writer.give_up({5: "diverged too"})
    store = Store(folder)
    assert store.failures == {3: "diverged", 5: "diverged too"}
    assert (store.done.tolist(), store.missing.tolist()) == ([0], [1, 2, 4])
    assert store.digest() == digest


def test_headers_are_those_of_format_md_and_stay_as_long_when_the_store_grows(folder):
    for m in (M, 10_000):
        grow(folder, m)
        for name, descr, shape in (("margins", "<f2", (m, T)), ("extra", "<i4", (m, 2, 2)), ("done", "|u1", (m,))):
            content = (folder / f"{name}.npy").read_bytes()
            text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
            assert content[:10] == bytes.fromhex("934e554d505901007600")
            assert content[10:128] == text.ljust(117).encode() + b"\n"
            assert len(content) == 128 + m * np.dtype(descr).itemsize * int(np.prod(shape[1:]))


def test_json_ends_with_a_checksum_of_itself(folder):
    with Writer(folder) as writer:
        writer.give_up({2: "Gründe"})
    for name in ("meta.json", "failures.json"):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        seal = content.pop("sha256")
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert hashlib.sha256(text.encode("utf-8")).hexdigest() == seal
        (folder / name).write_text(json.dumps({**content, "sha256": seal, "more": 1}), encoding="utf-8")
        with pytest.raises(InputError, match=f"{name} is damaged"):
            Store(folder)
        (folder / name).write_text(json.dumps({**content, "sha256": seal}), encoding="utf-8")
        Store(folder)
