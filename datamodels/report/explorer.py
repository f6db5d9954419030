"""What a page's explorer knows of weights: who carries each target and who harms it, the way back, who is alike.

Everything is made in blocks: of N = 50,000 and T = 10,000 the weights alone take 2 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from datamodels.subsets import Array, IndexArray

STRONGEST = 24
"""Carriers, and opponents, of a target that a page shows."""
AMONG = 10
"""An image carries a target where it is among so many strongest carriers."""
BACK = 18
"""Targets of a training image that a page shows, carried and harmed."""
NEIGHBOURS = 12
DIRECTIONS = 32
MOST_WORK = 3e10
"""Multiplications up to which cosines are of the weights themselves, and not of their leading directions."""
LISTED = 30
DENSE = 0.05
"""Share of weights above 0 from which on it is faster to look for the largest among all."""
NONE = 2**32 - 1
"""In the place of an index: there are no more."""

Progress = Callable[..., None]


class Strongest(NamedTuple):
    """The k largest weights of each row, in descending order, and the k smallest in ascending order: indices and values."""

    carriers: Array
    carried: Array
    opponents: Array
    opposed: Array


def strongest(rows: Array, k: int) -> Strongest:
    """Of weights (m, n) the k most positive and the k most negative of each row; `NONE` where a row has fewer of a sign."""
    k = min(k, rows.shape[1])
    positive, negative = _largest(rows, k), _largest(-rows, k)
    return Strongest(positive[0], positive[1], negative[0], -negative[1])


def _largest(rows: Array, k: int) -> tuple[Array, Array]:
    """Of each row (m, n) the k largest numbers above 0, in descending order: indices and values (m, k)."""
    if (rows > 0).mean() > DENSE:
        chosen = np.argpartition(rows, rows.shape[1] - k, axis=1)[:, rows.shape[1] - k :]
        values = np.take_along_axis(rows, chosen, 1)
        m, columns = np.repeat(np.arange(len(rows)), k), chosen.ravel()
        m, columns = m[values.ravel() > 0], columns[values.ravel() > 0]
    else:
        m, columns = np.nonzero(rows > 0)
    of = rows[m, columns]
    order = np.lexsort((columns, -of, m))
    m, columns, of = m[order], columns[order], of[order]
    place = np.arange(len(m)) - np.searchsorted(m, m)
    indices, found = np.full((len(rows), k), NONE, np.uint32), np.zeros((len(rows), k), np.float32)
    kept = place < k
    indices[m[kept], place[kept]], found[m[kept], place[kept]] = columns[kept], of[kept]
    return indices, found


class ByTarget(NamedTuple):
    """Of all T' targets with weights: their strongest (T', k), and what each class of S gives each in all, (classes, T')."""

    strongest: Strongest
    by_class: Array


def by_target(weights: Array, train_labels: IndexArray, classes: int, block: int, advance: Progress) -> ByTarget:
    """What weights (N, T') say target by target; training images of no known class give to none."""
    n, t = weights.shape
    known = np.flatnonzero(train_labels >= 0)
    one_hot = csr_matrix((np.ones(len(known), np.float32), (train_labels[known], known)), (classes, n))
    parts, sums = [], []
    for first in range(0, t, block):
        columns = np.ascontiguousarray(weights[:, first : first + block])
        parts.append(strongest(np.ascontiguousarray(columns.T), STRONGEST))
        sums.append(one_hot @ columns)
        advance()
    return ByTarget(Strongest(*(np.concatenate(part) for part in zip(*parts, strict=True))), np.concatenate(sums, 1))


class ByImage(NamedTuple):
    """Of all N training images: their strongest targets (N, k), and the sum of their weights over all targets (N,)."""

    strongest: Strongest
    total: Array


def by_image(weights: Array, block: int, advance: Progress) -> ByImage:
    """The way back, from training images to targets, for weights (N, T')."""
    parts, totals = [], []
    for first in range(0, len(weights), block):
        rows = np.ascontiguousarray(weights[first : first + block])
        parts.append(strongest(rows, BACK))
        totals.append(rows.sum(1, dtype=np.float64))
        advance()
    return ByImage(Strongest(*(np.concatenate(part) for part in zip(*parts, strict=True))), np.concatenate(totals))


def times_among(indices: Array, n: int) -> IndexArray:
    """How many targets each of n images is among the `AMONG` strongest of, for indices (T', k)."""
    found = indices[:, :AMONG]
    counts: IndexArray = np.bincount(found[found != NONE].astype(np.int64), minlength=n)
    return counts


class Alike(NamedTuple):
    """Of all T' targets: those with the most similar weights (T', k) with cosines, and places (T', 2) on a map.

    `exact` tells cosines of weights from those of their leading directions.
    """

    neighbours: Array
    cosines: Array
    places: Array
    exact: bool


def alike(weights: Array) -> Alike:
    """Which targets have similar weights (N, T'), their datamodel embedding, and a map of them."""
    n, t = weights.shape
    squares = sum((weights[k : k + 1024].astype(np.float64) ** 2).sum(0) for k in range(0, n, 1024))
    lengths = np.maximum(np.sqrt(squares), 1e-30)
    directions = leading(weights, lengths, min(DIRECTIONS, n, t))
    exact = float(n) * t * t <= MOST_WORK
    of = (weights / lengths).T.astype(np.float32) if exact else directions / np.maximum(_length(directions), 1e-30)
    k = min(NEIGHBOURS, t - 1)
    neighbours, cosines = np.zeros((t, k), np.uint32), np.zeros((t, k), np.float32)
    for first in range(0, t, 512):
        found = of[first : first + 512] @ of.T
        found[np.arange(len(found)), np.arange(first, first + len(found))] = -np.inf
        chosen = np.argpartition(found, t - k - 1, axis=1)[:, t - k :] if k else np.zeros((len(found), 0), np.int64)
        values = np.take_along_axis(found, chosen, 1)
        order = np.argsort(-values, axis=1, kind="stable")
        neighbours[first : first + 512] = np.take_along_axis(chosen, order, 1)
        cosines[first : first + 512] = np.take_along_axis(values, order, 1)
    return Alike(neighbours, cosines, placed(directions, neighbours), exact)


def _length(rows: Array) -> Array:
    found: Array = np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def leading(weights: Array, lengths: Array, r: int) -> Array:
    """Scores (T', r) of targets on the leading directions of their weights (N, T') at length 1, by a randomised range finder
    with two power iterations (Halko, Martinsson, Tropp 2011).
    """
    scaled = 1 / lengths
    start = np.random.default_rng(0).normal(size=(weights.shape[1], r + 8))
    basis = start
    for _ in range(3):
        basis = np.linalg.qr(weights @ (basis * scaled[:, None]).astype(np.float32))[0]
        scores = (basis.T @ weights * scaled).T
        basis = scores
    left, values, _ = np.linalg.svd(scores, full_matrices=False)
    found: Array = (left * values)[:, :r].astype(np.float32)
    return found


EPOCHS, OTHERS = 200, 5
"""Rounds of the layout of a map, and the targets at random that each is pushed away from in a round."""
PULL, PUSH, LEAST_APART, START = 0.5, 4.0, 1e-2, 3.0


def placed(directions: Array, neighbours: Array) -> Array:
    """Places (T', 2) from 0 to 1 on a map: neighbours (T', k) pull each other, others at random push each other away.

    That descends the objective of LargeVis (Tang et al. 2016) in whole rounds, from the first two directions (T', r) on. The
    same weights always give the same map.
    """
    (t, k), rng = neighbours.shape, np.random.default_rng(0)
    places, ends = np.zeros((t, 2)), neighbours.astype(np.int64)
    start = directions[:, :2]
    places[:, : start.shape[1]] = START * start / max(float(np.abs(start).max(initial=0.0)), 1e-30)
    places += rng.normal(0, 1e-2, places.shape)
    for epoch in range(EPOCHS if k else 0):
        apart = places[:, None] - places[ends]
        pull = PULL / k * 2.0 * apart / (1.0 + _squares(apart))
        away = places[:, None] - places[rng.integers(0, t, (t, OTHERS))]
        push = PUSH / OTHERS * 2.0 * away / ((LEAST_APART + _squares(away)) * (1.0 + _squares(away)))
        pulled = pull.sum(1)
        for axis in (0, 1):
            pulled[:, axis] -= np.bincount(ends.ravel(), pull[:, :, axis].ravel(), t)
        places += (1.0 - epoch / EPOCHS) * np.clip(push.sum(1) - pulled, -4.0, 4.0)
    span = np.maximum(np.ptp(places, axis=0), 1e-12)
    found: Array = ((places - places.min(0)) / span).astype(np.float32)
    return found


def _squares(apart: Array) -> Array:
    found: Array = (apart**2).sum(2, keepdims=True)
    return found


def between_classes(by_class: Array, target_labels: IndexArray, classes: int) -> Array:
    """What each class of S gives to each class of targets: mean over its targets of the sum of weights, (classes, classes)."""
    found = np.full((classes, classes), np.nan)
    for label in np.unique(target_labels[target_labels >= 0]):
        found[:, label] = by_class[:, target_labels == label].mean(1)
    return found


def doubts(by_image_total: Array, train_labels: IndexArray) -> list[tuple[int, float]]:
    """Training images that harm most: the smallest sums of weights over all targets, where these are below 0.

    A wrong label takes from every target of the class that the image is of, and gives to few.
    """
    if not (train_labels >= 0).any():
        return []
    order = np.argsort(by_image_total, kind="stable")[:LISTED]
    return [(int(image), float(by_image_total[image])) for image in order if by_image_total[image] < 0]


def most_of(counts: IndexArray, totals: Array) -> list[tuple[int, int]]:
    """The images with the largest counts, the larger total first where they are even."""
    order = np.lexsort((-np.abs(totals), -counts))[:LISTED]
    return [(int(image), int(counts[image])) for image in order if counts[image] > 0]


class Twin(NamedTuple):
    """A test image, the training image that looks most like it, and the root mean square of their difference, of 255."""

    target: int
    image: int
    difference: float


def twins(test_afar: Array, train_afar: Array, looks: Callable[[bool, Sequence[int]], Any]) -> list[Twin]:
    """The pairs of test and training image that look most alike: found from afar, then compared pixel by pixel."""
    squares = np.einsum("nd,nd->n", train_afar, train_afar)
    nearest, distance = np.zeros(len(test_afar), np.int64), np.zeros(len(test_afar))
    for first in range(0, len(test_afar), 256):
        part = test_afar[first : first + 256]
        apart = squares - 2 * (part @ train_afar.T)
        nearest[first : first + 256] = apart.argmin(1)
        distance[first : first + 256] = apart.min(1) + np.einsum("nd,nd->n", part, part)
    chosen = np.argsort(distance, kind="stable")[: 4 * LISTED]
    found = []
    for target in chosen.tolist():
        image = int(nearest[target])
        pair = [looks(side, [index])[0].astype(np.float64) for side, index in ((False, target), (True, image))]
        if pair[0].shape == pair[1].shape:
            found.append(Twin(target, image, float(np.sqrt(((pair[0] - pair[1]) ** 2).mean()))))
    return sorted(found, key=lambda twin: (twin.difference, twin.target))[:LISTED]
