"""Richardson's iteration: the Neumann series of the inverse, with the true residual of each partial sum."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from blo._autodiff import all_true, all_true_on_cpu, as_tensor, stride
from blo.linsolve._base import LinearSolution, floor_of, started
from blo.linsolve._space import Space

#: The rate of convergence is estimated over this many products.
_LAG = 4
#: Relative residuals below this many units of rounding are not required: the product is not more accurate.
_ROUNDING = 10


def contracted(
    apply: Callable[[Tensor], Tensor], b: Tensor, x0: Tensor | None, *, tol: float | Tensor, most: int, space: Space
) -> LinearSolution:
    """Iterate `x <- x + (b - A x)` as long as it converges fast enough.

    For a fixed point with the Jacobian J, A is `I - J^T`, and the residual falls as fast as the iteration of the map
    converges. A step costs one product and one addition, and no basis is stored. If the rate of any lane is too small
    to reach the tolerance within `most` products, all lanes stop, and another solver continues from their iterates.

    Args:
        apply: the product with A.
        b: shape `(*lanes, n)`.
        x0: a guess, or None for zero.
        tol: relative residual at which a lane stops.
        most: maximum number of products.
        space: the norm of residuals.
    """
    # Solve for b / max|b|: squares of a tiny or huge b would underflow or overflow.
    size, zero = space.size(b)
    rhs = b / size
    x, r = started(apply, rhs, x0, size, zero, space)
    whole, left = space.norm(rhs), space.norm(r)
    goal = whole * torch.clamp(as_tensor(floor_of(tol, b)), min=_ROUNDING * torch.finfo(b.dtype).eps).to(whole)
    running = ~zero & (left > goal)
    iterations, before = torch.zeros_like(running, dtype=torch.int64), left
    for index in range(most):
        if index % stride(b) == 0 and all_true(~running):
            break
        if index and index % _LAG == 0:
            if not all_true(~running | _in_time(before, left, goal, most - index)):
                break
            before = left
        x = x + (r if all_true_on_cpu(running) else torch.where(running, r, 0.0))
        iterations = iterations + running
        r = rhs - apply(x)
        left = space.norm(r)
        running = running & (left > goal)
    residual = torch.where(zero, 0.0, left / torch.where(zero, 1.0, whole))
    none = torch.zeros_like(zero).squeeze(-1)
    return LinearSolution(size * x, residual.squeeze(-1), iterations.squeeze(-1), none, "Neumann")


def _in_time(before: Tensor, left: Tensor, goal: Tensor, steps: int) -> Tensor:
    """Return which lanes reach the goal in the given number of steps at the rate of the last ones.

    Args:
        before: norms of the residuals `_LAG` steps ago, shape `(*lanes, 1)`.
        left: norms of the current residuals, likewise.
        goal: the norms to reach, likewise.
        steps: the number of steps.
    """
    # The comparison is false for a NaN.
    # Extrapolate the logarithm of the residual linearly, at the rate of the last `_LAG` steps.
    return torch.log(left) + steps / _LAG * torch.log(left / before) <= torch.log(goal)
