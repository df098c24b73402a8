"""The hypergradient, with its direct and implicit parts as separate results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from blo import tree
from blo._arguments import require_function
from blo._autocast import bare
from blo._autodiff import live
from blo._entrance import entrance
from blo._error_bound import solution_error
from blo._failures import Checks
from blo._layout import Layout
from blo._look import Searched
from blo._lower import LowerProblem
from blo._objective import split
from blo._parametric_problem import ParametricProblem
from blo._parts import equipped, require_parts
from blo._report import Report
from blo._solving import Solving
from blo._theta import Structure
from blo._types import OnFailure, Tree
from blo.errors import StructureError
from blo.gradients import Implicit, Strategy
from blo.solvers import Solver


@dataclass(frozen=True, eq=False)
class Hypergradient:
    """The value of a bilevel objective and its gradient in theta.

    Attributes:
        value: f(theta, z*), shape `()`.
        grad: the sum of the direct part and the implicit part, a tree like theta.
        z: the lower solution, a tree like z0.
        state: the warm start of the next call, a dict that `torch.save` accepts. `"z"` holds the solution, a tree like
            z0, and `"q"` the adjoint, shape `(*lanes, n)`, or None. With `carry=True`, `"solver"` holds the state of
            the solver, a list of tensors.
        report: diagnostics, which are computed when they are read.
        aux: with `has_aux=True` the second result of `upper`, with its tensors detached; otherwise None.
    """

    value: Tensor
    grad: Tree
    z: Tree
    state: dict[str, Any]
    report: Report
    aux: Any = None

    # Copies, so that a change in place, as clipping makes it, does not change the report as well.
    @cached_property
    def direct(self) -> Tree:
        """The part df/dtheta at fixed z, a tree like theta."""
        return Structure.of(self.grad)[0].tree([part.clone() for part in self.report.direct_parts])

    @cached_property
    def implicit(self) -> Tree:
        """The part through z*, a tree like theta; zero for leaves on which z* does not depend."""
        parts = zip(self.report.direct_parts, self.report.implicit_parts, strict=True)
        return Structure.of(self.grad)[0].tree([torch.zeros_like(d) if i is None else i.clone() for d, i in parts])


@entrance("Use torch.func.grad_and_value of upper(theta, argmin(...)), or a problem with batched=True.")
def value_and_hypergrad(
    upper: Callable[[Tree, Tree], Tensor],
    lower: LowerProblem,
    theta: Tree,
    z0: Tree,
    *,
    solver: Solver | None = None,
    gradient: Strategy | None = None,
    state: dict[str, Any] | None = None,
    on_failure: OnFailure | None = None,
    has_aux: bool = False,
) -> Hypergradient:
    """Return f(theta, z*(theta)) and its gradient, with the direct and the implicit part.

    One backward pass gives the upper gradients in theta and in z. With `Implicit()`, one graph of the
    lower gradient serves all Hessian-vector products and the cross term. The results are constants; for a
    differentiable solution use `argmin`.

    Args:
        upper: `upper(theta, z)` returns a tensor of shape `()`, also for a batched problem.
        lower: the lower problem.
        theta: upper variable, a tree of tensors; its leaves need not require grad. The gradient in a complex leaf is
            torch's `dF/dRe + i dF/dIm`; leaves of integers and booleans are data, with zero gradients.
        z0: start of the lower solver, a tree of floating point tensors.
        solver: a lower solver; if None, the same default as in `argmin`.
        gradient: a strategy; `Implicit()` by default.
        state: `.state` of an earlier call. The lower solver then starts from its solution instead of `z0`, and an
            iterative linear solver from its adjoint. A solver with `carry=True` continues with its momentum.
        on_failure: `"raise"`, `"warn"` or `"ignore"`; by default values that are not finite raise an error, and all
            other problems give a warning.
        has_aux: `upper` returns `(value, aux)`, where `aux` is a tree of any objects, which the result holds as `aux`.

    Raises:
        StructureError: if an argument has the wrong type, or if `upper`, the objective, the set or `state` does not fit
            theta and z0.
        InfeasibleError: if the constraint set is empty at theta.
        NonFiniteError: if a value, a solution or a gradient is not finite.
        DerivativeError: if the strategy needs a second derivative and torch has none for an operation of the objective.
        ConvergenceError: instead of the warnings below, if `on_failure="raise"`.
        ValueError: for an unknown `on_failure`, or if `slack` or a weight of the set or penalty is negative.

    Warns:
        ConvergenceWarning: if a solver did not reach its tolerance, or the curvature is not positive.
        FixedStepsWarning: if a fixed number of steps did not reach the solution, also with `on_failure="raise"`.
        DegenerateWarning: if an active constraint has multiplier zero.
        ConstantWarning: if the lower problem does not depend on theta.
    """
    require_parts(lower, solver, gradient)
    require_function(upper, "upper", "theta", "z")
    gradient = Implicit() if gradient is None else gradient
    problem, start, given = ParametricProblem.of(lower, theta, z0)
    solver, problem = equipped(problem, given, start, gradient, solver)
    checks = Checks(on_failure)
    solving = Solving(solver, checks, gradient, at_once=True, objective=lower.objective)

    # An optimiser changes theta in place. Copy it if what is read later, the report or `aux`, depends on its values.
    late = gradient.reads_theta_late or lower.modulus is not None or callable(lower.term) or has_aux
    # An inference tensor cannot be saved for a backward pass, but a copy of it can.
    leaves = live([leaf.detach().clone() if late or leaf.is_inference() else leaf for leaf in given])
    guess = None
    if state is not None:
        start, guess, carried = _resume(state, problem.layout, solver.carry)
        problem = replace(problem, carried=carried)
    checks.fixed(lower.term)
    rule = gradient.rule(problem, solving)
    with bare():
        at_theta = rule.bind(problem, leaves)
        found = rule.forward(at_theta, start)
    assert solving.last is not None

    # z is a leaf, so that this gradient stops at z: `rule.pull` differentiates the solve.
    z = found.detach().requires_grad_()
    value = Searched(upper, "upper")(problem.structure.tree(leaves), problem.layout.unravel(z))
    aux = None
    if has_aux:
        value, aux = split(value, "upper")
        aux = tree.map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, aux)
    _check_upper(value)
    differentiated = [leaf for leaf in leaves if leaf.requires_grad]
    # A strategy that treats z as a constant needs no gradient in z: when z enters the first layer of a network, that
    # gradient costs extra time.
    wanted = [*differentiated, z] if gradient.expects_theta else differentiated
    slopes = torch.autograd.grad(value, wanted, allow_unused=True) if wanted else ()
    filled = [torch.zeros_like(at) if slope is None else slope for slope, at in zip(slopes, wanted, strict=True)]
    slopes_in_theta = iter(filled[: len(differentiated)])
    v = filled[-1] if gradient.expects_theta else z.new_zeros(()).expand_as(z)  # one number in memory
    direct = [next(slopes_in_theta) if leaf.requires_grad else torch.zeros_like(leaf) for leaf in leaves]

    with bare():
        pulled = rule.pull(at_theta, start, found, v, guess)
    # Before the report on the derivative: a NaN in v is the cause of those in the adjoint and in the implicit part.
    checks.all_finite(
        [(value, "the upper value"), (v, "the upper gradient in z"), *((d, "the direct part") for d in direct)]
    )
    mu, solved = lower.modulus, found.detach()  # so that the report does not keep the graph of the steps
    solving.report(at_theta, solved, pulled)
    total = [d.clone() if i is None else d + i for d, i in zip(direct, pulled.cotangents, strict=True)]

    def lower_error() -> Tensor:
        return solution_error(problem.bind([leaf.detach() for leaf in leaves]), solved, mu or 1.0)

    left = {"z": problem.layout.unravel(solved), "q": pulled.q}
    if solver.carry:
        left["solver"] = list(solving.last.carried)
    return Hypergradient(
        value=value.detach().clone(),  # `upper` may return a view of theta
        grad=problem.structure.tree(total),
        z=problem.layout.unravel(solved.clone()),
        state=left,
        report=Report(
            solving.last, pulled, direct, pulled.cotangents, gradient.tol, mu, None if mu is None else lower_error
        ),
        aux=aux,
    )


def _resume(
    state: dict[str, Any], layout: Layout, carry: bool
) -> tuple[Tensor, Tensor | None, Sequence[Tensor] | None]:
    """Return the flat solution, the adjoint and the state of the solver from the `state` of an earlier call.

    Raises:
        StructureError: if `state` does not have these entries, or they do not fit the problem.
    """
    if not isinstance(state, dict) or set(state) != {"z", "q", *(["solver"] if carry else [])}:
        found = f"holds {list(state)}" if isinstance(state, dict) else f"is of type {type(state).__name__}"
        wanted = "z, q and the state of a solver with carry=True" if carry else "z and q"
        raise StructureError(f"`state` must be the `.state` of an earlier call, with {wanted}, but {found}.")
    z, q = layout.ravel(state["z"], "state['z']").detach(), state["q"]
    if q is not None and (q.shape, q.dtype, q.device) != (z.shape, z.dtype, z.device):
        raise StructureError(
            f"`state['q']` must be {z.dtype} of shape {tuple(z.shape)} on {z.device}, but is {q.dtype} of shape "
            f"{tuple(q.shape)} on {q.device}. Start without `state` when the problem has changed."
        )
    return z, q, state["solver"] if carry else None


def _check_upper(value: Tensor) -> None:
    if not isinstance(value, Tensor) or value.shape != ():
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        remedy = "For (value, aux) pass has_aux=True." if isinstance(value, tuple) else "Did you mean .mean()?"
        raise StructureError(f"`upper` must return a scalar tensor, but returned {found}. {remedy}")
    if value.is_complex():
        raise StructureError(f"`upper` must return a real value, but returned {value.dtype}. Did you mean .real?")
    if not value.requires_grad:
        raise StructureError(
            "`upper` must depend on theta or z, but its value carries no graph. "
            "Look for .detach(), .item(), torch.no_grad() or NumPy inside it."
        )
