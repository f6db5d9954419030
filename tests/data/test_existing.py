"""FFCV files that FFCV's own writer wrote, with other names of fields, and damages to them that FFCV itself would follow."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from datamodels.data import beton, load, prepare
from datamodels.data.existing import read_beton
from datamodels.data.headers import ALLOCATION, FIELD, HEADER, read_head
from datamodels.data.raw import RawSplit
from datamodels.errors import InputError
from tests.data.test_road import gone

pytestmark = pytest.mark.skipif(not beton.available(), reason="FFCV is not installed here")

RNG = np.random.default_rng(0)
FIRST, N, T = 2_001, 2_003, 5  # more than a batch


class Rows:
    """Rows (label, image, text, weight), as FFCV's writer wants them."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, k):
        return self.labels[k], self.images[k], np.frombuffer(b"text" * (k % 5 + 1), np.uint8), float(k)


def write(path, field, images, labels, label_field=None):
    from ffcv.fields import BytesField, FloatField, IntField
    from ffcv.writer import DatasetWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {"y": label_field or IntField(), "pixels": field, "text": BytesField(), "weight": FloatField()}
    with beton.torch_threads_kept():
        DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(Rows(images, labels))


def smooth(height, width, k):
    """A picture that JPEG keeps well."""
    ramp = np.add.outer(np.arange(height) * (k % 7), np.arange(width) * 3)[..., None] + np.array([0, 20, 40])
    return np.clip(ramp, 0, 255).astype(np.uint8)


def both(folder, field, images, labels=None, label_field=None):
    labels = [int(k % 3 + 1) for k in range(len(images))] if labels is None else labels
    write(folder / "train.beton", field, images, labels, label_field)
    write(folder / "val.beton", field, images[:T], labels[:T], label_field)
    return folder


def loaded_from(folder, chosen, **data):
    wanted = chosen("beton", source=folder, image_field="pixels", label_field="y", **data)
    prepare(wanted, use_ffcv=False)
    return load(wanted)


@pytest.fixture
def fields():
    import ffcv.fields

    return ffcv.fields


def test_raw_images_of_any_field_names_are_those_that_were_written(tmp_path, fields, chosen):
    images = RNG.integers(0, 256, (N, 4, 5, 3)).astype(np.uint8)
    data = loaded_from(both(tmp_path / "b", fields.RGBImageField("raw"), images), chosen)
    assert np.array_equal(data.train.images, images)
    assert np.array_equal(data.test.images, images[:T])
    assert data.train.labels.tolist() == [k % 3 for k in range(N)]
    assert data.class_names == ("1", "2", "3")
    assert data.train.names is None


def test_jpegs_and_raw_images_mixed_are_what_pillow_decodes(tmp_path, fields, chosen):
    """Within 2 of 255: FFCV's JPEG decoder and Pillow's round each in its own way."""
    images = [smooth(16, 24, k) for k in range(20)]
    folder = both(tmp_path / "b", fields.RGBImageField("proportion", compress_probability=0.5), images)
    data = loaded_from(folder, chosen)
    rows = read_head(folder / "train.beton").fields["pixels"].rows
    content = (folder / "train.beton").read_bytes()
    assert {0, 1} == set(rows["mode"].tolist())
    for k, (found, row) in enumerate(zip(data.train.images.numpy(), rows, strict=True)):
        expected = images[k]
        if row["mode"] == 0:
            expected = np.asarray(Image.open(io.BytesIO(content[int(row["data_ptr"]) :])).convert("RGB"))
        assert np.abs(found.astype(int) - expected).max() <= (2 if row["mode"] == 0 else 0)


def test_several_sizes_are_brought_to_one(tmp_path, fields, chosen):
    images = [smooth(16 + k, 24, k) for k in range(10)]
    folder = both(tmp_path / "b", fields.RGBImageField("smart", smart_threshold=1_500), images)
    with pytest.raises(InputError, match=r"train.beton has images from 24 × 16 to 24 × 25 pixels: set data.size"):
        loaded_from(folder, chosen)
    data = loaded_from(folder, chosen, size=8)
    middle = np.asarray(Image.fromarray(images[0][:, 4:20]).resize((8, 8), Image.Resampling.BOX))
    assert np.abs(data.train.images[0].numpy().astype(int) - middle).max() <= 3


