"""CIFAR-100 as CIFAR-10: both layouts, packed and unpacked, by its fine labels."""

import hashlib
import pickle
import tarfile

import numpy as np
import pytest

from datamodels.data.cifar import CIFAR10, CIFAR100, _pickled_batch
from datamodels.data.sources import read_source
from datamodels.errors import InputError
from datamodels.settings import DataSettings


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Both layouts of the same noise, with the names of files and the coarse labels that the pickled one has as well."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("cifar100")
    binary, pickled = (folder / name for name in CIFAR100.folders)
    kept = {}
    for path in (binary, pickled):
        path.mkdir()
    for name, count in (("train", 50_000), ("test", 10_000)):
        pixels, fine = rng.integers(0, 256, (count, 3072), np.uint8), rng.integers(0, 100, count)
        coarse = (fine // 5).astype(np.uint8)
        np.hstack([coarse[:, None], fine[:, None].astype(np.uint8), pixels]).tofile(binary / f"{name}.bin")
        content = {b"data": pixels, b"fine_labels": fine.tolist(), b"coarse_labels": coarse.tolist()}
        content |= {b"filenames": [b"a_name_of_a_file.png"] * count}
        (pickled / name).write_bytes(pickle.dumps(content, protocol=4))
        kept[name] = pixels, fine
    return folder, kept


def wanted(source, **more):
    return DataSettings("cifar100", str(source), **{"verify_md5": False, **more})


@pytest.mark.parametrize("layout", CIFAR100.folders)
def test_both_layouts_hold_the_same_by_fine_labels(layout, noise):
    folder, kept = noise
    raw = read_source(wanted(folder / layout, train_images=2000, test_images=100))
    for split, (pixels, fine) in ((raw.train, kept["train"]), (raw.test, kept["test"])):
        n = len(split.labels)
        assert np.array_equal(split.labels, fine[:n])
        assert np.array_equal(split.images[7, 30, 2], pixels[7].reshape(3, 32, 32)[:, 30, 2])
    assert raw.class_names == CIFAR100.classes


def test_torchvisions_folder_has_an_archive_to_check(noise, tmp_path):
    folder, kept = noise
    (tmp_path / "cifar-100-python").symlink_to(folder / "cifar-100-python")
    archive = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder / "cifar-100-python", "cifar-100-python")
    known = {"md5_python": hashlib.md5(archive.read_bytes()).hexdigest()}
    raw = read_source(wanted(tmp_path, verify_md5=True, train_images=50, classes="rose,apple", **known))
    places = np.flatnonzero(np.isin(kept["train"][1], (0, CIFAR100.classes.index("rose"))))[:50]
    assert raw.train.names == tuple(f"train row {row}" for row in places)
    with pytest.raises(InputError, match="not one of the official archives"):
        read_source(wanted(tmp_path, verify_md5=True))


def test_a_batch_of_the_other_data_set_is_refused():
    batch = pickle.dumps({b"data": np.zeros((10_000, 3072), np.uint8), b"labels": [0] * 10_000}, protocol=4)
    with pytest.raises(InputError, match="not a CIFAR-100 batch"):
        _pickled_batch(batch, 50_000, "here", CIFAR100)
    assert len(set(CIFAR100.classes)) == 100
    assert list(CIFAR100.classes) == sorted(CIFAR100.classes)
    assert CIFAR10.md5s != CIFAR100.md5s
