"""The tools: check finds what is wrong, repair has it trained again, import and export keep every bit."""

import contextlib
import json
import shutil
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodels.errors import InputError
from datamodels.store import ArraySpec, Meta, Rows, Store, Writer, create, deliver
from datamodels.store.check import check, refuse_damaged, repair
from datamodels.store.layout import MISSING
from datamodels.store.transfer import export_arrays, import_arrays
from datamodels.subsets import draw_masks

N, T, M = 13, 4, 6
META = Meta(
    M, N, T, {"margins": ArraySpec("float16", (T,)), "extra": ArraySpec("int32", (2,))}, {"store": {"seed": 3, "alpha": 0.5}}
)


def fill(folder, ids):
    rng = np.random.default_rng(0)
    arrays = {"margins": rng.normal(size=(len(ids), T)), "extra": rng.integers(0, 99, (len(ids), 2))}
    deliver(folder, ids, draw_masks(3, ids, N, 0.5), arrays)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A store with every row done but the last, which was given up."""
    folder = tmp_path_factory.mktemp("tools") / "store"
    create(folder, META)
    fill(folder, range(M - 1))
    with Writer(folder) as writer:
        writer.give_up({M - 1: "diverged"})
    return folder


@pytest.fixture
def copy(full, tmp_path):
    shutil.copytree(full, tmp_path / "store")
    return tmp_path / "store"


def test_a_sound_store_has_no_faults(full):
    assert check(full) == []


class Slow(Writer):
    """Marks what it has written a while later, as on a slow disk."""

    written = threading.Event()

    def mark(self, ids, mark):
        self.written.set()
        time.sleep(0.3)
        super().mark(ids, mark)


@pytest.mark.parametrize("what", ["give_up", "append"])
def test_a_row_that_another_process_is_about_to_mark_is_no_damage(tmp_path, what):
    folder = tmp_path / "store"
    create(folder, META)
    fill(folder, range(M - 1))
    before, ids = Store(folder), [M - 1]
    arrays = {"margins": np.ones((1, T)), "extra": np.ones((1, 2), int)}
    given = {M - 1: "diverged"} if what == "give_up" else Rows.of(META, ids, draw_masks(3, ids, N, 0.5), arrays)
    Slow.written.clear()
    with Slow(folder) as writer:
        other = threading.Thread(target=getattr(writer, what), args=(given,))
        other.start()
        assert Slow.written.wait(10)
        assert check(folder) == []
        other.join()
    # A store that was opened before knows no reason, and finds one.
    refuse_damaged(before)
    assert len(Store(folder).missing) == 0


def test_a_mark_that_nobody_is_about_to_write_is_damage_at_once(copy):
    with Writer(copy) as writer:
        writer.mark(np.array([1, M - 1]), MISSING)
    start = time.monotonic()
    assert [fault.row for fault in check(copy)] == [1, M - 1]
    assert time.monotonic() - start < 2
    assert [fault.row for fault in repair(copy)] == [1, M - 1]
    assert check(copy) == []


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_in_any_file_is_found(full, tmp_path, data):
    file = data.draw(st.sampled_from(sorted(path.name for path in full.iterdir() if path.is_file() and path.stat().st_size)))
    content = bytearray((full / file).read_bytes())
    # What a row that was given up holds means nothing; its mark does.
    end = len(content)
    if file in ("masks.npy", "margins.npy", "extra.npy", "checksums.npy"):
        end -= (end - 128) // M
    bit = data.draw(st.integers(0, 8 * end - 1))
    content[bit // 8] ^= 1 << bit % 8
    broken = tmp_path / "broken"
    shutil.copytree(full, broken)
    try:
        (broken / file).write_bytes(content)
        with contextlib.suppress(InputError):
            assert check(broken) != []
    finally:
        shutil.rmtree(broken)


def test_repair_unmarks_bad_rows_and_they_can_be_trained_again(copy):
    for name, row in (("masks", 0), ("margins", 2), ("checksums", 4)):
        array = np.load(copy / f"{name}.npy", mmap_mode="r+")
        array[row] += 1
        array.flush()
    done = np.load(copy / "done.npy", mmap_mode="r+")
    done[3] = 77
    done.flush()
    faults = check(copy)
    assert [fault.row for fault in faults] == [0, 2, 3, 4]
    assert repair(copy) == faults
    assert Store(copy).done.tolist() == [1, 3]  # row 3 is whole, and only its mark was wrong
    assert Store(copy).failures == {M - 1: "diverged"}
    fill(copy, range(M - 1))
    assert check(copy) == []
    assert Store(copy).done.tolist() == list(range(M - 1))


def test_a_mask_that_is_not_the_seeds_is_found_though_its_checksum_fits(copy):
    with Writer(copy) as writer:
        writer.mark(np.array([1]), 0)
        arrays: dict[str, Any] = {"margins": np.zeros((1, T)), "extra": np.zeros((1, 2), np.int32)}
        writer.append(Rows.of(writer.meta, [1], ~draw_masks(3, [1], N, 0.5), arrays))
    assert [(fault.row, fault.what) for fault in check(copy)] == [(1, "its mask is not that of the seed")]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    t=st.integers(1, 9),
    dtype=st.sampled_from(["float16", "float32"]),
    mask_dtype=st.sampled_from([bool, np.uint8]),
    seed=st.integers(0, 99),
)
def test_import_and_export_keep_every_bit(tmp_path, m, n, t, dtype, mask_dtype, seed):
    rng = np.random.default_rng(seed)
    masks, margins = rng.random((m, n)) < 0.4, rng.normal(size=(m, t)).astype(dtype)
    margins[rng.random(m) < 0.1, 0] = np.nan
    np.save(tmp_path / "masks.npy", masks.astype(mask_dtype))
    np.save(tmp_path / "margins.npy", margins)
    try:
        import_arrays(tmp_path / "masks.npy", tmp_path / "margins.npy", tmp_path / "store", "all")
        assert check(tmp_path / "store") == []
        finite = np.flatnonzero(np.isfinite(margins).all(1))
        assert sorted(Store(tmp_path / "store").failures) == sorted(set(range(m)) - set(finite.tolist()))
        export_arrays(tmp_path / "store", tmp_path / "out")
        for name, expected in {"masks": masks[finite], "margins": margins[finite], "ids": finite}.items():
            found = np.load(tmp_path / "out" / f"{name}.npy")
            assert found.dtype == expected.dtype
            assert np.array_equal(found, expected)
    finally:
        for name in ("store", "out"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)


def test_import_works_in_bounded_pieces(tmp_path, monkeypatch):
    from datamodels.store import check as module

    monkeypatch.setattr(module, "CHUNK_BYTES", 100)
    masks = np.random.default_rng(0).random((50, 20)) < 0.5
    np.save(tmp_path / "masks.npy", masks)
    np.save(tmp_path / "margins.npy", np.random.default_rng(1).normal(size=(50, 5)))
    import_arrays(tmp_path / "masks.npy", tmp_path / "margins.npy", tmp_path / "store")
    store = Store(tmp_path / "store")
    assert len(list(module.chunks(store))) > 10
    assert np.array_equal(store.masks(store.done), masks)


@pytest.mark.parametrize(
    ("masks", "margins", "named"),
    [
        (np.ones((3, 4), bool), np.ones((2, 5), np.float16), "3 rows and .* 2"),
        (np.ones((2, 3), bool), np.ones((3, 5), np.float16), "2 rows and .* 3; are the masks transposed?"),
        (np.ones((3, 4), bool), np.ones((3, 5), int), "int64, and margins must be"),
        (np.ones((3, 4), complex), np.ones((3, 5), np.float16), "complex128, and masks must be bool"),
        (np.full((3, 4), 2, np.uint8), np.ones((3, 5), np.float16), "holds 2, and masks that are not bool must be 0 and 1"),
        (np.full((3, 4), np.nan), np.ones((3, 5), np.float16), "holds nan, and masks that are not bool must be 0 and 1"),
        (np.ones(3, bool), np.ones((3, 5), np.float16), "must have two dimensions"),
        (np.array([["a"]]), np.ones((1, 5), np.float16), "and masks must be bool"),
        (np.array([[None]]), np.ones((1, 5), np.float16), "another type than plain numbers"),
    ],
)
def test_arrays_that_are_no_masks_and_margins_are_refused_and_leave_nothing(tmp_path, masks, margins, named):
    np.save(tmp_path / "masks.npy", masks, allow_pickle=True)
    np.save(tmp_path / "margins.npy", margins)
    with pytest.raises(InputError, match=named):
        import_arrays(tmp_path / "masks.npy", tmp_path / "margins.npy", tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["margins.npy", "masks.npy"]


def test_nothing_is_imported_or_exported_over_something(full, tmp_path):
    (tmp_path / "there" / "within").mkdir(parents=True)
    with pytest.raises(InputError, match="exists already"):
        export_arrays(full, tmp_path / "there")
    np.save(tmp_path / "masks.npy", np.ones((1, 2), bool))
    np.save(tmp_path / "margins.npy", np.ones((1, 2), np.float16))
    with pytest.raises(InputError, match="exists already"):
        import_arrays(tmp_path / "masks.npy", tmp_path / "margins.npy", tmp_path / "there")


def test_the_commands_say_what_they_find_and_end_as_promised(copy, command, tmp_path):
    info = command("store", "info", copy)
    assert info.returncode == 0
    assert "5 of 6 models done, 1 given up" in info.stdout
    assert "model 5 was given up: diverged" in info.stdout
    assert command("store", "check", copy).returncode == 0
    done = np.load(copy / "done.npy", mmap_mode="r+")
    done[0] = 9
    done.flush()
    checked = command("store", "check", copy)
    assert checked.returncode == 1
    assert "row 0: it is whole, but not marked" in checked.stdout
    array = np.load(copy / "masks.npy", mmap_mode="r+")
    array[1] ^= 1
    array.flush()
    assert command("store", "check", copy, "--repair").returncode == 0
    assert command("store", "check", copy).returncode == 0
    exported = command("store", "export", copy, tmp_path / "out")
    assert exported.returncode == 0
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["provenance"] == META.provenance
    imported = command("store", "import", tmp_path / "out" / "masks.npy", tmp_path / "out" / "margins.npy", tmp_path / "again")
    assert "4 models imported" in imported.stdout
    refused = command("store", "info", tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == f"error: there is no store in {tmp_path}\n"
    assert command("store", "frobnicate").returncode == 2
