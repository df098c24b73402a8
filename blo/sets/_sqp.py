"""Sequential quadratic programming for the nearest point at which smooth constraints hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from blo._autodiff import all_true, all_true_on_cpu
from blo._vectors import dot, norm
from blo.sets._active_set import onto, search
from blo.sets._functions import Expansion, Functions
from blo.sets._rows import inverse, times

#: Maximum number of halvings of a step.
_HALVINGS = 20


class SQPResult(NamedTuple):
    """The result of sequential quadratic programming.

    Attributes:
        x: shape `(*lanes, n)`.
        y: multipliers of the functions, shape `(*lanes, k)`.
        active: functions that hold with equality, booleans of shape `(*lanes, k)`.
        at: the functions at x to second order, with these multipliers.
    """

    x: Tensor
    y: Tensor
    active: Tensor
    at: Expansion


def descend(functions: Functions, leaves: Sequence[Tensor], z: Tensor, max_steps: int) -> SQPResult:
    """Return the nearest point to z at which the functions hold, to half of the digits.

    Sequential quadratic programming with the Hessian of the Lagrangian, a line search on the exact penalty function,
    and a second-order correction (Nocedal and Wright, Numerical optimization, 2006, algorithm 18.3 and section 18.3).
    """
    x, weight = z, torch.zeros_like(z[..., :1])
    # The multipliers start at zero, and then the functions have no part in the Hessian of the Lagrangian.
    at = functions.touch(leaves, x)
    unequal = functions.unequal(leaves, x, at.values)
    y, active = torch.zeros_like(at.values), torch.zeros_like(at.values, dtype=torch.bool)
    done = torch.zeros_like(weight, dtype=torch.bool)
    small = torch.finfo(z.dtype).eps ** 0.5

    def merit(x: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        over = torch.where(unequal, values.relu(), values.abs()).sum(-1, keepdim=True)
        return 0.5 * (x - z).square().sum(-1, keepdim=True) + weight * over, over

    for _ in range(max_steps):
        move, multipliers, held = _quadratic_programme(_root(at.hessian), at, x - z, unequal)
        y, active = torch.where(done, y, multipliers), torch.where(done, active, held)
        done = done | (norm(move) <= small * _size(x, z))
        # The penalty function is exact if its weight exceeds the largest multiplier. Where the linearised constraints
        # have a point, `slope` is then an upper bound on its directional derivative along the move.
        weight = torch.maximum(weight, 1.5 * multipliers.abs().amax(-1, keepdim=True) + small)
        here, over = merit(x, at.values)
        slope = dot(x - z, move) - weight * over
        # Near a solution a step changes the merit by less than its rounding, and must still be accepted.
        allowed = here + 64 * torch.finfo(z.dtype).eps * here

        step, taken, t = torch.zeros_like(x), done, 1.0
        for halving in range(_HALVINGS):
            trial = t * move
            ahead = functions.values(leaves, x + trial)
            accepted = ~taken & (merit(x + trial, ahead)[0] <= allowed + 1e-4 * t * slope.clamp(max=0.0))
            step, taken = torch.where(accepted, trial, step), taken | accepted
            if all_true(taken):
                break
            if halving == 0:  # a straight move leaves curved constraints: the second-order correction returns to them
                trial = move - times(inverse(at.jacobian * held.unsqueeze(-1)), torch.where(held, ahead, 0.0))
                ahead = functions.values(leaves, x + trial)
                accepted = ~taken & (merit(x + trial, ahead)[0] <= allowed + 1e-4 * slope.clamp(max=0.0))
                step, taken = torch.where(accepted, trial, step), taken | accepted
            t *= 0.5
        x, done = x + step, done | ~taken  # stop where no step is accepted; the caller tests the result
        at = functions.expand(leaves, x, y)
        done = done | _clear(at, x, z, y, active, unequal)
        if all_true(done):
            break
    return SQPResult(x, y, active, at)


def _root(hessian: Tensor) -> Tensor:
    """Return the inverse square root of the Hessian of the Lagrangian, with eigenvalues raised to at least 0.1."""
    eye = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
    curved = eye + hessian
    usable = torch.isfinite(curved).all(-1, keepdim=True).all(-2, keepdim=True)
    levels, axes = torch.linalg.eigh(torch.where(usable, curved, eye))
    # Far from a solution the Hessian may be indefinite; the clamp keeps the programme strictly convex.
    root: Tensor = (axes * levels.clamp(min=0.1).rsqrt().unsqueeze(-2)) @ axes.mT
    return root


def _quadratic_programme(root: Tensor, at: Expansion, slope: Tensor, unequal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise `1/2 |root^-1 d|^2 + slope d` where `values + jacobian d` holds; return d, multipliers, active rows."""
    # With d = root e this is the projection of -root slope on a polyhedron of e with the rows jacobian root.
    values, jacobian = at.values, at.jacobian
    rows = jacobian @ root
    length = torch.linalg.vector_norm(rows, dim=-1)
    length = torch.where(length > 0, length, 1.0)
    unit, right = rows / length.unsqueeze(-1), -values / length
    gram, aim = unit @ unit.mT, -times(root, slope)
    found = search(unit, right, gram, aim, ~unequal)
    move = times(root, onto(unit, right, gram, aim, found))
    # `found` has the multipliers of rows of length one: rows' y = unit' (length y).
    multipliers = torch.where(found.solved, found.multipliers / length, 0.0)
    if not all_true_on_cpu(found.solved):
        # The linearised constraints have no common point: take the shortest step to those that do not hold.
        late = (values > 0) | ~unequal
        back = -times(inverse(jacobian * late.unsqueeze(-1)), torch.where(late, values, 0.0))
        move = torch.where(found.solved, move, back)
    return move, multipliers, found.active


def _clear(at: Expansion, x: Tensor, z: Tensor, y: Tensor, active: Tensor, unequal: Tensor) -> Tensor:
    """Return where x is right to half of the digits and no constraint is close to switching, shape `(*lanes, 1)`."""
    error = torch.finfo(x.dtype).eps ** 0.5 * _size(x, z)
    length = torch.linalg.vector_norm(at.jacobian, dim=-1)
    stationary = norm(x - z + times(at.jacobian.mT, y)) <= error
    holds = torch.where(active, at.values.abs() <= error * length, at.values < -10 * error * length)
    pushes = ~(active & unequal) | (y * length > 10 * error)
    clear: Tensor = stationary & (holds & pushes).all(-1, keepdim=True)
    return clear


def _size(x: Tensor, z: Tensor) -> Tensor:
    size: Tensor = norm(x) + norm(x - z) + torch.finfo(x.dtype).eps ** 0.5
    return size
