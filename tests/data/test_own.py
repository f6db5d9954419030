"""Data sets of one's own code: PyTorch's, Hugging Face's, pairs of arrays; from a module, and from Python by an .npz file."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

import datamodels
from datamodels.data import from_dataset, prepare
from datamodels.errors import InputError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (9, 6, 5, 3)).astype(np.uint8)
FLOATS = RNG.normal(size=(9, 2, 6, 5))
LABELS = np.arange(9) % 3


class Items(Dataset[Any]):
    """Items (image, label), which count how often they are asked for."""

    def __init__(self, images, labels=LABELS, classes=None):
        self.images, self.labels, self.asked = images, labels, 0
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.images)

    def __getitem__(self, k):
        self.asked += 1
        return self.images[k], self.labels[k]


class Column:
    def __init__(self, names=None):
        self.names = names


class Table:
    """What Hugging Face's Dataset shows of itself, and no more: columns, features, rows as dictionaries."""

    def __init__(self, image, label, names=None):
        self.column_names = [image, label, "id"]
        self.features = {image: Column(), label: Column(names) if names else Column(), "id": Column()}
        self.image, self.label = image, label

    def __len__(self):
        return 9

    def __getitem__(self, k):
        if isinstance(k, str):
            return LABELS.tolist() if k == self.label else list(range(9))
        return {self.image: Image.fromarray(COLOUR[k]), self.label: int(LABELS[k]), "id": k}


def kinds():
    """Data sets of all kinds, and the images that they hold."""
    first = torch.from_numpy(FLOATS)
    hwc = FLOATS.transpose(0, 2, 3, 1)
    return {
        "Pillow": (Items([Image.fromarray(image) for image in COLOUR]), COLOUR),
        "tensors": (Items(list(first)), hwc),
        "tensors of bytes": (Items(list(torch.from_numpy(COLOUR.transpose(0, 3, 1, 2).copy()))), COLOUR),
        "grey tensors": (Items(list(first[:, 0])), hwc[..., :1]),
        "arrays": (Items(COLOUR), COLOUR),
        "features": (Items(FLOATS[:, 0, 0]), FLOATS[:, 0, 0]),
        "labels as tensors": (Items(COLOUR, torch.from_numpy(LABELS)), COLOUR),
        "a subset": (Subset(Items(COLOUR), list(range(9))), COLOUR),
        "a list": (list(zip(COLOUR, LABELS.tolist(), strict=True)), COLOUR),
        "dictionaries": (
            [{"img": image, "label": label} for image, label in zip(COLOUR, LABELS.tolist(), strict=True)],
            COLOUR,
        ),
        "TensorDataset": (TensorDataset(first, torch.from_numpy(LABELS)), hwc),
        "a pair of arrays": ((COLOUR, LABELS), COLOUR),
        "a pair of tensors": ((first.requires_grad_(), torch.from_numpy(LABELS)), hwc),
        "Hugging Face": (Table("img", "fine_label"), COLOUR),
    }


KINDS = kinds()


def test_where_there_is_no_folder_nothing_is_saved(tmp_path):
    images = np.zeros((4, 2, 2), np.uint8)
    found = from_dataset((images, [0, 1, 0, 1]), (images + 1, [0, 1, 0, 1]))
    with pytest.raises(InputError, match=r"mine\.npz cannot be written: there is no folder .*nowhere"):
        found.save(tmp_path / "nowhere" / "mine.npz")


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_are_those_of_the_data_set_also_after_they_were_saved(kind, tmp_path, loaded):
    given, images = KINDS[kind]
    raw = from_dataset(given, given)
    raw.save(tmp_path / "mine.npz")
    data = loaded("arrays", source=tmp_path / "mine.npz")
    expected = images.astype(np.uint8 if images.dtype == np.uint8 else np.float32)
    for found in (raw.train.images, raw.test.images, data.train.images.numpy(), data.test.images.numpy()):
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)
    for labels in (raw.train.labels, data.test.labels):
        assert np.array_equal(labels, LABELS)
    assert raw.class_names == data.class_names == ("0", "1", "2")


