"""Folders of pictures that Pillow wrote: what is loaded are the pixels that people see, by the names that the files have."""

import os

import numpy as np
import pytest
from PIL import Image

from datamodels.data.pictures import MOST_PIXELS, Decoder, formats
from datamodels.errors import InputError

RNG = np.random.default_rng(0)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)


def noise(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Two classes of coloured pictures, three each to train on and two to test on, and their pixels by name."""
    root = tmp_path / "images"
    pixels = {}
    for side, count in (("train", 3), ("test", 2)):
        for name in ("dog", "cat"):
            for k in range(count):
                pixels[side, f"{name}/{k:04}.png"] = noise(6, 5, 3)
                save(root / side / name / f"{k:04}.png", pixels[side, f"{name}/{k:04}.png"])
    return root, pixels


def test_pixels_names_and_classes_are_those_of_the_files(folder, loaded):
    root, pixels = folder
    data = loaded("folder", source=root)
    assert data.class_names == ("cat", "dog")
    for side, split in (("train", data.train), ("test", data.test)):
        assert split.names == tuple(sorted(name for of, name in pixels if of == side))
        for name, image, label in zip(split.names, split.images.numpy(), split.labels.tolist(), strict=True):
            assert np.array_equal(image, pixels[side, name])
            assert data.class_names[label] == name.partition("/")[0]
    assert data.has_pictures


def test_pictures_lie_at_any_depth_and_links_that_lead_in_a_circle_end(folder, loaded, capsys):
    root, _ = folder
    deep = noise(6, 5, 3)
    save(root / "train" / "dog" / "a" / "b" / "x.bmp", deep)
    (root / "train" / "dog" / "a" / "up").symlink_to(root / "train" / "dog")
    (root / "train" / "dog" / "self").symlink_to("self")
    (root / "train" / "dog" / ".hidden.png").write_bytes(b"")
    (root / "train" / "dog" / "notes.txt").write_text("x")
    (root / "train" / "loose.png").write_bytes(b"")
    data = loaded("folder", source=root)
    assert data.train.names is not None
    assert data.train.names[3:] == ("dog/0000.png", "dog/0001.png", "dog/0002.png", "dog/a/b/x.bmp")
    assert np.array_equal(data.train.images[6], deep)
    assert "4 files in" in capsys.readouterr().err


def test_a_name_that_is_not_utf_8_or_has_a_new_line_is_told_in_one_line(folder, loaded):
    root, _ = folder
    for name in (b"\xff.png", b"two\nlines.png"):
        path = os.fsencode(root / "train" / "cat") + b"/" + name
        with open(path, "wb") as file:  # noqa: PTH123
            Image.fromarray(noise(6, 5, 3)).save(file, "PNG")
    names = loaded("folder", source=root).train.names
    assert {"cat/\\udcff.png", "cat/two\\nlines.png"} < set(names)


def as_people_see_them():
    """Pictures of many kinds, with the pixels that they should become, computed from what was written."""
    grey, colour, alpha = noise(6, 5), noise(6, 5, 3), noise(6, 5)
    deep = RNG.integers(0, 2**16, (6, 5)).astype(np.uint16)
    bits = RNG.integers(0, 2, (6, 5)).astype(bool)
    places = RNG.integers(0, 4, (6, 5)).astype(np.uint8)
    palette = noise(4, 3)

    def with_palette(entries):
        image = Image.fromarray(places, "L").convert("P")
        image.putdata(places.ravel().tolist())
        image.putpalette(entries.ravel().tolist())
        return image

    greys = np.repeat(palette[:, :1], 3, 1)
    share = alpha[..., None] / 255.0
    turned = Image.fromarray(colour)
    turned.getexif()[0x0112] = 6  # to be seen turned clockwise
    return {
        "grey.png": (Image.fromarray(grey), grey[..., None], 0),
        "colour.png": (Image.fromarray(colour), colour, 0),
        "colour.tiff": (Image.fromarray(colour), colour, 0),
        "colour.webp": (Image.fromarray(colour), colour, 0),
        "deep.png": (Image.fromarray(deep), np.rint(deep / 65535 * 255)[..., None], 0.5),
        "deep.tiff": (Image.fromarray(deep), np.rint(deep / 65535 * 255)[..., None], 0.5),
        "whole numbers.tiff": (Image.fromarray(deep.astype(np.int32)), np.rint(deep / 65535 * 255)[..., None], 0.5),
        "one bit.png": (Image.fromarray(bits), bits[..., None] * 255, 0),
        "palette.png": (with_palette(palette), palette[places], 0),
        "palette.gif": (with_palette(palette), palette[places], 0),
        "grey palette.png": (with_palette(greys), greys[places][..., :1], 0),
        "rgba.png": (Image.fromarray(np.dstack([colour, alpha])), colour * share + 255 * (1 - share), 1.01),
        "opaque.png": (Image.fromarray(np.dstack([colour, np.full_like(alpha, 255)])), colour, 0),
        "la.png": (Image.fromarray(np.dstack([grey, alpha]), "LA"), grey[..., None] * share + 255 * (1 - share), 1.01),
        "cmyk.tiff": (Image.fromarray(np.dstack([colour, np.zeros_like(grey)]), "CMYK"), 255 - colour, 0),
        "turned.png": (turned, np.rot90(colour, -1), 0),
    }


KINDS = as_people_see_them()


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_picture_becomes_what_people_see(name, tmp_path, loaded):
    image, expected, within = KINDS[name]
    options = {"exif": image.getexif()} if name.startswith("turned") else {"lossless": True} if "webp" in name else {}
    for side in ("train", "valid"):
        for label in ("a", "b"):
            save(tmp_path / "images" / side / label / name, image, **options)
    data = loaded("folder", source=tmp_path / "images")
    assert data.train.images.shape == (2, *expected.shape)
    assert np.abs(data.train.images[0].numpy() - expected.astype(float)).max() <= within


def test_grey_pictures_among_coloured_ones_have_three_equal_channels(folder, loaded, capsys):
    root, _ = folder
    grey = noise(6, 5)
    save(root / "train" / "cat" / "0000.png", grey)
    data = loaded("folder", source=root)
    assert np.array_equal(data.train.images[0], np.repeat(grey[..., None], 3, 2))
    for path in (root / "test").rglob("*.png"):
        save(path, noise(6, 5))


def test_grey_tests_of_coloured_training_pictures_are_told(folder, loaded, capsys):
    root, _ = folder
    for path in (root / "test").rglob("*.png"):
        save(path, noise(6, 5))
    assert loaded("folder", source=root).test.images.shape == (4, 6, 5, 3)
    assert "the test images are grey and the train images coloured" in capsys.readouterr().err


def test_mixed_sizes_are_brought_to_one(folder, loaded, chosen):
    root, _ = folder
    plain = np.full((40, 10, 3), 200, np.uint8)
    plain[:12], plain[28:] = 0, 255  # above and below the square in the middle, and what a filter sees around it
    save(root / "train" / "cat" / "0000.png", plain)
    exact = noise(8, 8, 3)
    save(root / "train" / "cat" / "0001.png", exact)
    with pytest.raises(InputError, match=r"0001.png is 8 × 8 × 3 and .*0000.png is 40 × 10 × 3: set data.size"):
        loaded("folder", source=root)
    data = loaded("folder", source=root, size=8)
    assert data.train.images.shape == (6, 8, 8, 3)
    assert (data.train.images[0] == 200).all()
    assert np.array_equal(data.train.images[1], exact)


@pytest.mark.parametrize("shape", [(31, 20), (20, 47), (7, 5), (9, 400)])
def test_the_shorter_side_is_resized_and_the_centre_cut(shape):
    """Against Pillow's own steps on floating-point numbers, within 1 of 255."""
    pixels, size = noise(*shape), 8
    image = Image.fromarray(pixels.astype(np.float32))
    height, width = (max(size, round(size * side / min(shape))) for side in shape)
    whole = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    top, left = (height - size) // 2, (width - size) // 2
    found = Decoder(size).pixels(Image.fromarray(pixels), "x")[..., 0]
    expected = whole[top : top + size, left : left + size]
    if shape[1] < 100:
        assert np.abs(found - expected).max() <= 1
    assert found.shape == (size, size)


def test_a_very_long_picture_takes_no_more_memory_than_a_square_one():
    assert Decoder(512).pixels(Image.new("L", (1, 5_000_000), 7), "x").shape == (512, 512, 1)


def test_a_grey_palette_with_a_transparent_entry_is_grey_on_white():
    image = Image.new("P", (3, 2), 1)
    image.putpalette([9, 9, 9, 100, 100, 100])
    image.putpixel((0, 0), 0)
    image.info["transparency"] = 0
    pixels = Decoder(0).pixels(image, "x")[..., 0]
    assert pixels.tolist() == [[255, 100, 100], [100, 100, 100]]


def test_what_is_transparent_deep_or_animated_is_told(tmp_path, loaded, capsys):
    clear, deep = Image.new("RGBA", (4, 4), (9, 9, 9, 0)), Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4))
    frames = [Image.new("L", (4, 4), shade) for shade in (10, 200)]
    for side in ("train", "test"):
        save(tmp_path / "i" / side / "a" / "clear.png", clear)
        save(tmp_path / "i" / side / "a" / "deep.png", deep)
        save(tmp_path / "i" / side / "b" / "frames.gif", frames[0], save_all=True, append_images=frames[1:])
    data = loaded("folder", source=tmp_path / "i")
    assert (data.train.images[0] == 255).all()
    assert (data.train.images[2] == 10).all()
    told = capsys.readouterr().err
    for words in ("1 are transparent, and laid on white", "1 are of 16 bits", "1 are of several frames"):
        assert words in told


