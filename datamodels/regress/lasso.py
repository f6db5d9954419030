"""The lasso for many targets at once, from XᵀX and XᵀY.

For each target t, over weights w (N,) and an unpenalised bias b:

    min  P_t(w, b) = (1/2m) ‖y_t − Xw − b‖² + λ_t ‖w‖₁

X (m, N) holds the raw 0/1 masks of m models, y_t (m,) their margins. With X and y centred b drops out, and with G = XᵀX/m,
c = Xᵀy/m, v = ‖y‖²/m

    P(w) = ½ (v − 2 c·w + w·Gw) + λ ‖w‖₁.

Every dual point s·r, r = y − Xw the residual, with s small enough that ‖Xᵀ(s r)‖_∞/m ≤ λ, bounds the optimum from below:

    D(s) = s (v − c·w) − ½ s² ‖r‖²/m,        P(w) − P* ≤ P(w) − D(s), the duality gap.

Solved by accelerated proximal gradient (Beck & Teboulle, FISTA, 2009) with gradient restart for each target by itself
(O'Donoghue & Candès, 2015); all targets of a step share one product with G. A target is done, and leaves, when its gap is
below the tolerance relative to P(w).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodels.regress.moments import Problem

CHECK_EVERY = 5
POWER_ITERATIONS = 50


@dataclass(frozen=True)
class Solution:
    """Weights (N, T), the relative duality gap of each target (T,), and how many steps the last of them took."""

    weights: Any
    gap: Any
    steps: int


def lam_max(problem: Problem, xp: Any) -> Any:
    """The smallest λ (T,) at which all weights of a target are zero: ‖Xᵀy‖_∞/m, X and y centred."""
    return xp.abs(problem.correlation).max(0)


def lipschitz(problem: Problem, xp: Any) -> float:
    """An upper estimate of the largest eigenvalue of G, the Lipschitz constant of the smooth part's gradient."""
    vector = xp.asarray(np.random.default_rng(0).standard_normal(len(problem.mean_x)))
    norm = xp.linalg.norm(vector)
    for _ in range(POWER_ITERATIONS):
        vector = problem.times(vector / norm)
        norm = xp.linalg.norm(vector)
        if float(norm) == 0:
            return 1.0
    # Power iteration approaches from below; 5 % above its value is safe, and costs no more than that in speed.
    return float(norm) * 1.05


def solve(
    problem: Problem, lam: Any, start: Any, step_constant: float, xp: Any, tolerance: float = 1e-4, max_steps: int = 20_000
) -> Solution:
    """Minimise P for each target.

    `lam` (T,) are the penalties, > 0; `start` (N, T) are weights to begin with; `step_constant` is from `lipschitz`. Raises
    RuntimeError when a gap is above the tolerance after `max_steps` steps.
    """
    weights, gaps = start.copy(), xp.zeros(start.shape[1])
    todo = xp.arange(start.shape[1])
    state = _State.begin(problem, lam, start, xp)
    for step in range(max_steps + 1):
        if step % CHECK_EVERY == 0:
            gap = state.relative_gap()
            done = gap <= tolerance
            if bool(done.any()):
                weights[:, todo[done]], gaps[todo[done]] = state.w[:, done], gap[done]
                todo, state = todo[~done], state.select(~done)
            if not len(todo):
                return Solution(weights, gaps, step)
        state.advance(problem, step_constant)
    raise RuntimeError(f"{len(todo)} of {start.shape[1]} targets have a duality gap above {tolerance} after {max_steps} steps")


@dataclass
class _State:
    """FISTA's state for the targets still at work: weights w, their product with G, the extrapolated point v, and its."""

    xp: Any
    c: Any
    variance: Any
    lam: Any
    w: Any
    gw: Any
    v: Any
    gv: Any
    t: Any

    @classmethod
    def begin(cls, problem: Problem, lam: Any, start: Any, xp: Any) -> _State:
        gw = problem.times(start)
        t = xp.ones(start.shape[1])
        return cls(xp, problem.correlation, problem.variance, lam, start, gw, start, gw, t)

    def select(self, keep: Any) -> _State:
        """The state of some of the targets."""
        matrices = (a[:, keep] for a in (self.w, self.gw, self.v, self.gv))
        w, gw, v, gv = matrices
        return _State(self.xp, self.c[:, keep], self.variance[keep], self.lam[keep], w, gw, v, gv, self.t[keep])

    def advance(self, problem: Problem, step_constant: float) -> None:
        """One proximal gradient step from the extrapolated point, then the next extrapolation."""
        xp = self.xp
        w = soft_threshold(self.v + (self.c - self.gv) / step_constant, self.lam / step_constant, xp)
        gw = problem.times(w)
        # Momentum that points uphill is dropped, target by target.
        restart = ((self.v - w) * (w - self.w)).sum(0) > 0
        t = (1 + xp.sqrt(1 + 4 * self.t**2)) / 2
        beta = xp.where(restart, 0.0, (self.t - 1) / t)
        self.v, self.gv = w + beta * (w - self.w), gw + beta * (gw - self.gw)
        self.w, self.gw, self.t = w, gw, xp.where(restart, 1.0, t)

    def relative_gap(self) -> Any:
        """Duality gap over P(w), (T,); 0 where the target is constant."""
        xp = self.xp
        cw = (self.c * self.w).sum(0)
        residual = xp.maximum(self.variance - 2 * cw + (self.w * self.gw).sum(0), 0)
        primal = residual / 2 + self.lam * xp.abs(self.w).sum(0)
        steepest = xp.abs(self.c - self.gw).max(0)
        along = self.variance - cw
        tiny = np.finfo(np.float64).tiny
        bound = self.lam / xp.maximum(steepest, tiny)
        s = xp.clip(along / xp.maximum(residual, tiny), -bound, bound)
        gap = primal - (s * along - s**2 * residual / 2)
        return xp.where(primal > 0, gap / xp.maximum(primal, tiny), 0.0)


def soft_threshold(x: Any, by: Any, xp: Any) -> Any:
    """The proximal operator of by·‖·‖₁: towards zero by `by`, and zero within it."""
    return xp.sign(x) * xp.maximum(xp.abs(x) - by, 0)