def test_classes_of_a_data_set_are_its_own(tmp_path):
    named = Items(COLOUR, classes=["ant", "bee", "cow"])
    assert from_dataset(named, named).class_names == ("ant", "bee", "cow")
    assert from_dataset(Subset(named, [0, 1, 2]), named).class_names == ("ant", "bee", "cow")
    table = Table("image", "label", names=["x", "y", "z"])
    assert from_dataset(table, table).class_names == ("x", "y", "z")
    words = Items(COLOUR, ["b", "a", "c"] * 3)
    raw = datamodels.from_dataset(words, words)
    assert (raw.class_names, raw.train.labels[:3].tolist()) == (("a", "b", "c"), [1, 0, 2])


def test_classes_that_test_numbers_otherwise_are_known_by_their_names():
    train, test = Items(COLOUR, classes=["ant", "bee", "cow"]), Items(COLOUR[:4], [0, 1, 0, 1], classes=["cow", "ant"])
    raw = from_dataset(train, test)
    assert raw.class_names == ("ant", "bee", "cow")
    assert raw.train.labels.tolist() == LABELS.tolist()
    assert raw.test.labels.tolist() == [2, 0, 2, 0]
    with pytest.raises(InputError, match=r"the label dog is none of the names of classes"):
        from_dataset(train, Items(COLOUR[:4], [0, 1, 0, 1], classes=["cow", "dog"]))


def test_a_tensor_data_set_that_makes_its_items_is_asked_for_them():
    class Halved(TensorDataset):
        def __getitem__(self, k):
            image, label = super().__getitem__(k)
            return image / 2, label + 4

    halved = Halved(torch.from_numpy(FLOATS), torch.from_numpy(LABELS))
    raw = from_dataset(halved, halved)
    np.testing.assert_allclose(raw.train.images, FLOATS.transpose(0, 2, 3, 1) / 2, rtol=1e-6)
    assert raw.class_names == ("4", "5", "6")


def test_labels_in_a_tensor_that_is_used_again_are_those_of_their_items():
    class Again(Items):
        label = torch.tensor(0)

        def __getitem__(self, k):
            image, label = super().__getitem__(k)
            return image, self.label.fill_(int(label))

    assert from_dataset(Again(COLOUR), Again(COLOUR)).train.labels.tolist() == LABELS.tolist()


def test_pictures_of_several_sizes_are_brought_to_one():
    mixed = Items([Image.new("L", (9 + k, 20), k) for k in range(9)])
    raw = from_dataset(mixed, mixed, size=8)
    assert raw.train.images.shape == (9, 8, 8, 1)
    assert raw.train.images[:, 4, 4, 0].tolist() == list(range(9))
    with pytest.raises(InputError, match=r"set data\.size"):
        from_dataset(mixed, mixed)


def test_arrays_are_not_brought_to_a_size():
    for given in ((COLOUR, LABELS), Items(COLOUR)):
        with pytest.raises(InputError, match=r"data\.size is for"):
            from_dataset(given, given, size=4)


def test_every_item_is_asked_for_once():
    items = Items(COLOUR)
    from_dataset(items, Items(COLOUR))
    assert items.asked == 9


def test_hugging_faces_own_data_sets():
    library = pytest.importorskip("datasets")
    features = library.Features({"image": library.Image(), "label": library.ClassLabel(names=["x", "y", "z"])})
    content = {"image": [Image.fromarray(image) for image in COLOUR], "label": LABELS.tolist()}
    table = library.Dataset.from_dict(content, features=features)
    raw = from_dataset(table, table)
    assert np.array_equal(raw.train.images, COLOUR)
    assert raw.class_names == ("x", "y", "z")


class Endless(IterableDataset[int]):
    def __iter__(self):
        yield from iter(int, 1)


class Broken(Items):
    def __getitem__(self, k):
        if k == 4:
            raise KeyError("no such\nimage")
        return super().__getitem__(k)


