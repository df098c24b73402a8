"""Every linear solver inside the library: on sets, in the backward pass of `argmin`, under transforms, in reports."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

import blo
from tests import oracles
from tests.integration.problems import TIGHT, as_tensor, assert_near, few, hypergradient, solution
from tests.oracles import BatchedCase, QuadraticCase
from tests.strategies import SEEDS, batched_cases, normal, quadratic_cases

SOLVERS = [
    blo.CG(),
    blo.MINRES(),
    blo.GMRES(),
    blo.Auto(direct=0),
    blo.Nystrom(rank=8, damping=1e-10),
    blo.Neumann(terms=400, tol=1e-9),
    blo.CG(preconditioner=blo.Nystrom(rank=2, damping=0.1)),
    blo.MINRES(preconditioner=lambda v: v / torch.arange(1.0, v.shape[-1] + 1, dtype=v.dtype)),
    blo.GMRES(preconditioner=lambda v: v / torch.arange(1.0, v.shape[-1] + 1, dtype=v.dtype)),
]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=range(len(SOLVERS)))


@each_solver
@few
@given(case=quadratic_cases())
def test_the_hypergradient_is_that_of_the_kkt_system(solver: blo.linsolve.LinearSolver, case: QuadraticCase) -> None:
    out = hypergradient(case, gradient=blo.Implicit(solver))
    assert_near(out.grad, case.hypergradient(case.theta), 1e-7)
    assert out.report.ok and type(solver).__name__ in str(out.report).splitlines()[1]


@each_solver
@few
@given(case=batched_cases())
def test_a_batch_is_differentiated_together(solver: blo.linsolve.LinearSolver, case: BatchedCase) -> None:
    out = blo.value_and_hypergrad(
        case.upper, case.lower(), case.start(), case.z0(), solver=TIGHT, gradient=blo.Implicit(solver)
    )
    assert_near(out.grad, case.hypergradient(case.theta), 1e-7)


@each_solver
@pytest.mark.parametrize("kind", oracles.KINDS)
def test_backward_jacrev_and_vmap(solver: blo.linsolve.LinearSolver, kind: oracles.Kind) -> None:
    case = oracles.draw(kind, 4, 2, seed=3)
    z = solution(case, gradient=blo.Implicit(solver))
    theta = case.start().requires_grad_()
    case.upper(theta, z(theta)).backward()
    assert_near(theta.grad, case.hypergradient(case.theta), 1e-7)
    assert_near(torch.func.jacrev(z)(case.start()), case.jacobian(case.theta), 1e-7)
    thetas = case.start() + 0.02 * normal(0, 3, 2)
    grads = torch.func.vmap(torch.func.grad(lambda theta: case.upper(theta, z(theta))))(thetas)
    assert_near(grads, np.stack([case.hypergradient(theta) for theta in thetas.numpy()]), 1e-7)


@each_solver
def test_second_derivatives(solver: blo.linsolve.LinearSolver) -> None:
    case = oracles.draw("box", 4, 2, seed=3)
    z = solution(case, gradient=blo.Implicit(solver))
    found = torch.func.jacrev(torch.func.grad(lambda theta: case.upper(theta, z(theta))))(case.start())
    truth = oracles.central_difference(case.hypergradient, case.theta)
    assert_near(found, truth, 1e-6)


@few
@given(case=quadratic_cases(kinds=("box", "simplex", "ball")), seed=SEEDS)
def test_a_stale_guess_off_the_tangent_space_does_no_harm(case: QuadraticCase, seed: int) -> None:
    """Even to a series whose step suits the tangent space alone: the rest is the identity there."""
    lower = blo.LowerProblem(lambda theta, z: 1e-2 * case.objective(theta, z), case.constraint)
    z = as_tensor(case.solution(case.theta))
    state = {"z": z, "q": normal(seed, len(case.c))}
    for solver in (blo.CG(), blo.Neumann(terms=400, tol=1e-9)):
        gradient, given = blo.Implicit(solver), blo.External(lambda theta, z0: z0)
        warm = blo.value_and_hypergrad(case.upper, lower, case.start(), z, solver=given, gradient=gradient, state=state)
        assert_near(warm.grad, case.hypergradient(case.theta), 1e-6)


def test_the_default_solves_an_indefinite_point_and_says_so() -> None:
    """At a saddle the formula has a value, which is returned with a warning."""

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        return 0.5 * (z * z * as_tensor(np.array([1.0, -2.0, 3.0]))).sum() - theta @ z

    theta, q = torch.ones(3, dtype=torch.float64), torch.tensor([1.0, -0.5, 1 / 3], dtype=torch.float64)
    for solver in (blo.Auto(), blo.Auto(direct=0), blo.MINRES()):
        with pytest.warns(blo.ConvergenceWarning, match="curvature is not positive"):
            out = blo.value_and_hypergrad(
                lambda theta, z: z.sum(),
                blo.LowerProblem(objective),
                theta,
                q * theta,
                solver=blo.External(lambda theta, z0: z0),
                gradient=blo.Implicit(solver),
            )
        assert_near(out.grad, q, 1e-12)
        assert out.report.linear_status is blo.Status.INDEFINITE
