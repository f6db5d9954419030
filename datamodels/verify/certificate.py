"""Certificates: what a folder holds that proves one answer, and the one place that writes and reads certificate.json.

A certificate tells of one set R, of what becomes of it, and of networks trained without it: their keys, their margins, and the
verdict that follows from these. Who has the data and this package trains the same networks again, and others. How one is made
stands in `certificate_making`, how one is checked in `certificate_checking`.

What is read is checked before it is believed, and before anything is trained. What a certificate says of itself that cannot be
true is `Refused`, as is what does not come out again: a verdict against it. A file that is no certificate is an InputError.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from datamodels.brittleness.judging import CONFIDENCE, FLIPPED, HELD, UNDECIDED, Outcome, judge
from datamodels.errors import InputError, shown
from datamodels.reading import Between, Unreadable, read_json, require
from datamodels.seals import SEAL, seal_of, write_sealed
from datamodels.subsets import Array, BoolArray, mask_without
from datamodels.verify.known import Index
from datamodels.verify.questions.searches import FRESH
from datamodels.verify.record import REPAIRED, Count, Label, SearchRecord, Size
from datamodels.verify.retrain import Request
from datamodels.verify.typed import FLAT, read, to_json

FORMAT, FORMAT_VERSION = "datamodels-certificate", 1
CERTIFICATE = "certificate.json"
PUT_BACK_FROM = 2 * 10**6
"""Repetitions of the networks that judge a set with an image put back: of no search, and of no recheck."""
TOLERANCE = 1e-3
"""So far, as a share of itself or of one logit, a margin may come out otherwise on a machine of the same kind."""
STILL, NOT, OPEN = "still", "not", "undecided"
"""What a set does without some images of R: what R does, the opposite beyond doubt, or neither is certain."""

Number = Annotated[int, Between(0, 10**40)]
Repetition = Annotated[int, Between(0, 2**31 - 2**24)]


class Refused(Exception):  # noqa: N818 (what becomes of a certificate)
    """A verdict against a certificate. Its text says why, in one sentence that goes on from 'refused: '."""


@dataclass(frozen=True)
class ImageRecord:
    """One image: its index in S, or for a target its column of the margins, and the SHA-256 of what the learner sees of it.

    `name` is None where images have none, `digest` where the learner shows nothing of its examples.
    """

    index: Index
    name: str | None
    label: Label
    digest: str | None


@dataclass(frozen=True)
class NetworkRecord:
    """One network: its repetition, its key, and its margin on the target in logits, None where its training diverged."""

    repetition: Repetition
    key: tuple[Number, ...]
    margin: float | None


@dataclass(frozen=True)
class Judged:
    """Networks of one mask, and how they are judged: their mean by Student's t, as the last of so many looks."""

    networks: tuple[NetworkRecord, ...]
    looks: Size
    outcome: Annotated[Outcome, FLAT]
    verdict: str

    @classmethod
    def of(cls, networks: tuple[NetworkRecord, ...], looks: int) -> Judged:
        """The verdict that follows from their margins."""
        outcome = outcome_of(networks, looks)
        return cls(networks, looks, outcome, outcome.verdict)


@dataclass(frozen=True)
class PutBackRecord:
    """What is left of R when some images of it are put back, `images`: the margins of `models` networks, and what it does."""

    images: tuple[Index, ...]
    first: Repetition
    margins: tuple[float | None, ...]
    outcome: Annotated[Outcome, FLAT]
    does: str


@dataclass(frozen=True)
class PutBacks:
    """How small R is: each image put back by itself, or `singly` a sample of them, and a sample of pairs, `in_pairs`.

    `of_images` and `of_pairs` are how many of each there are. Samples are drawn by `seed`. `looks` are numbers of networks.
    """

    seed: Number
    looks: tuple[Size, ...]
    of_images: Count
    of_pairs: Count
    singly: tuple[PutBackRecord, ...]
    in_pairs: tuple[PutBackRecord, ...]

    @property
    def minimal(self) -> bool:
        """Whether R is minimal by one: without any one of its images it does not do what it does, beyond doubt.

        Each of these verdicts is wrong at most 2.5 % of the time, and so is the claim: it is false only where one of them is.
        """
        return 0 < self.of_images == sum(each.does == NOT for each in self.singly)


