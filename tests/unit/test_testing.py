"""The conformance suites: the library's own parts pass, and a part with one defect fails with the right name."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import blo
from blo._term import Tangent
from blo.gradients import Pulled, Rule
from blo.linsolve import LinearSolution, LinearSolver
from blo.operators import Dense, Operator
from blo.solvers import Solution, Solver
from blo.testing import (
    Conformance,
    check_linear_solver,
    check_penalty,
    check_set,
    check_solver,
    check_strategy,
)
from tests.strategies import normal
from tests.tampered import TamperedRule

Z = torch.zeros(4, dtype=torch.float64)
BATCH = torch.zeros(3, 4, dtype=torch.float64)
THETA = torch.tensor([0.3, -0.2], dtype=torch.float64)
A, B = normal(0, 2, 4), torch.tensor([0.3, -0.2], dtype=torch.float64)

# What the library has.

SETS: dict[str, Any] = {
    "free": blo.Free(),
    "box": lambda t: blo.Box(-1 + t[0], 1 + t[1]),
    "nonnegative": blo.NonNegative(),
    "ball": lambda t: blo.L2Ball(1 + t[0] ** 2, t[1]),
    "simplex": lambda t: blo.Simplex(1 + t[0]),
    "capped simplex": lambda t: blo.Simplex(1 + t[0], 0.6 + t[1]),
    "l1 ball": lambda t: blo.L1Ball(1 + t[0]),
    "cut ball": lambda t: blo.L2Ball(1 + t[0] ** 2, t[1], -0.6 + t[0], 0.4 - t[1]),
    "cut l1 ball": lambda t: blo.L1Ball(1 + t[0], t[1], -0.6 + t[0], 0.4 - t[1]),
    "affine": lambda t: blo.Affine(A * (1 + t[0]), B + t),
    "halfspaces": lambda t: blo.Halfspaces(A * (1 + t[0]), B + t),
}
PENALTIES: dict[str, Any] = {
    "l1": lambda t: blo.L1(t[0].exp()),
    "elastic net": lambda t: blo.ElasticNet(t[0].exp(), t[1].exp()),
    "group lasso": lambda t: blo.GroupLasso(t[0].exp(), torch.tensor([0, 0, 1, 1])),
}


@pytest.mark.parametrize("name", SETS)
def test_sets_conform(name: str) -> None:
    report = check_set(SETS[name], Z, theta=THETA)
    assert "no member is nearer than the projection" in report.properties
    assert isinstance(report, Conformance) and str(report).splitlines()[1:] == list(report.properties)


@pytest.mark.parametrize(
    "constraint",
    [
        blo.Box(-0.5, 0.7),
        blo.L2Ball(1.0),
        blo.Simplex(),
        blo.Simplex(1.0, 0.4),
        blo.L2Ball(1.0, 0.1, -0.4, 0.6),
        blo.L1Ball(1.0, 0.1, -0.4, 0.6),
    ],
    ids=["box", "ball", "simplex", "capped simplex", "cut ball", "cut l1 ball"],
)
def test_batched_sets_conform(constraint: blo.sets.Set) -> None:
    assert "lanes are independent" in check_set(constraint, BATCH, batched=True).properties


def test_a_product_on_a_tree_conforms() -> None:
    check_set(blo.Product(blo.L2Ball(1.0), blo.Simplex()), (torch.zeros(2), torch.zeros(3)))


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_conform(name: str) -> None:
    assert "the proximal point minimises" in check_penalty(PENALTIES[name], Z, theta=THETA).properties


@pytest.mark.parametrize(
    "solver",
    [blo.Direct(), blo.CG(), blo.MINRES(), blo.GMRES(), blo.Neumann(), blo.Nystrom(), blo.Auto(), blo.Auto(direct=0)],
    ids=lambda s: type(s).__name__,
)
def test_linear_solvers_conform(solver: LinearSolver) -> None:
    check_linear_solver(solver)


@pytest.mark.parametrize("solver", [blo.Direct(), blo.GMRES(), blo.Auto()], ids=lambda s: type(s).__name__)
def test_linear_solvers_for_other_matrices_conform(solver: LinearSolver) -> None:
    check_linear_solver(solver, symmetric=False)


BOUNDS = (blo.Free(), blo.Box(-0.4, 0.5))
SOLVERS: list[tuple[Solver, dict[str, Any]]] = [
    (blo.ProjectedGradient(), {}),
    (blo.ProjectedGradient(1.0, momentum=0.5), {}),
    (blo.OneStep(0.5), {}),
    (blo.FISTA(), {}),
    (blo.LBFGS(), {"constraints": BOUNDS}),
]


@pytest.mark.parametrize(("solver", "options"), SOLVERS, ids=[type(solver).__name__ for solver, _ in SOLVERS])
def test_solvers_conform(solver: Solver, options: dict[str, Any]) -> None:
    assert "recorded steps are differentiable, or refused" in check_solver(solver, **options).properties


STRATEGIES = [(blo.Implicit(blo.Direct()), True), (blo.HessianFree(2.0), False), (blo.Zero(), False)]


@pytest.mark.parametrize(("strategy", "exact"), STRATEGIES, ids=lambda value: type(value).__name__)
def test_strategies_conform(strategy: blo.gradients.Strategy, exact: bool) -> None:
    assert "both entrances give the same gradient" in check_strategy(strategy, exact=exact).properties


# Sets and penalties with one defect each.


@dataclass(frozen=True, eq=False)
class Ball(blo.sets.Set):
    """A unit ball, right unless told otherwise."""

    nearest: Callable[[Tensor, Tensor], Tensor] = lambda z, norm: z / norm.clamp(min=1)
    tamper: Callable[[Tangent], Tangent] = lambda tangent: tangent

    def project(self, z: Tensor) -> Tensor:
        return self.nearest(z, z.norm(dim=-1, keepdim=True))

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        return self.tamper(blo.L2Ball(1.0).tangent(z, gradient))


def written_over(z: Tensor, norm: Tensor) -> Tensor:
    found = torch.where(norm > 1, z / norm, z)
    if not torch._C._are_functorch_transforms_active() and not z.requires_grad:
        z.mul_(1.0 + 1e-3)
    return found


BALLS: dict[str, tuple[Ball, str]] = {
    "longer than the radius": (Ball(lambda z, n: z / n.clamp(min=1.0).sqrt()), "projecting twice is projecting once"),
    "towards a corner": (
        Ball(lambda z, n: torch.where(n > 1, z.sign() / z.shape[-1] ** 0.5, z)),
        "no member is nearer than the projection",
    ),
    "argument overwritten": (Ball(written_over), "arguments are not modified"),
    "double precision always": (Ball(lambda z, n: torch.where(n > 1, z / n, z).double()), "dtype and device are kept"),
    "lanes share a norm": (
        Ball(lambda z, n: torch.where(n.amax() > 1, z / n.amax(), z)),
        "no member is nearer than the projection|lanes are independent|firmly nonexpansive",
    ),
    "gradient lost": (
        Ball(lambda z, n: torch.where(n > 1, z / n.detach(), z)),
        "first derivatives of prox are right",
    ),
    "NaN hidden": (Ball(lambda z, n: (z / n.clamp(min=1)).nan_to_num()), "a NaN stays visible"),
    "NaN at zero": (Ball(lambda z, n: torch.where(n > 1, z / n, z)), "prox has a derivative at zero"),
    "K left out": (Ball(tamper=lambda t: replace(t, curvature=0.0)), "solutions move as P and K say"),
    "K negated": (Ball(tamper=lambda t: replace(t, curvature=-t.curvature)), "solutions move as P and K say"),
    "P left out": (Ball(tamper=lambda t: replace(t, projector=lambda v: v)), "free counts the rank of P"),
    "P doubled": (
        Ball(tamper=lambda t: replace(t, projector=lambda v: 2 * t.projector(v))),
        "P is idempotent",
    ),
    "P oblique": (
        Ball(tamper=lambda t: replace(t, projector=lambda v: v - v.sum(-1, keepdim=True) * torch.eye(4)[0])),
        "P is symmetric",
    ),
    "counts off": (
        Ball(tamper=lambda t: replace(t, count=lambda: t.counts()._replace(free=t.counts().free + 1))),
        "free counts the rank of P",
    ),
}


KINDS: dict[str, blo.sets.Set] = {
    "box": blo.Box(-0.5, Z + 0.4),
    "non-negative": blo.NonNegative(),
    "ball": blo.L2Ball(0.8),
    "cut ball": blo.L2Ball(1.0, 0.1, -0.4, 0.6),
    "l1 ball": blo.L1Ball(torch.tensor(0.8)),
    "cut l1 ball": blo.L1Ball(0.9, 0.1, -0.4, 0.6),  # no sum of bounds reaches the radius
    "simplex": blo.Simplex(),
    "capped simplex": blo.Simplex(1.0, Z + 0.4),
    "affine": blo.Affine(A, B),
    "halfspaces": blo.Halfspaces(A, B - 1),
}


def with_duals(constraint: blo.sets.Set, factor: float) -> blo.sets.Set:
    """Return the set with its multipliers multiplied by a factor."""

    class Wrong(type(constraint)):  # type: ignore[misc]
        def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
            found = super().tangent(z, gradient)
            return replace(found, duals=lambda layout: blo.tree.map(lambda y: factor * y, found.duals(layout)))

    return Wrong(**{f.name: getattr(constraint, f.name) for f in fields(constraint)})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_multipliers_of_another_sign_or_size_fail_by_name(kind: str) -> None:
    held = "multipliers are derivatives of the optimal value"
    found = check_set(with_duals(KINDS[kind], 1.0), Z).properties
    # The bound of `NonNegative` is no field that could be moved, so only the sign of its multiplier is tested.
    assert (held in found) == (kind != "non-negative")
    for factor in (-1.0,) if kind == "non-negative" else (-1.0, 2.0, 0.5):
        broken = f"({held}|multipliers of inequalities are not negative)"
        with pytest.raises(AssertionError, match=f"^Wrong breaks the property '{broken}':"):
            check_set(with_duals(KINDS[kind], factor), Z)


def test_multipliers_of_lanes_and_of_trees_conform() -> None:
    pair = (torch.zeros(2), torch.zeros(3))
    for constraint, z0, batched in (
        (blo.L2Ball(torch.tensor([0.5, 0.8, 1.1])), BATCH, True),
        (blo.Box((Z[:2] - 0.3, Z[:3] - 0.2), 0.4), pair, False),
        (blo.Simplex(1.0, 0.4), pair, False),
        (blo.Halfspaces(A, B - 1), BATCH, True),
    ):
        found = check_set(constraint, z0, batched=batched).properties
        assert "multipliers are derivatives of the optimal value" in found
        with pytest.raises(AssertionError, match="multipliers"):
            check_set(with_duals(constraint, 1.1), z0, batched=batched)


@pytest.mark.parametrize("name", BALLS)
def test_a_set_with_one_defect_fails_by_name(name: str) -> None:
    constraint, broken = BALLS[name]
    batched = "lanes" in name
    with pytest.raises(AssertionError, match=f"^Ball breaks the property '({broken})':"):
        check_set(constraint, BATCH if batched else Z, batched=batched)


def test_the_ball_without_a_defect_conforms() -> None:
    check_set(Ball(), Z)
    check_set(Ball(), BATCH, batched=True)


@dataclass(frozen=True, eq=False)
class MovingBall(blo.sets.Set):
    radius: Tensor
    pace: float = 1.0

    def project(self, z: Tensor) -> Tensor:
        return blo.L2Ball(self.radius, validate=False).project(z)

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        return blo.L2Ball(self.radius, validate=False).tangent(z, gradient)

    def motion(self, origin: Any, z: Tensor) -> Tensor:
        still = blo.L2Ball(origin.radius, validate=False)
        return self.pace * blo.L2Ball(self.radius, validate=False).motion(still, z)


def test_a_set_whose_face_does_not_move_along_fails_by_name() -> None:
    check_set(lambda t: MovingBall(1 + t[0] ** 2), Z, theta=THETA)
    with pytest.raises(AssertionError, match="'the face moves as the motion says'"):
        check_set(lambda t: MovingBall(1 + t[0] ** 2, pace=0.0), Z, theta=THETA)
    with pytest.raises(AssertionError, match="'the motion is differentiable in theta'"):
        check_set(lambda t: MovingBall(1 + t[0].detach() ** 2), Z, theta=THETA)


@dataclass(frozen=True, eq=False)
class Lasso(blo.penalties.Penalty):
    weight: Tensor
    threshold: float = 1.0
    pull: float = 1.0

    def value(self, z: Tensor) -> Tensor:
        return self.weight * z.abs().sum(-1)

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
        return z.sign() * (z.abs() - self.threshold * self.weight * step).relu()

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        found = blo.L1(self.weight, validate=False).tangent(z, gradient)
        sign = z.sign()
        return replace(found, force=lambda term, at: self.pull * term.weight * sign)


def test_a_penalty_with_one_defect_fails_by_name() -> None:
    check_penalty(lambda t: Lasso(t[0].exp()), Z, theta=THETA)
    with pytest.raises(AssertionError, match="'the proximal point minimises'"):
        check_penalty(lambda t: Lasso(t[0].exp(), threshold=2.0), Z, theta=THETA)
    with pytest.raises(AssertionError, match="'the gradient has no part along P'"):
        check_penalty(lambda t: Lasso(t[0].exp(), pull=0.5), Z, theta=THETA)


# Linear solvers with one defect each.


@dataclass(frozen=True, eq=False)
class Tampered(LinearSolver):
    change: Callable[[LinearSolution, Tensor], LinearSolution]
    damping: float = 0.0
    tol: float = 1e-8  # type: ignore[assignment]

    def solve(self, operator: Operator, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        return self.change(blo.Direct(damping=self.damping).solve(operator, b, x0), b)


@dataclass(frozen=True, eq=False)
class Forgetful(Tampered):
    """Damping does not arrive."""

    def solve(self, operator: Operator, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        return self.change(blo.Direct().solve(operator, b, x0), b)


@dataclass(frozen=True, eq=False)
class Silent(LinearSolver):
    """Conjugate gradients that report success wherever the least eigenvalue is below a number."""

    below: float = math.inf
    tol: float = 1e-10  # type: ignore[assignment]

    def solve(self, operator: Operator, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        found = blo.CG().solve(operator, b, x0)
        assert isinstance(operator, Dense)
        silent = torch.linalg.eigvalsh(operator.matrix)[..., 0] < self.below
        residual = torch.where(silent & ~found.residual.isnan(), 0.0, found.residual)
        return replace(found, residual=residual, indefinite=found.indefinite & ~silent)


@dataclass(frozen=True, eq=False)
class Huge(LinearSolver):
    """Reports success in lanes without a solution, and hides it in the rounding of a huge null vector."""

    tol: float = 1e-10  # type: ignore[assignment]

    def solve(self, operator: Operator, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        found = blo.Direct().solve(operator, b, x0)
        assert isinstance(operator, Dense)
        values, vectors = torch.linalg.eigh(operator.matrix)
        lost = (found.residual > 0.5) & (values[..., 0].abs() < 1e-12)
        x = torch.where(lost.unsqueeze(-1), 1e17 * vectors[..., 0], found.x)
        return replace(found, x=x, residual=torch.where(lost, 0.0, found.residual))


@dataclass(frozen=True, eq=False)
class SharedStop(LinearSolver):
    """Steepest descent that stops when the mean residual of the lanes is small."""

    tol: float = 1e-9  # type: ignore[assignment]

    def solve(self, operator: Operator, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        x = torch.zeros_like(b)
        for _ in range(60):
            r = b - operator(x)
            x = x + r * (r * r).sum() / (r * operator(r)).sum().clamp(min=1e-300)
        residual = (b - operator(x)).norm(dim=-1) / b.norm(dim=-1)
        none = torch.zeros(b.shape[:-1], dtype=torch.int64)
        return LinearSolution(
            torch.where((b == 0).all(-1, keepdim=True), 0.0, x), residual.nan_to_num(), none, none > 0
        )


LINEAR: dict[str, tuple[LinearSolver, str]] = {
    "one step short": (
        Tampered(lambda s, b: replace(s, x=0.999 * s.x)),
        "the residual is honest",
    ),
    "scalar gives zero": (
        Tampered(lambda s, b: replace(s, x=0 * s.x, residual=0 * s.residual + 1) if b.shape[-1] == 1 else s),
        "a scalar unknown is solved",
    ),
    "damping forgotten": (Forgetful(lambda s, b: s), "the residual is honest"),
    "zero gives NaN": (
        Tampered(lambda s, b: replace(s, x=s.x * (b.norm(dim=-1, keepdim=True) / b.norm(dim=-1, keepdim=True)))),
        "a zero right-hand side gives exactly zero",
    ),
    "lanes stop together": (SharedStop(), "well-conditioned systems are solved|lanes stop on their own"),
    "float64 always": (Tampered(lambda s, b: replace(s, x=s.x.double())), "dtype is kept"),
    "flags of one kind": (
        Tampered(lambda s, b: replace(s, indefinite=s.indefinite.long())),
        "iterations are integers and flags are booleans",
    ),
    "always successful": (Silent(), "the residual is honest"),
    "successful at saddle points": (Silent(-0.1), "an indefinite system is flagged, or its residual is honest"),
    "huge where there is no solution": (Huge(), "a system without a solution is not solved"),
    "NaN hidden": (
        Tampered(lambda s, b: replace(s, x=s.x.nan_to_num(), residual=s.residual.nan_to_num())),
        "a NaN never counts as converged",
    ),
}


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_solver_with_one_defect_fails_by_name(name: str) -> None:
    solver, broken = LINEAR[name]
    with pytest.raises(AssertionError, match=f"breaks the property '({broken})':"):
        check_linear_solver(solver)


# Lower solvers with one defect each.


@dataclass(frozen=True)
class TamperedSolver(Solver):
    change: Callable[[Solution, Any], Solution]
    tol: float | None = 1e-6

    def solve(self, problem: Any, z0: Tensor) -> Solution:
        return self.change(blo.ProjectedGradient(tol=self.tol).solve(problem, z0), problem)


LOWER: dict[str, tuple[Callable[[Solution, Any], Solution], str]] = {
    "infeasible": (lambda s, p: replace(s, z=1.5 * s.z), "the solution lies in the set|the residual is honest"),
    "flattering residual": (
        lambda s, p: replace(s, z=p.prox(s.z + 0.01, 1.0), residual=0 * s.residual),  # type: ignore[operator]
        "the residual is honest",
    ),
    "stops early": (
        lambda s, p: replace(blo.ProjectedGradient(tol=1e-2).solve(p, 0 * s.z + 2.0)),
        "easy problems are solved to the tolerance",
    ),
    "graph cut": (lambda s, p: replace(s, z=s.z.detach()), "recorded steps are differentiable, or refused"),
    "graph scaled": (
        lambda s, p: replace(s, z=s.z.detach() + 0.5 * (s.z - s.z.detach())),
        "recorded steps are differentiable, or refused",
    ),
    "float64 always": (lambda s, p: replace(s, z=s.z.double()), "dtype is kept"),
}


@pytest.mark.parametrize("name", LOWER)
def test_a_solver_with_one_defect_fails_by_name(name: str) -> None:
    change, broken = LOWER[name]
    check_solver(TamperedSolver(lambda s, p: s))
    with pytest.raises(AssertionError, match=f"^TamperedSolver breaks the property '({broken})':"):
        check_solver(TamperedSolver(change))


# Strategies with one defect each.


@dataclass(frozen=True)
class TamperedStrategy(blo.gradients.Strategy):
    change: Callable[[Pulled], Pulled]

    def rule(self, problem: Any, solve: Any) -> Rule:
        return TamperedRule(solve, blo.Implicit(blo.Direct()).rule(problem, solve), self.change)


def scaled(pulled: Pulled) -> Pulled:
    return replace(pulled, cotangents=[None if c is None else 1.01 * c for c in pulled.cotangents])


def test_a_strategy_with_one_defect_fails_by_name() -> None:
    title = "the hypergradient agrees with differences, is adjoint and free of scale"
    with pytest.raises(
        AssertionError, match=f"^TamperedStrategy breaks the property '{title}': on no constraint: the cross"
    ):
        check_strategy(TamperedStrategy(scaled), problems=["no constraint"])
    with pytest.raises(AssertionError, match="'both entrances give the same gradient'"):
        check_strategy(TamperedStrategy(scaled), exact=False, problems=["a ball that moves"])
    with pytest.raises(AssertionError, match=f"'{title}': on a box that moves: the inverse"):
        check_strategy(blo.HessianFree(2.0), problems=["a box that moves"])


CHECKS: dict[str, Callable[[], object]] = {
    "set": lambda: check_set(blo.Box(-1.0, 1.0), Z, seed=1),
    "penalty": lambda: check_penalty(blo.L1(0.1), Z, seed=1),
    "linear solver": lambda: check_linear_solver(blo.CG(), seed=1),
    "solver": lambda: check_solver(blo.FISTA(tol=1e-8), seed=1),
    "strategy": lambda: check_strategy(blo.Implicit(), seed=1),
    "hypergradient": lambda: blo.check_hypergrad(
        lambda t, z: z.sum(), blo.LowerProblem(lambda t, z: (z - t).square().sum()), torch.zeros(2), torch.zeros(2)
    ),
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_checks_leave_the_random_numbers_of_the_caller_alone(check: Callable[[], object]) -> None:
    def states() -> list[object]:
        return [torch.get_rng_state().tolist(), random.getstate(), [str(part) for part in np.random.get_state()]]

    before = states()
    check()
    assert states() == before
