"""Hypergradients with penalties and general sets, fixed and moving, against dense optimality systems in NumPy."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import blo
from tests import oracles, term_oracles
from tests.integration.problems import EXACT, TIGHT, assert_near, hypergradient, solution
from tests.strategies import normal
from tests.term_oracles import TermCase

KINDS = tuple(term_oracles.KINDS)


def cases(kind: str, number: int = 2, **options: float) -> list[TermCase]:
    """Return cases of a kind, alternately moving and fixed, whose faces hold something and leave something free."""
    found: list[TermCase] = []
    number = 1 if term_oracles.KINDS[kind].slow else number
    seed = 100
    while len(found) < number:
        seed += 1
        case = term_oracles.draw(kind, 4, 2, seed, moving=len(found) % 2 == 0, **options)
        if np.linalg.matrix_rank(case.jacobian(case.theta), tol=1e-6) > 0 and case.held(case.theta):
            found.append(case)
    return found


def value_of(case: TermCase, gradient: blo.gradients.Strategy = EXACT):  # type: ignore[no-untyped-def]
    return lambda theta: case.upper(theta, solution(case, gradient=gradient)(theta))


@pytest.mark.parametrize("kind", KINDS)
def test_1_the_closed_form_differentiates_like_the_projected_step_it_stands_for(kind: str) -> None:
    """Once and twice: so the derivatives of the proximal operator are those of the tangent, curvature and motion."""
    for case in cases(kind):
        anchor = torch.as_tensor(case.solution(case.theta)) + 0.1 * normal(3, 4)
        lower = case.lower().linearize(anchor, 4.0)

        def value(
            theta: Tensor, gradient: blo.gradients.Strategy, case: TermCase, lower: Any, anchor: Tensor
        ) -> Tensor:
            z = blo.argmin(lower, theta, anchor, solver=blo.OneStep(0.25), gradient=gradient)
            return case.upper(theta, z)

        for derivative in (torch.func.grad(value), torch.func.jacrev(torch.func.grad(value))):
            truth = derivative(case.start(), blo.Unrolled(), case, lower, anchor)
            for gradient in (blo.KKTClosedForm(), blo.Implicit(), blo.HessianFree(4.0)):
                assert_near(derivative(case.start(), gradient, case, lower, anchor), truth, 1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("products", ["reverse", "forward", "finite-difference"])
def test_5_the_hypergradient_is_that_of_the_optimality_system(kind: str, products: str) -> None:
    for case in cases(kind, 3):
        out = hypergradient(case, gradient=blo.Implicit(blo.Direct(), products=products))
        assert_near(out.z, case.solution(case.theta), 1e-10)
        assert_near(out.grad, case.hypergradient(case.theta), 1e-8)
        assert out.report.ok


@pytest.mark.parametrize("kind", KINDS)
def test_5_the_hypergradient_is_that_of_a_resolved_problem_and_of_a_long_unroll(kind: str) -> None:
    for case in cases(kind):
        truth = case.differences(case.theta)
        assert_near(hypergradient(case, gradient=blo.Implicit()).grad, truth)
        if not term_oracles.KINDS[kind].slow:
            assert_near(hypergradient(case, gradient=blo.Unrolled()).grad, truth)


@pytest.mark.parametrize("kind", KINDS)
def test_argmin_is_differentiated_twice_and_under_vmap(kind: str) -> None:
    for case in cases(kind):
        truth = oracles.central_difference(case.hypergradient, case.theta)
        assert_near(torch.autograd.functional.hessian(value_of(case), case.start()), truth, 1e-8)
        hessian = torch.func.jacrev(torch.func.grad(value_of(case)))
        assert_near(hessian(case.start()), truth, 1e-8)
        assert_near(torch.vmap(hessian)(case.start().expand(2, -1)), np.stack([truth, truth]), 1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_over_theta_solves_and_differentiates_every_problem(kind: str) -> None:
    for case in cases(kind):
        thetas = case.start() + 0.01 * normal(1, 3, 2)
        found = torch.vmap(torch.func.jacrev(solution(case)))(thetas)
        assert_near(found, np.stack([case.jacobian(theta) for theta in thetas.numpy()]))


@pytest.mark.parametrize("kind", KINDS)
def test_7_jacobian_and_transpose_are_adjoint(kind: str) -> None:
    for case in cases(kind):
        t, w = normal(1, 2), normal(2, 4).requires_grad_()
        theta = case.start().requires_grad_()
        (pulled,) = torch.autograd.grad(solution(case)(theta), theta, w, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled, w, t)
        assert_near((pushed * w).sum(), (t * pulled).sum())
        assert_near(pushed, case.jacobian(case.theta) @ t.numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_8_scaling_the_lower_problem_leaves_the_jacobian(kind: str) -> None:
    for case in cases(kind):
        # Where projections are iterations, the start is the solution and a residual of their accuracy is asked for;
        # and a scale above one would ask for projections from further away.
        solver = blo.ProjectedGradient(tol=1e-8 if term_oracles.KINDS[kind].slow else 1e-11, max_steps=20_000)
        solve = partial(blo.argmin, case.scaled(0.5), z0=case.z0(), solver=solver, gradient=EXACT)
        assert_near(torch.func.jacrev(solve)(case.start()), case.jacobian(case.theta), 1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_9_a_batch_is_its_lanes(kind: str) -> None:
    theta = 0.5 * np.random.default_rng(0).normal(size=2)
    lanes = [term_oracles.draw(kind, 4, 2, seed, theta=theta) for seed in (1, 2, 3)]

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        return torch.stack([case.objective(theta, row) for case, row in zip(lanes, z, strict=True)])

    def upper(theta: Tensor, z: Tensor) -> Tensor:
        return torch.stack([case.upper(theta, row) for case, row in zip(lanes, z, strict=True)]).sum()

    lower = term_oracles.batch(lanes, objective)
    z0 = torch.zeros(3, 4, dtype=torch.float64)
    out = blo.value_and_hypergrad(upper, lower, torch.as_tensor(theta), z0, solver=TIGHT, gradient=EXACT)
    assert_near(out.z, np.stack([case.solution(theta) for case in lanes]))
    assert_near(out.grad, np.sum([case.hypergradient(theta) for case in lanes], axis=0))