@dataclass(frozen=True)
class Certificate:
    """Everything in certificate.json. `recipe` is what decides a network beside its key, mask and labels, `groups` how networks
    share a device, which decides their rounding. `relabelled` is the class that R gets where it stays in. `before` are networks
    on S, `after` those without R; each mask's are trained in the order in which they stand here, in groups of their own.
    """

    format: str
    format_version: int
    version: str
    made: str
    name: str
    label: Label
    target: Index
    targets: tuple[ImageRecord, ...]
    method: str
    claim: str
    relabelled: Label | None
    images: tuple[ImageRecord, ...]
    num_train: Size
    num_targets: Size
    classes: Count
    digests_of: str
    train_digest: str
    targets_digest: str
    seed: Number
    recipe: Mapping[str, Any]
    groups: Mapping[str, Any]
    plain: bool
    machine: Mapping[str, Any]
    before: Judged
    after: Judged
    put_back: PutBacks | None

    @property
    def wanted(self) -> str:
        """The verdict on S∖R that the claim is."""
        return reached_by(self.claim)

    @property
    def columns(self) -> list[int]:
        """The columns of the margins of which the target's margin is the mean."""
        return [image.index for image in self.targets]

    @property
    def removed(self) -> list[int]:
        """R."""
        return [image.index for image in self.images]

    def requests(self, judged: Judged) -> list[Request]:
        """The networks `before` or `after`."""
        return list(requests_of(self, [] if judged is self.before else self.removed, judged))

    def mask(self, put_back: tuple[int, ...] = ()) -> BoolArray:
        """The mask of S∖R, bool (N,), or with some images put back."""
        return mask_without(self.num_train, [image for image in self.removed if image not in put_back])


def requests_of(about: Certificate, removed: list[int], judged: Judged) -> Iterator[Request]:
    """The networks of a mask that a certificate tells of."""
    mask = mask_without(about.num_train, removed)
    to = -1 if about.relabelled is None or not removed else about.relabelled
    return (Request.of(mask, network.repetition, to) for network in judged.networks)


def reached_by(claim: str) -> str:
    """The verdict on S∖R that a search's verdict stands for."""
    return HELD if claim == REPAIRED else FLIPPED


def judging(search: SearchRecord, most: int) -> range:
    """Which repetitions of S∖R judge the set that a search has found: those that confirmed it, and more up to `most`."""
    fresh = 0 if search.last is None else search.last.fresh
    return range(FRESH, FRESH + max(fresh, most))


def outcome_of(networks: tuple[NetworkRecord, ...], looks: int) -> Outcome:
    """The outcome of networks by their margins alone."""
    return judged_margins(tuple(network.margin for network in networks), looks)


def judged_margins(margins: tuple[float | None, ...], looks: int) -> Outcome:
    """The outcome of margins, None of a network that diverged, as one of so many looks (Bonferroni).

    Raises InputError where fewer than 2 are left.
    """
    values = np.array([np.nan if margin is None else margin for margin in margins], np.float64)
    return judge(values, level=1 - (1 - CONFIDENCE) / looks)


def does(outcome: Outcome, wanted: str) -> str:
    """Whether a set still does what R does."""
    return STILL if outcome.verdict == wanted else OPEN if outcome.verdict == UNDECIDED else NOT


def numbers(margins: Array) -> tuple[float | None, ...]:
    """Margins as JSON has them: None where one is no number."""
    return tuple(float(margin) if np.isfinite(margin) else None for margin in margins)


def write_certificate(folder: Path, certificate: Certificate) -> None:
    """Write certificate.json, sealed, whole or not at all."""
    write_sealed(folder / CERTIFICATE, to_json(certificate))


def is_certificate(path: Path) -> bool:
    """Whether something to be checked again is a certificate, or its folder, and not a verify.json."""
    if path.is_dir():
        return True
    try:
        content = read_json(path)
    except Unreadable:
        return path.name == CERTIFICATE
    return isinstance(content, dict) and (content.get("format") == FORMAT or path.name == CERTIFICATE)


def read_certificate(path: Path) -> Certificate:
    """A certificate by its file or folder.

    Raises InputError where the file is none, Refused where it was changed after it was sealed.
    """
    file = path / CERTIFICATE if path.is_dir() else path
    try:
        content = read_json(file)
        require(content, {"format": str, "format_version": int, SEAL: str}, file)
        if content["format"] != FORMAT or content["format_version"] != FORMAT_VERSION:
            told = f"is {shown(content['format'], 80)!r} of version {content['format_version']}"
            raise Unreadable(file, f"{told}, and this program reads {FORMAT} of version {FORMAT_VERSION}")
        found = read(Certificate, content, file)
    except Unreadable as e:
        raise InputError(f"cannot read {file} as a certificate: it {e.why}") from e
    if content[SEAL] != seal_of({key: value for key, value in content.items() if key != SEAL}):
        raise Refused(f"{file} was changed after it was sealed: it does not have its checksum")
    return found
