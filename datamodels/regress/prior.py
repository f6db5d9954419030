"""A prior for weights from what is known of pairs of training image and target, its strength estimated from the models.

The lasso takes all images to matter alike beforehand. But an image of the target's class, near to it, or to which first-order
attribution gives much, matters more; how much more is estimated here, from all pairs at once, and the models then say of each
weight what the prior cannot (empirical Bayes: Robbins 1956; Efron & Morris 1973).

In units of the target's standard deviation s_t = √v_t, a weight has the unbiased marginal estimate u_jt = c_jt/(G_jj s_t), with
noise of variance 1/(m G_jj), for G = XᵀX/m and c = Xᵀy/m centred. Its prior is normal. The mean is a linear function of a basis
B_jt of what is known of the pair (1, the covariates a_f, and their products a_f a_g):

    μ_jt = s_t B_jtᵀ β,   β least squares of u on B over all pairs.

The variance grows with the size of the mean, as the square of the noise-free rest of u says:

    τ²_jt = s_t² (a + b |μ_jt/s_t| + c (μ_jt/s_t)²),   a, b, c ≥ 0 least squares of (u − μ/s)² − 1/(m G_jj).

What the weights do not explain is noise, σ_t² = s_t² (1 − mean_t Σ_j G_jj (μ² + τ²)/s_t²). The weights are the posterior mean

    argmin_w  ‖y − Xw‖²/(2σ_t²) + Σ_j (w_j − μ_jt)²/(2τ²_jt) = μ_t + τ ∘ z,   (τ G τ + σ_t²/m) z = τ ∘ (c − G μ_t),

by conjugate gradients, all targets of a block at once. With no covariates this is ridge regression with one prior variance.

With `regress.sparse` the weights are the lasso's (see `lasso`), each penalised by the inverse of the size that its prior
expects, p_jt ∝ 1/√(μ_jt² + τ²_jt), with λ chosen as ever: the adaptive lasso (Zou 2006), its first guess from the prior. Few
weights that are not zero, at the cost of the many small ones, of which together the posterior mean knows something.

Assumptions: masks are drawn independently of one another; noise is alike for all weights of a target; pairs with like
covariates have like weights. Where covariates say nothing, β, b and c come out near 0, and what is left is that ridge
regression.
It fails to gain where margins depend on few images that no covariate points to; there the lasso is better.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from datamodels.errors import InputError
from datamodels.reading import Unreadable, open_npy
from datamodels.regress.arrays import on_device, row_tiles, to_numpy
from datamodels.regress.moments import Problem
from datamodels.regress.repeats import Repeats
from datamodels.seals import read_sealed_folder
from datamodels.subsets import Array, BoolArray, IndexArray

NONE, FLAT, SIMILARITY, GRADIENTS = "none", "flat", "similarity", "gradients"
FEATURES = ("features_train", "features_test")
PLAIN = (2.0**-20, 2.0**20)
"""The largest number of a covariate that is taken as it is."""
BASIS_NUMBERS = 2**24
"""A part of the basis has at most so many numbers."""
TOGETHER = 16
"""Targets whose covariates are in memory at once, where only their means are wanted."""
LEAST_NOISE = 0.01
LEAST_SIZE = 1e-3
"""Of the largest expected weight: what the penalty takes each weight for at least."""
TOLERANCE, MOST_STEPS = 1e-5, 500


class Covariates:
    """What is known of each pair of training image and target.

    `names` of the F covariates, `digest` of where they are from; `parts` gives them for some targets, a slice of all or
    their numbers, float64 (F, N, T'). Those of `covariates_named` can be sent to other processes, with their arrays.
    """

    def __init__(self, names: tuple[str, ...], digest: str, parts: Callable[[Any], Array]) -> None:
        self.names, self.digest, self.parts = names, digest, parts

    def since(self, first: int) -> Covariates:
        """Those of the targets from `first` on, counted from 0 then, in slices with both ends."""
        return Covariates(self.names, self.digest, lambda part: self.parts(slice(first + part.start, first + part.stop)))

    def mean_over(self, targets: IndexArray) -> Covariates:
        """Those of one target in the place of several: the means of theirs."""

        def parts(part: Any) -> Array:
            total = np.zeros(())
            for first in range(0, len(targets), TOGETHER):
                total = total + self.parts(targets[first : first + TOGETHER]).sum(2, keepdims=True)
            found: Array = total / len(targets)
            return found[:, :, part]

        return Covariates(self.names, self.digest, parts)

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of the basis."""
        pairs = [(f, g) for k, f in enumerate(self.names) for g in self.names[k:]]
        return ("1", *self.names, *(f"{f} × {g}" for f, g in pairs))

    def basis(self, targets: slice) -> Array:
        """The basis B of some targets, float64 (b, N, T'): 1, the covariates, and their products."""
        a = self.parts(targets)
        found = np.empty((len(self.terms), *a.shape[1:]))
        found[0], found[1 : 1 + len(a)] = 1, a
        pairs = ((f, g) for f in range(len(a)) for g in range(f, len(a)))
        for k, (f, g) in enumerate(pairs, 1 + len(a)):
            np.multiply(a[f], a[g], out=found[k])
        return found


def covariates_named(prior: str, folder: Path | None, n: int, t: int) -> Covariates | None:
    """What `regress.prior` names, None for the lasso; `folder` is the run's own, RUN/prior.

    Raises InputError when it is not there, or not of N images and T targets.
    """
    if prior == NONE:
        return None
    if prior == FLAT:
        return Covariates((), FLAT, partial(_flat_parts, n, t))
    return _of_folder(prior, folder, n, t) if prior in (SIMILARITY, GRADIENTS) else _of_file(Path(prior), n, t)


def _of_file(path: Path, n: int, t: int) -> Covariates:
    try:
        array = open_npy(path)
    except Unreadable as e:
        what = f"regress.prior is none, flat, similarity, gradients or an .npy file, and {path} cannot be read as one"
        raise InputError(f"{what}: it {e.why}") from e
    if array.ndim != 3 or array.shape[1:] != (n, t) or array.dtype.kind not in "fiub":
        raise InputError(f"{path} must hold numbers of shape (F, {n}, {t}), not {array.dtype} of shape {array.shape}")
    units = _units(array, path)
    named = (f"covariate {f}" + (f" / {unit:g}" if unit != 1 else "") for f, unit in enumerate(units))
    return Covariates(tuple(named), _digest([path]), partial(_file_parts, np.asarray(array), units))


def _flat_parts(n: int, t: int, targets: Any) -> Array:
    return np.empty((0, n, len(np.arange(t)[targets])))


def _file_parts(array: Array, units: Array, targets: Any) -> Array:
    found: Array = array[:, :, targets].astype(np.float64)
    found /= units[:, None, None]
    return found


def _units(array: Array, path: Path) -> Array:
    """A power of two (F,) for each covariate (F, N, T), to reckon it in: 1, unless its largest number is far from that.

    Products of four covariates are added up, which would be beyond float64, or below. Raises InputError when one is not finite.
    """
    largest = np.zeros(len(array))
    for f, covariate in enumerate(array):
        for rows in row_tiles(len(covariate), max(1, BASIS_NUMBERS // max(1, covariate.shape[1]))):
            part = covariate[rows].astype(np.float64)
            if not np.isfinite(part).all():
                raise InputError(f"{path} has numbers that are not finite")
            largest[f] = max(largest[f], np.abs(part).max(initial=0))
    far = (largest > 0) & ~((largest >= PLAIN[0]) & (largest <= PLAIN[1]))
    return np.where(far, np.exp2(np.clip(np.round(np.log2(np.where(far, largest, 1))), -1022, 1023)), 1)


def _of_folder(kind: str, folder: Path | None, n: int, t: int) -> Covariates:
    if folder is None:
        raise InputError(f"regress.prior {kind} is of a run; for a store of any origin give an .npy file (F, {n}, {t})")
    names = (*FEATURES, "train_labels", "test_labels", GRADIENTS)
    # A learner may have features and no gradients.
    files = [folder / f"{name}.npy" for name in names if name != GRADIENTS or kind == GRADIENTS or has_gradients(folder)]
    try:
        read_sealed_folder(folder, [file.name for file in files])
    except InputError as e:
        what = f"there is no {folder}" if isinstance(e, Unreadable) and e.missing else str(e)
        raise InputError(f"{what}; run the worker with --regress.prior {kind}") from e
    shapes = ((None, n, None), (None, t, None), (n,), (t,), (None, n, t))
    found = [np.asarray(open_npy(file, shape)) for file, shape in zip(files, shapes, strict=False)]
    of_train, of_test, _, _, *rest = found
    if of_train.shape[::2] != of_test.shape[::2] or "".join(array.dtype.kind for array in found) != "ffiif"[: len(found)]:
        raise InputError(f"{folder} does not hold what the worker writes; delete it and run the worker again")
    terms = ["same class", "similarity", "log rank of similarity"]
    if kind == GRADIENTS:
        terms += [f"gradients {k}" for k in range(len(rest[0]))]
    wanted = found if kind == GRADIENTS else found[:4]
    return Covariates(tuple(terms), _digest(files), partial(_folder_parts, folder, wanted))


def _folder_parts(folder: Path, arrays: Sequence[Array], targets: Any) -> Array:
    of_train, of_test, train_labels, test_labels, *gradients = arrays
    near, same = mean_cosine(of_train, of_test[:, targets]), train_labels[:, None] == test_labels[targets]
    found = [same.astype(np.float64), near, np.log1p(ranks(near, same))]
    known = np.stack([*found, *(of[:, targets].astype(np.float64) for array in gradients for of in array)])
    if not np.isfinite(known).all():
        raise InputError(f"{folder} has numbers that are not finite")
    return known


def has_gradients(folder: Path) -> bool:
    """Whether a folder RUN/prior tells of gradients."""
    return (folder / f"{GRADIENTS}.npy").exists()


def mean_cosine(of_train: Array, of_test: Array) -> Array:
    """Mean over networks of the cosine of their features, (K, N, d) and (K, T', d) of length 1 each; float64 (N, T')."""
    pairs = zip(of_train, of_test, strict=True)
    found: Array = sum(ours.astype(np.float32) @ theirs.astype(np.float32).T for ours, theirs in pairs) / len(of_train)
    return found.astype(np.float64)


def ranks(similarity: Array, same: Array) -> Array:
    """For each target the rank of each image by similarity, 0 the nearest, among those of its class, or among the others.

    `similarity` and `same`, bool, are (N, T); the ranks are whole numbers (N, T).
    """
    n, members = len(similarity), same.sum(0)
    # Those of the class come first, so that the others' ranks count on from there.
    order = np.lexsort((-similarity, ~same), axis=0)
    found = np.empty(similarity.shape, np.int64)
    np.put_along_axis(found, order, np.broadcast_to(np.arange(n)[:, None], found.shape), axis=0)
    return np.where(same, found, found - members)


def _digest(files: list[Path]) -> str:
    """SHA-256 of the files."""
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "sha256").digest() if hasattr(hashlib, "file_digest") else opened.read())
    return whole.hexdigest()


@dataclass(frozen=True)
class Prior:
    """A prior as estimated: `mean` β, `spread` (a, b, c), `noise` σ_t²/s_t², the covariates that it is of.

    `inside`, bool (N,), are the images of which something can be learnt; the others' weights are 0.
    """

    covariates: Covariates
    mean: Array
    spread: Array
    noise: float
    inside: BoolArray

    @property
    def described(self) -> dict[str, Any]:
        """The prior in words and numbers."""
        about = {"covariates": self.covariates.names, "basis": self.covariates.terms}
        return {**about, "mean": self.mean.tolist(), "spread": self.spread.tolist(), "noise": self.noise}

    def at(self, targets: slice, scale: Array) -> tuple[Array, Array]:
        """μ and τ², float64 (N, T') each, of some targets whose margins have standard deviations `scale` (T',)."""
        basis = self.covariates.basis(targets)
        mean = np.tensordot(self.mean, basis, 1)
        del basis
        (a, b, c), inside = self.spread, self.inside[:, None]
        return inside * scale * mean, inside * scale**2 * (a + b * np.abs(mean) + c * mean**2)

    def parts(self, targets: slice) -> Iterator[slice]:
        """The targets, so many at a time that what `at` takes is not too large."""
        return in_parts(targets, len(self.inside), len(self.mean))

    def penalty(self, targets: slice) -> Array:
        """The lasso's factors p by the expected size of each weight, float64 (N, T'), of geometric mean 1 for each target."""
        mean, square = self.at(targets, np.ones(1))
        size = np.sqrt(mean**2 + square)
        size = np.maximum(size, np.maximum(size.max(0), 1e-300) * LEAST_SIZE)
        found: Array = np.exp(np.log(size).mean(0)) / size
        return found


def in_parts(targets: slice, n: int, terms: int) -> Iterator[slice]:
    """The targets, so many at a time that their basis of so many terms is not too large."""
    each = max(1, BASIS_NUMBERS // (n * terms))
    for first in range(targets.start, targets.stop, each):
        yield slice(first, min(first + each, targets.stop))


def estimate(covariates: Covariates, problem_of: Callable[[slice], Problem], t: int, m: int, repeats: Repeats) -> Prior:
    """The prior of t targets, from the marginal estimates of m models, in two passes over the targets.

    `problem_of` gives the problem of some targets, few at a time, `repeats` how often the models' masks come again.
    """
    marginal = _Marginal(covariates, problem_of, t, m, repeats)
    normal, right, total, pairs = np.zeros(()), np.zeros(()), 0.0, 0
    for _, basis, u in marginal.parts():
        normal, right = normal + basis @ basis.T, right + basis @ u
        total, pairs = total + float(u @ u), pairs + len(u)
    # The estimates of a target are sums over its models: with fewer of these than images they are no more numbers than these.
    numbers = min(pairs, t * (m - 1))
    mean, taken = shrunk_mean(normal, right, total, numbers, len(covariates.names))
    normal, right, squares = np.zeros(()), np.zeros(()), 0.0
    for noise, basis, u in marginal.parts():
        found = mean @ basis
        terms = np.stack([np.ones_like(found), np.abs(found), found**2])
        rest = (u - found) ** 2 * (numbers / (numbers - taken)) - noise
        normal, right, squares = normal + terms @ terms.T, right + terms @ rest, squares + float(found @ found)
    size = np.sqrt(np.maximum(np.diag(normal), 1e-300))
    spread = nnls(normal / np.outer(size, size), right / size)[0] / size
    # What weights under the prior leave unexplained of the variance of a margin, as a share, mean over targets.
    left = 1 - float(marginal.spread.mean()) * (float(normal[0] @ spread) + squares) / t
    return Prior(covariates, mean, spread, max(left, LEAST_NOISE), marginal.inside)


def shrunk_mean(normal: Array, right: Array, total: float, numbers: int, f: int) -> tuple[Array, float]:
    """β of the basis from BᵀB, Bᵀu and uᵀu over all pairs, so many `numbers`, and how many of these it has taken up.

    The basis comes in three steps: 1, the F covariates, their products. Least squares explain u better with each, also where
    they know nothing of it: k terms then explain k times the mean square that is left, give or take √(2/k) of that. So what a
    step adds is shrunk by three times beyond that (James & Stein 1961, for a block of terms), so that noise costs nothing:

        β += max(0, 1 − (1 + 3 √(2/k)) k s²/(what it explains)) · (what it adds to β).

    A step after which there are fewer than eight numbers for each term is not taken.
    """
    size = np.sqrt(np.maximum(np.diag(normal), 1e-300))
    scaled, of_u = normal / np.outer(size, size), right / size
    steps = list[tuple[Array, int, float]]()
    for end in (1, 1 + f, len(right)):
        among = scaled[:end, :end]
        rank = int(np.linalg.matrix_rank(among, hermitian=True, tol=1e-9 * end))
        if steps and (rank == steps[-1][1] or 8 * rank > numbers):
            continue
        beta = np.zeros(len(right))
        beta[:end] = np.linalg.lstsq(among, of_u[:end], rcond=1e-9)[0]
        steps.append((beta, rank, max(total - float(of_u @ beta), 0.0)))
    _, most, rest = steps[-1]
    square = rest / max(numbers - most, 1)
    found, taken = steps[0][0], float(steps[0][1])
    for (last, rank, before), (beta, more, after) in pairwise(steps):
        k = more - rank
        kept = max(0.0, 1 - (1 + 3 * (2 / k) ** 0.5) * k * square / max(before - after, 1e-300))
        found, taken = found + kept * (beta - last), taken + kept * k
    return found / size, taken


class _Marginal:
    """The marginal estimates, some targets at a time.

    `inside`, bool (N,), are the images of which something can be learnt, `spread` their G_jj.
    """

    def __init__(
        self, covariates: Covariates, problem_of: Callable[[slice], Problem], t: int, m: int, repeats: Repeats
    ) -> None:
        self.covariates, self.problem_of, self.t, self.m, self.repeats = covariates, problem_of, t, m, repeats
        spread = to_numpy(problem_of(slice(0, 1)).gram.diagonal()).astype(np.float64)
        self.inside = spread > 1e-9
        if not self.inside.any():
            raise InputError("every image is in all of the masks or in none; nothing can be learnt of their weights")
        self.spread = spread[self.inside]

    def parts(self) -> Iterator[tuple[Array, Array, Array]]:
        """Of so many targets at a time: noise variances (pairs,), the basis (b, pairs), marginal estimates u (pairs,)."""
        for targets in in_parts(slice(0, self.t), len(self.inside), len(self.covariates.terms)):
            problem = self.problem_of(targets)
            scale = np.sqrt(to_numpy(problem.variance))
            u = to_numpy(problem.correlation).astype(np.float64)[self.inside] / self.spread[:, None]
            # A target of one margin only has estimates of 0, whatever they are divided by.
            u /= np.where(scale > 0, scale, 1.0)
            basis = self.covariates.basis(targets)
            basis = basis if self.inside.all() else basis[:, self.inside]
            effect = self.repeats.of(targets).effect(scale**2)
            yield np.outer(1 / (self.m * self.spread), effect).ravel(), basis.reshape(len(basis), -1), u.ravel()


def posterior_mean(problem: Problem, mean: Any, deviation: Any, lam: Array) -> Any:
    """The weights (N, T) above: prior mean μ and standard deviation τ (N, T), and λ_t = σ_t²/m (T,).

    Both are on the problem's device and in its number format; the weights come in the place of the mean, and the problem's
    correlation and the deviation are lost.
    """
    xp, shift = problem.xp, on_device(lam, problem.xp, problem.gram.dtype)
    rest, scaled = problem.correlation, problem.times(mean)
    rest -= scaled
    rest *= deviation
    z, direction, image = xp.zeros_like(rest), rest.copy(), xp.empty_like(rest)
    size = xp.multiply(rest, rest, out=scaled).sum(0)
    enough = TOLERANCE**2 * size
    for _ in range(MOST_STEPS):
        if to_numpy((size <= enough).all()):
            break
        problem.times(xp.multiply(deviation, direction, out=scaled), out=image)
        image *= deviation
        image += xp.multiply(shift, direction, out=scaled)
        step = size / xp.maximum(xp.multiply(direction, image, out=scaled).sum(0), 1e-30)
        z += xp.multiply(step, direction, out=scaled)
        rest -= xp.multiply(step, image, out=scaled)
        new = xp.multiply(rest, rest, out=scaled).sum(0)
        direction *= new / xp.maximum(size, 1e-30)
        direction += rest
        size = new
    z *= deviation
    mean += z
    return mean
