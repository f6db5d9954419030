"""The folder of a regression: going on after a crash, ranges of targets, sparse or not, and the published .pt layout."""

import dataclasses
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csc_matrix, load_npz

from datamodels.durable import Lock
from datamodels.errors import InputError
from datamodels.regress import Datamodels, fit_datamodels, provenance, results, save
from datamodels.regress.run import import_weights, regress_store
from datamodels.regress.unfinished import Unfinished
from datamodels.seals import seal_folder
from tests.regress.test_path import SETTINGS, N, T, planted, store_of

BLOCKS_OF_2 = dataclasses.replace(SETTINGS, block=2)


@pytest.fixture
def store(tmp_path):
    masks, margins, _ = planted()
    return store_of(tmp_path / "store", masks, margins)


class CrashError(Exception):
    pass


@pytest.mark.parametrize("writes", range(7))
def test_a_regression_goes_on_after_a_crash_and_ends_as_without(store, tmp_path, monkeypatch, writes):
    whole = fit_datamodels(store, BLOCKS_OF_2)
    keep, kept, again = Unfinished.keep, list[str](), list[str]()

    def crashing(self, name, arrays):
        if len(kept) == writes:
            raise CrashError
        kept.append(name)
        keep(self, name, arrays)

    with monkeypatch.context() as patched:
        patched.setattr(Unfinished, "keep", crashing)
        with pytest.raises(CrashError):
            regress_store(store.folder, tmp_path / "out", BLOCKS_OF_2)
    assert not (tmp_path / "out").exists()

    def noting(self, name, arrays):
        again.append(name)
        keep(self, name, arrays)

    monkeypatch.setattr(Unfinished, "keep", noting)
    regress_store(store.folder, tmp_path / "out", BLOCKS_OF_2)
    # What was kept is not done again, and all else is: three blocks to choose λ for, three to refit,
    # and what is known of all models.
    assert len(kept) == writes
    assert len(set(kept + again)) == len(kept + again) == 7
    models = Datamodels.load(tmp_path / "out")
    assert np.array_equal(models.weights, whole.weights)
    assert np.array_equal(models.lam, whole.lam)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "store"]


def test_what_another_regression_left_or_a_torn_file_is_not_used(store, tmp_path):
    meta = provenance(store, BLOCKS_OF_2)
    folder = tmp_path / ".out.unfinished"
    fit_datamodels(store, BLOCKS_OF_2, unfinished=Unfinished(folder, meta))
    first = Unfinished(folder, meta)
    assert first.recall("chosen-0-2") is not None
    (folder / "chosen-0-2.npz").write_bytes((folder / "chosen-0-2.npz").read_bytes()[:-30])
    assert first.recall("chosen-0-2") is None
    (folder / "chosen-2-4.npz").write_bytes(b"")
    assert first.recall("chosen-2-4") is None
    other = Unfinished(folder, provenance(store, dataclasses.replace(BLOCKS_OF_2, gap=1e-3)))
    assert not folder.exists()
    assert other.recall("fitted-0-2") is None


def test_only_one_regression_works_on_a_folder(store, tmp_path):
    lock = Lock(tmp_path / ".out.lock")
    assert lock.take()
    with pytest.raises(InputError, match="another regression is at work on"):
        regress_store(store.folder, tmp_path / "out", SETTINGS)
    lock.release(remove=True)


def test_a_range_of_targets_gets_the_weights_that_all_get(store, tmp_path):
    exact = dataclasses.replace(SETTINGS, gap=1e-9)
    whole = fit_datamodels(store, exact)
    some = dataclasses.replace(exact, targets="2:5")
    part = fit_datamodels(store, some)
    np.testing.assert_allclose(part.weights, whole.weights[:, 2:5], atol=1e-4)
    np.testing.assert_allclose(part.metrics["lds"], whole.metrics["lds"][2:5], atol=1e-3)
    save(tmp_path / "out", part, provenance(store, some))
    models = Datamodels.load(tmp_path / "out")
    assert models.targets == range(2, 5)
    assert np.array_equal(models.of(4)[0], part.weights[:, 2])
    for target in (1, 5):
        with pytest.raises(InputError, match=f"targets 2:5, {target} is not among them"):
            models.of(target)


