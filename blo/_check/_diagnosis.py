"""Compares a hypergradient with its ingredients, one by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blo._autodiff import live
from blo._check._consistency import adjointness, scales
from blo._check._ingredients import Ingredients
from blo._check._outcome import Finding, Part
from blo._check._slopes import Differences, Slope
from blo._hypergrad import Hypergradient
from blo._lower import LowerProblem
from blo._theta import Structure
from blo.gradients import Strategy
from blo.gradients._products import point


def diagnose(
    around: Differences,
    lower: LowerProblem,
    gradient: Strategy,
    start: Tensor,
    exact: Hypergradient | None,
    slopes: Sequence[Slope],
    rtol: float,
) -> tuple[list[Finding], list[Finding]]:
    """Return the findings on each ingredient, and on the properties that need no differences of F.

    Args:
        around: the tightly solved problem.
        lower: the lower problem.
        gradient: the strategy.
        start: the solver's solution, shape `(*lanes, n)`.
        exact: the strategy's hypergradient at the tight solution; None if it cannot be computed.
        slopes: the measured slopes.
        rtol: relative error allowed.
    """
    z = around.best.z
    distance, size = float((start - z).norm()), max(float(z.norm()), 1e-300)
    # The tight solution is itself off by about `best.error`.
    findings = [Finding(Part.LOWER, "z - z*", distance / size, rtol + 10 * around.best.error / size)]
    direct, v = upper_slopes(around)
    at_theta = around.problem.bind(around.leaves).detach()
    slope = at_theta.gradient(z)
    optimality = None if exact is None else exact.report.pulled.optimality
    # If there is a tangent of the strategy, it is the one to be checked.
    tangent = at_theta.term.tangent(z, slope) if optimality is None else optimality.tangent
    parts = Ingredients(around, v, tangent, slope, rtol)
    findings += parts.direct_findings(direct if exact is None else Structure.of(exact.direct)[1], slopes)
    if exact is None:
        return findings, []
    found = exact.report.pulled
    if found.q is None or optimality is None:
        findings.append(parts.implicit_finding(found.cotangents, slopes))
        return findings, []
    findings += parts.tangent_findings(slopes)
    formula = gradient.stationary(around.problem)
    if formula is not None:
        at = point(formula.products, at_theta, z)
        findings.append(parts.product_finding(at.times_hessian, found.q))
    findings.append(parts.inverse_finding(found.q))
    findings.append(parts.cross_finding(found.q, found.cotangents, slopes))
    consistency = adjointness(parts, formula, found.cotangents, slopes)
    return findings, [*consistency, *scales(parts, lower, gradient, exact)]


def upper_slopes(around: Differences) -> tuple[list[Tensor], Tensor]:
    """Return the gradients of the upper objective in theta, leaf by leaf, and in z, by autodiff."""
    with torch.enable_grad():
        leaves = live(around.leaves)
        z = around.best.z.detach().requires_grad_()
        value = around.upper(around.problem.structure.tree(leaves), around.problem.layout.unravel(z))
        inputs = [leaf for leaf in leaves if leaf.requires_grad]
        # Detached, since the zeros that torch 2.7 fills in require grad.
        *found, v = (slope.detach() for slope in torch.autograd.grad(value, [*inputs, z], materialize_grads=True))
    filled = iter(found)
    return [next(filled) if leaf.requires_grad else torch.zeros_like(leaf) for leaf in leaves], v