BAD = {
    "endless": (Endless(), "Endless, which has no length or cannot be indexed"),
    "empty": ([], "without items"),
    "a number": (3, "of type int"),
    "text": ("train", "of type str and no data set"),
    "triples": ([(1, 2, 3)], r"train, item 0 is of type tuple, not \(image, label\)"),
    "raises": (Broken(COLOUR), r"raised KeyError: .no such.*image.* \(test_own.py, line \d+\)"),
    "several sizes": (Items([COLOUR[0], COLOUR[1][:3], *COLOUR[2:]]), "item 1 is 3 × 5 × 3 and .*item 0 is 6 × 5 × 3"),
    "several types": (Items([COLOUR[0], *COLOUR[1:].astype(np.float32)]), "item 1 is float32, and .*item 0 is uint8"),
    "no numbers": (Items(COLOUR.astype(np.int64)), "is int64 of shape"),
    "NaN": (Items(np.where(np.arange(9)[:, None, None, None] == 5, np.nan, FLOATS)), "item 5 has NaN or infinity"),
    "channels last": (Items(list(torch.from_numpy(COLOUR))), r"tensors of images are \(C, H, W\)"),
    "labels of several kinds": (Items(COLOUR, [1, "a", 2] * 3), "whole numbers or text, not int and str"),
    "labels that are numbers": (Items(COLOUR, LABELS / 2), "whole numbers or text, not float"),
    "labels that are arrays": (Items(COLOUR, np.zeros((9, 4))), "not ndarray"),
    "one class": (Items(COLOUR, [3] * 9), None),
    "no columns": ([{"picture": 1, "label": 2}], r"no image or img \(it has picture, label\)"),
    "pictures that are text": (Items(["a.png"] * 9), "no picture, tensor or array"),
    "bytes for features": (Items(COLOUR[:, 0, 0]), "features are floats"),
}


@pytest.mark.parametrize("name", [name for name, (_, told) in BAD.items() if told])
def test_what_is_no_data_set_is_a_sentence(name):
    given, told = BAD[name]
    with pytest.raises(InputError, match=told) as caught:
        from_dataset(given, (COLOUR, LABELS) if name == "raises" else given)
    assert "\n" not in str(caught.value)


MODULE = """
import numpy as np
from torch.utils.data import TensorDataset
import torch
x = np.random.default_rng(0).normal(size=(20, 3, 4, 4)).astype(np.float32)
def data():
    set_ = TensorDataset(torch.from_numpy(x), torch.arange(20) % 2 + 1)
    return set_, torch.utils.data.Subset(set_, range(6))
def fails():
    raise ValueError("no disk\\nthere")
def ends():
    raise SystemExit
def one():
    return 3
number = 5
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of one's own, `my_data`, where Python finds it."""
    (tmp_path / "my_data.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_data", raising=False)


def test_a_function_in_a_module_goes_the_same_road(module, loaded):
    data = loaded("my_data:data", classes="2,1")
    x = np.random.default_rng(0).normal(size=(20, 3, 4, 4)).astype(np.float32).transpose(0, 2, 3, 1)
    assert np.array_equal(data.train.images, x)
    assert np.array_equal(data.test.images, x[:6])
    assert data.train.labels[:4].tolist() == [1, 0, 1, 0]
    assert data.class_names == ("2", "1")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("fails", "data.dataset my_data:fails raised ValueError: no disk there (my_data.py, line 10)"),
        ("ends", "data.dataset my_data:ends raised SystemExit (my_data.py, line 12)"),
        ("one", "data.dataset my_data:one must give a pair, (train, test), not of type int"),
        ("number", "data.dataset names my_data:number, which is no function"),
        ("nothing", "data.dataset names my_data:nothing, and my_data has no nothing"),
    ],
)
def test_what_a_function_does_instead_is_told_with_its_line(name, told, module, chosen):
    wanted = chosen(f"my_data:{name}")
    with pytest.raises(InputError) as caught:
        prepare(wanted)
    assert str(caught.value) == told
    assert not Path(wanted.run.dir).exists()


def test_there_is_no_such_module(chosen):
    with pytest.raises(InputError, match=r"data.dataset names no_such_module:data, and there is no module no_such_module here"):
        prepare(chosen("no_such_module:data"))
