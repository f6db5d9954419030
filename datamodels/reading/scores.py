"""Scores by others: how much each training image helps each target, in the files in which such scores are kept.

    .npz          scores (N, t), and targets (t,), the columns of the margins that they are of
    .pt, .pth     a tensor (N, T), as torch.save writes what dattri's `attribute` gives (Deng et al. 2024)
    any other     an .npy file (N, T); TRAK's `scores/NAME.mmap` is one (Park et al. 2023)

A row for each training image, a column for each target: all columns of the margins, or the test images alone. A file that has
them only the other way round is turned; one that fits both ways is refused, for nothing says which it is. The larger a score,
the more the image helps the target: to remove images of positive score lowers its margin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodels.errors import InputError, shown
from datamodels.machine import free_host_memory
from datamodels.reading.arrays import npz_members, open_npy, read_npz
from datamodels.reading.files import Unreadable
from datamodels.reading.tensors import read_pt, tensor_array

Array = npt.NDArray[Any]

SCORES = "scores:"
"""Begins what names a file of scores among methods, and the method's own name."""
NAME = re.compile(r"[\w.-]{1,40}")
TENSORS = (".pt", ".pth")


@dataclass(frozen=True)
class Scores:
    """Scores `values` (N, t) of training images for some targets, the columns of the margins in `targets`; `name` in short.

    They may be a map of a file; numbers are looked at when they are asked for.
    """

    name: str
    values: Array
    targets: tuple[int, ...]

    def of(self, columns: Sequence[int]) -> npt.NDArray[np.float64]:
        """The scores (N, columns) for some targets. Raises InputError for one that has none, and for what is not finite."""
        place = {target: k for k, target in enumerate(self.targets)}
        missing = next((column for column in columns if column not in place), None)
        if missing is not None:
            raise InputError(f"{self.name} has no scores for target {missing}")
        found = np.asarray(self.values[:, [place[column] for column in columns]], np.float64)
        if not np.isfinite(found).all():
            bad = columns[int(np.flatnonzero(~np.isfinite(found).all(0))[0])]
            raise InputError(f"{self.name} has a score for target {bad} that is not a finite number")
        return found


def scores_files(words: Iterable[str]) -> dict[str, Path]:
    """The files that words name, each by a short name: NAME=FILE, or FILE, whose name without its ending is taken.

    Raises InputError where two have one name, or a file's is none that can be shown.
    """
    found = dict[str, Path]()
    for word in words:
        name, equals, rest = word.partition("=")
        given = bool(equals) and NAME.fullmatch(name.strip()) is not None
        file = Path(rest.strip() if given else word.strip())
        name = name.strip() if given else file.stem
        if not NAME.fullmatch(name):
            raise InputError(f"{shown(word, 200)!r} names no file of scores that could be shown; give NAME=FILE, as a=a.npy")
        if name in found:
            raise InputError(f"two files of scores are called {name}; give NAME=FILE for one of them")
        found[name] = file
    return found


def read_scores(name: str, file: Path, n: int, t: int, tests: int) -> Scores:
    """The scores in a file for N training images and T columns of margins, of which the first `tests` are test images.

    Raises InputError for a file that cannot be read, or is of another size, or fits both ways round.
    """
    try:
        values, targets = _content(file)
    except Unreadable as e:
        raise InputError(f"cannot read {file} as scores: it {e.why}") from e
    if values.dtype.kind not in "fiu":
        raise InputError(f"{file} holds {values.dtype}, and scores are real numbers")
    if targets is not None:
        return Scores(name, values, _listed(file, values, targets, n, t))
    widths = {t, tests} - {0}
    shape, wanted = values.shape, f"({n}, {' or '.join(map(str, sorted(widths)))})"
    fits, turned = (len(of) == 2 and of[0] == n and of[1] in widths for of in (shape, shape[::-1]))
    if fits and turned:
        told = f"{file} is {shape}, and training images may be its rows or its columns"
        raise InputError(f"{told}; save it as an .npz of scores, with training images in its rows, and targets")
    if not fits and not turned:
        told = f"{file} is {shape}, and scores are {wanted}: a row for each training image, a column for each target"
        raise InputError(f"{told}; for some targets only, save an .npz of scores and targets")
    values = values if fits else values.T
    return Scores(name, values, tuple(range(values.shape[1])))


def _content(file: Path) -> tuple[Array, Array | None]:
    """The scores, and the targets that a file names."""
    if file.suffix == ".npz":
        members = npz_members(file)
        if members != ["scores", "targets"]:
            raise Unreadable(file, f"holds {shown(', '.join(members), 200)}, and should hold scores and targets")
        content = read_npz(file, most=free_host_memory() // 2)
        return content["scores"], content["targets"]
    if file.suffix in TENSORS:
        import torch

        tensor = read_pt(file)
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"{file} must hold one tensor of scores, not a {shown(type(tensor).__name__, 80)}")
        return tensor_array(file, "its tensor", tensor), None
    return open_npy(file), None


def _listed(file: Path, values: Array, targets: Array, n: int, t: int) -> tuple[int, ...]:
    """The targets that a file names. Raises InputError where they are no columns of the margins, or not those of its scores."""
    if targets.ndim != 1 or targets.dtype.kind not in "iu" or not len(targets):
        raise InputError(f"{file} must name its targets by their numbers, whole ones (t,), not {targets.dtype} {targets.shape}")
    listed = tuple(targets.tolist())
    if not all(0 <= target < t for target in listed) or len(set(listed)) < len(listed):
        raise InputError(f"{file} must name each of its targets once, from 0 to {t - 1}")
    if values.shape != (n, len(listed)):
        raise InputError(f"{file} has scores {values.shape} for {len(listed)} targets, and they must be ({n}, {len(listed)})")
    return listed
