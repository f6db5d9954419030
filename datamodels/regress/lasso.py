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
a few steps do. Where a float32 problem has not come to its gap in 1,000 steps, the products are continued in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from datamodels.errors import InputError
from datamodels.regress.kernels import extrapolate, fista_step, gap_sums
from datamodels.regress.moments import Problem, columns_of

CHECK_EVERY = 2
POWER_ITERATIONS = 50
FLOAT32_STEPS = 1000
MOST_STEPS = 20_000


@dataclass(frozen=True)
class Solution:
    """Weights (N, T), the relative duality gap of each target (T,), how many steps the last of them took.

    `products` is the number of vectors that were multiplied with G.
    """

    weights: Any
    gap: Any
    steps: int
    products: int


def lipschitz(problem: Problem) -> float:
    """An upper estimate of the largest eigenvalue of G, the Lipschitz constant of the smooth part's gradient."""
    xp = problem.xp
    vector = xp.asarray(np.random.default_rng(0).standard_normal(len(problem.mean_x)), problem.gram.dtype)
    norm = xp.linalg.norm(vector)
    for _ in range(POWER_ITERATIONS):
        vector = problem.times(vector / norm)
        norm = xp.linalg.norm(vector)
        if float(norm) == 0:
            return 1.0
    # Power iteration approaches from below; 5 % above its value is safe, and costs no more than that in speed.
    return float(norm) * 1.05


def solve(
    problem: Problem, lam: Any, start: Any, step_constant: float, tolerance: float = 1e-4, max_steps: int = MOST_STEPS
) -> Solution:
    """Minimise P for each target.

    `lam` (T,) are the penalties, > 0; `start` (N, T) are weights to begin with; `step_constant` is from `lipschitz`. Raises
    InputError when a gap is above the tolerance after `max_steps` steps.
    """
    xp = problem.xp
    weights, gaps = start.copy(), xp.zeros(start.shape[1])
    todo = xp.arange(start.shape[1])
    state, products = _State.begin(problem, lam, start.astype(problem.gram.dtype)), len(todo)
    for step in range(max_steps + 1):
        if step % CHECK_EVERY == 0:
            gap = state.gap()
            done = gap <= tolerance
            if bool(done.any()):
                weights[:, todo[done]], gaps[todo[done]] = state.w[:, done], gap[done]
                todo, state = todo[~done], state.select(xp.flatnonzero(~done))
            if not len(todo):
                return Solution(weights, gaps, step, products)
        if step == FLOAT32_STEPS and state.w.dtype == np.float32:
            state = state.widened()
        state.advance(step_constant)
        products += len(todo)
    raise unsolved(len(todo), start.shape[1], tolerance, f"{max_steps} steps")


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
    """FISTA's state for the targets still at work: weights w, their product with G, the extrapolated point v, and its."""

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
    def begin(cls, problem: Problem, lam: Any, start: Any) -> _State:
        gw, t, c = problem.times(start), problem.xp.ones(start.shape[1]), problem.correlation.astype(start.dtype)
        return cls(problem, c, problem.variance, lam, problem.penalty, start, gw, start, gw, t)

    def widened(self) -> _State:
        """The same in float64, from these weights on."""
        w = self.w.astype(np.float64)
        gw = self.problem.times(w)
        return replace(self, c=self.c.astype(np.float64), w=w, gw=gw, v=w, gv=gw, t=self.problem.xp.ones(w.shape[1]))

    def select(self, keep: Any) -> _State:
        """The state of some of the targets."""
        c, w, gw, v, gv = (self.problem.xp.take(a, keep, axis=1) for a in (self.c, self.w, self.gw, self.v, self.gv))
        penalty = columns_of(self.penalty, keep, self.problem.xp)
        return _State(self.problem, c, self.variance[keep], self.lam[keep], penalty, w, gw, v, gv, self.t[keep])

    def advance(self, step_constant: float) -> None:
        """One proximal gradient step from the extrapolated point, then the next extrapolation."""
        xp = self.problem.xp
        w, uphill = fista_step(self.v, self.gv, self.c, self.w, self.lam, self.penalty, 1 / step_constant, xp)
        gw = self.problem.times(w)
        # Momentum that points uphill is dropped, target by target.
        restart, t = uphill > 0, (1 + xp.sqrt(1 + 4 * self.t**2)) / 2
        beta = xp.where(restart, 0.0, (self.t - 1) / t)
        self.v, self.gv = extrapolate(w, self.w, beta, xp), extrapolate(gw, self.gw, beta, xp)
        self.w, self.gw, self.t = w, gw, xp.where(restart, 1.0, t)

    def gap(self) -> Any:
        """The relative duality gap (T,)."""
        xp = self.problem.xp
        cw, wgw, norm, steepest = gap_sums(self.c, self.w, self.gw, self.penalty, xp)
        residual = xp.maximum(self.variance - 2 * cw + wgw, 0)
        return relative_gap(xp, residual, self.variance - cw, norm, steepest, self.lam)
