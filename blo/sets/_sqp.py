"""The nearest point at which smooth constraints hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blo._autodiff import all_true
from blo.sets._active_set import onto, search
from blo.sets._functions import Functions
from blo.sets._rows import inverse, times

#: Halvings of a step before it is given up.
_HALVINGS = 20


def nearest(functions: Functions, leaves: Sequence[Tensor], z: Tensor, max_steps: int) -> Tensor:
    """Return the nearest point to z, differentiable twice in z and in the leaves; NaN where it was not found.

    For constraints that are not convex it is a point at which the distance is stationary.
    """
    start = z.detach()
    if all_true(_inside(functions, leaves, start)):
        return z  # nothing moves a point of the set, nor its derivatives
    finite = torch.isfinite(start).all(-1, keepdim=True)
    rest = [leaf.detach() for leaf in leaves]
    with torch.no_grad():
        x, y, active = _descend(functions, rest, torch.where(finite, start, 0.0), max_steps)
    # Two steps of Newton's method on the optimality conditions, from their solution: they leave rounding, and their
    # derivatives in z and theta are those of the solution to second order (the error is squared by each).
    for _ in range(2):
        x, y = _newton(functions, leaves, torch.where(finite, z, 0.0), x, y, active)
    with torch.no_grad():
        good = finite & _optimal(functions, rest, start, x.detach(), y.detach())
    return torch.where(good, x, torch.nan)


def _inside(functions: Functions, leaves: Sequence[Tensor], z: Tensor) -> Tensor:
    """Tell in which lanes everything holds at z already, shape `(*lanes,)`."""
    with torch.no_grad():
        equal, unequal = functions.split(leaves, z)
    return (equal == 0).all(-1) & (unequal <= 0).all(-1)


def _descend(
    functions: Functions, leaves: Sequence[Tensor], z: Tensor, max_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a solution to half of the digits, its multipliers and its active constraints.

    Sequential quadratic programming with the Hessian of the Lagrangian, a line search on the exact penalty function,
    and a second-order correction (Nocedal and Wright, Numerical optimization, 2006, algorithm 18.3 and section 18.3).
    """
    equations = functions.split(leaves, z)[0].shape[-1]
    x, weight = z, torch.zeros_like(z[..., :1])
    values, jacobian = functions.linearize(leaves, x)
    y, active = torch.zeros_like(values), torch.zeros_like(values, dtype=torch.bool)
    done = torch.zeros_like(weight, dtype=torch.bool)
    eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    small = torch.finfo(z.dtype).eps ** 0.5

    def violation(values: Tensor) -> Tensor:
        over = torch.cat([values[..., :equations].abs(), values[..., equations:].relu()], -1)
        return over.sum(-1, keepdim=True)

    def distance(x: Tensor) -> Tensor:
        return 0.5 * (x - z).square().sum(-1, keepdim=True)

    for _ in range(max_steps):
        curved = eye + functions.hessian(leaves, x, y)
        usable = torch.isfinite(curved).all(-1, keepdim=True).all(-2, keepdim=True)
        levels, axes = torch.linalg.eigh(torch.where(usable, curved, eye))
        root = (axes * levels.clamp(min=0.1).rsqrt().unsqueeze(-2)) @ axes.mT
        move, multipliers, held = _quadratic_programme(root, jacobian, values, x - z, equations)
        y, active = torch.where(done, y, multipliers), torch.where(done, active, held)
        done = done | (_norm(move) <= small * (_norm(x) + _norm(x - z) + small))
        weight = torch.maximum(weight, 1.5 * multipliers.abs().amax(-1, keepdim=True) + small)
        merit = distance(x) + weight * violation(values)
        slope = ((x - z) * move).sum(-1, keepdim=True) - weight * violation(values)
        rounding = 64 * torch.finfo(z.dtype).eps * merit

        step, taken, t = torch.zeros_like(x), done, 1.0
        for halving in range(_HALVINGS):
            trials = [t * move]
            if halving == 0:  # straight moves leave curved constraints: the correction returns to them
                off = torch.where(held, functions.values(leaves, x + move), 0.0)
                trials.append(move - times(inverse(jacobian * held.unsqueeze(-1)), off))
            for trial in trials:
                after = distance(x + trial) + weight * violation(functions.values(leaves, x + trial))
                accepted = ~taken & (after <= merit + 1e-4 * t * slope.clamp(max=0.0) + rounding)
                step, taken = torch.where(accepted, trial, step), taken | accepted
            if all_true(taken):
                break
            t *= 0.5
        x, done = x + step, done | ~taken  # where no step helps there is no point in going on; `_optimal` will tell
        values, jacobian = functions.linearize(leaves, x)
        if all_true(done):
            break
    return x, y, active


def _quadratic_programme(
    root: Tensor, jacobian: Tensor, values: Tensor, slope: Tensor, equations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise `1/2 |root^-1 d|^2 + slope d` where `values + jacobian d` holds; return d, multipliers, active rows."""
    rows = jacobian @ root
    length = torch.linalg.vector_norm(rows, dim=-1)
    length = torch.where(length > 0, length, 1.0)
    unit, right = rows / length.unsqueeze(-1), -values / length
    gram, aim = unit @ unit.mT, -times(root, slope)
    found = search(unit, right, gram, aim, equations)
    move = times(root, onto(unit, right, gram, aim, found))
    # Without a common point of the linearised constraints: towards those that do not hold.
    late = (values > 0) | (torch.arange(values.shape[-1], device=values.device) < equations)
    back = -times(inverse(jacobian * late.unsqueeze(-1)), torch.where(late, values, 0.0))
    return (
        torch.where(found.solved, move, back),
        torch.where(found.solved, found.multipliers / length, 0.0),
        found.active,
    )


def _newton(
    functions: Functions, leaves: Sequence[Tensor], z: Tensor, x: Tensor, y: Tensor, active: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the next x and y for `x - z + J' y = 0` and `c = 0` on the active constraints."""
    values, jacobian = functions.linearize(leaves, x)
    rows = jacobian * active.unsqueeze(-1)
    n, k = x.shape[-1], values.shape[-1]
    curved = torch.eye(n, dtype=x.dtype, device=x.device) + functions.hessian(leaves, x, y)
    idle = torch.eye(k, dtype=x.dtype, device=x.device) * ~active.unsqueeze(-1)
    system = torch.cat([torch.cat([curved, rows.mT], -1), torch.cat([rows, idle], -1)], -2)
    right = torch.cat([x - z + times(rows.mT, y), torch.where(active, values, 0.0)], -1)
    change, _ = torch.linalg.solve_ex(system, right.unsqueeze(-1))
    return x - change[..., :n, 0], torch.where(active, y - change[..., n:, 0], 0.0)


def _optimal(functions: Functions, leaves: Sequence[Tensor], z: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Tell where x is feasible and stationary with multipliers of the right sign, shape `(*lanes, 1)`."""
    equal, unequal = functions.split(leaves, x)
    jacobian = functions.linearize(leaves, x)[1]
    tol = torch.finfo(x.dtype).eps ** 0.75 * (1 + _norm(z) + _norm(x))
    length = torch.linalg.vector_norm(jacobian, dim=-1)
    over = torch.cat([equal.abs(), unequal.relu()], -1) <= tol * length.clamp(min=1.0)
    pushing = torch.cat([torch.zeros_like(equal), y[..., equal.shape[-1] :]], -1) * length >= -tol
    stationary = _norm(x - z + times(jacobian.mT, y)) <= tol
    good: Tensor = over.all(-1, keepdim=True) & pushing.all(-1, keepdim=True) & stationary
    return good


def _norm(v: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return length
