"""The nearest point at which smooth constraints hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blo._autodiff import all_true, all_true_on_cpu, transforms_active
from blo._vectors import norm
from blo.sets._functions import Expansion, Functions
from blo.sets._rows import times
from blo.sets._sqp import descend

#: Newton steps from a solution that is right to half of the digits: each doubles the number of right digits.
_STEPS = 2


def nearest(functions: Functions, leaves: Sequence[Tensor], z: Tensor, max_steps: int) -> Tensor:
    """Return the nearest point to z, differentiable twice in z and in the leaves; NaN where it was not found.

    For constraints that are not convex it is a point at which the distance is stationary.
    """
    start = z.detach()
    if all_true(_inside(functions, leaves, start)):
        return z  # the projection of a point of the set is the point itself
    finite = torch.isfinite(start).all(-1, keepdim=True)
    rest = [leaf.detach() for leaf in leaves]
    with torch.no_grad():
        found = descend(functions, rest, torch.where(finite, start, 0.0), max_steps)
    # The steps are differentiated. Each makes one more order of derivatives in z and theta right, as it doubles the
    # digits, so two steps give first and second derivatives.
    recorded = transforms_active() or (torch.is_grad_enabled() and any(t.requires_grad for t in (z, *leaves)))
    x, y, at = found.x, found.y, found.at
    with torch.set_grad_enabled(recorded):
        for index in range(_STEPS):
            if recorded or index > 0:
                at = functions.expand(leaves, x, y)
            change, y = _newton(at, torch.where(finite, z, 0.0), x, y, found.active)
            x = x - change
            if recorded:
                continue
            if all_true_on_cpu(norm(change) <= torch.finfo(x.dtype).eps ** 0.75 * (norm(x) + norm(x - z))):
                break  # convergence is quadratic: the next change is below rounding
    with torch.no_grad():
        good = finite & _optimal(functions, rest, start, x.detach(), y.detach())
    return torch.where(good, x, torch.nan)


def _inside(functions: Functions, leaves: Sequence[Tensor], z: Tensor) -> Tensor:
    """Return in which lanes all constraints hold at z already, shape `(*lanes,)`."""
    with torch.no_grad():
        equal, unequal = functions.split(leaves, z)
    return (equal == 0).all(-1) & (unequal <= 0).all(-1)


def _newton(at: Expansion, z: Tensor, x: Tensor, y: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """Return Newton's correction of x, and the next y, for `x - z + J' y = 0` and `c = 0` on the active constraints."""
    rows = at.jacobian * active.unsqueeze(-1)
    n, k = x.shape[-1], y.shape[-1]
    curved = torch.eye(n, dtype=x.dtype, device=x.device) + at.hessian
    idle = torch.eye(k, dtype=x.dtype, device=x.device) * ~active.unsqueeze(-1)
    # The KKT matrix [I + sum_i y_i d2c_i, J'; J, 0] of the active constraints, with the identity for the inactive ones.
    system = torch.cat([torch.cat([curved, rows.mT], -1), torch.cat([rows, idle], -1)], -2)
    right = torch.cat([x - z + times(rows.mT, y), torch.where(active, at.values, 0.0)], -1)
    change, _ = torch.linalg.solve_ex(system, right.unsqueeze(-1))
    return change[..., :n, 0], torch.where(active, y - change[..., n:, 0], 0.0)


def _optimal(functions: Functions, leaves: Sequence[Tensor], z: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return where x is feasible and stationary with multipliers of the right sign, shape `(*lanes, 1)`."""
    values, jacobian = functions.linearize(leaves, x)
    unequal = functions.unequal(leaves, x, values)
    tol = torch.finfo(x.dtype).eps ** 0.75 * (1 + norm(z) + norm(x))
    length = torch.linalg.vector_norm(jacobian, dim=-1)
    over = torch.where(unequal, values, values.abs()) <= tol * length.clamp(min=1.0)
    # y |grad c| is the size of a constraint's force, whatever the scale of its function.
    pushing = ~unequal | (y * length >= -tol)
    stationary = norm(x - z + times(jacobian.mT, y)) <= tol
    good: Tensor = over.all(-1, keepdim=True) & pushing.all(-1, keepdim=True) & stationary
    return good
