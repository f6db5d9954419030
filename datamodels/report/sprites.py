"""Thumbnails, many to a file: a page of sixty thousand pictures that are files of their own opens slowly."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, features

from datamodels.report.scripts import blocks
from datamodels.subsets import Array

COLUMNS = 8
PER_FILE = COLUMNS * COLUMNS
BUDGET_BYTES = 90e6
"""What the thumbnails of a page may take, about."""
BYTES_A_PIXEL = 0.8
LARGEST, SMALLEST = 128, 24
LOSSLESS_BYTES = 2e6
PIXELS_SHOWN = 48
"""Up to this side single pixels are shown as such, not smoothed."""
CODEC_STEP = 16
"""Of a codec's blocks: tiles that are whole blocks do not bleed into each other."""
QUALITY = 82

Looks = Callable[[Sequence[int]], Array]


class Tiles(NamedTuple):
    """How the thumbnails of a page lie in its files: `width` × `height` pixels are shown of tiles `step` wide and high."""

    width: int
    height: int
    step: tuple[int, int]
    extension: str

    def about(self) -> dict[str, Any]:
        """What the page's script needs of it."""
        pixelated = max(self.width, self.height) <= PIXELS_SHOWN
        shown = {"width": self.width, "height": self.height, "step": self.step, "extension": self.extension}
        return {**shown, "columns": COLUMNS, "perFile": PER_FILE, "pixelated": pixelated}


def tiles_for(shape: tuple[int, ...], number: int) -> Tiles:
    """The tiles for so many pictures (H, W, C): as large as they are, or as the page's budget has room for."""
    height, width = shape[:2]
    room = math.sqrt(BUDGET_BYTES / BYTES_A_PIXEL / max(number, 1))
    side = min(max(height, width), max(SMALLEST, min(LARGEST, int(room))))
    scale = side / max(height, width)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    if number * w * h * shape[2] <= LOSSLESS_BYTES:
        return Tiles(w, h, (w, h), "png")
    step = (-(-w // CODEC_STEP) * CODEC_STEP, -(-h // CODEC_STEP) * CODEC_STEP)
    return Tiles(w, h, step, "webp" if features.check("webp") else "jpg")


def write_sprites(folder: Path, name: str, n: int, tiles: Tiles, looks: Looks, advance: Callable[..., None]) -> Array:
    """Write NAME-0, NAME-1, …, and give what each of the n pictures looks like from afar, see `from_afar`."""
    seen = []
    for number, (first, last) in enumerate(blocks(n, PER_FILE)):
        pictures = looks(range(first, last))
        seen.append(from_afar(pictures))
        sheet = _sheet(pictures, tiles)
        (folder / f"{name}-{number}.{tiles.extension}").write_bytes(_encoded(sheet, tiles.extension))
        advance()
    return np.concatenate(seen)


def _sheet(pictures: Array, tiles: Tiles) -> Array:
    """Pictures (k, H, W, C) as one, COLUMNS beside each other; a tile's edge is repeated to its step."""
    (w, h), (step_w, step_h) = (tiles.width, tiles.height), tiles.step
    rows = -(-len(pictures) // COLUMNS)
    sheet = np.zeros((rows * step_h, COLUMNS * step_w, pictures.shape[3]), np.uint8)
    for k, picture in enumerate(pictures):
        y, x = k // COLUMNS * step_h, k % COLUMNS * step_w
        small = _resized(picture, w, h)
        sheet[y : y + step_h, x : x + step_w] = np.pad(small, ((0, step_h - h), (0, step_w - w), (0, 0)), mode="edge")
    return sheet


def _resized(picture: Array, w: int, h: int) -> Array:
    if picture.shape[:2] == (h, w):
        return picture
    image = Image.fromarray(picture.squeeze(-1) if picture.shape[2] == 1 else picture)
    resized: Array = np.asarray(image.resize((w, h), Image.Resampling.BOX)).reshape(h, w, picture.shape[2])
    return resized


def _encoded(sheet: Array, extension: str) -> bytes:
    image = Image.fromarray(sheet.squeeze(-1) if sheet.shape[2] == 1 else sheet)
    file = io.BytesIO()
    if extension == "png":
        image.save(file, "PNG", optimize=True)
    elif extension == "webp":
        image.convert("RGB").save(file, "WEBP", quality=QUALITY, method=1)
    else:
        image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


AFAR = 8


def from_afar(pictures: Array) -> Array:
    """Grey values (k, 64) from 0 to 255 of pictures (k, H, W, C), means over an 8 × 8 raster."""
    grey = pictures.mean(3, dtype=np.float32)
    for axis in (1, 2):
        size = grey.shape[axis]
        if size < AFAR:
            grey = grey.repeat(-(-AFAR // size), axis)
            size = grey.shape[axis]
        edges = np.linspace(0, size, AFAR + 1).astype(int)
        sums = np.add.reduceat(grey, edges[:-1], axis=axis)
        grey = sums / np.diff(edges).reshape([-1 if a == axis else 1 for a in range(3)])
    found: Array = grey.reshape(len(pictures), -1).astype(np.float32)
    return found
