"""Comparison of a hypergradient with finite differences of a tightly re-solved problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from blo import tree
from blo._autocast import without
from blo._check._at import at_solution
from blo._check._diagnosis import diagnose, upper_slopes
from blo._check._outcome import Check, Direction, Part
from blo._check._resolve import resolve
from blo._check._slopes import Differences, Slope, along, norm, units
from blo._entrance import entrance
from blo._hypergrad import Hypergradient, value_and_hypergrad
from blo._layout import Layout
from blo._lower import LowerProblem
from blo._parametric_problem import ParametricProblem
from blo._settings import require_count, require_positive
from blo._status import Status
from blo._theta import Structure, refined, taking
from blo._types import Tree
from blo.errors import NonFiniteError
from blo.gradients import Implicit, Strategy
from blo.solvers import Solver


@entrance("Call it outside.")
@without
def check_hypergrad(
    upper: Callable[[Tree, Tree], Tensor],
    lower: LowerProblem,
    theta: Tree,
    z0: Tree,
    *,
    solver: Solver | None = None,
    gradient: Strategy | None = None,
    directions: int = 4,
    step: float = 1e-3,
    rtol: float | None = None,
    seed: int = 0,
) -> Check:
    """Compare a hypergradient with fourth-order central differences of F(theta) = f(theta, z*(theta)).

    At every displaced theta the lower problem is solved again, from the solution found and to rounding level, but not
    by the solver being checked: at least `1 + 4 * directions` solves besides the one with `solver`, more where F is
    nonlinear or something disagrees. So a strategy that is exact for its solver but not for the problem (for example a
    short unroll) fails, and the result shows the lower error.

    For strategies with an adjoint, two more tests need no such differences: the pullback must be the adjoint of the
    linearised solution map, and it must scale correctly (`g -> c g` does not change the implicit part, `f -> c f`
    multiplies it by c).

    Autocast is off during the whole check. The ingredients of the formula are recomputed one by one, from first
    derivatives and from the motion of the re-solved solution. If something disagrees, `culprit` names the first
    ingredient that differs.

    Args:
        upper: as in `value_and_hypergrad`.
        lower: as in `value_and_hypergrad`; use float64 inputs for a sharp verdict.
        theta: as in `value_and_hypergrad`; leaves less precise than z0 are converted to its dtype, so that they can be
            displaced by small steps.
        z0: as in `value_and_hypergrad`.
        solver: as in `value_and_hypergrad`.
        gradient: as in `value_and_hypergrad`.
        directions: number of random unit directions of theta; at least 1.
        step: displacement of theta along a unit direction, relative to `max(1, |theta|)`; shortened if F is so
            nonlinear over it that a shorter one is more accurate, also to one relative to a small `|theta|`. If
            something disagrees, a tenth and a hundredth of it are tried as well, as far as rounding allows: a step that
            changes which constraints are active does not measure a derivative.
        rtol: error allowed relative to the gradient's norm; by default the cube root of the dtype's epsilon
            (6e-6 in float64).
        seed: of the random directions.

    Returns:
        `Check`: `check.ok`, `check.culprit`, and a table as `str(check)`.

    Raises:
        ValueError: if `directions` is below 1, `step` or `rtol` is not positive, or `slack` or a weight of the set or
            penalty is negative.
        InfeasibleError: if the constraint set is empty at theta or at a displaced theta.
        DerivativeError: as in `value_and_hypergrad`.
        NonFiniteError: if the lower solution, or the gradient there, is not finite.
        StructureError: as in `value_and_hypergrad`. Other problems at theta give warnings.
    """
    require_count(directions, "directions")
    require_positive(step, "step")
    if rtol is not None:
        require_positive(rtol, "rtol")
    gradient = Implicit() if gradient is None else gradient
    given, spec = tree.flatten(theta, "theta")
    dtype = Layout.of(z0, batched=lower.batched).dtype
    theta = tree.unflatten(refined(given, dtype), spec)
    with taking(given, dtype):
        out = value_and_hypergrad(upper, lower, theta, z0, solver=solver, gradient=gradient, on_failure="warn")
    if out.report.lower_status is Status.NON_FINITE:
        raise NonFiniteError(
            "the lower objective has no finite gradient where its solver ended, so there is no hypergradient to check. "
            "Run the objective under torch.autograd.detect_anomaly."
        )
    problem, start, real = ParametricProblem.of(lower, theta, out.z)
    leaves = [leaf.detach() for leaf in real]
    eps = torch.finfo(start.dtype).eps
    rtol = eps ** (1 / 3) if rtol is None else rtol
    length = max(1.0, norm(leaves))
    with torch.no_grad():
        best = resolve(problem.bind(leaves).detach(), start)
    around = Differences(upper, problem, leaves, best, step * length, length)
    exact = at_solution(around, lower, gradient)
    drawn = units(leaves, directions, seed)
    first = _compare(around, lower, gradient, out, start, exact, drawn, rtol)
    # A step that changes which constraints are active measures no derivative; a shorter one may not. If the lower solve
    # is wrong, no step helps.
    for smaller in () if first.ok or first.culprit is Part.LOWER else (0.1, 0.01):
        found = _compare(replace(around, step=smaller * around.step), lower, gradient, out, start, exact, drawn, rtol)
        # Noise grows as the step shrinks, and agreement within large noise does not count.
        if found.ok and all(row.noise <= rtol * found.scale for row in found.directions):
            return found
    return first


def _compare(
    around: Differences,
    lower: LowerProblem,
    gradient: Strategy,
    out: Hypergradient,
    start: Tensor,
    exact: Hypergradient | None,
    drawn: Sequence[list[Tensor]],
    rtol: float,
) -> Check:
    """Compare the hypergradient with differences over one step."""
    best = around.best
    with torch.no_grad():
        v = upper_slopes(around)[1]
        slopes = [around.slope(unit, float(v.norm())) for unit in drawn]
        shortest = min(slopes, key=lambda one: one.step)
        around = replace(around, step=shortest.step, length=shortest.length)
    rows = _rows(out, slopes)
    total = Structure.of(out.grad)[1]
    scale = max([float(tree.dot(total, total)) ** 0.5, *(abs(row.measured) for row in rows)])
    settled = None
    if exact is not None:
        settled = all(row.error <= rtol * scale + row.noise for row in _rows(exact, slopes))
    with torch.no_grad():
        findings, consistency = diagnose(around, lower, gradient, start, exact, slopes, rtol)
    return Check(
        directions=rows,
        lower_error=float((best.z - start).norm()),
        resolved=max([best.residual, *(one.resolved for one in slopes)]),
        scale=scale,
        rtol=rtol,
        findings=tuple(findings),
        consistency=tuple(consistency),
        settled=settled,
        hypergradient=out,
    )


def _rows(out: Hypergradient, slopes: Sequence[Slope]) -> tuple[Direction, ...]:
    total = Structure.of(out.grad)[1]
    return tuple(Direction(along(total, one.unit), one.value, one.value_noise) for one in slopes)