def test_arrays_tensors_and_features_with_labels_as_arrays(tmp_path, fields, chosen):
    x = RNG.normal(size=(N, 4, 5, 2))
    labels = [np.array([k % 3], np.int32) for k in range(N)]
    one = fields.NDArrayField(np.dtype(np.int32), (1,))
    kinds = {
        "floats": (fields.NDArrayField(x.dtype, (4, 5, 2)), x),
        "grey bytes": (fields.NDArrayField(np.dtype(np.uint8), (4, 5)), (x[..., 0] * 50).astype(np.uint8)),
        "features": (fields.TorchTensorField(torch.float32, (5,)), torch.from_numpy(x[:, 0, :, 0].astype(np.float32))),
    }
    for name, (field, given) in kinds.items():
        folder = both(tmp_path / name, field, given, labels, one)
        found = read_beton(chosen("beton", source=folder, image_field="pixels", label_field="y").data)
        rows = np.array([0, 7, FIRST])
        taken = found.train.take(rows)
        assert taken.dtype == (np.uint8 if name == "grey bytes" else np.float32)
        assert np.array_equal(taken, np.asarray(given)[rows].astype(taken.dtype).reshape(taken.shape))
        assert found.train.labels.tolist() == [k % 3 for k in range(N)]


def test_a_part_by_classes_from_two_files(tmp_path, fields, chosen):
    images = RNG.integers(0, 256, (30, 4, 5, 3)).astype(np.uint8)
    folder = both(tmp_path / "b", fields.RGBImageField("raw"), images)
    wanted = f"{folder / 'train.beton'},{folder / 'val.beton'}"
    data = loaded_from(wanted, chosen, classes="3,1", train_images=7)
    rows = [int(name.removeprefix("train row ")) for name in data.train.names]
    assert np.array_equal(data.train.images, images[rows])
    assert data.train.labels.tolist() == [{2: 0, 0: 1}[row % 3] for row in rows]


def test_floats_and_features_of_a_run_are_the_same_by_ffcv_and_as_npy(tmp_path, settings):
    for k, shape in enumerate(((4, 5, 3), (9,))):
        x, x_test = RNG.normal(size=(30, *shape)).astype(np.float32), RNG.normal(size=(9, *shape)).astype(np.float32)
        np.savez(tmp_path / f"{k}.npz", x_train=x, y_train=np.arange(30) % 2, x_test=x_test, y_test=np.arange(9) % 2)
        found = []
        for use_ffcv in (True, False):
            flags = {"dataset": "arrays", "source": tmp_path / f"{k}.npz", "train_images": 0, "test_images": 0}
            run = settings(run__dir=str(tmp_path / f"{k} {use_ffcv}"), **{f"data__{name}": str(v) for name, v in flags.items()})
            assert ("FFCV .beton" in prepare(run, use_ffcv)) == use_ffcv
            found.append(load(run))
        assert found[0].digest == found[1].digest
        for data in found:
            assert np.array_equal(data.train.images, x)
            assert np.array_equal(data.test.images, x_test)


def test_images_too_large_for_a_page_are_kept_otherwise():
    large = RawSplit(np.zeros((1, 3000, 1000, 3), np.uint8), np.zeros(1, np.int64))
    assert beton.too_large(large)
    assert not beton.too_large(RawSplit(large.images[:, :2000], large.labels))


def overwritten(at, value):
    def damage(content):
        start = at(content) if callable(at) else at
        return content[:start] + value + content[start + len(value) :]

    return damage


def table(row, name, value):
    offset = row * ALLOCATION.itemsize + ALLOCATION.fields[name][1]  # type: ignore[index]
    return overwritten(lambda content: int.from_bytes(content[16:24], "little") + offset, value.to_bytes(8, "little"))


ROWS = HEADER.itemsize + 4 * FIELD.itemsize
PIXELS = ROWS + 8
"""Of the first row: its mode, width, height and pointer."""


def jpeg(change):
    """A change to the first JPEG."""

    def damage(content):
        start = int.from_bytes(content[PIXELS + 5 : PIXELS + 13], "little")
        return content[:start] + change(bytearray(content[start : start + 300])) + content[start + 300 :]

    return damage


def of_another_height(head):
    at = head.index(b"\xff\xc0")
    head[at + 5 : at + 7] = (4_000).to_bytes(2, "big")
    return bytes(head)


