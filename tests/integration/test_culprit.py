"""`check_hypergrad` names the part that is wrong: one deliberate defect at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import blo
from blo._check import Check, Part
from blo._term import Tangent
from blo.gradients import Pulled, Rule, Stationary
from blo.linsolve import LinearSolution
from blo.operators import Operator, Restricted
from tests import oracles
from tests.integration.problems import EXACT, TIGHT, as_tensor
from tests.oracles import QuadraticCase
from tests.strategies import normal, spd
from tests.tampered import TamperedRule

BALL = oracles.draw("ball", 4, 2, seed=9)
BOX = oracles.draw("box", 4, 2, seed=9)


def check(case: QuadraticCase, **changes: Any) -> Check:
    given: dict[str, Any] = {"upper": case.upper, "lower": case.lower(), "solver": TIGHT, "gradient": EXACT} | changes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return blo.check_hypergrad(
            given["upper"], given["lower"], case.start(), case.z0(), solver=given["solver"], gradient=given["gradient"]
        )


def assert_blamed(found: Check, part: Part, *names: str) -> None:
    """The part is named, in words too, and the ingredients that are wrong are among those given."""
    assert not found.ok and found.culprit is part
    assert f"what is wrong: {part}" in str(found)
    wrong = [one.name for one in (*found.findings, *found.consistency) if not one.ok]
    assert not names or set(wrong) <= set(names), wrong
    assert all(f"WRONG {name}" in str(found) for name in wrong)


@pytest.mark.parametrize("case", [BALL, BOX], ids=["ball", "box"])
def test_nothing_is_blamed_where_nothing_is_wrong(case: QuadraticCase) -> None:
    found = check(case)
    assert found.ok and found.culprit is None
    assert "what is wrong" not in str(found) and "WRONG" not in str(found)
    assert all(one.error < 1e-8 for one in (*found.findings, *found.consistency))


# The lower solve.


@pytest.mark.parametrize(
    "gradient", [EXACT, blo.KKTClosedForm(), blo.Unrolled()], ids=["implicit", "closed", "unrolled"]
)
def test_a_solver_that_stops_early(gradient: blo.gradients.Strategy) -> None:
    case = replace(BALL, A=3 * torch.eye(4).double().numpy(), e=0 * BALL.e)  # so that the closed form is exact
    solver = blo.ProjectedGradient(step=0.05, max_steps=3, tol=None)
    assert_blamed(check(case, solver=solver, gradient=gradient), Part.LOWER, "z - z*")


# The direct part.

UPPERS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "theta": (lambda t, z: BALL.upper(t.detach(), z) + 0 * t.sum(), "df/dtheta"),
    "z": (lambda t, z: BALL.upper(t, z.detach()) + 0 * z.sum(), "df/dz"),
}


@pytest.mark.parametrize(("upper", "name"), UPPERS.values(), ids=UPPERS.keys())
def test_an_upper_objective_that_detaches(upper: Callable[[Tensor, Tensor], Tensor], name: str) -> None:
    found = check(BALL, upper=upper)
    assert_blamed(found, Part.DIRECT, name)


# The tangent. Each set is right but for one of its three parts.


@dataclass(frozen=True, eq=False)
class Wrong(blo.sets.Set):
    """A set whose tangent or motion is tampered with."""

    right: blo.sets.Set
    tamper: Callable[[Tangent], Tangent] = lambda tangent: tangent
    pace: float = 1.0

    def project(self, z: Tensor) -> Tensor:
        return self.right.prox(z, 1.0)

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        return self.tamper(self.right.tangent(z, gradient))

    def motion(self, origin: Self, z: Tensor) -> Tensor:
        return self.pace * self.right.motion(origin.right, z)

    def fit(self, layout: Any) -> Wrong:
        return replace(self, right=self.right.fit(layout))


def without_curvature(tangent: Tangent) -> Tangent:
    return replace(tangent, curvature=0.0)


def without_mask(tangent: Tangent) -> Tangent:
    return replace(tangent, projector=lambda v: v)


def with_all_held(tangent: Tangent) -> Tangent:
    first = torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    return replace(tangent, projector=lambda v: tangent.projector(v) * first)


TANGENTS: dict[str, tuple[QuadraticCase, dict[str, Any]]] = {
    "K of a ball left out": (BALL, {"tamper": without_curvature}),
    "P of a ball left out": (BALL, {"tamper": without_mask}),
    "P of a box left out": (BOX, {"tamper": without_mask}),
    "N of a ball left out": (BALL, {"pace": 0.0}),
    "N of a box doubled": (BOX, {"pace": 2.0}),
}


@pytest.mark.parametrize(("case", "defect"), TANGENTS.values(), ids=TANGENTS.keys())
def test_a_set_with_a_wrong_tangent(case: QuadraticCase, defect: dict[str, Any]) -> None:
    assert len(case.solve(case.theta).rows) > 0
    lower = blo.LowerProblem(case.objective, lambda theta: Wrong(case.constraint(theta)))
    assert check(case, lower=lower).ok
    lower = blo.LowerProblem(case.objective, lambda theta: Wrong(case.constraint(theta), **defect))
    assert_blamed(check(case, lower=lower), Part.TANGENT)


def test_a_set_with_a_wrong_tangent_below_an_objective_in_a_small_unit() -> None:
    def lower(tamper: Callable[[Tangent], Tangent]) -> blo.LowerProblem:
        return blo.LowerProblem(
            lambda theta, z: 1e-12 * BALL.objective(theta, z), lambda theta: Wrong(BALL.constraint(theta), tamper)
        )

    assert check(BALL, lower=lower(lambda tangent: tangent), solver=None).ok
    found = check(BALL, lower=lower(without_curvature), solver=None)
    assert_blamed(found, Part.TANGENT, "P (B dtheta + (H + K) dz)")


def test_an_inactive_inequality_treated_as_active() -> None:
    case = oracles.draw("free", 4, 2, seed=9)
    lower = blo.LowerProblem(case.objective, Wrong(blo.Box(-50.0, 50.0), with_all_held))
    found = check(case, lower=lower)
    assert_blamed(found, Part.TANGENT, "P (dz - N dtheta)")


# The inverse.


class MaskAfterwards(Stationary):
    """Solves with all of H and masks the solution."""

    def model(self, hessian: Operator) -> Operator:
        return hessian

    def invert(self, system: Restricted, b: Tensor, guess: Tensor | None) -> LinearSolution:
        full = torch.linalg.solve(system.operator.dense(b), b)
        return replace(blo.Direct().solve(system, b), x=system.tangent.project(full))


class CurvatureForgotten(Stationary):
    """Leaves K out of the system, whatever the set says."""

    def model(self, hessian: Operator) -> Operator:
        return hessian

    def invert(self, system: Restricted, b: Tensor, guess: Tensor | None) -> LinearSolution:
        return blo.Direct().solve(replace(system, tangent=without_curvature(system.tangent)), b)  # type: ignore[arg-type]


INVERSES: dict[str, tuple[QuadraticCase, blo.gradients.Strategy]] = {
    "zero": (BALL, blo.Zero()),
    "a multiple of the identity": (BALL, blo.HessianFree(0.3)),
    "damping": (BOX, blo.Implicit(blo.Direct(damping=0.1))),
    "too few iterations": (BALL, blo.Implicit(blo.CG(max_iter=1))),
    "mask after the solve": (BOX, MaskAfterwards()),
    "K left out of the solve": (BALL, CurvatureForgotten()),
}


@pytest.mark.parametrize(("case", "gradient"), INVERSES.values(), ids=INVERSES.keys())
def test_an_adjoint_that_does_not_solve_the_system(case: QuadraticCase, gradient: blo.gradients.Strategy) -> None:
    assert_blamed(check(case, gradient=gradient), Part.INVERSE)


class OnceSine(torch.autograd.Function):
    """Torch lets second derivatives through this function pass as zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].cos()


