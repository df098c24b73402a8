"""The active linear inequalities at the nearest point of a polyhedron."""

from __future__ import annotations

import torch
from torch import Tensor

from blo._autodiff import all_true, stride
from blo._vectors import dot, norm
from blo.sets._exchange import Found, exchange
from blo.sets._rows import times

#: Tolerances that are tried one after another, in units of the first: from 1e-14 to 1e-9 in double precision.
_LOOSER = (1.0, 2.0**8, 2.0**16)


def search(rows: Tensor, right: Tensor, gram: Tensor, z: Tensor, equal: Tensor | None = None) -> Found:
    """Find the active rows at the nearest point to z of `{ x : rows x <= right }`, all lanes at once.

    Exchanges of many rows at once come first. Lanes in which these do not terminate are searched row by row.

    Args:
        rows: shape `(*lanes, k, n)`, of norm one or zero.
        right: shape `(*lanes, k)`.
        gram: `rows rows'`.
        z: shape `(*lanes, n)`.
        equal: rows that are equations, booleans of shape `(k,)`; by default none.
    """
    rows, right, gram, z = rows.detach(), right.detach(), gram.detach(), z.detach()
    equal = torch.zeros(right.shape[-1], dtype=torch.bool, device=z.device) if equal is None else equal
    # Rows have norm one, so |z| + |right| bounds the terms whose rounding is in `rows z - right`.
    tol = 64 * torch.finfo(z.dtype).eps * (norm(z) + right.abs())
    found = exchange(gram, times(rows, z) - right, tol, equal, z.shape[-1])
    # Rows that meet at a small angle may contradict each other by their rounding, which the angle amplifies.
    for looser in _LOOSER:
        if all_true(found.solved):
            break
        found = found.completed(_row_by_row(rows, right, gram, z, looser * tol, equal, found.solved))
    return found


def _row_by_row(
    rows: Tensor, right: Tensor, gram: Tensor, z: Tensor, tol: Tensor, equal: Tensor, known: Tensor
) -> Found:
    """Find the active rows by the dual method of Goldfarb and Idnani, except in lanes that are known already.

    Each step makes the most violated row active, and drops rows whose multiplier would become negative on the way.
    Active rows stay linearly independent, even if the rows are not.

    Source: Goldfarb and Idnani (Math. Prog. 1983), for the identity as Hessian.
    """
    shape, k = tol.shape, tol.shape[-1]
    eps = torch.finfo(z.dtype).eps
    order = torch.arange(k, device=z.device)
    identity = torch.eye(k, dtype=z.dtype, device=z.device)
    y = torch.zeros_like(tol)
    sign = torch.ones_like(tol)  # for an equation, the side from which it was reached
    active = torch.zeros(shape, dtype=torch.bool, device=z.device)
    entering = active
    pending = torch.zeros((*shape[:-1], 1), dtype=torch.bool, device=z.device)
    solved, failed = pending, known | ~torch.isfinite(z).all(-1, keepdim=True)
    looks = stride(z)
    for index in range(10 * (k + 1)):
        excess = times(rows, z - times(rows.mT, sign * y)) - right
        size = torch.where(equal, excess.abs(), excess)
        # Negated, so that a NaN counts as a violation and makes the search fail.
        late = torch.where(active, False, ~(size <= tol))
        solved = solved | (~pending & ~failed & ~late.any(-1, keepdim=True))
        done = solved | failed
        if index % looks == 0 and all_true(done):
            break
        worst = torch.where(late, size, -torch.inf).argmax(-1, keepdim=True)
        entering = torch.where(pending, entering, order == worst)
        turned = torch.where(excess < 0, -1.0, torch.ones_like(excess))
        sign = torch.where(entering & equal & ~pending, turned, sign)

        # Raise the multiplier of the entering row. With the active normals N and the entering normal a, the multipliers
        # of the active rows fall by give = (N'N)^-1 N'a per unit, so that these rows stay active.
        signed = sign.unsqueeze(-1) * gram * sign.unsqueeze(-2)
        column = (signed * entering.unsqueeze(-2)).sum(-1)
        both = active.unsqueeze(-1) & active.unsqueeze(-2)
        system = torch.where(both, signed, 0.0) + identity * ~active.unsqueeze(-1)
        factor, _ = torch.linalg.cholesky_ex(system)
        give = torch.cholesky_solve(torch.where(active, column, 0.0).unsqueeze(-1), factor).squeeze(-1)
        change = entering.to(z.dtype) - give
        move = times(rows.mT, sign * change)
        gain = dot(move, move)
        violation = torch.where(entering, sign * excess, 0.0).sum(-1, keepdim=True)
        # `gain` is the squared distance of a to the span of N. With as many active rows as unknowns it is zero, which
        # rounding may hide.
        independent = (gain > k * eps) & (active.sum(-1, keepdim=True) < z.shape[-1])
        # After the step `full` the entering row holds; after `partial` the first multiplier is zero.
        full = torch.where(independent, violation.clamp(min=0.0) / torch.where(independent, gain, 1.0), torch.inf)
        # The multiplier of an equation may have either sign, so it never limits the step.
        blocking = active & ~equal & (give > eps)
        ratio = torch.where(blocking, y.clamp(min=0.0) / torch.where(blocking, give, 1.0), torch.inf)
        partial = ratio.amin(-1, keepdim=True)
        step = torch.minimum(full, partial)
        # The step is infinite if the entering normal is a combination of active ones, with no positive coefficient
        # except for equations. Then no point satisfies all of these rows.
        failed = failed | (~done & ~torch.isfinite(step))
        run = ~done & ~failed
        y = torch.where(run, y + torch.where(run, step, 0.0) * change, y)
        taken = run & (full <= partial)
        dropped = run & ~taken & (order == ratio.argmin(-1, keepdim=True))
        active = (active | (taken & entering)) & ~dropped
        y = torch.where(active | entering, torch.where(equal, y, y.clamp(min=0.0)), 0.0)
        pending = run & ~taken
    return Found(active, sign * y, solved)


def onto(rows: Tensor, right: Tensor, gram: Tensor, z: Tensor, found: Found) -> Tensor:
    """Return the nearest point to z at which the active rows of a search from z hold; differentiable."""
    active = found.active
    both = active.unsqueeze(-1) & active.unsqueeze(-2)
    identity = torch.eye(active.shape[-1], dtype=z.dtype, device=z.device)
    # Project the point that the multipliers give, which removes their rounding error. That they are constants does not
    # affect derivatives: a move along the normals of active rows changes neither the projection nor its derivatives.
    near = z - times(rows.mT, found.multipliers)
    excess = torch.where(active, times(rows, near) - right, 0.0)
    y, _ = torch.linalg.solve_ex(torch.where(both, gram, identity), excess.unsqueeze(-1))
    return near - times(rows.mT, torch.where(active, y.squeeze(-1), 0.0))
