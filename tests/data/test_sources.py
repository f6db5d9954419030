"""What all data sets share: what is cut from them and said of them, targets from the training set, and what a run remembers."""

import json
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from datamodels.data import load, prepare
from datamodels.data.files import _deciding
from datamodels.data.sources import read_source, train_targets
from datamodels.errors import InputError
from datamodels.learners.function import Function
from datamodels.runs import stage_folder
from datamodels.settings import DataSettings

RNG = np.random.default_rng(0)


@pytest.fixture
def path(tmp_path):
    """Grey images of three classes with names."""
    arrays: dict[str, Any] = {
        "x_train": RNG.integers(0, 256, (12, 4, 4)).astype(np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": RNG.integers(0, 256, (6, 4, 4)).astype(np.uint8),
        "y_test": np.arange(6) % 3,
        "train_names": np.array([f"a/{k}.png" for k in range(12)]),
        "test_names": np.array([f"b/{k}.png" for k in range(6)]),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    return tmp_path / "a.npz"


def test_all_digits_are_divided_and_some_classes_of_them():
    raw = read_source(DataSettings("digits"))
    assert (len(raw.train.labels), len(raw.test.labels)) == (1438, 359)
    assert len(read_source(DataSettings("digits", train_images=1000)).test.labels) == 797
    assert len(read_source(DataSettings("digits", test_images=97)).train.labels) == 1700
    some = read_source(DataSettings("digits", classes="7,1", train_images=100))
    counts = np.bincount(load_digits().target)
    assert some.class_names == ("7", "1")
    assert np.bincount([*some.train.labels, *some.test.labels]).tolist() == [counts[7], counts[1]]
    known = {image.tobytes(): label for image, label in zip(load_digits().images, load_digits().target, strict=True)}
    found = [known[np.ceil(image[..., 0] / 16).astype(float).tobytes()] for image in some.train.images]
    assert found == np.where(some.train.labels == 0, 7, 1).tolist()
    assert some.train.names is None


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        ("7,8,ten", r"there is no class 'ten'; there are 0, 1, 2"),
        ("7", "two classes or more"),
        ("7,7,8", "each once"),
    ],
)
def test_classes_that_are_none_are_refused(classes, told):
    with pytest.raises(InputError, match=told):
        read_source(DataSettings("digits", classes=classes))


def test_the_nearest_names_of_classes_are_told(tmp_path, path):
    arrays = {**np.load(path), "class_names": np.array(["airplane", "automobile", "ship"])}
    np.savez(path, **arrays)
    with pytest.raises(InputError, match="there is no class 'aeroplane'; there are airplane"):
        read_source(DataSettings("arrays", str(path), classes="aeroplane,ship"))


def test_training_images_are_targets_behind_the_test_images(path, chosen):
    wanted = chosen("arrays", source=path, train_targets="7,3")
    prepare(wanted, use_ffcv=False)
    data, plain = load(wanted), load(chosen("arrays", source=path))
    assert data.train_targets == (7, 3)
    assert plain.train_targets == ()
    assert (len(data.train.labels), len(data.test.labels)) == (12, 8)
    assert torch.equal(data.test.images[:6], plain.test.images)
    assert torch.equal(data.test.images[6:], data.train.images[[7, 3]])
    assert data.test.labels[6:].tolist() == data.train.labels[[7, 3]].tolist()
    assert data.test.names == (*(f"b/{k}.png" for k in range(6)), "a/7.png", "a/3.png")
    assert data.digest == plain.digest


def test_train_targets_are_drawn_by_seed_or_all_or_none():
    def of(wanted, n=40, seed=0):
        return train_targets(DataSettings("digits", train_targets=wanted, seed=seed), n)

    assert of("none") == ()
    assert of("all") == tuple(range(40))
    assert of("3, 0") == (3, 0)
    drawn = of("random:10")
    assert len(set(drawn)) == 10
    assert drawn == of("random:10") == tuple(sorted(drawn))
    assert drawn != of("random:10", seed=1)
    assert train_targets(DataSettings("folder", train_targets="a/0.png, 2"), 3, ("b", "a/0.png", "c")) == (1, 2)
    assert train_targets(DataSettings("folder", train_targets="0"), 2, ("1", "0")) == (1,)  # a name before an index
    with pytest.raises(InputError, match=r"indices from 0 to 1, or names, as a\.png, with commas between, not 'c\.png'"):
        train_targets(DataSettings("folder", train_targets="c.png"), 2, ("a.png", "b.png"))
    for bad in ("40", "3,3", "-1", "3,", "random", "random:41", "random:0", "random:x", "some", "1e1", "٣"):
        with pytest.raises(InputError, match=r"data\.train_targets"):
            of(bad)


