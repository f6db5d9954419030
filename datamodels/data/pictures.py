"""Pictures of any kind that Pillow reads, as people see them: uint8 (H, W, 1) where they are grey, (H, W, 3) where coloured.

EXIF's orientation is applied, transparent pictures are laid on white, 16 bits are scaled to 8 (65,535 to 255), and of animated
ones the first frame is taken. With a size the shorter side is resized to it, with an antialiasing bilinear filter, and the
centre cut.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from datamodels.errors import InputError, of_memory, one_line, shown
from datamodels.machine import free_host_memory, megabytes
from datamodels.progress import say
from datamodels.reading import Unreadable, open_file

Array = npt.NDArray[Any]
Pixels = npt.NDArray[np.uint8]

MOST_PIXELS = 89_478_485
"""Of a picture, before it is brought to a size; beyond it Pillow warns of a decompression bomb."""
NOT_DECODED = {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5", "FITS"}
"""Formats of which Pillow reads no more than the head, or which it leaves to other programs, as Ghostscript, that run what is
in them."""
MOST_ASPECT = 8
"""Of the longer side to the shorter one, where a picture is resized; more of it is cut off before."""
ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
SEEN = {
    "transparent": "transparent, and laid on white",
    "deep": "of 16 bits, and scaled to 8",
    "animated": "of several frames, of which the first is taken",
}


@functools.cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read."""
    Image.init()
    return tuple(sorted(name for name in Image.OPEN if name not in NOT_DECODED))


@functools.cache
def suffixes() -> frozenset[str]:
    """Suffixes of files of these formats, in small letters."""
    known = formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


class Decoder:
    """Pictures to pixels, `size` a side unless that is 0; counts what there is to be said of them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen: Counter[str] = Counter()

    def tell(self, where: str) -> None:
        """Say in a line what was seen, and begin to count anew."""
        if self.seen:
            say(
                f"data: of the pictures in {where} "
                + ", ".join(f"{n} are {SEEN[name]}" for name, n in sorted(self.seen.items()))
            )
        self.seen.clear()

    def read(self, path: Path) -> Pixels:
        """The pixels of a file. Raises InputError that names it."""
        name = shown(str(path), 400)
        try:
            with open_file(path) as file:
                return self._opened(file, name)
        except Unreadable as e:
            raise InputError(f"{name} {e.why}") from e

    def _opened(self, file: IO[bytes], name: str) -> Pixels:
        if not file.peek(1):  # type: ignore[attr-defined]
            raise InputError(f"{name} is empty")
        with _refusals(name), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=formats()) as image:
                return self.pixels(image, name)

    def pixels(self, image: Image.Image, name: str) -> Pixels:
        """The pixels of a picture. Raises InputError that begins with its name where it cannot be decoded."""
        width, height = image.size
        if width * height > MOST_PIXELS or not width * height:
            raise InputError(f"{name} is a picture of {width} × {height} pixels, and the most are {MOST_PIXELS}")
        with _refusals(name), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            self.seen["animated"] += bool(getattr(image, "is_animated", False))
            found = self._eight_bits(ImageOps.exif_transpose(image), name)
            self.seen = +self.seen
            return found if not self.size else _fitted(found, self.size)

    def _eight_bits(self, image: Image.Image, name: str) -> Pixels:
        if image.mode.startswith("I"):
            return self._deep(image, name)
        if image.mode == "F":
            raise InputError(f"{name} holds floating-point numbers; give such images as arrays")
        of_palette = image.mode in ("P", "PA")
        if image.mode in ALPHA or "transparency" in image.info:
            image = self._on_white(image)
        if image.mode in ("1", "L"):
            return np.asarray(image.convert("L"))[..., None]
        pixels = np.asarray(image.convert("RGB"))
        # Of a palette the mode does not tell whether it is grey.
        grey = of_palette and (pixels == pixels[..., :1]).all()
        return np.ascontiguousarray(pixels[..., :1]) if grey else pixels

    def _on_white(self, image: Image.Image) -> Image.Image:
        plain = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
        seen = image.convert("LA" if plain == "L" else "RGBA")
        alpha = seen.getchannel("A")
        if alpha.getextrema()[0] == 255:
            return seen.convert(plain)
        self.seen["transparent"] += 1
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, seen.convert("RGBA")).convert(plain)

    def _deep(self, image: Image.Image, name: str) -> Pixels:
        """Of 16 bits, scaled; Pillow's own conversion cuts everything above 255 off."""
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() >= 2**16:
            raise InputError(
                f"{name} has values beyond 16 bits, from {values.min()} to {values.max()}; give such images as arrays"
            )
        self.seen["deep"] += 1
        return np.rint(values / 257).astype(np.uint8)[..., None]


class _refusals:  # noqa: N801 (a context manager, named as a function)
    """Make an InputError of whatever Pillow raises at a damaged picture."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, e: BaseException | None, trace: Any) -> None:
        if not isinstance(e, Exception) or isinstance(e, InputError) or of_memory(e):
            return
        raise InputError(f"{self.name} is no picture that can be read: {one_line(e, 200)}") from e


def _fitted(pixels: Pixels, size: int) -> Pixels:
    height, width = pixels.shape[:2]
    if height == width == size:
        return pixels
    # No more than the filter sees around the centre: what is very long would be resized to something far longer.
    side = MOST_ASPECT * min(height, width)
    top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
    pixels = pixels[top : top + side, left : left + side]
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    wide, high = (max(size, round(size * side / min(height, width))) for side in (width, height))
    left, top = (wide - size) // 2, (high - size) // 2
    found = image.resize((wide, high), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return np.asarray(found).reshape(size, size, -1)


def stacked(images: Iterable[tuple[str, Array]], n: int) -> Array:
    """One array of n images of one shape, each with its name; grey pictures among coloured ones get three equal channels.

    Raises InputError where they are of several sizes or types, or memory does not suffice for them.
    """
    found, first = np.empty((0, 0), np.uint8), ""
    for k, (name, image) in enumerate(images):
        if k == 0:
            found, first = room(n, image.shape, image.dtype), name
        elif image.shape[-1] == 3 and found.shape[-1] == 1 and image.ndim == 3 and image.dtype == np.uint8:
            found = np.repeat(found, 3, axis=3)
        if image.dtype != found.dtype:
            raise InputError(f"{name} is {image.dtype}, and {first} is {found.dtype}")
        grey = image.ndim == 3 and image.dtype == np.uint8 and (image.shape[-1], found.shape[-1]) == (1, 3)
        if image.shape[:2] != found.shape[1:3] or (image.shape != found.shape[1:] and not grey):
            told = [" × ".join(map(str, shape)) for shape in (image.shape, found.shape[1:])]
            raise InputError(f"{name} is {told[0]} and {first} is {told[1]}: set data.size, to which all are brought then")
        found[k] = image
    return found


def room(n: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """An array for n images. Raises InputError where memory does not suffice for it."""
    size, free = n * math.prod(shape) * np.dtype(dtype).itemsize, free_host_memory()
    if size > free:
        raise InputError(
            f"memory does not suffice: {n} images of {' × '.join(map(str, shape))} take {megabytes(size)}, and "
            f"{megabytes(free)} are free; a smaller data.size, or fewer data.train_images, helps"
        )
    return np.empty((n, *shape), dtype)
