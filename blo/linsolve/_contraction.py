"""Richardson's iteration, where it is fast: the Neumann series of the inverse with the true residual of each sum."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from blo._autodiff import surely
from blo.linsolve._base import LinearSolution, all_true, floor_of, largest, norm, started, stride

#: Products from which the rate of contraction is told, and between two looks at it.
_LAG = 4
#: Units of rounding below which no residual is asked for: the product itself is known no better.
_ROUNDING = 10


def contracted(
    apply: Callable[[Tensor], Tensor], b: Tensor, x0: Tensor | None, *, tol: float | Tensor, most: int
) -> LinearSolution:
    """Return what `x <- x + (b - A x)` comes to in at most so many steps.

    At a fixed point with the Jacobian J, A is `I - J^T`, and the residual shrinks as fast as the iteration of a
    contraction did: no basis is kept, and a step is a product and an addition. All lanes end as soon as one of them is
    too slow to arrive in time, or does not contract, so that another solver goes on from where they are.

    Args:
        apply: the product with A.
        b: shape `(*lanes, n)`.
        x0: a guess, or None for zero.
        tol: relative residual at which a lane rests.
        most: most products.
    """
    # Each lane is solved for a right hand side of size one: squares of tiny or huge b leave the range.
    size, zero = largest(b)
    rhs = b / size
    x, r = started(apply, rhs, x0, size, zero)
    whole, left = norm(rhs), norm(r)
    goal = whole * torch.clamp(torch.as_tensor(floor_of(tol, b)), min=_ROUNDING * torch.finfo(b.dtype).eps).to(whole)
    running = ~zero & (left > goal)
    iterations, before = torch.zeros_like(running, dtype=torch.int64), left
    for index in range(most):
        if index % stride(b) == 0 and all_true(~running):
            break
        if index and index % _LAG == 0:
            if not all_true(~running | _in_time(before, left, goal, most - index)):
                break
            before = left
        x = x + (r if surely(running) else torch.where(running, r, 0.0))
        iterations = iterations + running
        r = rhs - apply(x)
        left = norm(r)
        running = running & (left > goal)
    residual = torch.where(zero, 0.0, left / torch.where(zero, 1.0, whole))
    none = torch.zeros_like(zero).squeeze(-1)
    return LinearSolution(size * x, residual.squeeze(-1), iterations.squeeze(-1), none, "Neumann")


def _in_time(before: Tensor, left: Tensor, goal: Tensor, steps: int) -> Tensor:
    """Tell which lanes arrive in so many steps if they go on as in the last ones.

    Args:
        before: norms of the residuals `_LAG` steps ago, shape `(*lanes, 1)`.
        left: norms of the last ones, likewise.
        goal: the norms to reach, likewise.
        steps: how many steps there are.
    """
    # A NaN is in time nowhere.
    return torch.log(left) + steps / _LAG * torch.log(left / before) <= torch.log(goal)