def test_bad_train_targets_are_refused_before_anything_is_written(path, chosen):
    wanted = chosen("arrays", source=path, train_targets="12")
    with pytest.raises(InputError, match="indices from 0 to 11"):
        prepare(wanted)
    assert not stage_folder(wanted, "data").exists()


def test_another_source_is_not_mixed_with_what_is_there(path, chosen, tmp_path, monkeypatch):
    prepare(chosen("arrays", source=path), use_ffcv=False)
    monkeypatch.chdir(tmp_path)
    assert "already" in prepare(chosen("arrays", source="a.npz"))
    (tmp_path / "b.npz").write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=r"other settings \(data.source: .*a.npz → .*b.npz\)"):
        prepare(chosen("arrays", source="b.npz"))
    with pytest.raises(InputError, match=r"data\.classes"):
        load(chosen("arrays", source=path, classes="0,1"))


def test_what_runs_remembered_before_is_remembered_alike(settings):
    prepare(settings(), use_ffcv=False)
    meta = json.loads((stage_folder(settings(), "data") / "meta.json").read_text())
    assert meta["format_version"] == 1
    assert meta["settings"] == {"dataset": "digits", "train_images": 60, "test_images": 20, "seed": 0, "pool": 1}
    assert meta.keys() == {"format_version", "format", "settings", "sizes", "class_names", "digest"}


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_all_of_a_known_data_set_are_as_many_as_runs_of_before_name_by_default(settings, name):
    def remembered(n, t, **more):
        return _deciding(settings(data__dataset=name, data__train_images=n, data__test_images=t, **more))

    assert remembered(0, 0) == remembered(50_000, 10_000)
    assert remembered(0, 500) == remembered(50_000, 500)
    of_two = remembered(0, 0, data__classes="ship,airplane")
    assert (of_two["train_images"], of_two["test_images"]) == (0, 0)


def test_names_that_were_changed_are_refused_and_no_digest_depends_on_them(path, chosen):
    wanted = chosen("arrays", source=path)
    prepare(wanted, use_ffcv=False)
    folder = stage_folder(wanted, "data")
    digest, names = load(wanted).digest, (folder / "names.json").read_text()
    for bad, told in (
        (names.replace("a/3.png", "a/4.png"), "does not have its checksum"),
        ("", "is not JSON"),
        (None, "names.json is missing; delete"),
    ):
        (folder / "names.json").unlink()
        if bad is not None:
            (folder / "names.json").write_text(bad)
        with pytest.raises(InputError, match=told):
            load(wanted)
        (folder / "names.json").touch()
    arrays = {name: array for name, array in np.load(path).items() if "names" not in name}
    np.savez(path.with_name("b.npz"), **arrays)
    raw = read_source(DataSettings("arrays", str(path.with_name("b.npz"))))
    assert raw.train.names is None
    (folder / "names.json").write_text(names)
    assert load(wanted).digest == digest


def test_features_have_no_pictures_and_no_pools(tmp_path, loaded):
    x = RNG.normal(size=(12, 7))
    np.savez(tmp_path / "f.npz", x_train=x, y_train=np.arange(12) % 2, x_test=x[:4] + 1, y_test=np.arange(4) % 2)
    data = loaded("arrays", source=tmp_path / "f.npz")
    assert not data.has_pictures
    assert data.train.images.shape == (12, 7)
    with pytest.raises(InputError, match="there are none in features"):
        read_source(DataSettings("arrays", str(tmp_path / "f.npz"), pool=2))


def test_float_images_are_pooled_without_rounding(tmp_path):
    x = RNG.normal(size=(12, 6, 4, 2)).astype(np.float32)
    np.savez(tmp_path / "f.npz", x_train=x, y_train=np.arange(12) % 2, x_test=x, y_test=np.arange(12) % 2)
    pooled = read_source(DataSettings("arrays", str(tmp_path / "f.npz"), pool=2)).train.images
    assert pooled.dtype == np.float32
    assert abs(pooled[3, 1, 0, 1] - x[3, 2:4, 0:2, 1].astype(float).mean()) < 1e-6


def test_a_class_lost_by_a_cut_is_told(path, capsys):
    read_source(DataSettings("arrays", str(path), train_images=2))
    assert "classes of test images have no training image" in capsys.readouterr().err


def test_a_function_of_ones_own_takes_its_sizes_from_its_labels(settings, monkeypatch):
    module: Any = ModuleType("sized")
    module.train_labels, module.test_labels = np.zeros(7, int), [0, 1, 1]
    module.train = lambda index, mask: {"margins": np.zeros(3)}
    monkeypatch.setitem(sys.modules, "sized", module)
    wanted = settings(worker__main="sized:train", data__train_images=0, data__test_images=0)
    learner = Function(wanted, module.train)
    assert (learner.n, learner.t) == (7, 3)
    del module.train_labels
    with pytest.raises(InputError, match=r"sized:train has no train_labels, .* set data.train_images"):
        Function(wanted, module.train)
