"""The machinery of the implicit function theorem: products at a point, their cost, and what they leave behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import blo
from blo._parametric_problem import ParametricProblem
from blo.gradients._point import ReversePoint
from tests import oracles
from tests.oracles import QuadraticCase
from tests.strategies import SEEDS, normal, quadratic_cases

quick = settings(deadline=None, max_examples=20)
IMPLICIT = [blo.Implicit(blo.Direct()), blo.Implicit(), blo.KKTClosedForm(), blo.HessianFree(1.0)]


@quick
@given(quadratic_cases(kinds=("box", "ball", "simplex"), moving=True), SEEDS)
def test_a_moving_face_adds_its_share_to_the_cross_term(case: QuadraticCase, seed: int) -> None:
    """With an adjoint of zero the term is `N' v`, the derivative of `v . z` along the motion of the face."""
    z, v = torch.as_tensor(case.solution(case.theta)), normal(seed, len(case.c))
    theta = case.start().requires_grad_()
    problem, _, _ = ParametricProblem.of(case.lower(), theta, z)
    (found,) = ReversePoint(problem.bind([theta]), z).cross(torch.zeros_like(v), v)
    rows, n = case.solve(case.theta).rows, len(z)
    tangent_and_normal = np.block([[np.eye(n), rows.T], [rows, np.zeros((len(rows),) * 2)]])
    # The least motion that keeps the active constraints: differences of the same minimiser re-solved by KKT.
    dz = oracles.central_difference(case.solution, case.theta)
    face = dz - np.linalg.solve(tangent_and_normal, np.vstack([dz, np.zeros((len(rows), dz.shape[1]))]))[:n]
    truth = face.T @ v.numpy()
    if case.kind == "ball":  # the centre carries the tangent directions along, too
        bound = case.center_slope if len(rows) else np.zeros_like(dz)
        outward = rows[0] / np.linalg.norm(rows[0]) if len(rows) else np.zeros(n)
        truth = (bound + np.outer(outward, case.size_slope if len(rows) else 0 * case.size_slope)).T @ v.numpy()
    np.testing.assert_allclose(np.zeros(len(case.theta)) if found is None else found, truth, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("gradient", IMPLICIT, ids=str)
@pytest.mark.parametrize("moving", [False, True])
def test_one_graph_serves_every_product(moving: bool, gradient: blo.gradients.Strategy) -> None:
    """One call of the objective beyond those of the solver, however many products the linear solve takes."""
    case, calls = oracles.draw("box", 6, 3, seed=0, moving=moving), []

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        calls.append(1)
        return case.objective(theta, z)

    solver = blo.ProjectedGradient(0.05, max_steps=5, tol=None)
    blo.value_and_hypergrad(
        case.upper,
        blo.LowerProblem(objective, case.constraint),
        case.start(),
        case.z0(),
        solver=solver,
        gradient=gradient,
        on_failure="ignore",
    )
    assert len(calls) == 5 + 1


@pytest.mark.parametrize("kind", oracles.KINDS)
@pytest.mark.parametrize("gradient", IMPLICIT, ids=str)
def test_the_adjoint_carries_no_graph(gradient: blo.gradients.Strategy, kind: oracles.Kind) -> None:
    """Else a linear solve would keep all its iterates in memory, and a state would drag theta along."""
    case = oracles.draw(kind, 4, 2, seed=0)
    out = blo.value_and_hypergrad(
        case.upper, case.lower(), case.start(), case.z0(), gradient=gradient, on_failure="ignore"
    )
    assert not out.state["q"].requires_grad
    assert not out.report.pulled.linear.residual.requires_grad
    assert not out.report.pulled.optimality.residual.requires_grad


def test_a_leaf_of_theta_that_does_not_enter_has_no_cotangent() -> None:
    lower = blo.LowerProblem(lambda t, z: 0.5 * (z - t["in"]).square().sum())
    theta = {"in": torch.ones(2).double(), "out": torch.ones(3).double()}
    out = blo.value_and_hypergrad(lambda t, z: z.sum() + t["out"].square().sum(), lower, theta, torch.zeros(2).double())
    assert out.report.depends_on_theta
    assert torch.equal(out.implicit["out"], torch.zeros(3).double())
    torch.testing.assert_close(out.grad, {"in": torch.ones(2).double(), "out": 2 * torch.ones(3).double()})


def test_the_default_suits_the_system_and_the_tolerance_is_the_solvers() -> None:
    assert isinstance(blo.Implicit().linear_solver, blo.Auto)
    assert blo.Implicit(blo.Neumann()).tol is None
    assert blo.Implicit(blo.CG(tol=1e-3)).tol == 1e-3
    assert blo.Implicit(blo.Direct()).tol == blo.Direct().tol


@quick
@given(quadratic_cases(), SEEDS)
def test_damping_is_that_of_a_heavier_hessian(case: QuadraticCase, seed: int) -> None:
    """The damped adjoint at the same point solves the KKT system with `H + d I` in place of H."""
    damping = 0.7
    found = case.solve(case.theta)
    n, k = len(case.c), len(found.rows)
    bent = case.hessian(case.theta) + (found.bend + damping) * np.eye(n)
    system = np.block([[bent, found.rows.T], [found.rows, np.zeros((k, k))]])
    q = np.linalg.solve(system, np.concatenate([case.cotangent(case.theta), np.zeros(k)]))[:n]
    solver = blo.ProjectedGradient(tol=1e-12, max_steps=20_000)
    for linear_solver in (blo.Direct(damping=damping), blo.CG(damping=damping)):
        gradient = blo.Implicit(linear_solver)
        out = blo.value_and_hypergrad(
            case.upper, case.lower(), case.start(), case.z0(), solver=solver, gradient=gradient
        )
        np.testing.assert_allclose(out.state["q"], q, rtol=1e-9, atol=1e-9)
        assert out.report.linear_residual <= 1e-9
