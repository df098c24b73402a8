"""Krylov methods in cycles, each of which starts from the true residual after the last one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from blo._autodiff import all_true
from blo.linsolve._base import LinearSolution, floor_of, started
from blo.linsolve._space import EUCLIDEAN, Space


@dataclass(frozen=True, eq=False)
class Cycle:
    """The result of one cycle.

    Attributes:
        correction: what to add to x, shape `(*lanes, n)`.
        steps: iterations of each lane, shape `(*lanes, 1)`.
        indefinite: lanes in which non-positive curvature was found, shape `(*lanes, 1)`.
        products: number of products with the operator.
    """

    correction: Tensor
    steps: Tensor
    indefinite: Tensor
    products: int


#: `cycle(r, running, goal, most)` solves for the residual r in the running lanes down to a norm of `goal`, shapes
#: `(*lanes, n)`, `(*lanes, 1)`, `(*lanes, 1)`, in at most `most` steps.
Cycling: TypeAlias = Callable[[Tensor, Tensor, Tensor, int], Cycle]


def in_cycles(
    cycle: Cycling,
    apply: Callable[[Tensor], Tensor],
    b: Tensor,
    x0: Tensor | None,
    *,
    tol: float | Tensor | None,
    max_iter: int,
    length: int,
    gain: float,
    method: str,
    space: Space = EUCLIDEAN,
) -> LinearSolution:
    """Run cycles until each lane's true residual is below the tolerance.

    The residual that a Krylov method updates by recursion drifts from the true one. So each cycle starts from the true
    residual, a correction that would increase it is rejected, and the residual returned is the true one.

    Args:
        cycle: one cycle.
        apply: the product with the system's matrix.
        b: shape `(*lanes, n)`.
        x0: a guess, or None for zero.
        tol: relative residual at which a lane stops; None for rounding level.
        max_iter: maximum number of iterations of a lane, over all cycles.
        length: maximum number of iterations of one cycle.
        gain: a lane continues while each cycle reduces its residual to less than `gain` times the last one.
        method: the solver's name.
        space: the norm of residuals.
    """
    # Solve for b / max|b|: squares of a tiny or huge b would underflow or overflow.
    size, zero = space.size(b)
    rhs = b / size
    x, r = started(apply, rhs, x0, size, zero, space)
    whole = space.norm(rhs)
    goal, rest = floor_of(tol, b) * whole, space.norm(r)
    running = ~zero & (rest > goal)
    iterations = torch.zeros_like(running, dtype=torch.int64)
    indefinite = torch.zeros_like(running)
    left = max_iter
    while left > 0 and not all_true(~running):
        done = cycle(r, running, goal, min(length, left))
        left -= done.products
        iterations = iterations + done.steps
        indefinite = indefinite | done.indefinite
        x_next = x + torch.where(running, done.correction, 0.0)
        r_next = rhs - apply(x_next)
        rest_next = space.norm(r_next)
        # Accept a NaN, so that it shows in the residual.
        taken = running & ~(rest_next >= rest)
        x, r = torch.where(taken, x_next, x), torch.where(taken, r_next, r)
        running = running & (rest_next < gain * rest) & (rest_next > goal)
        rest = torch.where(taken, rest_next, rest)
    residual = torch.where(zero, 0.0, rest / torch.where(zero, 1.0, whole))
    return LinearSolution(size * x, residual.squeeze(-1), iterations.squeeze(-1), indefinite.squeeze(-1), method)
