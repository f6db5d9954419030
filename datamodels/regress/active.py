"""The lasso with fewer models than images: along the exact path of each target, over the few images that matter.

The objective, the gap and the answer are those of `lasso`. With m < N its G is singular, and first-order steps are many. But
no more than m − 1 weights differ from 0, and between two values of λ few come or go. On the support A, with signs s, the
solution is linear in λ and in c,

    w_A = G_AA⁻¹ (c_A − λ p_A s_A),        f = c − G_·A w_A,        f_A = λ p_A s_A,   |f| ≤ λ p elsewhere,

until a weight becomes 0 and leaves, or another f_j reaches ±λ p_j and enters (the homotopy of Osborne, Presnell & Turlach,
2000, and LARS: Efron, Hastie, Johnstone & Tibshirani, 2004). G_AA⁻¹ is kept up by one row at a time. A start from weights w
that solve nothing is one from the exact solution of a neighbouring problem, whose c is what makes w exact; c then moves to what
it is while λ moves to what is wanted, along the same kind of path (as parametric active sets do for quadratic programmes:
Ferreau, Bock & Diehl, 2008).

A target's path is followed among its working set only, the images with |f| ≥ (2 λ' − λ) p, λ' being a little beyond where it
goes (the sequential strong rule: Tibshirani et al., 2012). That rule may fail; so after each λ f is reckoned for all images, by
one product with the masks for all targets, and gives the duality gap. Images that break the bound join, and the path goes on.

All of it is small: m ≤ 2,048. It is done by NumPy, whatever the device.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from datamodels.regress.arrays import on_device, to_numpy
from datamodels.regress.lasso import lipschitz, relative_gap, solve, unsolved
from datamodels.regress.moments import Problem
from datamodels.subsets import Array, BoolArray, IndexArray

REACH = 0.8
"""A working set is made for λ down to so many times the one that is wanted now."""
STRIDE = 0.85
"""A longer way down is gone in steps of this."""
MOST_ROUNDS = 100
MOST_KINKS = 4
"""Of so many times the images of a working set, for one λ."""
DEPENDENT = 1e-9
REFRESH = 64
"""Changes of the support after which G_AA⁻¹ is reckoned anew."""
JITTER, INSET = 1e-12, 0.1


class Among(Protocol):
    """What is at hand of some of the images, a working set: their G and f, float64, by place in the set."""

    def gram(self, rows: Any) -> Array:
        """G (len(rows), set) of some of them with all."""
        ...

    def slopes(self, target: int, support: IndexArray, weights: Array) -> Array:
        """F (set,) of a target."""
        ...


class Design(Protocol):
    """G and f of a problem of N images and T targets, as the path needs them."""

    n: int

    def among(self, images: IndexArray) -> Among:
        """Some of the images."""
        ...

    def slopes(self, targets: IndexArray, supports: list[IndexArray], weights: list[Array]) -> Array:
        """F (N, T') of some targets at all images, for weights on these images."""
        ...


class Masks:
    """The design of the models themselves: `x` (N, m) raw masks, by image, `y` (m, T) margins less their means."""

    def __init__(self, x: Array, y: Array) -> None:
        self.x, self.y = x, y
        self.n, self.m = x.shape

    def among(self, images: IndexArray) -> Among:
        """See `Design`."""
        return _MasksAmong(self, images)

    def slopes(self, targets: IndexArray, supports: list[IndexArray], weights: list[Array]) -> Array:
        """See `Design`."""
        parts = zip(targets.tolist(), supports, weights, strict=True)
        of: list[Array] = [self.residual(t, w @ self.x[on].astype(w.dtype)) for t, on, w in parts]
        residuals: Array = np.stack(of, 1) / self.m
        found: Array = np.matmul(self.x, residuals.astype(self.x.dtype))
        return found

    def residual(self, target: int, fitted: Array) -> Array:
        """Y less Xw, both less their means; of mean 0, so that masks need not be centred for products with it."""
        rest: Array = self.y[:, target] - fitted
        rest -= rest.mean()
        return rest


class _MasksAmong:
    def __init__(self, masks: Masks, images: IndexArray) -> None:
        self.masks, self.x = masks, masks.x[images].astype(np.float64)
        self.mean = self.x.mean(1)

    def gram(self, rows: Any) -> Array:
        found: Array = self.x[rows] @ self.x.T
        found /= self.masks.m
        found -= np.multiply.outer(self.mean[rows], self.mean)
        return found

    def slopes(self, target: int, support: IndexArray, weights: Array) -> Array:
        found: Array = self.x @ self.masks.residual(target, weights @ self.x[support]) / self.masks.m
        return found


class Products:
    """The design of XᵀX and XᵀY alone: `g` (N, N) and `c` (N, T)."""

    def __init__(self, g: Array, c: Array) -> None:
        self.g, self.c, self.n = g, c, len(g)

    def among(self, images: IndexArray) -> Among:
        """See `Design`."""
        return _ProductsAmong(self, images)

    def slopes(self, targets: IndexArray, supports: list[IndexArray], weights: list[Array]) -> Array:
        """See `Design`."""
        fitted = [w @ self.g[on].astype(w.dtype) for on, w in zip(supports, weights, strict=True)]
        found: Array = self.c[:, targets].astype(np.float64) - np.stack(fitted, 1)
        return found


class _ProductsAmong:
    def __init__(self, products: Products, images: IndexArray) -> None:
        self.products, self.images = products, images
        self.g = products.g[np.ix_(images, images)].astype(np.float64)

    def gram(self, rows: Any) -> Array:
        found: Array = self.g[rows]
        return found

    def slopes(self, target: int, support: IndexArray, weights: Array) -> Array:
        found: Array = self.products.c[self.images, target].astype(np.float64) - weights @ self.g[support]
        return found


class Path:
    """One target's way along its path: it stands at `lam`, with weights `values` on the images `support`."""

    def __init__(self, design: Design, target: int, penalty: Array, lam: float, start: Array, slopes: Array) -> None:
        """Begin at `start` (N,), whose slopes are f (N,); where its support is no basis, at 0 and at λ_max."""
        self.design, self.target, self.penalty, self.lam, self.beyond = design, target, penalty, lam, lam
        self.among: IndexArray
        self.active: IndexArray
        self.shut: BoolArray
        self.values: Array
        self.signs: Array
        self.bounds: Array
        self.inset: Array
        self.f: Array
        self.rows: Array
        self.inverse: Array
        self.at_hand: Among
        self.changes, self.way = 0, 0.0
        rng = np.random.default_rng(0)
        self.jitter = 1 + JITTER * rng.random(design.n)  # of the bounds, so that no two images reach theirs at once
        self.insets = 1 - INSET * rng.random(design.n)
        self._gather(np.flatnonzero(start), start, slopes)
        if self._invert():
            return
        zero = np.zeros(design.n)
        top = design.slopes(np.array([target]), [np.zeros(0, np.int64)], [np.zeros(0)])[:, 0]
        self.lam = self.beyond = max(lam, float((np.abs(top) / penalty).max()))
        self._gather(np.zeros(0, np.int64), zero, top)

    @property
    def support(self) -> IndexArray:
        """The images whose weights are not 0."""
        found: IndexArray = self.among[self.active]
        return found

    def widen(self, slopes: Array, lam: float) -> None:
        """Take a working set for λ from where the path stands to a little beyond `lam`, by the slopes (N,) of all images."""
        self.beyond = REACH * lam
        near = np.abs(slopes) >= (2 * self.beyond - max(self.lam, lam)) * self.penalty
        near[self.support] = True
        self._rebase(np.flatnonzero(near))

    def join(self, slopes: Array) -> None:
        """Take in the images that break their bound."""
        outside = np.abs(slopes) > self.lam * self.penalty
        outside[self.among] = True
        self._rebase(np.flatnonzero(outside))

    def refresh(self) -> None:
        """Reckon the slopes of the working set, and now and then G_AA⁻¹, anew."""
        self.f = self.at_hand.slopes(self.target, self.active, self.values)
        if self.changes > REFRESH:
            self._invert()

    def follow(self, lam: float) -> bool:
        """Go to `lam`, exactly, within the working set. False where the path does not get there."""
        self.shut[:] = False
        self.shut[self.active] = True
        bound = self.lam * self.bounds
        # Inside their bounds, each at a distance of its own: those that break it come back to it one after another.
        within = bound * self.inset
        now = np.clip(self.f, -within, within)
        now[self.active] = bound[self.active] * self.signs
        move, down, left = self.f - now, lam - self.lam, 1.0
        for _ in range(MOST_KINKS * len(self.among) + 100):
            a = len(self.active)
            pull = self.bounds[self.active] * self.signs
            along = self.inverse[:a, :a] @ (move[self.active] - down * pull)
            turn = move - along @ self.rows[:a]
            leaves, entering, step = self._next(now, bound, along, turn, down, left)
            self.values = self.values + step * along
            now += step * turn
            left -= step
            bound = (lam - left * down) * self.bounds
            if left <= 0:
                self.lam = lam
                return True
            if leaves is not None:
                self._leave(leaves)
            elif entering is not None:
                self._enter(entering, np.sign(now[entering]))
        return False

    def _next(
        self, now: Array, bound: Array, along: Array, turn: Array, down: float, left: float
    ) -> tuple[int | None, int | None, float]:
        """What ends the linear piece: the place in the support that leaves, the image that enters, or neither; and how far."""
        with np.errstate(divide="ignore", invalid="ignore"):
            out = np.where(along * self.signs < 0, -self.values / along, np.inf)
            narrowing = down * self.bounds
            up = np.where(turn > narrowing, (bound - now) / (turn - narrowing), np.inf)
            low = np.where(-turn > narrowing, (bound + now) / (-turn - narrowing), np.inf)
        into = np.minimum(up, low)
        into[self.shut] = np.inf
        first_in = int(into.argmin()) if len(into) else -1
        first_out = int(out.argmin()) if len(out) else -1
        t_in = max(float(into[first_in]), 0.0) if first_in >= 0 else np.inf
        t_out = max(float(out[first_out]), 0.0) if first_out >= 0 else np.inf
        if min(t_in, t_out) >= left:
            return None, None, left
        return (first_out, None, t_out) if t_out <= t_in else (None, first_in, t_in)

    def _leave(self, place: int) -> None:
        last = len(self.active) - 1
        self.shut[self.active[place]] = False
        for array in (self.active, self.signs, self.values):
            array[place] = array[last]
        self.rows[place] = self.rows[last]
        h = self.inverse
        if place != last:
            h[[place, last], : last + 1] = h[[last, place], : last + 1]
            h[: last + 1, [place, last]] = h[: last + 1, [last, place]]
        column = h[:last, last].copy()
        h[:last, :last] -= np.outer(column / h[last, last], column)
        self.active, self.signs, self.values = self.active[:last], self.signs[:last], self.values[:last]
        self.changes += 1

    def _enter(self, image: int, sign: float) -> None:
        a = len(self.active)
        self.shut[image] = True
        row = self.at_hand.gram(image)
        self._make_room(a + 1)
        h, of = self.inverse, row[self.active]
        along = h[:a, :a] @ of
        rest = float(row[image] - of @ along)
        if rest <= DEPENDENT * row[image]:
            if not self._make_way(sign * along):
                return
            self._enter(image, sign)
            self.values[-1] = sign * self.way
            return
        h[:a, :a] += np.outer(along / rest, along)
        h[:a, a] = h[a, :a] = -along / rest
        h[a, a] = 1 / rest
        self.rows[a] = row
        self.active, self.signs = np.append(self.active, image), np.append(self.signs, sign)
        self.values = np.append(self.values, 0.0)
        self.changes += 1

    def _make_way(self, along: Array) -> bool:
        """Let an image in that is a sum of those in the support, in these shares times its sign, by taking one of these out.

        Its weight grows while theirs shrink, and the fit stays what it is, until one of them is 0, which then stays out for
        this way. Without it the others are no such sum.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            far = np.where(along * self.signs > 1e-9, self.values / along, np.inf)
        place = int(far.argmin()) if len(far) else -1
        if place < 0 or not np.isfinite(far[place]):
            return False
        self.way = max(float(far[place]), 0.0)
        self.values = self.values - self.way * along
        image = self.active[place]
        self._leave(place)
        self.shut[image] = True
        return True

    def _make_room(self, size: int) -> None:
        have = len(self.inverse)
        if size > have:
            more = max(2 * have, size + 16)
            inverse, rows = np.empty((more, more)), np.empty((more, len(self.among)))
            inverse[:have, :have], rows[:have] = self.inverse, self.rows
            self.inverse, self.rows = inverse, rows

    def _gather(self, support: IndexArray, start: Array, slopes: Array) -> None:
        self.values, self.signs = start[support].astype(np.float64), np.sign(start[support]).astype(np.float64)
        self.among, self.active = support, np.arange(len(support))
        self.inverse, self.changes = np.empty((0, 0)), 0
        self.widen(slopes, self.lam)

    def _rebase(self, among: IndexArray) -> None:
        """Another working set, of which the support is a part."""
        support = self.support
        self.among, self.active, self.at_hand = among, np.searchsorted(among, support), self.design.among(among)
        self.bounds, self.inset = self.penalty[among] * self.jitter[among], self.insets[among]
        self.shut = np.zeros(len(among), bool)
        self.shut[self.active] = True
        size = max(len(self.inverse), len(support))
        rows = np.empty((size, len(among)))
        rows[: len(support)] = self.at_hand.gram(self.active)
        self.rows = rows
        self.f = self.at_hand.slopes(self.target, self.active, self.values)

    def _invert(self) -> bool:
        """Reckon G_AA⁻¹ from G; False where it has none."""
        a = len(self.active)
        g = self.rows[:a, self.active]
        try:
            factor = np.linalg.inv(np.linalg.cholesky(g))
        except np.linalg.LinAlgError:
            return False
        size = len(self.rows)
        self.inverse, self.changes = np.empty((size, size)), 0
        self.inverse[:a, :a] = factor.T @ factor
        return bool((np.diag(self.inverse[:a, :a]) * np.diag(g) * DEPENDENT < 1).all())


class ActiveLasso:
    """The lasso of one block of T targets over a design; see `solvers.Lasso`.

    `problem` is the same as a `Problem` on the host, whose G is not looked at; what is given and asked for lies on xp's device.
    """

    side_by_side = 0

    def __init__(self, design: Design, problem: Problem, gap: float, work: dict[str, int], xp: Any = np) -> None:
        self.design, self.problem, self.gap, self.work, self.xp = design, problem, gap, work, xp
        self.top = problem.lam_max()
        # Targets that go with no image but by rounding, which no path could be followed by: their weights are 0.
        c, spread = problem.correlation, np.sqrt(problem.variance)
        self.idle = np.abs(c).max(0) <= 4 * np.finfo(c.dtype).eps * spread
        self.paths: dict[int, Path] = {}
        self.slopes: dict[int, Array] = {}

    def solve(self, which: IndexArray, lam: Any, start: Any) -> Any:
        """Weights (N, len(which)) at penalties lam (len(which),). A target goes on from where it was, or begins at `start`.

        Raises InputError when a gap is above the tolerance after many rounds.
        """
        lams, weights = to_numpy(lam).astype(np.float64), np.zeros((self.design.n, len(which)), start.dtype)
        todo = moved = np.flatnonzero(~self.idle[which])
        self._begin(which[todo], lams[todo], start[:, todo] if len(todo) else start)
        for _ in range(MOST_ROUNDS if len(todo) else 0):
            for k in todo:
                self._go(int(which[k]), float(lams[k]))
            above = self._check(which[todo]) > self.gap
            there = np.array([self.paths[int(which[k])].lam <= lams[k] for k in todo])
            for target in which[todo[above]].tolist():
                self.paths[target].join(self.slopes[target])
            todo = todo[above | ~there]
            if not len(todo):
                break
        for k in todo.tolist():
            weights[:, k] = self._by_steps(int(which[k]), float(lams[k]))
        for k in np.setdiff1d(moved, todo).tolist():
            path = self.paths[int(which[k])]
            weights[path.support, k] = path.values
        return on_device(weights, self.xp)

    def _by_steps(self, target: int, lam: float) -> Array:
        """Weights (N,) of a target whose path goes in a circle, where several images reach their bound at once: by FISTA.

        Among the images near their bound, then those with ones that break it. The target's next path begins at its weights.
        """
        path, f = self.paths.pop(target), self.slopes[target]
        weights = np.zeros(self.design.n)
        weights[path.support] = path.values
        near = np.zeros(self.design.n, bool)
        for _ in range(MOST_ROUNDS):
            near |= (np.abs(f) >= lam * path.penalty / 2) | (weights != 0)
            images = np.flatnonzero(near)
            at_hand, none = self.design.among(images), np.zeros(0, np.int64)
            g, c = at_hand.gram(np.arange(len(images))), at_hand.slopes(target, none, np.zeros(0))[:, None]
            of = (self.problem.variance[[target]], np.zeros(len(images)), np.zeros(1), path.penalty[images, None])
            problem = Problem(g, c, *of, np)
            found = solve(problem, np.array([lam]), weights[images, None], lipschitz(problem), self.gap).weights[:, 0]
            weights[images] = found
            f = self.design.slopes(np.array([target]), [np.flatnonzero(weights)], [weights[weights != 0]])[:, 0]
            if (near | (np.abs(f) <= lam * path.penalty)).all():
                return weights
        raise unsolved(1, 1, self.gap, f"{MOST_ROUNDS} rounds")

    def bias(self, which: IndexArray, weights: Any) -> Any:
        """The intercepts (len(which),) that go with weights (N, len(which)) on raw masks."""
        xp = self.xp
        return on_device(self.problem.mean_y[which], xp) - on_device(self.problem.mean_x, xp) @ weights

    def _begin(self, targets: IndexArray, lams: Array, start: Any) -> None:
        """Paths for the targets that have none, or stand below the λ that is wanted."""
        new = [k for k, t in enumerate(targets.tolist()) if t not in self.paths or self.paths[t].lam < lams[k]]
        if not new:
            return
        weights = to_numpy(start)[:, new].astype(np.float64)
        supports = [np.flatnonzero(column) for column in weights.T]
        on = [column[support] for column, support in zip(weights.T, supports, strict=True)]
        slopes = self.design.slopes(targets[new], supports, on)
        for place, k in enumerate(new):
            t, f = int(targets[k]), slopes[:, place]
            penalty = self.problem.penalty[:, 0 if self.problem.penalty.shape[1] == 1 else t].astype(np.float64)
            self.paths[t], self.slopes[t] = Path(self.design, t, penalty, float(lams[k]), weights[:, place], f), f

    def _go(self, target: int, lam: float) -> None:
        """One stride of a target towards λ."""
        path = self.paths[target]
        to = max(lam, STRIDE * path.lam) if path.lam > lam else lam
        if to < path.beyond:
            path.widen(self.slopes[target], to)
        path.follow(to)
        path.refresh()

    def _check(self, targets: IndexArray) -> Array:
        """The relative duality gaps (T',) of some targets where their paths stand, by the slopes of all images."""
        paths = [self.paths[t] for t in targets.tolist()]
        slopes = self.design.slopes(targets, [path.support for path in paths], [path.values for path in paths])
        self.work["checks"] = self.work.get("checks", 0) + len(targets)
        cw, wf, norm = np.zeros((3, len(targets)))
        for k, (t, path) in enumerate(zip(targets.tolist(), paths, strict=True)):
            self.slopes[t], on = slopes[:, k], path.support
            cw[k] = self.problem.correlation[on, t].astype(np.float64) @ path.values
            wf[k] = path.f[path.active] @ path.values
            norm[k] = path.penalty[on] @ np.abs(path.values)
        penalty = self.problem.penalty if self.problem.penalty.shape[1] == 1 else self.problem.penalty[:, targets]
        steepest = (np.abs(slopes) / penalty).max(0).astype(np.float64)
        along = self.problem.variance[targets] - cw
        lams = np.array([path.lam for path in paths])
        found: Array = relative_gap(np, np.maximum(along - wf, 0), along, norm, steepest, lams)
        return found
