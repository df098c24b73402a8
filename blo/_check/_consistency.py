"""Properties that a correct derivative has at any point, tested without differences of F."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from blo._check._at import at_solution
from blo._check._ingredients import Ingredients
from blo._check._outcome import Finding, Part
from blo._check._resolve import beside
from blo._check._slopes import Slope, along
from blo._hypergrad import Hypergradient
from blo._lower import LowerProblem
from blo._theta import Structure
from blo._types import Tree
from blo.gradients import Stationary, Strategy
from blo.gradients._products import point
from blo.operators import Hessian, Restricted


def adjointness(
    parts: Ingredients, formula: Stationary | None, cotangents: Sequence[Tensor | None], slopes: Sequence[Slope]
) -> list[Finding]:
    """Compare `<J d, v>`, with J d by the strategy's own linear solve, with `<d, J' v>`, its pullback.

    J d = N d + u with u tangent and `P (H + K) P u = -P (B d + H N d + G d)`. A strategy without a formula, and a
    fixed-point problem, in which `invert` solves the transposed system, have no such test.
    """
    around = parts.around
    if formula is None or not around.problem.symmetric:
        return []
    at_theta = around.problem.bind(around.leaves).detach()
    at = point(formula.products, at_theta, around.best.z)
    system = Restricted(formula.model(Hessian(at.times_hessian)), parts.tangent, beside(around.best.unit))
    findings = []
    for one in slopes:
        moves = parts.moves(one.unit)
        load = -parts.tangent.project(moves.mixed + parts.times_hessian(moves.face) + moves.force)
        pushed = moves.face + formula.invert(system, load, None).x
        there, back = float((pushed * parts.v).sum()), along(cotangents, one.unit)
        # The terms of an inner product may cancel, and its rounding error is relative to them.
        size = max(float((pushed * parts.v).abs().sum()), abs(back), 1e-300)
        findings.append(Finding(Part.INVERSE, "<J d, v> = <d, J' v>", abs(there - back) / size, 10 * parts.rtol))
    return [max(findings, key=lambda finding: finding.error)]


def scales(parts: Ingredients, lower: LowerProblem, gradient: Strategy, exact: Hypergradient) -> list[Finding]:
    """Multiply the upper and the lower objective by a constant and compare the implicit parts."""
    around, findings = parts.around, []

    # Multiplication by a power of two does not round, so any other change comes from the strategy.
    def upper(theta: Tree, z: Tree) -> Tensor:
        return 4.0 * around.upper(theta, z)

    found = at_solution(replace(around, upper=upper), lower, gradient)
    if found is not None:
        findings.append(_change("f -> 4 f", exact, found, 4.0, parts.rtol))
    if around.problem.symmetric and lower.penalty is None:  # otherwise the minimiser would change

        def objective(theta: Tree, z: Tree) -> Tensor:
            return 4.0 * lower.objective(theta, z)

        found = at_solution(around, replace(lower, objective=objective, has_aux=False), gradient)
        if found is not None:
            findings.append(_change("g -> 4 g", exact, found, 1.0, parts.rtol))
    return findings


def _change(name: str, exact: Hypergradient, found: Hypergradient, factor: float, rtol: float) -> Finding:
    before, after = Structure.of(exact.implicit)[1], Structure.of(found.implicit)[1]
    pairs = zip(before, after, strict=True)
    gap = sum(float((factor * a - b).double().square().sum()) for a, b in pairs) ** 0.5
    size = factor * exact.report.implicit_norm
    return Finding(Part.INVERSE, f"the implicit part under {name}", gap / size if size else gap, 10 * rtol)
