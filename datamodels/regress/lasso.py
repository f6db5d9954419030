"""The lasso for many targets at once, from XᵀX and XᵀY.

For each target t, over weights w (N,) and an unpenalised bias b:

    min  P_t(w, b) = (1/2m) ‖y_t − Xw − b‖² + λ_t Σ_j p_j |w_j|

X (m, N) holds the raw 0/1 masks of m models, y_t (m,) their margins; the penalty's factors p are 1, or the masks' standard
deviations with `regress.standardise`, or of each target's own by a prior with `regress.sparse`. With X and y centred b drops
out, and with G = XᵀX/m, c = Xᵀy/m, v = ‖y‖²/m

    P(w) = ½ (v − 2 c·w + w·Gw) + λ Σ p|w|.

Every dual point s·r, r = y − Xw the residual, with s small enough that |Xᵀ(s r)|/m ≤ λ p, bounds the optimum from below:

    D(s) = s (v − c·w) − ½ s² ‖r‖²/m,        P(w) − P* ≤ P(w) − D(s), the duality gap.

Solved by accelerated proximal gradient (Beck & Teboulle, FISTA, 2009) with gradient restart for each target by itself
(O'Donoghue & Candès, 2015); all targets of a step share one product with G. A target is done, and leaves, when its gap is
below the tolerance relative to P(w). Masks are random, so with m > N the eigenvalues of G lie between α(1−α)(1 ± √(N/m))², and
a few steps do. Where a float32 problem has not come to its gap in 1,000 steps, the products are continued in float64, for half
of the targets that are left and then for the others, which takes no more memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodels.errors import InputError
from datamodels.regress.arrays import keep_columns, on_device, put_columns, to_numpy
from datamodels.regress.kernels import extrapolate, fista_step, gap_sums
from datamodels.regress.moments import Problem
from datamodels.subsets import Array, IndexArray

CHECK_EVERY, MANY_STEPS = 2, 12
"""The gap is looked at after so many steps, and later after twice as many."""
POWER_ITERATIONS = 50
FLOAT32_STEPS = 1000
MOST_STEPS = 20_000


@dataclass(frozen=True)
class Solution:
    """Weights (N, T), the relative duality gap of each target (T,), on the host, how many steps the last of them took.

    `products` is the number of vectors that were multiplied with G.
    """

    weights: Any
    gap: Array
    steps: int
    products: int


def lipschitz(problem: Problem) -> float:
    """An upper estimate of the largest eigenvalue of G, the Lipschitz constant of the smooth part's gradient."""
    xp, tiny = problem.xp, np.finfo(problem.gram.dtype).tiny
    vector = on_device(np.random.default_rng(0).standard_normal(len(problem.mean_x)), xp, problem.gram.dtype)
    norm = xp.linalg.norm(vector)
    for _ in range(POWER_ITERATIONS):
        vector = problem.times(vector / xp.maximum(norm, tiny))
        norm = xp.linalg.norm(vector)
    # Power iteration approaches from below; 5 % above its value is safe, and costs no more than that in speed.
    return float(to_numpy(norm)) * 1.05 or 1.0


def solve(
    problem: Problem,
    lam: Any,
    start: Any,
    step_constant: float,
    tolerance: float = 1e-4,
    max_steps: int = MOST_STEPS,
    which: IndexArray | None = None,
) -> Solution:
    """Minimise P for each of the problem's targets, or for those of the ascending indices `which`, T' in number.

    `lam` (T',) are the penalties, > 0; `start` (N, T') are weights to begin with, and gives way to the solution;
    `step_constant` is from `lipschitz`. Raises InputError when a gap is above the tolerance after `max_steps` steps.
    """
    columns = np.arange(start.shape[1]) if which is None else which
    work = _Work(problem, lam, start, columns, 1 / step_constant, tolerance)
    todo, narrow = np.arange(len(columns)), problem.gram.dtype == np.float32
    todo = work.go_on(todo, range(min(FLOAT32_STEPS, max_steps) if narrow else max_steps), problem.gram.dtype)
    if narrow and len(todo) and max_steps > FLOAT32_STEPS:
        halves = [half for half in np.array_split(todo, 2) if len(half)]
        todo = np.concatenate([work.go_on(half, range(FLOAT32_STEPS, max_steps), np.float64) for half in halves])
    if len(todo):
        raise unsolved(len(todo), len(columns), tolerance, f"{max_steps} steps")
    return Solution(start, work.gap, work.steps, work.products)


