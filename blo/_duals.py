"""The multipliers of the constraints at a solution."""

from __future__ import annotations

from dataclasses import replace

import torch

from blo._autodiff import plain, transforms_active
from blo._failures import Checks, unasked
from blo._lower import LowerProblem
from blo._parametric_problem import ParametricProblem
from blo._parts import require_parts
from blo._term import Tangent
from blo._types import OnFailure, Tree
from blo.errors import ConvergenceError, DegenerateWarning, StructureError


def duals(lower: LowerProblem, theta: Tree, z: Tree, *, on_failure: OnFailure | None = None) -> Tree:
    """Return the dual variables of the lower problem's constraints at a solution, differentiable in theta.

    They are the multipliers y of the Lagrangian `objective + y (constraint)`, with every inequality written as
    `constraint <= 0`. The multiplier of an inequality is at least zero, and zero if the inequality is not active. The
    derivative of the optimal value with respect to a right-hand side (`b`, `radius`, `total`, `high`, `cap`) is minus
    its multiplier; with respect to `low` it is the multiplier.

    With `z = argmin(...)` the multipliers are differentiable functions of theta, as z is.

    Args:
        lower: the lower problem, with a constraint.
        theta: upper variable, a tree of tensors.
        z: the solution at this theta, from `argmin` or `value_and_hypergrad`; a tree of floating point tensors.
        on_failure: as in `argmin`.

    Returns:
        The multipliers by the names of their constraints: `{}` for `Free`; `"low"` and `"high"` for `Box` and
        `NonNegative`, trees like z; `"radius"`, shape `lanes`, for a ball, and its bounds; `"total"`, shape `lanes`,
        `"low"` and `"cap"`, trees like z, for `Simplex`; `"b"`, shape `(*lanes, k)`, for `Affine` and `Halfspaces`;
        `"equalities"` and `"inequalities"` for `SmoothConstraints`. For a `Product` a dict or list of these, as the
        set was given, for an `Intersection` a list.

    Raises:
        StructureError: if the problem has a penalty or is a fixed-point problem, if a set of the user's own defines no
            `Tangent.duals`, or if an argument does not fit.
        NonFiniteError: if z or the gradient of the objective there is not finite.
        ConvergenceError: if `on_failure="raise"`, instead of the warnings below.

    Warns:
        ConvergenceWarning: if z is not a solution: its residual is above `10 sqrt(eps)`.
        DegenerateWarning: if the active constraints are linearly dependent, so that their multipliers are not unique,
            or if one of them has multiplier zero, where the multipliers have one-sided derivatives only.
        ConstantWarning: if the set is a constant that holds a tensor which requires grad.

    Under `torch.func` transforms nothing is tested.

    Source: Bertsekas, Nonlinear Programming, 3rd ed., Sec. 4.3 (multipliers as sensitivities).
    """
    require_parts(lower, None, None)
    problem, _, leaves = ParametricProblem.of(lower, theta, z)
    if lower.penalty is not None:
        raise StructureError(
            "`duals` needs a constraint, but the problem has a penalty. In place of multipliers, use the subgradient "
            "of the penalty: it is minus the gradient of the objective in z."
        )
    if not problem.symmetric:
        raise StructureError("`duals` needs an objective, but a fixed-point problem has none.")
    at, flat, term = problem.bind(leaves), problem.layout.ravel(z), problem.apart(leaves)
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*leaves, flat))
    slope = at.gradient(flat, graph=wanted)
    checks = Checks(on_failure)
    residual = None if checks.off or transforms_active() else at.residual(flat.detach(), slope.detach())
    if residual is not None:
        at = replace(at, accuracy=float(residual.max()))  # a constraint is as near as z is accurate
    tangent = at.tangent(term, flat, slope)
    if tangent.duals is None:
        raise StructureError(
            f"`duals` does not know the multipliers of {type(term).__name__}: its `tangent` leaves out "
            "`Tangent.duals`. Set it to a function that takes the layout of z and returns a dict of multipliers."
        )
    if residual is not None:
        checks.fixed(lower.term)
        checks.all_finite([(flat, "`z`"), (slope, "the gradient of the objective at `z`")])
        checks.stationary(residual, unasked(flat.dtype))
        # Away from a solution the multipliers do not show which constraints hold z, and `stationary` has reported that.
        if bool((residual <= unasked(flat.dtype)).all()):
            checks.degenerate(tangent.counts())
            _check_unique(checks, tangent)
    return tangent.duals(problem.layout)


def _check_unique(checks: Checks, tangent: Tangent) -> None:
    """Report active constraints that are linearly dependent."""
    spare = 0 if tangent.strain is None else int((plain(tangent.strain.surplus()) > 0).sum())
    if spare:
        checks.found(
            f"in {spare} problems the active constraints are linearly dependent, so their multipliers are not unique: "
            "those returned balance the gradient, but others do as well. Leave out redundant constraints.",
            ConvergenceError,
            DegenerateWarning,
        )
