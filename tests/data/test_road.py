"""Pictures in folders go the whole road by one command, from configs/folder.yaml to a page that calls them by their names."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from datamodels.resources import CONFIGS

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
    done = command("", *chosen, cwd=digits_in_folders)
    assert done.returncode == 0, done.stderr
    run = digits_in_folders / "runs" / "folder"
    assert json.loads((run / "store" / "meta.json").read_text())["provenance"]["train_targets"] == [2, 33]
    asked = "digit 7/021.png,train:digit 1/013.png,class:digit 0"
    done = command("verify", *chosen, "--targets", asked, "--gpu", "cpu", cwd=digits_in_folders)
    assert done.returncode == 0, done.stderr
    done = command("report", *chosen, cwd=digits_in_folders)
    assert done.returncode == 0, done.stderr
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
    assert f"<bdi>digit {CLASSES[index // OF_TRAIN]}/{index % OF_TRAIN:03}.png</bdi>" in text
