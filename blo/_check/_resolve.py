"""Solves a lower problem to rounding level, even if it is ill-conditioned, with first derivatives only."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from blo._displacement import adapted, along, first, split
from blo._displacement import rounding as unsteadiness
from blo._problem_at_theta import ProblemAtTheta
from blo._term import Tangent
from blo._vectors import length
from blo.errors import StructureError
from blo.linsolve import CG, GMRES, Direct
from blo.operators import Hessian, Restricted
from blo.sets import Set
from blo.solvers import FISTA, LBFGS, ProjectedGradient
from blo.solvers._stopping import curvature, rounding

#: Unknowns up to which the Newton system is assembled.
_DENSE = 100


class Resolved(NamedTuple):
    """A tightly solved lower problem.

    Attributes:
        z: shape `(*lanes, n)`.
        residual: the largest `|z - prox(z - gradient)|` of a lane.
        error: length of the remaining Newton step: about the distance to the solution.
        unit: see `units`.
    """

    z: Tensor
    residual: float
    error: float
    unit: Tensor


def resolve(problem: ProblemAtTheta, z: Tensor, rounds: int = 40) -> Resolved:
    """Alternate projected gradient steps, which find the active face, with Newton steps along it.

    A Newton step is kept in the lanes whose residual it reduces. The products with the Hessian are central
    differences of gradients, so nothing here depends on the second derivatives, which may be what is wrong.

    Args:
        problem: at one theta, held constant.
        z: the start, shape `(*lanes, n)`.
        rounds: maximum number of Newton steps.
    """
    eps = torch.finfo(z.dtype).eps
    slope = problem.gradient(z)
    residual = problem.residual(z, slope)
    unit = units(problem, z, slope)
    idle = 0
    for _ in range(rounds):
        trial = z + newton(problem, z, slope, unit)
        # A step along the face may cross other constraints. A projection leaves a solution in place, the proximal
        # operator of a penalty does not.
        trial = problem.prox(trial, 1.0) if isinstance(problem.term, Set) else trial
        z, slope, residual, better = _keep(problem, z, slope, residual, trial)
        unit = units(problem, z, slope)  # anew, since far from the solution it may be much larger
        if bool((residual <= 4 * eps * unit).all()):
            break
        if better:
            idle = 0
            continue
        # Below the rounding of the gradient, residuals cannot show whether a step helps.
        least = 64 * eps * (unit + _rounded(problem, z, slope, unit) * torch.linalg.vector_norm(z, dim=-1))
        if bool((residual <= torch.maximum(least, rounding(problem, z, slope, residual))).all()):
            break
        idle += 1
        if idle > 5:
            break
        z, slope, residual, _ = _keep(problem, z, slope, residual, _descend(problem, z, unit))
    error = _left(problem, z, slope, residual, unit)
    return Resolved(z, float(residual.max()), float(error.max()), unit)


def units(problem: ProblemAtTheta, z: Tensor, slope: Tensor) -> Tensor:
    """Return a residual that belongs to an error of about one in z, or 1 if that is less, shape `lanes`.

    Without it, errors of every size would pass an absolute tolerance for residuals if the objective is in a small unit.
    """
    # At a solution without a term the gradient is zero, and on a face the gradient makes the boundary's curvature.
    curved = curvature(problem, z, slope)[1].squeeze(-1)
    return torch.maximum(curved, length(slope, keepdim=False)).clamp(max=1.0)


def _rounded(problem: ProblemAtTheta, z: Tensor, slope: Tensor, unit: Tensor) -> Tensor:
    """Return a residual that belongs to a rounding error of one in z, or 1 if that is less, shape `lanes`."""
    if not problem.term.rounds:
        return unit
    # The natural map contains z - prox(...), which is rounded like z, times its own unit.
    return torch.maximum(unit, problem.scale(z, slope).squeeze(-1).clamp(max=1.0))


def _descend(problem: ProblemAtTheta, z: Tensor, unit: Tensor) -> Tensor:
    """Return a point nearer to the solution, by steps that may change the active face."""
    tol = 4 * torch.finfo(z.dtype).eps * float(unit.min())
    if problem.symmetric:
        try:
            return LBFGS(tol=tol, max_steps=200).solve(problem, z).z
        except StructureError:  # a set of more than bounds
            return FISTA(tol=tol, max_steps=500).solve(problem, z).z
    return ProjectedGradient(tol=tol, max_steps=500).solve(problem, z).z


def _left(problem: ProblemAtTheta, z: Tensor, slope: Tensor, residual: Tensor, unit: Tensor) -> Tensor:
    """Return the length of the remaining Newton step.

    Where the step leads away from a solution, return the residual, relative to its unit.
    """
    step = newton(problem, z, slope, unit)
    trial = z + step
    trial = problem.prox(trial, 1.0) if isinstance(problem.term, Set) else trial
    there = problem.residual(trial, problem.gradient(trial))
    least = (
        1e3 * torch.finfo(z.dtype).eps * (_rounded(problem, z, slope, unit) + torch.linalg.vector_norm(slope, dim=-1))
    )
    noise = torch.maximum(least, rounding(problem, z, slope, residual))
    # With a wrong tangent, which may be what the check looks for, the step does not measure the error of a solution.
    telling = (there <= 10 * residual + noise) | (residual > noise)
    return torch.where(telling, torch.linalg.vector_norm(step, dim=-1), residual / unit)


def newton(problem: ProblemAtTheta, z: Tensor, slope: Tensor, unit: Tensor) -> Tensor:
    """Return the Newton step along the face of the term, shape `(*lanes, n)`; zero where it is not finite."""
    tangent = problem.term.tangent(z, slope)
    downhill = -tangent.project(slope_on_face(problem, tangent, z, slope))
    symmetric = problem.symmetric
    hessian = Hessian(lambda w: differences(problem, z, slope, w), symmetric=symmetric)
    system = Restricted(hessian, tangent, beside(unit))
    if z.shape[-1] <= _DENSE:
        step = Direct().solve(system, downhill).x
    else:
        # A rough step suffices, since the next one corrects it.
        solver = CG(max_iter=500, tol=1e-6) if symmetric else GMRES(max_iter=500, tol=1e-6)
        step = solver.solve(system, downhill).x
    return torch.where(torch.isfinite(step).all(-1, keepdim=True), step, 0.0)


def beside(unit: Tensor) -> float:
    """Return the multiple of the identity for `Restricted`: beside a small Hessian its rounding would dominate."""
    return float(bool((unit == 1).all()))


def slope_on_face(problem: ProblemAtTheta, tangent: Tangent, z: Tensor, slope: Tensor) -> Tensor:
    """Return the gradient of objective and term along the face, up to normals of the face."""
    if tangent.force is not None:
        return slope + tangent.force(problem.term, z)
    return slope if isinstance(problem.term, Set) else z - problem.prox(z - slope, 1.0)


def differences(problem: ProblemAtTheta, z: Tensor, slope: Tensor, w: Tensor) -> Tensor:
    """Return the Hessian, or the Jacobian of a residual, times w by central differences, shape `(*lanes, n)`."""
    unit, size = split(w)
    found, _ = adapted(
        lambda h: along(problem.gradient, z, slope, unit, h, look=True),
        first(z),
        lambda: unsteadiness(problem.gradient, z, slope),
    )
    return size * found


def _keep(
    problem: ProblemAtTheta, z: Tensor, slope: Tensor, residual: Tensor, trial: Tensor
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Return the better of a point and a trial in each lane, and whether any lane has gained by half."""
    there = problem.gradient(trial)
    left = problem.residual(trial, there)
    better = left < residual  # false for a NaN
    # Newton's method gains far more on the right face: less is a sign of a wrong face or of rounding.
    gained = bool((left < 0.5 * residual).any())
    lanes = better.unsqueeze(-1)
    return (
        torch.where(lanes, trial, z),
        torch.where(lanes, there, slope),
        torch.where(better, left, residual),
        gained,
    )
