"""Data sets that are none: exit code 2, one sentence that names the file or the setting, and nothing written."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodels.data import prepare
from datamodels.errors import run_command

RNG = np.random.default_rng(0)


def picture(path, size=(5, 4), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 90).convert(mode).save(path, **options)


def folder(root, change=lambda root: None):
    for side in ("train", "test"):
        for name in ("cat", "dog"):
            for k in range(2):
                picture(root / side / name / f"{k}.png")
    change(root)
    return {"dataset": "folder", "source": root}


def rename(old, new):
    return lambda root: (root / old).rename(root / new)


def emptied(name):
    return lambda root: [path.unlink() for path in (root / name).iterdir()]


def replaced(content):
    def change(root):
        path = root / "train" / "dog" / "1.png"
        whole = path.read_bytes()
        path.unlink()
        if callable(content):
            content(path, whole)
        else:
            path.write_bytes(content)

    return change


def bomb(path, whole):
    Image.new("1", (12_000, 12_000)).save(path)


def beyond(path, whole):
    Image.fromarray(np.full((4, 5), 70_000, np.int32)).save(path, "TIFF")


def script(path, whole):
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n%%EndComments\n(x) run\n")


FOLDERS = {
    "no folder": (lambda root: {"dataset": "folder", "source": root}, "is missing"),
    "a file": (lambda root: (root.write_text("x"), {"dataset": "folder", "source": root})[1], "is a file, not a folder"),
    "no name": (lambda root: {"dataset": "folder"}, "data.source must name the folder with train/ and test/"),
    "no train": (lambda root: folder(root, rename("train", "Train")), "has no folder train (it has Train, test)"),
    "no test": (lambda root: folder(root, rename("test", "x")), "has no folder test or val or valid"),
    "no classes": (
        lambda root: folder(root, lambda r: [(r / "train" / n).rename(r / n) for n in ("cat", "dog")]),
        "no folders",
    ),
    "an empty class": (lambda root: folder(root, emptied("train/dog")), "dog has no pictures"),
    "an empty test": (lambda root: folder(root, lambda r: [emptied(f"test/{n}")(r) for n in ("cat", "dog")]), "no pictures"),
    "a class of test only": (lambda root: folder(root, rename("test/dog", "test/fox")), "has a class 'fox'"),
    "one class": (
        lambda root: folder(root, lambda r: [(r / side / "dog").rename(r / f"{side} dog") for side in ("train", "test")]),
        "all images are of one class, cat",
    ),
    "an empty file": (lambda root: folder(root, replaced(b"")), "dog/1.png is empty"),
    "cut short": (
        lambda root: folder(root, replaced(lambda path, whole: path.write_bytes(whole[:60]))),
        "dog/1.png is no picture",
    ),
    "text": (lambda root: folder(root, replaced(b"no picture")), "dog/1.png is no picture"),
    "a bomb": (lambda root: folder(root, replaced(bomb)), "dog/1.png is a picture of 12000 × 12000 pixels"),
    "a program": (lambda root: folder(root, replaced(script)), "dog/1.png is no picture"),
    "beyond 16 bits": (lambda root: folder(root, replaced(beyond)), "dog/1.png has values beyond 16 bits"),
    "a pipe": (lambda root: folder(root, replaced(lambda path, whole: os.mkfifo(path))), "dog/1.png is a pipe"),
    "a link to nothing": (
        lambda root: folder(root, replaced(lambda path, whole: path.symlink_to("x"))),
        "dog/1.png is missing",
    ),
    "a link to itself": (
        lambda root: folder(root, replaced(lambda path, whole: path.symlink_to("1.png"))),
        "dog/1.png cannot be opened",
    ),
    "several sizes": (
        lambda root: folder(root, replaced(lambda path, whole: picture(path, (9, 9)))),
        "dog/1.png is 9 × 9 × 3 and cat/0.png is 4 × 5 × 3: set data.size",
    ),
    "another size of test": (
        lambda root: folder(root, lambda r: [picture(path, (9, 9)) for path in (r / "test").rglob("*.png")]),
        "the test images uint8 9 × 9 × 3; set data.size",
    ),
    "too many": (lambda root: {**folder(root), "train_images": 9}, "the data set has 4 train images"),
    "too few": (lambda root: {**folder(root), "train_images": 1}, "the training set has 1 image"),
}


def arrays(root, save=np.savez, **changed):
    whole = {
        "x_train": RNG.integers(0, 256, (8, 5, 4)).astype(np.uint8),
        "y_train": np.arange(8) % 2,
        "x_test": RNG.integers(0, 256, (4, 5, 4)).astype(np.uint8),
        "y_test": np.arange(4) % 2,
        **changed,
    }
    save(root.with_suffix(".npz"), **{name: array for name, array in whole.items() if array is not None})
    return {"dataset": "arrays", "source": root.with_suffix(".npz")}


def bytes_of(change):
    def make(root):
        given = arrays(root)
        path = Path(given["source"])
        path.write_bytes(change(path.read_bytes()))
        return given

    return make


def liar(root):
    """An archive whose member tells of far more than memory has."""
    given = arrays(root)
    with zipfile.ZipFile(given["source"], "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            head = np.lib.format.magic(1, 0) + (118).to_bytes(2, "little")
            text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**44}, 4, 4), }}"
            archive.writestr(f"{name}.npy", head + text.ljust(117).encode() + b"\n" + bytes(1000))
    return given


OBJECTS = np.array([{}] * 8, dtype=object)
ARRAYS = {
    "no file": (lambda root: {"dataset": "arrays", "source": root}, "is missing"),
    "no arrays": (lambda root: (root.mkdir(), {"dataset": "arrays", "source": root})[1], "has no .npy file"),
    "no archive": (bytes_of(lambda content: b"text" * 100), "is no such archive"),
    "half an archive": (bytes_of(lambda content: content[:-300]), "cut short"),
    "a bit changed": (bytes_of(lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:]), "damaged"),
    "more than it has": (liar, ":x_train.npy is cut short"),
    "no labels": (lambda root: arrays(root, y_test=None), "has no array test_labels, or of a like name"),
    "twice": (lambda root: arrays(root, train_images=np.zeros((8, 5, 4), np.uint8)), "has both x_train and train_images"),
    "objects": (lambda root: arrays(root, y_train=OBJECTS), "y_train.npy has a header that is damaged, or of another type"),
    "fewer labels": (lambda root: arrays(root, y_train=np.arange(7) % 2), "x_train has 8 rows, and there are 7 labels"),
    "labels of two": (lambda root: arrays(root, y_train=np.zeros((8, 2), int)), "have shape (8, 2)"),
    "numbers for labels": (
        lambda root: arrays(root, y_train=np.arange(8) / 2),
        "are float64, and must be whole numbers or text",
    ),
    "negative labels": (lambda root: arrays(root, y_train=np.arange(8) % 2 - 1), "the label 1, which no row of train has"),
    "all negative": (
        lambda root: arrays(root, y_train=np.arange(8) % 2 - 1, y_test=np.arange(4) % 2 - 1),
        "the label -1 is negative",
    ),
    "text and numbers": (lambda root: arrays(root, y_train=np.array(list("abababab"))), "both be whole numbers, or both text"),
    "labels of test only": (lambda root: arrays(root, y_test=np.arange(4)), "test has the label 2, which no row of train has"),
    "bool": (lambda root: arrays(root, x_train=np.zeros((8, 5, 4), bool)), "x_train is bool; images are uint8"),
    "16 bits": (lambda root: arrays(root, x_train=np.zeros((8, 5, 4), np.uint16)), "x_train is uint16; images are uint8"),
    "complex": (lambda root: arrays(root, x_train=np.zeros((8, 5, 4), complex)), "x_train is complex128"),
    "one number a row": (lambda root: arrays(root, x_train=np.zeros(8)), "has shape (8,)"),
    "bytes for features": (lambda root: arrays(root, x_train=np.zeros((8, 20), np.uint8)), "features are floats"),
    "other shapes": (lambda root: arrays(root, x_test=np.zeros((4, 5, 5), np.uint8)), "the rows of train are uint8 (5, 4, 1)"),
    "no rows": (lambda root: arrays(root, x_test=np.zeros((0, 5, 4), np.uint8), y_test=np.zeros(0, int)), "test has no rows"),
    "two classes of one name": (lambda root: arrays(root, class_names=np.array(["a", "a"])), "two classes have the name a"),
    "names that are numbers": (lambda root: arrays(root, class_names=np.arange(2)), "class_names must be text"),
    "a size": (lambda root: {**arrays(root), "size": 8}, "data.size is for pictures"),
    "a pool": (lambda root: {**arrays(root), "pool": 3}, "data.pool must divide"),
}
OTHERS = {
    "into a folder": (
        lambda root: (folder(root), {"dataset": "cifar10", "source": root})[1],
        "images holds neither CIFAR-10's batches nor its archive, but test and more, and nothing is downloaded",
    ),
    "the other CIFAR": (
        lambda root: (root.mkdir(), (root / "data_batch_1").touch(), {"dataset": "cifar100", "source": root})[2],
        "holds neither CIFAR-100's batches nor its archive, but data_batch_1",
    ),
    "no beton": (lambda root: {"dataset": "beton"}, "data.source must name a folder with train.beton"),
}
ALL = {
    f"{kind}: {name}": case
    for kind, cases in (("folder", FOLDERS), ("arrays", ARRAYS), ("others", OTHERS))
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", ALL)
def test_what_is_no_data_set_ends_in_a_sentence(name, tmp_path, chosen, capsys):
    make, told = ALL[name]
    given = make(tmp_path / "images")
    wanted = chosen(given.pop("dataset"), **given)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: print(prepare(wanted)))
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("data: ")]
    assert ended.value.code == 2
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert told in said[0]
    assert sorted(tmp_path.rglob("*")) == before
