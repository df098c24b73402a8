"""Comparison of a hypergradient with finite differences of a tightly re-solved problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from blo import tree
from blo._argmin import argmin
from blo._hypergrad import Hypergradient, value_and_hypergrad
from blo._problem import LowerProblem
from blo._types import Tree
from blo.gradients import Strategy, Zero
from blo.solvers import ProjectedGradient, Solver


@dataclass(frozen=True)
class Direction:
    """One direction of theta: the slope predicted, the slope measured and how well it can be known."""

    predicted: float
    measured: float
    noise: float

    @property
    def error(self) -> float:
        """Absolute difference of the slopes."""
        return abs(self.predicted - self.measured)


@dataclass(frozen=True, eq=False)
class Check:
    """The outcome of `check_hypergrad`.

    Attributes:
        directions: slopes of F along random unit directions of theta.
        lower_error: distance from the solver's solution to the tightly solved one.
        scale: norm of the hypergradient, or the largest measured slope where that is larger.
        rtol: error allowed relative to `scale`, on top of the noise.
        hypergradient: what was checked.
    """

    directions: tuple[Direction, ...]
    lower_error: float
    scale: float
    rtol: float
    hypergradient: Hypergradient

    @property
    def ok(self) -> bool:
        """Whether every predicted slope agrees with the measured one."""
        return all(d.error <= self.rtol * self.scale + d.noise for d in self.directions)

    def __str__(self) -> str:
        rows = ["  predicted        measured         error     noise floor"]
        rows += [f"{d.predicted:+.8e}  {d.measured:+.8e}  {d.error:.2e}  {d.noise:.2e}" for d in self.directions]
        verdict = "agrees with finite differences" if self.ok else "DISAGREES with finite differences"
        rows += [f"distance of the lower solution from the tightly solved one: {self.lower_error:.2e}"]
        return "\n".join([f"the hypergradient {verdict}", *rows, str(self.hypergradient.report)])


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

    At every displaced theta the lower problem is solved anew, starting from the solution found and down to rounding,
    whatever solver is being checked. So a strategy that is exact for its solver but not for the problem (a short
    unroll, say) fails here, with the lower error shown beside it.

    Args:
        upper: as in `value_and_hypergrad`.
        lower: as in `value_and_hypergrad`; use float64 inputs for a sharp verdict.
        theta: as in `value_and_hypergrad`.
        z0: as in `value_and_hypergrad`.
        solver: as in `value_and_hypergrad`.
        gradient: as in `value_and_hypergrad`.
        directions: number of random unit directions of theta.
        step: displacement of theta along a unit direction, relative to `max(1, |theta|)`.
        rtol: error allowed relative to the gradient's norm; by default the cube root of the dtype's epsilon
            (6e-6 in float64).
        seed: of the random directions.

    Returns:
        A report: `report.ok`, and a table as `str(report)`.
    """
    out = value_and_hypergrad(upper, lower, theta, z0, solver=solver, gradient=gradient, on_failure="warn")
    leaves, spec = tree.flatten(theta, "theta")
    dtype = tree.flatten(out.z)[0][0].dtype
    eps = torch.finfo(dtype).eps
    tight = ProjectedGradient(tol=max(64 * eps, 1e-13), max_steps=20_000)

    def solved(point: Tree, start: Tree) -> Tree:
        return argmin(lower, point, start, solver=tight, gradient=Zero(), on_failure="ignore")

    with torch.no_grad():
        size = max(1.0, float(sum(leaf.double().pow(2).sum() for leaf in leaves)) ** 0.5)
        h = step * size
        best = solved(theta, out.z)
        generator = torch.Generator().manual_seed(seed)
        rows = []
        for _ in range(directions):
            unit = _unit(leaves, generator)

            def value(t: float, unit: list[Tensor] = unit) -> float:
                moved = tree.unflatten([p + t * d for p, d in zip(leaves, unit, strict=True)], spec)
                return float(upper(moved, solved(moved, best)))

            near, far = value(h) - value(-h), value(2 * h) - value(-2 * h)
            measured = (8 * near - far) / (12 * h)
            # Rounding of F, and a bound on the truncation error read off the two central differences.
            noise = 16 * eps * abs(float(out.value)) / h + abs(near / (2 * h) - measured) * step
            predicted = float(sum((g * d).sum() for g, d in zip(tree.flatten(out.grad)[0], unit, strict=True)))
            rows.append(Direction(predicted, measured, noise))
        gap = tree.map(lambda a, b: a - b, best, out.z)
        norm = float(tree.dot(out.grad, out.grad)) ** 0.5
    return Check(
        directions=tuple(rows),
        lower_error=float(tree.dot(gap, gap)) ** 0.5,
        scale=max([norm, *(abs(row.measured) for row in rows)]),
        rtol=eps ** (1 / 3) if rtol is None else rtol,
        hypergradient=out,
    )


def _unit(leaves: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Draw a direction of norm 1 over all leaves; leaves that are not floating point stay where they are."""
    drawn = [torch.randn(leaf.shape, generator=generator, dtype=torch.float64) for leaf in leaves]
    drawn = [d if leaf.is_floating_point() else torch.zeros_like(d) for d, leaf in zip(drawn, leaves, strict=True)]
    norm = sum(d.pow(2).sum() for d in drawn) ** 0.5
    return [(d / norm).to(leaf) for d, leaf in zip(drawn, leaves, strict=True)]
