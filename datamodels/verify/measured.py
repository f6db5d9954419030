"""Which training images to remove, from what verifications of the run have measured, where there are any.

The folder of a run holds weights in RUN/regress, and verdicts in RUN/verify, or under other names beside it. What networks
trained on all of S say of a target stands in their verify.json; with it a support needs no extrapolation. Of targets that were
not asked about, those that were say by how much the extrapolation is off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from datamodels.brittleness import Outcome, Support, smallest_support
from datamodels.brittleness import support as extrapolated_support
from datamodels.brittleness.judging import FLIPPED
from datamodels.brittleness.supports import EXTRAPOLATED, MEASURED, Extrapolation, Needed, on_all
from datamodels.errors import InputError
from datamodels.reading import Between, Maybe, Unreadable, read_json, require
from datamodels.regress import Datamodels
from datamodels.seals import unsealed
from datamodels.store import read_meta
from datamodels.subsets import IndexArray
from datamodels.verify.questions.searches import CENSORED
from datamodels.verify.record import VERDICTS, Claim, OnAll
from datamodels.verify.typed import read

Weights = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Measured:
    """What a support needs of a verify.json: margins on all of S, and the sets that were found."""

    store_digest: str
    base: dict[int, OnAll]
    searches: tuple[Claim, ...]


@overload
def support(models: Datamodels, target: int, max_size: int = ..., verdicts: Path | str | None = ...) -> Support: ...


@overload
def support(models: Weights, target: float, max_size: int = ...) -> Support: ...


def support(models: Datamodels | Weights, target: float, max_size: int = 100, verdicts: Path | str | None = None) -> Support:
    """The fewest images whose removal should bring a target's margin to 0 or below, by its weights; at most `max_size`.

    `support(models, 3)` takes the margin on all of S that verifications beside the weights have measured, the one by most
    networks where there are several, or by those of `verdicts`, a folder or a verify.json. It tells the smallest set that
    retraining has proved, too. Where the target was not measured the margin is g(S) = Σw + b, an extrapolation, and the
    support says by how much that was off on the targets that were; see `Support` for what it holds. Removals do not add up
    quite: how many times as many images retraining needed, where it searched, is told too. A training image that is a
    target is in no set of its own, where the run's store is there to tell of it.

    `support(weights, bias)`, as in `support(*models.of(3))`, knows nothing of a run: it extrapolates.

    Raises InputError where the weights are not of that target, or `verdicts` hold none, or those of another store, or a
    verify.json of the run's is damaged.

    >>> from datamodels import Datamodels, support                          # doctest: +SKIP
    >>> support(Datamodels.load("runs/digits/regress"), 3)                  # doctest: +SKIP
    <Support: 9 images (17, 151, 4, …) should bring the margin from 4.05 to -0.11; the margin before is measured, by 32 \