@dataclass
class _Work:
    """What `solve` has come to: `weights` are filled as targets are done, and hold where the others are between states."""

    problem: Problem
    lam: Any
    weights: Any
    columns: IndexArray
    step: float
    tolerance: float
    steps: int = 0
    products: int = 0

    def __post_init__(self) -> None:
        self.gap = np.zeros(len(self.columns))

    def go_on(self, todo: IndexArray, steps: range, dtype: Any) -> IndexArray:
        """Take steps for the targets `todo` in a number format. Returns those that have not come to their gap."""
        xp = self.problem.xp
        state = _State.begin(self.problem, self.columns[todo], self.lam, self.weights, todo, dtype)
        self.products += len(todo)
        for step in range(steps.start, steps.stop + 1):
            taken = step - steps.start
            if taken % (CHECK_EVERY if taken < MANY_STEPS else 2 * CHECK_EVERY) == 0 or step == steps.stop:
                gap = to_numpy(state.gap())
                done, left = np.flatnonzero(gap <= self.tolerance), np.flatnonzero(~(gap <= self.tolerance))
                self._put(todo[done], state.w, done)
                self.gap[todo[done]] = gap[done]
                if len(done) and len(left):
                    state.keep(on_device(left, xp))
                todo = todo[left]
            self.steps = max(self.steps, step)
            if not len(todo):
                return todo
            if step < steps.stop:
                state.advance(self.step)
                self.products += len(todo)
        self._put(todo, state.w, np.arange(len(todo)))
        return todo

    def _put(self, todo: IndexArray, weights: Any, columns: IndexArray) -> None:
        xp = self.problem.xp
        if len(todo):
            put_columns(self.weights, on_device(todo, xp), weights, on_device(columns, xp), xp)


def unsolved(left: int, of: int, tolerance: float, after: str) -> InputError:
    """What to say when a solver does not come to its gap."""
    return InputError(
        f"{left} of {of} targets have a duality gap above {tolerance:g} after {after}; "
        "a larger regress.gap or a larger regress.lam_ratio is easier"
    )


def relative_gap(xp: Any, residual: Any, along: Any, norm: Any, steepest: Any, lam: Any) -> Any:
    """The duality gap over P(w), (T,); 0 where the target is constant.

    `residual` is ‖r‖²/m, `along` y·r/m = v − c·w, `norm` Σ p|w|, `steepest` the largest |Xᵀr|/(m p), all (T,) and centred.
    """
    tiny = np.finfo(np.float64).tiny
    primal = residual / 2 + lam * norm
    bound = lam / xp.maximum(steepest, tiny)
    s = xp.clip(along / xp.maximum(residual, tiny), -bound, bound)
    gap = primal - (s * along - s**2 * residual / 2)
    return xp.where(primal > 0, gap / xp.maximum(primal, tiny), 0.0)


@dataclass
class _State:
    """FISTA's state for the targets still at work: weights w, their product with G, the extrapolated point v, and its.

    These four and c are all the matrices there are: what a step makes takes the place of what it no longer needs.
    """

    problem: Problem
    c: Any
    variance: Any
    lam: Any
    penalty: Any
    w: Any
    gw: Any
    v: Any
    gv: Any
    t: Any

    @classmethod
    def begin(cls, problem: Problem, columns: IndexArray, lam: Any, weights: Any, todo: IndexArray, dtype: Any) -> _State:
        """The state of the problem's targets `columns`, whose λ and weights are `todo` among those given."""
        xp = problem.xp
        which, given = on_device(columns, xp), on_device(todo, xp)
        c = xp.take(problem.correlation, which, axis=1).astype(dtype, copy=False)
        w = xp.take(weights, given, axis=1).astype(dtype, copy=False)
        penalty = problem.penalty if problem.penalty.shape[1] == 1 else xp.take(problem.penalty, which, axis=1)
        penalty = penalty.astype(dtype, copy=False)
        gw = problem.times(w)
        variance, lam = xp.take(problem.variance, which), xp.take(lam, given)
        return cls(problem, c, variance, lam, penalty, w, gw, w.copy(), gw.copy(), xp.ones(len(columns)))

    def keep(self, which: Any) -> None:
        """Go on with some of the targets."""
        xp = self.problem.xp
        for name in ("c", "w", "gw", "v", "gv"):
            setattr(self, name, keep_columns(getattr(self, name), which, xp))
        if self.penalty.shape[1] > 1:
            self.penalty = keep_columns(self.penalty, which, xp)
        self.variance, self.lam, self.t = (xp.take(array, which) for array in (self.variance, self.lam, self.t))

    def advance(self, step: float) -> None:
        """One proximal gradient step from the extrapolated point, then the next extrapolation."""
        xp = self.problem.xp
        w, gw = self.v, self.gv
        uphill = fista_step(w, gw, self.c, self.w, self.lam, self.penalty, step, xp)
        self.problem.times(w, out=gw)
        # Momentum that points uphill is dropped, target by target.
        restart, t = uphill > 0, (1 + xp.sqrt(1 + 4 * self.t**2)) / 2
        beta = xp.where(restart, 0.0, (self.t - 1) / t)
        extrapolate(w, self.w, beta, xp)
        extrapolate(gw, self.gw, beta, xp)
        self.w, self.gw, self.v, self.gv = w, gw, self.w, self.gw
        self.t = xp.where(restart, 1.0, t)

    def gap(self) -> Any:
        """The relative duality gap (T,)."""
        xp = self.problem.xp
        cw, wgw, norm, steepest = gap_sums(self.c, self.w, self.gw, self.penalty, xp)
        residual = xp.maximum(self.variance - 2 * cw + wgw, 0)
        return relative_gap(xp, residual, self.variance - cw, norm, steepest, self.lam)