def test_an_objective_whose_second_derivatives_are_lost() -> None:
    case = oracles.draw("free", 4, 2, seed=9)

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        return case.objective(theta, z) + 0.3 * OnceSine.apply(z).sum()

    found = check(case, lower=blo.LowerProblem(objective))
    assert_blamed(found, Part.INVERSE)
    assert "H times a vector" in [one.name for one in found.findings if not one.ok]
    gradient = blo.Implicit(blo.Direct(), products="finite-difference")
    assert check(case, lower=blo.LowerProblem(objective), gradient=gradient).ok


# The cross term.


@dataclass(frozen=True)
class CrossScaled(blo.gradients.Strategy):
    """A right adjoint, and a cross term that is a hundredth too large."""

    right: blo.gradients.Strategy = EXACT

    def rule(self, problem: Any, solve: Any) -> Rule:
        def scaled(pulled: Pulled) -> Pulled:
            return replace(pulled, cotangents=[None if c is None else 1.01 * c for c in pulled.cotangents])

        return TamperedRule(solve, self.right.rule(problem, solve), scaled)


@pytest.mark.parametrize("case", [BALL, BOX], ids=["ball", "box"])
def test_a_cross_term_of_the_wrong_size(case: QuadraticCase) -> None:
    found = check(case, gradient=CrossScaled())
    assert_blamed(found, Part.CROSS, "B' q and N' (v - H q)", "<J d, v> = <d, J' v>")