@pytest.mark.parametrize("wanted", ["0:7", "3:3", "4:2", "-1:3", "1", "a:b", ":"])
def test_a_range_that_the_store_does_not_have_is_refused(store, wanted):
    with pytest.raises(InputError, match=r"regress.targets is"):
        fit_datamodels(store, dataclasses.replace(SETTINGS, targets=wanted))


@pytest.mark.parametrize("density", [0.1, 1.0])
def test_weights_are_kept_in_whichever_form_is_smaller(store, tmp_path, density):
    fit = fit_datamodels(store, SETTINGS)
    rng = np.random.default_rng(0)
    weights = (rng.normal(size=(N, T)) * (rng.random((N, T)) < density)).astype(np.float32)
    save(tmp_path / "out", dataclasses.replace(fit, columns=type(fit.columns)(weights)), provenance(store, SETTINGS))
    assert np.array_equal(Datamodels.load(tmp_path / "out").weights, weights)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    if density == 1:
        assert np.array_equal(np.load(tmp_path / "out" / "weights.npy", mmap_mode="r"), weights)
        assert "weights.npz" not in names
    else:
        assert np.array_equal(load_npz(tmp_path / "out" / "weights.npz").toarray(), weights)
        assert "weights.npy" not in names


def test_the_published_layout_goes_out_and_comes_back(store, tmp_path, command):
    regress_store(store.folder, tmp_path / "out", SETTINGS)
    first = Datamodels.load(tmp_path / "out")
    done = command("regress", "--export", tmp_path / "weights.pt", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    tensors = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "weight": (N, T),
        "bias": (T,),
        "lam": (T,),
        "mean": (N,),
        "std": (N,),
    }
    assert not tensors["mean"].any()
    assert (tensors["std"] == 1).all()
    done = command("regress", "--import", tmp_path / "weights.pt", "--out", tmp_path / "back")
    assert done.returncode == 0, done.stderr
    back = Datamodels.load(tmp_path / "back")
    masks = store.masks(store.done[:5])
    assert np.array_equal(back.predict(masks), first.predict(masks))
    np.testing.assert_allclose(back.lam, first.lam, rtol=1e-6)
    assert back.meta["store_digest"] is None
    asked = command("regress", "--import", tmp_path / "weights.pt")
    together = "error: --store DIR and --import FILE.pt go together with --out DIR, as"
    assert (asked.returncode, asked.stderr) == (2, f"{together} --import FILE.pt --out DIR\n")
    alone = command("regress", "--out", "elsewhere", "--run.dir", "mine")
    assert (alone.returncode, alone.stderr) == (2, f"{together} --store mine/store --out elsewhere\n")


@pytest.mark.parametrize(
    ("content", "masks"),
    [
        ({"weight": torch.full((N, T), 1e38)}, "0.01"),
        ({"bias": torch.full((T,), 3e38), "weight": torch.full((N, T), -2e37)}, "0.5"),
        ({"weight": torch.full((N, T), 1e39, dtype=torch.float64)}, "raw"),
        ({"weight": torch.ones(N, T), "mean": torch.full((N,), 0.5), "std": torch.full((N,), 1e-39)}, None),
    ],
)
def test_weights_beyond_float32_replace_nothing(tmp_path, content, masks):
    plain = {"weight": torch.ones(N, T), "bias": torch.zeros(T), "lam": torch.zeros(T)}
    torch.save(plain, tmp_path / "good.pt")
    import_weights(tmp_path / "good.pt", tmp_path / "out", "raw")
    torch.save({**plain, **content}, tmp_path / "large.pt")
    with pytest.raises(InputError, match="beyond"):
        import_weights(tmp_path / "large.pt", tmp_path / "out", masks)
    assert (Datamodels.load(tmp_path / "out").weights == 1).all()


def test_numbers_that_are_not_finite_are_never_written(store, tmp_path):
    fit = fit_datamodels(store, SETTINGS)
    save(tmp_path / "out", fit, provenance(store, SETTINGS))
    for changed in ({"bias": fit.bias * np.inf}, {"lam": fit.lam * np.nan}, {"columns": fit.columns * np.float32(np.inf)}):
        with pytest.raises(InputError, match="nothing is written to"):
            save(tmp_path / "out", dataclasses.replace(fit, **changed), provenance(store, SETTINGS))
    assert np.array_equal(Datamodels.load(tmp_path / "out").weights, fit.weights)


