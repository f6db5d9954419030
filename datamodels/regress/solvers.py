"""The solvers behind one face, and which of them there is memory for.

gram: XᵀX and XᵀY from one pass over the models, then FISTA on them; with fewer models than images the exact path. path: that
path from the models themselves, where images are many times as many. saga: pass after pass over the models, where XᵀX, N²
numbers, is too large.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from datamodels.errors import InputError
from datamodels.machine import megabytes
from datamodels.regress.active import ActiveLasso, Masks, Products
from datamodels.regress.arrays import free_memory, on_device
from datamodels.regress.lasso import lipschitz, solve
from datamodels.regress.memory import FISTA_COLUMNS, GRAM, MOST_MODELS, PATH, SAGA, Needs
from datamodels.regress.moments import Moments, Problem, Sums
from datamodels.regress.saga import Stream, StreamLasso
from datamodels.regress.source import Source
from datamodels.settings import RegressSettings
from datamodels.subsets import IndexArray, unpack

SHARE_OF_MEMORY = 0.9
CPU_BLOCK, GPU_BLOCK = 256, 1024
WIDE, FEW_TARGETS = 4, 256
"""With so many times as many images as models XᵀX is not worth its making; and of so few targets a GPU makes little."""


class Lasso(Protocol):
    """The lasso of one block of T targets over the models taken in; `top` (T,) is λ_max.

    Up to so many columns cost little more than one: a target may be solved at several λ `side_by_side`, 0 where it may not.
    """

    top: Any
    side_by_side: int

    def solve(self, which: IndexArray, lam: Any, start: Any) -> Any:
        """Weights (N, len(which)) of targets `which` at penalties lam (len(which),).

        From weights `start` (N, len(which)), in the place of which they come.
        """
        ...

    def bias(self, which: IndexArray, weights: Any) -> Any:
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
            self.moments.add(self.source.packed(tile), self.source.margins(tile, slice(None), self.moments.xp))
            advance(len(tile))
        self.step_constant = lipschitz(self.moments.problem(slice(0, 1)))

    def lasso(self, targets: slice) -> Lasso:
        """See `Solver`."""
        return self._lasso(self.moments.problem(targets, self.settings.standardise))

    def weighted(self, targets: slice, factors: Any) -> Lasso:
        """The lasso with the penalty's factors times others, of all pairs (N, T'), which it takes over."""
        problem = self.moments.problem(targets, self.settings.standardise)
        factors *= problem.penalty
        return self._lasso(replace(problem, penalty=factors))

    def _lasso(self, problem: Problem) -> Lasso:
        few = problem.xp is np and self.moments.m < min(self.source.n, MOST_MODELS + 1)
        if few:
            return ActiveLasso(Products(problem.gram, problem.correlation), problem, self.settings.gap, self.work)
        return GramLasso(problem, self.step_constant, self.settings.gap, self.work)

    def constants(self) -> tuple[Any, Any]:
        """See `Solver`."""
        return self.moments.constants()


class GramLasso:
    """The lasso of one block of targets from its moments."""

    side_by_side = FISTA_COLUMNS

    def __init__(self, problem: Problem, step_constant: float, gap: float, work: dict[str, int]) -> None:
        self.problem, self.step_constant, self.gap, self.work = problem, step_constant, gap, work
        self.top = problem.lam_max()

    def solve(self, which: IndexArray, lam: Any, start: Any) -> Any:
        """See `Lasso`."""
        solution = solve(self.problem, lam, start, self.step_constant, self.gap, which=which)
        self.work["products"] += solution.products
        return solution.weights

    def bias(self, which: IndexArray, weights: Any) -> Any:
        """See `Lasso`."""
        return self.problem.bias(weights, on_device(which, self.problem.xp))


class Paths:
    """The solver 'path': the models themselves, in memory on the host."""

    name = PATH

    def __init__(self, source: Source, settings: RegressSettings, dtype: Any, xp: Any) -> None:
        self.source, self.settings, self.dtype, self.xp = source, settings, np.dtype(dtype), xp
        self.sums, self.work = Sums(source.n, source.t, np), {"checks": 0}
        self.ids: IndexArray = np.zeros(0, np.int64)

    def add(self, ids: IndexArray, advance: Callable[[int], None]) -> None:
        """See `Solver`."""
        for tile in self.source.tiles(ids):
            self.sums.add(self.source.packed(tile), self.source.margins(tile, slice(None), np))
            advance(len(tile))
        self.ids = np.sort(np.concatenate([self.ids, ids]))
        self.x = np.ascontiguousarray(unpack(self.source.packed(self.ids), self.source.n).T).astype(self.dtype)

    def lasso(self, targets: slice) -> Lasso:
        """See `Solver`."""
        y = self.source.known_margins(self.ids, targets, np).astype(np.float64)
        mean_x, mean_y, m = self.sums.x / self.sums.m, y.mean(0), len(self.ids)
        y -= mean_y
        c, penalty = self.x @ (y / m).astype(self.dtype), self.sums.penalty(self.settings.standardise)
        # XᵀX itself is never asked for.
        problem = Problem(None, c, (y * y).mean(0), mean_x, mean_y, penalty, np)
        return ActiveLasso(Masks(self.x, y), problem, self.settings.gap, self.work, self.xp)

    def constants(self) -> tuple[Any, Any]:
        """See `Solver`."""
        return self.sums.constants()


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


SOLVERS: dict[str, Callable[[Source, RegressSettings, Any, Any], Solver]] = {GRAM: Gram, PATH: Paths, SAGA: Saga}


class Plan(NamedTuple):
    """The solver, how many targets it is given at once, and what both take of memory at most."""

    solver: Solver
    block: int
    needs: Needs

    def bytes(self, block: int) -> int:
        """The same with another number of targets at once."""
        return self.needs.bytes(self.solver.name, block)


class Sharers(NamedTuple):
    """So many processes have the memory of a device in equal parts; the others hold so many bytes of it by now."""

    number: int = 1
    held: int = 0


ALONE = Sharers()


def plan(source: Source, settings: RegressSettings, of: Needs, xp: Any, sharers: Sharers = ALONE) -> Plan:
    """The solver, and how many targets it is given at once, so that both find room.

    What the settings leave open follows from how many models there are, and from the memory that is free: 'path' where
    images are many times as many as models, and there are no more than 2,048 of these; 'gram' where XᵀX fits; a block of 256
    targets, 1,024 on a GPU, or fewer. The `sharers` of the device's memory are this process and others. Raises InputError when
    what the settings ask for does not fit, or where XᵀX itself is needed and they ask for another solver than gram.
    """
    models = of.fit + of.choice
    if of.terms and settings.solver in (SAGA, PATH):
        raise InputError(f"regress.prior needs XᵀX, so regress.solver cannot be {settings.solver} with it; take gram, or auto")
    if settings.solver == PATH and models > MOST_MODELS:
        raise InputError(f"regress.solver path is for up to {MOST_MODELS} models, and there are {models}; take gram, or auto")
    free = free_memory(xp)
    # Whoever comes after the others finds less free than these did, and has the same part.
    room = int(min(free, (free + sharers.held) // sharers.number) * SHARE_OF_MEMORY)
    wanted = min(settings.block or (CPU_BLOCK if of.on_host else GPU_BLOCK), source.t)
    least = wanted if settings.block else 1
    for name in _candidates(settings.solver, of, models):
        block = _largest(name, of, wanted, room)
        if block >= least:
            dtype = np.dtype(f"f{of.item}")
            return Plan(SOLVERS[name](source, settings, dtype, xp), block, of)
    hint = "a smaller regress.block" if settings.block > 1 else "fewer regress.targets" + ", or saga" * (name == GRAM)
    needed = f"{megabytes(of.bytes(name, least))} of memory, and {megabytes(room)} are free"
    raise InputError(f"regress.solver {name} with {least} targets at once needs {needed}; it takes less with {hint}")


def _candidates(wanted: str, of: Needs, models: int) -> tuple[str, ...]:
    """The solvers to try, the best first."""
    if wanted != "auto" or of.terms:
        return (wanted.replace("auto", GRAM),)
    # On a GPU many targets are solved faster side by side, in however many steps.
    few = of.exact and models * (WIDE if of.on_host else 1) < of.n and (of.on_host or of.t <= FEW_TARGETS)
    return (PATH, GRAM, SAGA) if few else (GRAM, SAGA)


def _largest(solver: str, of: Needs, wanted: int, room: int) -> int:
    """The most targets at once, up to those wanted, that there is room for."""
    low, high = 0, wanted
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if of.bytes(solver, middle) <= room else (low, middle - 1)
    return low