def test_an_objective_that_hides_theta_from_autograd() -> None:
    case = oracles.draw("free", 4, 2, seed=9)

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        return case.objective(theta, z) + z @ torch.outer(torch.ones(4).double(), theta.detach()) @ theta.detach()

    assert_blamed(check(case, lower=blo.LowerProblem(objective)), Part.CROSS)


def test_a_strategy_without_parts_is_blamed_as_a_whole() -> None:
    @dataclass(frozen=True)
    class Opaque(CrossScaled):
        def rule(self, problem: Any, solve: Any) -> Rule:
            return TamperedRule(solve, CrossScaled.rule(self, problem, solve), lambda pulled: Pulled(pulled.cotangents))

    assert_blamed(check(BALL, gradient=Opaque()), Part.IMPLICIT, "implicit part")


# Consistency without differences of F.


def test_adjointness_and_scale_are_tested() -> None:
    found = {one.name: one for one in check(BALL, gradient=blo.HessianFree(0.3)).consistency}
    assert found["<J d, v> = <d, J' v>"].ok  # a wrong curvature is wrong both ways
    assert found["the implicit part under f -> 4 f"].ok
    assert not found["the implicit part under g -> 4 g"].ok
    early = {one.name: one for one in check(BALL, gradient=blo.Implicit(blo.CG(max_iter=1))).consistency}
    assert not early["<J d, v> = <d, J' v>"].ok  # what one iteration makes of a vector depends on the vector


@pytest.mark.parametrize("products", ["reverse", "finite-difference"])
def test_the_parts_of_a_strategy_that_wraps_another_are_tested(products: Any) -> None:
    found = check(BOX, gradient=blo.SAMA(normal(3, 4).exp(), products=products))
    assert {one.name: one for one in found.findings}["H times a vector"].ok
    assert {one.name: one for one in found.consistency}["<J d, v> = <d, J' v>"].ok  # its diagonal is symmetric
    assert found.culprit is Part.INVERSE  # but not the inverse


def test_lost_second_derivatives_are_found_in_a_strategy_that_wraps_another() -> None:
    case = oracles.draw("free", 4, 2, seed=9)
    lower = blo.LowerProblem(lambda theta, z: case.objective(theta, z) + 0.3 * OnceSine.apply(z).sum())
    wrong = {
        one.name for one in check(case, lower=lower, gradient=blo.SAMA(0.3, products="reverse")).findings if not one.ok
    }
    assert "H times a vector" in wrong


# Problems on which a plain projected gradient method does not arrive.


