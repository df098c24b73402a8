"""An upper bound on the error of an approximate lower solution, for a known strong convexity."""

from __future__ import annotations

import torch
from torch import Tensor

from blo._problem_at_theta import ProblemAtTheta
from blo._vectors import dot


def solution_error(problem: ProblemAtTheta, z: Tensor, strong_convexity: float) -> Tensor:
    """Return an upper bound of `|z - z*|`, shape `lanes`.

    With x = prox(z - t grad g(z), t), the vector `s = (z - x)/t + grad g(x) - grad g(z)` is a subgradient of
    `g + term` at x. This function is mu-strongly convex, so `|x - z*| <= |s|/mu`, and `|z - z*|` is at most
    `|z - x| + |s|/mu`. The bound holds for every step size t. The result is the smaller of the bounds for t = 1 and for
    t = 1 over the curvature along the first step. It costs three gradients.
    """
    at_rest = problem.detach()
    with torch.no_grad():
        slope = at_rest.gradient(z)
        first, curvature = _bound(at_rest, z, slope, torch.ones_like(z[..., :1]), strong_convexity)
        # On a quadratic of the single curvature c = mu, `|z - x| + |s|/mu` is `|slope| / c` for all t <= 1/c and larger
        # for t > 1/c. So t = 1 suffices for curvatures below 1.
        second, _ = _bound(at_rest, z, slope, 1.0 / curvature.clamp(min=1.0), strong_convexity)
        return torch.minimum(first, second)


def _bound(problem: ProblemAtTheta, z: Tensor, slope: Tensor, step: Tensor, mu: float) -> tuple[Tensor, Tensor]:
    """Return the bound for one step, shape `lanes`, and the curvature along it, shape `(*lanes, 1)`."""
    x = problem.prox(z - step * slope, step)
    moved, turned = x - z, problem.gradient(x) - slope
    length = moved.square().sum(-1, keepdim=True)
    # At an exact solution the step is zero, and so is the bound, whatever the curvature.
    zero = length == 0
    curvature = torch.where(zero, 1.0, dot(moved, turned) / torch.where(zero, 1.0, length))
    subgradient = turned - moved / step
    return torch.linalg.vector_norm(moved, dim=-1) + torch.linalg.vector_norm(subgradient, dim=-1) / mu, curvature