DAMAGES = {
    "empty": (lambda content: b"", "is empty"),
    "text": (lambda content: b"no file of FFCV's" * 10, "is no FFCV file of version 2"),
    "another version": (overwritten(0, b"\x09"), "is no FFCV file of version 2"),
    "cut in the head": (lambda content: content[:500], "is cut short"),
    "cut in the pages": (lambda content: content[: 2**21 + 99], "cut short"),
    "cut in the table": (lambda content: content[:-5], "cut short"),
    "more rows": (overwritten(8, (2**60).to_bytes(8, "little")), "cut short"),
    "no rows": (overwritten(8, bytes(8)), "has no rows"),
    "a page of its own": (overwritten(4, (3).to_bytes(4, "little")), "has pages of 3 bytes"),
    "a field of a kind of its own": (overwritten(HEADER.itemsize + 2 * FIELD.itemsize, b"\xff"), "a kind of its own, 255"),
    "a table outside": (overwritten(16, (2**63).to_bytes(8, "little")), "does not end with a table"),
    "a place outside": (table(0, "ptr", 2**62), "points outside"),
    "a size beyond the end": (table(3, "size", 2**64 - 8), "points outside"),
    "a row that points elsewhere": (overwritten(PIXELS + 5, (77).to_bytes(8, "little")), "rows that point elsewhere"),
    "a size of its own": (overwritten(PIXELS + 1, (60_000).to_bytes(2, "little")), r"row 0, where 60000 × 16 are told"),
    "no size": (overwritten(PIXELS + 1, bytes(2)), "make no sense"),
    "a mode of its own": (overwritten(PIXELS, b"\x07"), "make no sense"),
    "raw that is a JPEG": (overwritten(PIXELS, b"\x01"), "images of another length than their size"),
    "no JPEG": (jpeg(lambda head: bytes(300)), "has no whole JPEG in row 0"),
    "a JPEG of another size": (jpeg(of_another_height), "has a JPEG of 24 × 4000 pixels in row 0"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    import ffcv.fields

    return both(tmp_path_factory.mktemp("good"), ffcv.fields.RGBImageField("jpg"), [smooth(16, 24, k) for k in range(6)])


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_a_sentence_before_ffcv_sees_it(name, good, tmp_path, chosen):
    damage, told = DAMAGES[name]
    (tmp_path / "val.beton").symlink_to(good / "val.beton")
    (tmp_path / "train.beton").write_bytes(damage((good / "train.beton").read_bytes()))
    with pytest.raises(InputError, match=told) as caught:
        read_beton(chosen("beton", source=tmp_path, image_field="pixels", label_field="y").data)
    assert "train.beton" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({}, r"train.beton has no field image; it has y, pixels, text, weight: set data.image_field"),
        ({"image_field": "pixels"}, r"train.beton has no field label; it has .*: set data.label_field"),
        ({"image_field": "text", "label_field": "y"}, "has a field text that holds neither images nor arrays"),
        ({"image_field": "pixels", "label_field": "weight"}, "has a field weight that is no whole number"),
        ({"source": "nowhere"}, "nowhere is missing; data.source names a folder with train.beton and test.beton, or two files"),
        ({"source": "/tmp"}, r"/tmp has no train.beton"),
    ],
)
def test_other_fields_are_named_with_those_that_there_are(data, told, good, chosen):
    with pytest.raises(InputError, match=told):
        read_beton(chosen("beton", **{"source": good, **data}).data)


def test_an_empty_text_where_an_image_begins_is_refused_for_ffcv_could_read_it_as_the_image(good, tmp_path, chosen):
    content = (good / "train.beton").read_bytes()
    start = int.from_bytes(content[16:24], "little")
    places = np.frombuffer(content[start:], ALLOCATION).copy()
    places["ptr"][1], places["size"][1] = places["ptr"][2], 0
    (tmp_path / "train.beton").write_bytes(content[:start] + places.tobytes())
    with pytest.raises(InputError, match="has empty texts where images begin"):
        read_beton(
            chosen(
                "beton", source=f"{tmp_path / 'train.beton'},{good / 'val.beton'}", image_field="pixels", label_field="y"
            ).data
        )


def test_arrays_that_ffcv_cannot_read_are_refused(tmp_path, fields, chosen):
    for dtype, told in (("f2", "float16, which FFCV's Loader cannot read"), ("i4", "is int32; images are uint8")):
        images = np.zeros((6, 4, 5), dtype)
        folder = both(tmp_path / dtype, fields.NDArrayField(np.dtype(dtype), (4, 5)), images)
        with pytest.raises(InputError, match=told):
            loaded_from(folder, chosen)
    with pytest.raises(InputError, match=r"data.size is for pictures, and the field pixels of .* has arrays"):
        loaded_from(folder, chosen, size=4)


def test_a_thread_of_ffcvs_that_dies_is_not_waited_for():
    from queue import Queue

    class Dead:
        output_queue: Queue[int] = Queue()
        code = None

        def __iter__(self):
            return self

        def __next__(self):
            return None

        def is_alive(self):
            return False

    with pytest.raises(RuntimeError, match="has died"):
        next(beton.batches_of(Dead()))


def test_pictures_that_ffcv_keeps_as_jpeg_go_to_a_page(tmp_path, settings):
    from ffcv.fields import RGBImageField

    images = [smooth(16, 16, k) for k in range(40)]
    source = both(tmp_path / "mine", RGBImageField(write_mode="jpg", jpeg_quality=95), images)
    run = settings(
        data__dataset="beton",
        data__source=source,
        data__image_field="pixels",
        data__label_field="y",
        data__size=8,
        data__train_images=0,
        data__test_images=0,
        store__num_models=64,
    )
    found, sheets = gone(run)
    assert load(run).train.images.shape == (40, 8, 8, 3)
    assert {"0", "3"} == found["base"].keys()
    assert sheets > 0