@pytest.mark.parametrize("constraint", [blo.Free(), blo.Box(-0.3, 0.5), blo.L2Ball(0.5)], ids=["free", "box", "ball"])
def test_ill_conditioned_problems_are_solved_tightly(constraint: blo.sets.Set) -> None:
    """Fifty steps of gradient descent hardly move where the curvature is 1e-5."""
    early = blo.ProjectedGradient(step=1.0, max_steps=50, tol=None)
    A, B, theta = spd(0, (), 6, 1e5), normal(1, 6, 2), normal(2, 2)
    z0 = torch.zeros(6, dtype=torch.float64)

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        return 0.5 * z @ A @ z + z @ A @ B @ theta.sin()

    def upper(theta: Tensor, z: Tensor) -> Tensor:
        return (z - 1).square().sum() + theta.square().sum()

    lower = blo.LowerProblem(objective, constraint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = blo.check_hypergrad(upper, lower, theta, z0, solver=early, gradient=EXACT, directions=2)
    assert found.resolved < 1e-14 and found.settled
    assert all(row.noise < 1e-5 * found.scale for row in found.directions)
    assert found.culprit in (None, Part.LOWER) and found.ok == (found.culprit is None)
    if isinstance(constraint, blo.Free):
        assert found.lower_error > 1e-3 and found.culprit is Part.LOWER
        z = -B @ theta.sin()
        (slope,) = torch.func.vjp(lambda t: upper(t, -B @ t.sin()), theta)[1](torch.ones_like(z[0]))
        assert all(abs(row.measured) <= float(slope.norm()) * (1 + 1e-9) for row in found.directions)


def test_the_noise_floor_holds_what_the_tight_solves_left() -> None:
    """In single precision the solution is known to rounding times the condition, and the slopes accordingly."""
    A, B = spd(0, (), 4, 1e2).float(), normal(1, 4, 2).float()
    lower = blo.LowerProblem(lambda t, z: 0.5 * z @ A @ z + z @ B @ t)
    theta = normal(2, 2).float()
    found = blo.check_hypergrad(
        lambda t, z: z.square().sum(),
        lower,
        theta,
        torch.zeros(4),
        solver=blo.ProjectedGradient(tol=1e-5, max_steps=9999),
    )
    assert found.ok and found.resolved < 1e-4
    left = torch.finfo(torch.float32).eps / 1e-3
    assert all(row.noise > 0.1 * left for row in found.directions)
    assert f"reached a residual of {found.resolved:.2e}" in str(found)


def test_a_problem_that_cannot_be_solved_tightly_is_not_called_right() -> None:
    """In single precision a condition of 1e8 leaves no digit of the solution."""
    A, B, theta = spd(0, (), 4, 1e8).float(), normal(1, 4, 2).float(), normal(2, 2).float()
    lower = blo.LowerProblem(lambda t, z: 0.5 * z @ A @ z + z @ B @ t)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = blo.check_hypergrad(lambda t, z: z.square().sum(), lower, theta, torch.zeros(4), directions=2)
    assert not found.conclusive and not found.ok and found.culprit is not None
    assert "CANNOT BE JUDGED" in str(found)


def test_batches_penalties_and_fixed_points_are_checked() -> None:
    batch = oracles.draw_batch("box", 3, 3, 2, seed=4)
    found = blo.check_hypergrad(batch.upper, batch.lower(), batch.start(), batch.z0(), solver=TIGHT, gradient=EXACT)
    assert found.ok and len(found.findings) > 5
    A, B, theta = spd(0, (), 4, 5.0), normal(1, 4, 2), normal(2, 2)

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        return 0.5 * z @ A @ z + z @ B @ theta

    lasso = blo.LowerProblem(objective, penalty=lambda theta: blo.L1(0.1 * theta.exp().sum()))
    weights = 0.3 * normal(3, 4, 4)
    equilibrium = blo.LowerProblem.fixed_point(lambda t, z: (weights @ z + B @ t).tanh())

    def upper(theta: Tensor, z: Tensor) -> Tensor:
        return (z - 1).square().sum()

    z0 = torch.zeros(4, dtype=torch.float64)
    for lower, solver in ((lasso, TIGHT), (equilibrium, blo.FixedPoint(tol=1e-13))):
        found = blo.check_hypergrad(upper, lower, theta, z0, solver=solver, gradient=blo.Implicit(blo.Direct()))
        assert found.ok and all(one.ok for one in found.findings) and len(found.findings) > 5


def test_the_measured_hypergradient_does_not_depend_on_the_grad_mode() -> None:
    with torch.no_grad():
        silent = blo.value_and_hypergrad(
            BALL.upper, BALL.lower(), BALL.start(), BALL.z0(), solver=TIGHT, gradient=EXACT
        )
    torch.testing.assert_close(silent.grad, as_tensor(BALL.hypergradient(BALL.theta)), rtol=1e-9, atol=1e-9)
    assert not silent.grad.requires_grad
