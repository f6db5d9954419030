"""Arrays that NumPy wrote, and labels of any kind: loaded as they were written, or a sentence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from datamodels.data.labels import numbered
from datamodels.errors import InputError

RNG = np.random.default_rng(0)
LABELS, TEST_LABELS = np.arange(12) % 3, np.arange(6) % 3


def written(
    path, x, x_test, y=LABELS, y_test=TEST_LABELS, save=np.savez, names=("x_train", "y_train", "x_test", "y_test"), **more
):
    arrays = dict(zip(names, (x, y, x_test, y_test), strict=True), **more)
    save(path, **arrays)
    return path


def pair(dtype, *shape):
    if np.dtype(dtype).kind == "f":
        return tuple(RNG.normal(size=(n, *shape)).astype(dtype) for n in (12, 6))
    return tuple(RNG.integers(0, 256, (n, *shape)).astype(dtype) for n in (12, 6))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("u1", (5, 4)),
        ("u1", (5, 4, 3)),
        ("u1", (5, 4, 7)),
        ("f4", (5, 4, 2)),
        ("f8", (5, 4)),
        ("f2", (5, 4, 1)),
        (">f4", (9,)),
        ("f8", (9,)),
    ],
)
def test_what_is_loaded_is_what_was_written(dtype, shape, save, tmp_path, loaded):
    x, x_test = pair(dtype, *shape)
    data = loaded("arrays", source=written(tmp_path / "a.npz", x, x_test, save=save))
    for split, images, labels in ((data.train, x, LABELS), (data.test, x_test, TEST_LABELS)):
        expected = images if dtype == "u1" else images.astype(np.float32)
        found = split.images.numpy()
        assert found.dtype == (np.uint8 if dtype == "u1" else np.float32)
        assert np.array_equal(found.reshape(images.shape), expected)
        assert found.ndim == (2 if len(shape) == 1 else 4)
        assert np.array_equal(split.labels, labels)
    assert data.class_names == ("0", "1", "2")
    assert data.has_pictures == (len(shape) > 1)
    assert data.train.names is None


def test_a_folder_of_npy_files_by_other_names_in_fortran_order(tmp_path, loaded):
    x, x_test = pair("f4", 5, 4, 3)
    for name, array in (
        ("train_features", np.asfortranarray(x)),
        ("train_targets", LABELS),
        ("valid_images", x_test),
        ("label_valid", TEST_LABELS),
    ):
        np.save(tmp_path / f"{name}.npy", array)
    data = loaded("arrays", source=tmp_path, train_images=5)
    rows = [int(name.removeprefix("train row ")) for name in data.train.names]
    assert rows == sorted(rows)
    assert np.array_equal(data.train.images, x[rows])
    assert np.array_equal(data.train.labels, LABELS[rows])
    assert np.array_equal(data.test.images, x_test)
    # Names are shown of both, or of none.
    assert data.test.names == tuple(f"test row {k}" for k in range(6))


def test_names_of_classes_and_rows_come_with_the_arrays(tmp_path, loaded):
    x, x_test = pair("u1", 5, 4)
    names = [f"scan {k}\n" for k in range(12)]
    path = written(tmp_path / "a.npz", x, x_test, class_names=np.array(["a", "b", "c"]), train_names=np.array(names))
    data = loaded("arrays", source=path)
    assert data.class_names == ("a", "b", "c")
    assert data.train.names == tuple(f"scan {k}\\n" for k in range(12))
    # Names are shown of both, or of none.
    assert data.test.names == tuple(f"test row {k}" for k in range(6))


@pytest.mark.parametrize("kind", ["U", "S"])
def test_an_empty_name_is_told_before_anything_is_trained(tmp_path, loaded, kind):
    x, x_test = pair("u1", 5, 4)
    names = np.array(["a", "", *"bcdefghijk"]).astype(kind)
    with pytest.raises(InputError, match=r"train_names has an empty text in row 1"):
        loaded("arrays", source=written(tmp_path / "a.npz", x, x_test, train_names=names))


def test_classes_are_those_wanted_in_their_order(tmp_path, loaded, chosen):
    x, x_test = pair("u1", 5, 4)
    path = written(tmp_path / "a.npz", x, x_test, class_names=np.array(["cat", "ship", "airplane"]))
    data = loaded("arrays", source=path, classes="airplane, cat")
    kept = np.flatnonzero(LABELS != 1)
    assert data.class_names == ("airplane", "cat")
    assert np.array_equal(data.train.labels, np.where(LABELS[kept] == 2, 0, 1))
    assert np.array_equal(data.train.images[..., 0], x[kept])
    assert data.train.names[1] == "train row 2"


PLACE = st.integers(0, 5)


@effort(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 9), min_size=1, max_size=6, unique=True),
    st.lists(PLACE),
    st.sampled_from(["i8", "u8", "i4", "u1", ">i8"]),
)
def test_whole_numbers_are_numbered_in_their_order(values, more, dtype):
    values = [value for value in values if value <= np.iinfo(np.dtype(dtype).newbyteorder("=")).max] or [3]
    train = np.array([*values, *(values[k % len(values)] for k in more)], dtype)
    labels, test, names = numbered(train, train[::-1][:, None], "here")
    assert [int(names[label]) for label in labels] == train.tolist()
    assert [int(name) for name in names] == sorted(values)
    assert np.array_equal(test, labels[::-1])


@effort(deadline=None, max_examples=60)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8),
        min_size=1,
        max_size=6,
        unique=True,
    ),
    st.lists(PLACE),
)
def test_text_is_numbered_in_its_order_and_as_bytes_alike(values, more):
    train = np.array([*values, *(values[k % len(values)] for k in more)])
    labels, _, names = numbered(train, train, "here")
    known = sorted(values)
    assert [known[label] for label in labels] == train.tolist()
    assert len(names) == len(known)
    assert all(name.isprintable() for name in names)
    as_bytes = np.array([text.encode() for text in train.tolist()])
    assert np.array_equal(numbered(as_bytes, as_bytes, "here")[0], labels)


def test_labels_from_one_with_names_and_text_that_is_looked_up():
    from_one = np.array([1, 2, 3, 2])
    assert numbered(from_one, from_one, "here", ["a", "b", "c"])[0].tolist() == [0, 1, 2, 1]
    assert numbered(from_one, from_one, "here", ["a", "b", "c", "d"])[0].tolist() == [1, 2, 3, 2]
    words = np.array(["b", "a"])
    assert numbered(words, words, "here", ["b", "a"])[0].tolist() == [0, 1]
    for labels, names, told in ((from_one, ["a", "b"], "2 names of classes and 3"), (words, ["b"], "a is none of the names")):
        with pytest.raises(InputError, match=told):
            numbered(labels, labels, "here", names)


def test_channels_that_come_first_are_not_guessed_at(tmp_path, loaded):
    x, x_test = pair("f4", 3, 8, 8)
    with pytest.raises(InputError, match=r"x_train has shape \(12, 3, 8, 8\), with the channels first; transpose"):
        loaded("arrays", source=written(tmp_path / "a.npz", x, x_test))


def test_a_number_that_is_none_is_named_by_its_row(tmp_path, loaded):
    for bad in (np.nan, np.inf, 1e300):
        x, x_test = pair("f8", 9)
        x[7, 3] = bad
        with pytest.raises(InputError, match=r"x_train has NaN or infinity, or a number beyond float32, in row 7"):
            loaded("arrays", source=written(tmp_path / "a.npz", x, x_test))
