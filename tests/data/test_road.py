"""Data sets of one's own go the whole road: folders by one command, from configs/folder.yaml to a page, others right here."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from datamodels.data import load, prepare
from datamodels.regress import Datamodels
from datamodels.regress.run import regress
from datamodels.report import report
from datamodels.resources import CONFIGS
from datamodels.runs import page_folder, stage_folder, verdicts_folder
from datamodels.store import Store
from datamodels.verify import verify_targets
from datamodels.worker import engine_of, train_missing

CLASSES = (0, 1, 7)
OF_TRAIN, OF_TEST = 20, 6
VALUES: dict[str, object] = {
    "data.size": 8,
    "data.train_targets": "2,33",
    "training.width": 4,
    "training.last_padding": 1,
    "training.epochs": 5,
    "training.batch_size": 15,
    "training.peak_epoch": 2,
    "training.flip": "false",
    "training.max_shift": 0,
    "training.cutout": 0,
    "groups.models_at_once": 16,
    "store.num_models": 96,
    "prior.models": 4,
    "regress.heldout": 0.2,
    "verify.methods": "datamodel",
    "verify.models": 4,
    "verify.base_models": 8,
    "verify.most_models": 8,
    "verify.sizes": 5,
    "verify.counterfactuals": "none",
    "verify.random_targets": 2,
    "verify.max_size": 20,
}


@pytest.fixture
def digits_in_folders(tmp_path):
    """Three kinds of digits as PNG files in a folder for each, twice as large as they are."""
    digits = load_digits()
    for label in CLASSES:
        rows = np.flatnonzero(digits.target == label)
        for k, row in enumerate(rows[: OF_TRAIN + OF_TEST]):
            place = tmp_path / "images" / ("train" if k < OF_TRAIN else "test") / f"digit {label}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = np.minimum(digits.images[row] * 16, 255).astype(np.uint8)
            Image.fromarray(np.kron(pixels, np.ones((2, 2), np.uint8))).save(place / f"{k:03}.png")
    return tmp_path


def test_pictures_in_folders_go_to_a_page_that_calls_them_by_their_names(digits_in_folders, command):
    flags = [part for key, value in VALUES.items() for part in (f"--{key}", value)]
    chosen = ("-C", CONFIGS / "folder.yaml", *flags)
    asked = "digit 7/021.png,train:digit 1/013.png,class:digit 0"
    done = command("", *chosen, "--targets", asked, "--gpu", "cpu", cwd=digits_in_folders)
    assert done.returncode == 0, done.stderr
    run = digits_in_folders / "runs" / "folder"
    assert json.loads((run / "store" / "meta.json").read_text())["provenance"]["train_targets"] == [2, 33]
    verdicts = json.loads((run / "verify" / "verify.json").read_text())
    tests = OF_TEST * len(CLASSES)
    assert {"13", str(tests + 1), str(tests + 2)} <= verdicts["base"].keys()
    assert [behaviour["name"] for behaviour in verdicts["behaviours"]] == ["class:digit 0"]
    removals = {removal["target"]: removal for removal in verdicts["removals"] if removal["rule"] == "5"}
    assert 33 not in removals[tests + 1]["removed_indices"]
    text = (run / "report" / "index.html").read_text(encoding="utf-8")
    for name in ("digit 7/021.png", "train:digit 1/013.png", "class:digit 0"):
        assert f"<bdi>{name}</bdi>" in text
    index = removals[13]["removed_indices"][0]
    names = (run / "report" / "data" / "names-train-0.js").read_text(encoding="utf-8")
    assert f'"digit {CLASSES[index // OF_TRAIN]}/{index % OF_TRAIN:03}.png"' in names


def gone(settings):
    """The road in this process; what came of it: verify.json's content, and how many sheets of thumbnails its page has."""
    prepare(settings, use_ffcv=False)
    with engine_of(settings, "cpu", load(settings)) as engine:
        train_missing(settings, engine)
        regress(settings)
        verify_targets(settings, engine, Datamodels.load(stage_folder(settings, "regress")), [0, 3])
        report(settings, engine.learner)
    sheets = [len(list((page_folder(settings) / "data").glob(f"{side}-*.png"))) for side in ("test", "train")]
    return json.loads((verdicts_folder(settings) / "verify.json").read_text()), min(sheets)


def arrays():
    """Two kinds of digits, called by text: images (n, 8, 8), labels, of 40 to train on and 12 to test."""
    digits = load_digits()
    rows = np.flatnonzero(digits.target < 2)[:52]
    images, labels = (digits.images[rows] * 15).astype(np.uint8), np.array(["zero", "one"])[digits.target[rows]]
    return (images[:40], labels[:40]), (images[40:], labels[40:])


def as_floats():
    """The same as floats from 0 to 1, from a function of one's own: a TensorDataset (C, H, W), with whole numbers from 1."""
    return tuple(
        TensorDataset(torch.from_numpy(images[:, None] / np.float32(255)), torch.from_numpy((labels == "zero") + 1))
        for images, labels in arrays()
    )


@pytest.mark.parametrize("kind", ["bytes", "floats"])
def test_arrays_and_what_a_function_gives_go_to_a_page(settings, tmp_path, kind):
    (x, y), (x_test, y_test) = arrays()
    if kind == "bytes":
        np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    chosen = {"bytes": {"data__dataset": "arrays", "data__source": tmp_path / "mine.npz"}}.get(
        kind, {"data__dataset": f"{__name__}:as_floats"}
    )
    run = settings(**chosen, data__train_images=0, data__test_images=0, store__num_models=64)
    found, sheets = gone(run)
    data = load(run)
    wanted = x[..., None] if kind == "bytes" else x[..., None] / np.float32(255)
    assert data.train.images.numpy().tobytes() == wanted.tobytes()
    assert data.class_names == (("one", "zero") if kind == "bytes" else ("1", "2"))
    assert [str(data.class_names[k]) for k in data.test.labels[:3]] == (
        y_test[:3].tolist() if kind == "bytes" else [str(int(label == "zero") + 1) for label in y_test[:3]]
    )
    assert Store(stage_folder(run, "store")).meta.num_targets == len(x_test)
    assert {"0", "3"} == found["base"].keys()
    assert sheets > 0
