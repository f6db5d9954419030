"""The run's images: what is read is what the source holds, by either format, or a sentence that says why not."""

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from datamodels.data import beton, load, prepare
from datamodels.data.raw import RawSplit
from datamodels.data.sources import read_source
from datamodels.errors import InputError
from datamodels.runs import stage_folder
from datamodels.settings import DataSettings

needs_ffcv = pytest.mark.skipif(not beton.available(), reason="FFCV is not installed here")


def test_digits_are_scikit_learns_each_at_most_once():
    raw = read_source(DataSettings("digits", train_images=1000, test_images=797, seed=3))
    known = {image.tobytes(): label for image, label in zip((load_digits().images), load_digits().target, strict=True)}
    for split in (raw.train, raw.test):
        # 0 … 16 of the original, from 0 … 255
        original = np.ceil(split.images[..., 0] / 16).astype(float)
        assert [known[image.tobytes()] for image in original] == split.labels.tolist()
    everything = np.concatenate([raw.train.images, raw.test.images]).reshape(1797, -1)
    assert len(np.unique(everything, axis=0)) == len(np.unique(load_digits().data, axis=0))
    with pytest.raises(InputError, match="digits has 1797 images"):
        read_source(DataSettings("digits", train_images=1000, test_images=798))


@needs_ffcv
def test_ffcv_and_npy_files_give_identical_tensors(settings, tmp_path):
    by_ffcv, by_npy = (settings(run__dir=str(tmp_path / name)) for name in ("by ffcv", "by npy"))
    assert "FFCV" in prepare(by_ffcv, use_ffcv=True)
    assert "FFCV is not installed" in prepare(by_npy, use_ffcv=False)
    assert {f.name for f in stage_folder(by_ffcv, "data").iterdir()} == {"meta.json", "train.beton", "test.beton"}
    threads = torch.get_num_threads()
    a, b = load(by_ffcv), load(by_npy)
    assert torch.get_num_threads() == threads
    for one, other in ((a.train, b.train), (a.test, b.test)):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert (one.images.dtype, one.labels.dtype) == (torch.uint8, torch.int64)
    assert a.digest == b.digest


@needs_ffcv
@pytest.mark.parametrize("n", [1, 2500])
def test_ffcv_returns_colour_images_in_order_over_several_batches(tmp_path, n):
    rng = np.random.default_rng(0)
    split = RawSplit(rng.integers(0, 256, (n, 8, 8, 3), np.uint8), rng.integers(0, 10, n))
    beton.write(tmp_path / "x.beton", split)
    images, labels = beton.read(tmp_path / "x.beton", n)
    assert np.array_equal(images, split.images)
    assert np.array_equal(labels, split.labels)


def test_preparing_twice_changes_nothing_and_other_settings_are_refused(settings):
    first = settings()
    prepare(first, use_ffcv=False)
    before = {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in stage_folder(first, "data").iterdir()}
    assert "already" in prepare(first)
    with pytest.raises(InputError, match=r"other settings \(data.seed: 0 → 5; data.test_images: 20 → 21\)"):
        prepare(settings(data__seed=5, data__test_images=21))
    with pytest.raises(InputError, match="other settings"):
        load(settings(data__seed=5))
    assert {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in stage_folder(first, "data").iterdir()} == before


def test_altered_or_missing_data_is_refused(settings):
    with pytest.raises(InputError, match="there is no data"):
        load(settings())
    prepare(settings(), use_ffcv=False)
    path = stage_folder(settings(), "data") / "train_images.npy"
    images = np.load(path)
    images[3, 4, 4] ^= 1
    np.save(path, images)
    with pytest.raises(InputError, match="are not those that were written"):
        load(settings())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be read"):
        load(settings())
    meta = json.loads((stage_folder(settings(), "data") / "meta.json").read_text())
    (stage_folder(settings(), "data") / "meta.json").write_text(json.dumps({**meta, "format_version": 99}))
    with pytest.raises(InputError, match="format version 99"):
        load(settings())
