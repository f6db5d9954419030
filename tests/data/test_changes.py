"""A source that has changed is refused by the run that was made of it; one that is gone is not missed."""

import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from datamodels.data import load, prepare
from datamodels.data.changes import state_of
from datamodels.errors import InputError

OWN = """
import numpy as np

def data():
    images = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2)
    return (images, [0, 1] * 3), (images + 100, [1, 0] * 3)
"""


def pictures(folder):
    for side in ("train", "test"):
        for label in "ab":
            place = folder / side / label
            place.mkdir(parents=True)
            for k in range(3):
                Image.fromarray(np.full((2, 2), 10 * k + len(side) + ord(label), np.uint8)).save(place / f"{k}.png")
    return folder


def arrays(folder):
    folder.mkdir()
    x = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2)
    np.savez(folder / "mine.npz", x_train=x, y_train=[0, 1] * 3, x_test=x + 100, y_test=[0, 1] * 3)
    return folder / "mine.npz"


def another_picture(source):
    shutil.copy(source / "train/a/0.png", source / "train/a/9.png")


def another_name(source):
    (source / "test/b/2.png").rename(source / "test/b/3.png")


def edited(source):
    with np.load(source) as found:
        np.savez(source, **{name: found[name][::-1] for name in found})


def of(kind, settings, tmp_path):
    source = {"folder": pictures, "arrays": arrays}[kind](tmp_path / "mine")
    return source, settings(data__dataset=kind, data__source=source, data__train_images=0, data__test_images=0)


@pytest.mark.parametrize(("kind", "change"), [("folder", another_picture), ("folder", another_name), ("arrays", edited)])
def test_changed_files_are_refused_and_what_was_made_of_them_stays(settings, tmp_path, kind, change):
    source, run = of(kind, settings, tmp_path)
    prepare(run, use_ffcv=False)
    made = load(run)
    assert prepare(run) == f"data: already in {tmp_path / 'run' / 'data'}"
    os.utime(next(source.rglob("*.png")) if source.is_dir() else source, (1, 1))
    assert prepare(run).startswith("data: already in")  # copied, say: another time, the same content
    change(source)
    with pytest.raises(InputError, match="has changed since the images were read"):
        prepare(run)
    shutil.move(source, tmp_path / "elsewhere")
    assert prepare(run).startswith("data: already in")
    assert load(run).digest == made.digest


def test_a_changed_function_is_refused(settings, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "data_of_mine.py").write_text(OWN, encoding="utf-8")
    run = settings(data__dataset="data_of_mine:data", data__train_images=0, data__test_images=0)
    prepare(run, use_ffcv=False)
    assert prepare(run).startswith("data: already in")
    sys.modules.pop("data_of_mine")
    (tmp_path / "data_of_mine.py").write_text(OWN + "# a comment", encoding="utf-8")
    assert prepare(run).startswith("data: already in")
    sys.modules.pop("data_of_mine")
    (tmp_path / "data_of_mine.py").write_text(OWN.replace("+ 100", "+ 99") + "# and another", encoding="utf-8")
    with pytest.raises(InputError, match="has changed since the images were read"):
        prepare(run)
    sys.modules.pop("data_of_mine")


def test_known_data_sets_do_not_change(settings):
    assert state_of(settings().data) is None
