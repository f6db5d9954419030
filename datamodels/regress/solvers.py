"""The two solvers behind one face, and which of them there is memory for.

gram: XᵀX and XᵀY from one pass over the models, then FISTA on them. saga: pass after pass over the models, where XᵀX, N²
numbers, is too large.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from datamodels.errors import InputError
from datamodels.machine import megabytes
from datamodels.regress.arrays import free_memory, number_format
from datamodels.regress.lasso import lipschitz, solve
from datamodels.regress.moments import GRAM_ROWS, Moments, Problem
from datamodels.regress.saga import BATCH_ROWS, Stream, StreamLasso
from datamodels.regress.source import TILE_ROWS, Source
from datamodels.settings import RegressSettings
from datamodels.store.layout import Array
from datamodels.subsets import IndexArray

GRAM, SAGA = "gram", "saga"
SHARE_OF_MEMORY = 0.9
STATE_MATRICES = 16
"""Matrices (N, block) that a solver and the path hold at their fullest."""
EXACT_IN_FLOAT32 = 2**24
CPU_BLOCK, GPU_BLOCK = 256, 1024


class Lasso(Protocol):
    """The lasso of one block of T targets over the models taken in; `top` (T,) is λ_max."""

    top: Any

    def solve(self, which: Any, lam: Any, start: Any) -> Any:
        """Weights (N, len(which)) of targets `which` at penalties lam (len(which),), from weights `start` (N, len(which))."""
        ...

    def bias(self, which: Any, weights: Any) -> Any:
        """The intercepts (len(which),) that go with weights (N, len(which)) on raw masks."""
        ...


class Solver(Protocol):
    """Takes in models, and gives the lasso of a block of targets over all it has taken in so far."""

    name: str
    dtype: Any
    work: dict[str, int]
    """What has been done so far: gram counts the vectors multiplied with XᵀX, saga its passes over the models."""

    def add(self, ids: IndexArray, advance: Callable[[int], None]) -> None:
        """Take in models, and say how many after each tile. Raises InputError when one has a margin that is not a number."""
        ...

    def lasso(self, targets: slice) -> Lasso:
        """The lasso of some targets; it stands until more models are taken in."""
        ...

    def constants(self) -> tuple[Any, Any]:
        """Images in all masks or in none, and targets of one margin only."""
        ...


class Gram:
    """The solver 'gram'."""

    name = GRAM

    def __init__(self, source: Source, settings: RegressSettings, dtype: Any, xp: Any) -> None:
        self.source, self.settings, self.dtype = source, settings, np.dtype(dtype)
        self.moments = Moments(source.n, source.t, xp, dtype)
        self.step_constant, self.work = 0.0, {"products": 0}

    def add(self, ids: IndexArray, advance: Callable[[int], None]) -> None:
        """See `Solver`."""
        for tile in self.source.tiles(ids):
            self.moments.add(self.source.packed(tile), self.source.margins(tile))
            advance(len(tile))
        self.step_constant = lipschitz(self.moments.problem(slice(0, 1)))

    def lasso(self, targets: slice) -> Lasso:
        """See `Solver`."""
        return self.weighted(targets, np.ones((1, 1)))

    def weighted(self, targets: slice, factors: Array) -> Lasso:
        """The lasso with the penalty's factors times others, of all pairs (N, T') or (1, 1)."""
        problem = self.moments.problem(targets, self.settings.standardise)
        problem = replace(problem, penalty=problem.penalty * self.moments.xp.asarray(factors))
        return GramLasso(problem, self.step_constant, self.settings.gap, self.work)

    def constants(self) -> tuple[Any, Any]:
        """See `Solver`."""
        return self.moments.constants()


class GramLasso:
    """The lasso of one block of targets from its moments."""

    def __init__(self, problem: Problem, step_constant: float, gap: float, work: dict[str, int]) -> None:
        self.problem, self.step_constant, self.gap, self.work = problem, step_constant, gap, work
        self.top = problem.lam_max().astype(np.float64)

    def solve(self, which: Any, lam: Any, start: Any) -> Any:
        """See `Lasso`."""
        solution = solve(self.problem.of(which), lam, start, self.step_constant, self.gap)
        self.work["products"] += solution.products
        return solution.weights

    def bias(self, which: Any, weights: Any) -> Any:
        """See `Lasso`."""
        return self.problem.bias(weights, which)


class Saga:
    """The solver 'saga'."""

    name = SAGA

    def __init__(self, source: Source, settings: RegressSettings, dtype: Any, xp: Any) -> None:
        self.stream, self.gap = Stream(source, dtype, settings.standardise, xp), settings.gap
        self.dtype, self.work = self.stream.dtype, self.stream.work

    def add(self, ids: IndexArray, advance: Callable[[int], None]) -> None:
        """See `Solver`."""
        self.stream.add(ids, advance)

    def lasso(self, targets: slice) -> Lasso:
        """See `Solver`."""
        return StreamLasso(self.stream, targets, self.gap)

    def constants(self) -> tuple[Any, Any]:
        """See `Solver`."""
        return self.stream.sums.constants()


def plan(source: Source, settings: RegressSettings, models: int, xp: Any, needs_gram: bool = False) -> tuple[Solver, int]:
    """The solver, and how many targets it is given at once, so that both find room.

    What the settings leave open follows from the memory that is free: 'gram' where XᵀX fits; a block of 256 targets, 1,024 on
    a GPU, or fewer. Raises InputError when what they ask for does not fit, or is saga where XᵀX itself is needed.
    """
    if needs_gram and settings.solver == SAGA:
        raise InputError("regress.prior needs XᵀX, so regress.solver cannot be saga with it; take gram, or auto")
    dtype = number_format(settings.gap) if models <= EXACT_IN_FLOAT32 else np.float64
    room = int(free_memory(xp) * SHARE_OF_MEMORY)
    wanted = settings.block or (CPU_BLOCK if xp is np else GPU_BLOCK)
    for name in (GRAM, SAGA) if settings.solver == "auto" and not needs_gram else (settings.solver.replace("auto", GRAM),):
        fixed, each = _bytes(name, source, models, np.dtype(dtype).itemsize)
        block = min(wanted, source.t, (room - fixed) // each)
        if block >= (min(wanted, source.t) if settings.block else 1):
            return (Gram if name == GRAM else Saga)(source, settings, dtype, xp), block
    block = min(wanted, source.t) if settings.block else 1
    hint = "a smaller regress.block" if settings.block > 1 else "fewer regress.targets" + ", or saga" * (name == GRAM)
    needed = f"{megabytes(fixed + block * each)} of memory, and {megabytes(room)} are free"
    raise InputError(f"regress.solver {name} with {block} targets at once needs {needed}; it takes less with {hint}")


def _bytes(solver: str, source: Source, models: int, item: int) -> tuple[int, int]:
    """Memory that a solver takes whatever the block, and for each of its targets."""
    n, t = source.n, source.t
    if solver == SAGA:
        batch = 2 * max(TILE_ROWS, BATCH_ROWS) * n * item
        return batch + 4 * n * 8, n * item * STATE_MATRICES + 2 * models * item
    tile = TILE_ROWS * n * (item + 4) + TILE_ROWS * t * 16
    return n * n * item + n * t * 8 + 2 * min(GRAM_ROWS, n) * n * 8 + tile, n * item * STATE_MATRICES