def test_weights_that_were_made_otherwise_are_not_replaced_without_a_word(store, tmp_path, capsys):
    regress_store(store.folder, tmp_path / "out", SETTINGS)
    regress_store(store.folder, tmp_path / "out", SETTINGS)
    assert "replaced" not in capsys.readouterr().err
    regress_store(store.folder, tmp_path / "out", dataclasses.replace(SETTINGS, prior="flat"))
    told = capsys.readouterr().err
    assert (
        f"regress: the weights in {tmp_path / 'out'} are replaced, which were made otherwise (regress.prior none → flat)"
        in told
    )
    torch.save({"weight": torch.ones(N, T), "bias": torch.zeros(T), "lam": torch.zeros(T)}, tmp_path / "good.pt")
    import_weights(tmp_path / "good.pt", tmp_path / "out", "raw")
    regress_store(store.folder, tmp_path / "out", SETTINGS)
    assert "imported from good.pt, are replaced" in capsys.readouterr().err


def test_a_file_that_is_not_of_that_layout_is_refused_and_nothing_is_left(tmp_path, command):
    good = {"weight": torch.zeros(4, 2), "bias": torch.zeros(2), "lam": torch.zeros(2)}
    wrong = {
        "must hold a dictionary of three tensors": {"weight": good["weight"]},
        "must hold weight .N, T., bias .T,. and lam .T,., not weight .4, 2., bias .3,.": {**good, "bias": torch.zeros(3)},
        "has a value in lam that is not a number": {**good, "lam": torch.tensor([1.0, float("nan")])},
    }
    for sentence, content in wrong.items():
        torch.save(content, tmp_path / "wrong.pt")
        with pytest.raises(InputError, match=sentence):
            import_weights(tmp_path / "wrong.pt", tmp_path / "out")
    (tmp_path / "wrong.pt").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="is not a file of tensors"):
        import_weights(tmp_path / "wrong.pt", tmp_path / "out")
    with pytest.raises(InputError, match=r"nowhere\.pt is missing"):
        import_weights(tmp_path / "nowhere.pt", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.pt"]
    shutil.rmtree(tmp_path)


@pytest.fixture(params=[0.1, 1.0], ids=["sparse", "dense"])
def weights_folder(store, tmp_path, request):
    """Weights in either form, as the regression leaves them."""
    fit, rng = fit_datamodels(store, SETTINGS), np.random.default_rng(0)
    weights = (rng.normal(size=(N, T)) * (rng.random((N, T)) < request.param)).astype(np.float32)
    save(tmp_path / "out", dataclasses.replace(fit, columns=type(fit.columns)(weights)), provenance(store, SETTINGS))
    return tmp_path / "out"


def test_one_bit_of_any_file_of_the_weights_is_found(weights_folder):
    for file in sorted(weights_folder.iterdir()):
        content = file.read_bytes()
        for where in range(0, len(content), max(1, len(content) // 7)):
            bad = bytearray(content)
            bad[where] ^= 1
            file.write_bytes(bad)
            with pytest.raises(InputError, match=r"damaged|is not|are no|format version"):
                Datamodels.load(weights_folder)
        file.write_bytes(content)
    Datamodels.load(weights_folder)


def test_weights_that_stand_in_the_place_of_others_are_refused_and_made_again(store, tmp_path):
    regress_store(store.folder, tmp_path / "out", SETTINGS)
    whole = np.array(Datamodels.load(tmp_path / "out").weights)
    for other in (-whole, whole[:-1], np.roll(whole, 1, axis=1)):
        for file in (tmp_path / "out").glob("weights.*"):
            file.unlink()
        np.save(tmp_path / "out" / "weights.npy", other)
        with pytest.raises(InputError, match="damaged"):
            Datamodels.load(tmp_path / "out")
        regress_store(store.folder, tmp_path / "out", SETTINGS)
        assert np.array_equal(Datamodels.load(tmp_path / "out").weights, whole)


def test_sealed_weights_of_another_store_are_refused_by_it(store, tmp_path):
    masks, margins, _ = planted()
    regress_store(store.folder, tmp_path / "out", SETTINGS)
    models = Datamodels.load(tmp_path / "out")
    models.refuse_other(store)
    others = {
        "fewer images": store_of(tmp_path / "images", masks[:, :-1], margins),
        "fewer targets": store_of(tmp_path / "targets", masks, margins[:, :-1]),
        "fewer models": store_of(tmp_path / "models", masks[:-1], margins[:-1]),
    }
    with pytest.raises(InputError, match=f"weights are of {N} images"):
        models.refuse_other(others["fewer images"])
    with pytest.raises(InputError, match=f"targets up to {T}"):
        models.refuse_other(others["fewer targets"])
    without = dataclasses.replace(models, heldout=np.append(models.heldout, len(masks) - 1))
    with pytest.raises(InputError, match="held-out models"):
        without.refuse_other(others["fewer models"])


def sparse_parts():
    """Three images, four targets: the parts of a CSR matrix."""
    return {
        "indices": np.array([1, 3, 0], np.int32),
        "indptr": np.array([0, 2, 2, 3], np.int32),
        "format": np.array(b"csr"),
        "shape": np.array([3, 4]),
        "data": np.array([1.0, 2.0, 3.0], np.float32),
    }


HOSTILE_CSR = {
    "column beyond": {"indices": np.array([1, 4, 0], np.int32)},
    "column far beyond": {"indices": np.array([1, 2**31 - 1, 0], np.int32)},
    "negative column": {"indices": np.array([-1, 3, 0], np.int32)},
    "twice": {"indices": np.array([1, 1, 0], np.int32)},
    "unsorted": {"indices": np.array([3, 1, 0], np.int32)},
    "floats": {"indices": np.array([1.0, 3.0, 0.0])},
    "unsigned": {"indices": np.array([1, 3, 0], np.uint64)},
    "short": {"indices": np.array([1, 3], np.int32)},
    "falling": {"indptr": np.array([0, 3, 2, 3], np.int32)},
    "negative start": {"indptr": np.array([-1, 2, 2, 3], np.int32)},
    "end beyond": {"indptr": np.array([0, 2, 2, 2**31 - 1], np.int32)},
    "end before": {"indptr": np.array([0, 1, 1, 1], np.int32)},
    "fewer rows": {"indptr": np.array([0, 2, 3], np.int32)},
    "no rows": {"indptr": np.zeros(0, np.int32)},
    "wide": {"shape": np.array([3, 2**40])},
    "tall": {"shape": np.array([2**40, 4])},
    "one shape": {"shape": np.array(3)},
    "other format": {"format": np.array(b"csc")},
    "complex": {"data": np.array([1j, 2, 3])},
    "nan": {"data": np.array([1, np.nan, 3], np.float32)},
    "scalar": {"data": np.array(1, np.float32)},
    "wide data": {"data": np.ones((3, 2), np.float32)},
}


@pytest.mark.parametrize("damage", HOSTILE_CSR)
def test_a_sealed_sparse_matrix_that_points_out_of_itself_is_refused_before_scipy_sees_it(tmp_path, monkeypatch, damage):
    good = csc_matrix(np.ones((3, 4), np.float32))
    about: dict[str, Any] = {"format_version": results.FORMAT_VERSION, "store_digest": None, "targets": [0, 4], "regress": {}}
    empty = np.zeros(0, np.int64)
    results.write(tmp_path / "out", good, np.zeros(4, np.float32), np.ones(4), empty, {}, about)
    (tmp_path / "out" / "weights.npy").unlink()

    def sealed(**changed):
        np.savez(tmp_path / "out" / "weights.npz", **{**sparse_parts(), **changed})
        seal_folder(tmp_path / "out", about)
        return Datamodels.load(tmp_path / "out")

    assert sealed().weights.tolist() == [[0, 1, 0, 2], [0, 0, 0, 0], [3, 0, 0, 0]]
    if damage not in ("complex", "nan"):
        monkeypatch.setattr(results, "csr_matrix", None)
    with pytest.raises(InputError):
        sealed(**HOSTILE_CSR[damage])