networks trained on all of S; retraining has proved 11 to flip it>
    """
    if not isinstance(models, Datamodels):
        if verdicts is not None:
            raise InputError("verdicts are of a run's targets; give its datamodels and a target, support(models, 3)")
        return extrapolated_support(models, target, max_size)
    return Supports(models, verdicts).of(target, max_size)  # type: ignore[arg-type]


class Supports:
    """The supports of a run's targets, by its weights and by what its verifications had measured when this was made.

    `verdicts` as in `support`. Raises InputError where a verify.json is damaged, or of another store where it was named.
    """

    def __init__(self, models: Datamodels, verdicts: Path | str | None = None) -> None:
        self.models = models
        found = _measured(models, verdicts)
        self.before = dict[int, Outcome]()
        for each in found:
            for target, on_all_of in each.base.items():
                known = self.before.get(target)
                if target in models.targets and (known is None or on_all_of.outcome.models > known.models):
                    self.before[target] = on_all_of.outcome
        self.claims = dict[int, list[Claim]]()
        for claim in (claim for each in found for claim in each.searches if _is_removal(claim)):
            if claim.target in self.before:
                self.claims.setdefault(claim.target, []).append(claim)
        self.itself = _training_images(models)

    def of(self, target: int, max_size: int = 100) -> Support:
        """The support of one target. Raises InputError where the weights are not of it, or no image may be named."""
        if max_size < 1:
            raise InputError(f"max_size is how many images a support may have, 1 or more, not {max_size}")
        self.models.of(target)
        target, is_measured = int(target), target in self.before
        found = replace(
            self._named(target, max_size, is_measured),
            verified=self.proved(target),
            needed=self._needed(max_size, is_measured),
        )
        if is_measured:
            return replace(found, base=MEASURED, measured=self.before[target])
        return replace(found, base=EXTRAPOLATED, extrapolation=self._extrapolation)

    def _named(self, target: int, max_size: int, from_measured: bool) -> Support:
        """The set that the weights name from the measured margin before, or from g(S)."""
        weights, bias = self.models.of(target)
        base = self.before[target].mean_margin if from_measured else on_all(weights, bias)
        if target in self.itself:
            weights = weights.copy()
            weights[self.itself[target]] = 0  # it is in no set
        return smallest_support(weights, base, max_size=max_size)

    @cached_property
    def _extrapolation(self) -> Extrapolation | None:
        """How far g(S) was off on the targets that were measured; None where there are none."""
        off = [on_all(*self.models.of(target)) - outcome.mean_margin for target, outcome in self.before.items()]
        return Extrapolation(float(np.median(off)), len(off)) if off else None

    def _needed(self, max_size: int, from_measured: bool) -> Needed | None:
        """How many times as many images it took to flip the targets that were searched; None where none were.

        Targets of which the weights name no image do not count.
        """
        times = []
        for target in self.claims:
            named, proved = len(self._named(target, max_size, from_measured).indices), self.proved(target)
            if named:
                times.append((np.inf if proved is None else len(proved)) / named)
        return Needed(float(np.median(times)), len(times)) if times else None

    def proved(self, target: int) -> IndexArray | None:
        """The smallest set whose removal flips a target, as some search has proved; None where none has."""
        claims = (claim for claim in self.claims.get(target, ()) if claim.verdict == FLIPPED and claim.size is not None)
        smallest = min((claim.order[: claim.size] for claim in claims), key=len, default=None)
        return None if smallest is None else np.array(smallest, np.int64)


def _is_removal(claim: Claim) -> bool:
    """Whether a search was for images to be removed so that a prediction flips."""
    return claim.relabelled is None and claim.verdict in (FLIPPED, CENSORED)


def verdicts_beside(models: Datamodels) -> list[Path]:
    """The verify.json files of the run that weights lie in, by name; none where they were not read from a folder."""
    if models.folder is None:
        return []
    try:
        return sorted(models.folder.resolve().parent.glob(f"*/{VERDICTS}"))
    except OSError:
        return []


def read_measured(path: Path, n: int) -> Measured:
    """What a verify.json, of any version, tells of a data set of N images. Raises InputError where it is damaged, or none."""
    content = read_json(path)
    found = read(Measured, content, path)
    unsealed(content, path)
    if any(image >= n for claim in found.searches for image in claim.order):
        raise Unreadable(path, f"tells of images that are none of the {n} that the weights are of")
    return found


def _measured(models: Datamodels, verdicts: Path | str | None) -> list[Measured]:
    """What the run has measured, of the store that the weights are from; or what the verdicts that are named have."""
    n, digest = len(models.weights), models.meta["store_digest"]
    if verdicts is None:
        found = (read_measured(path, n) for path in verdicts_beside(models))
        return [each for each in found if each.store_digest == digest]
    path = Path(verdicts)
    path = path / VERDICTS if path.is_dir() else path
    named = read_measured(path, n)
    if named.store_digest != digest:
        raise InputError(f"{path} tells of another store than the one that the weights are from")
    return [named]


def _training_images(models: Datamodels) -> dict[int, int]:
    """Which targets are training images, by the store of the run, and which ones; none where there is no store."""
    store = None if models.folder is None else models.folder.resolve().parent / "store"
    if store is None or not (store / "meta.json").exists():
        return {}
    meta = read_meta(store)
    require(meta.provenance, {"train_targets": Maybe([Between(0, len(models.weights) - 1)])}, store / "meta.json")
    images = meta.provenance.get("train_targets", [])
    return dict(enumerate(images, meta.num_targets - len(images)))