def test_a_part_is_drawn_by_seed_from_all_classes_and_keeps_its_names(folder, loaded, chosen):
    root, pixels = folder
    for k in range(40):
        for name in ("cat", "dog"):
            pixels["train", f"{name}/n{k}.png"] = noise(6, 5, 3)
            save(root / "train" / name / f"n{k}.png", pixels["train", f"{name}/n{k}.png"])
    data = loaded("folder", source=root, train_images=30, test_images=2)
    names = data.train.names
    assert len(set(names)) == 30
    assert list(names) == sorted(names)
    assert 5 < int(data.train.labels.sum()) < 25
    assert all(np.array_equal(image, pixels["train", name]) for name, image in zip(names, data.train.images, strict=True))


def test_duplicates_between_train_and_test_are_told(folder, loaded, capsys):
    root, pixels = folder
    save(root / "test" / "dog" / "0001.png", pixels["train", "cat/0002.png"])
    loaded("folder", source=root)
    told = capsys.readouterr().err
    assert "1 test images are training images too, pixel for pixel" in told
    assert "test image 3 (dog/0001.png), which is training image 2 (cat/0002.png)" in told


def test_no_format_that_other_programs_decode_is_read():
    assert not {"EPS", "WMF", "MPEG"} & set(formats())
    assert {"PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"} <= set(formats())
    assert Image.MAX_IMAGE_PIXELS == MOST_PIXELS
