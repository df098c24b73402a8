"""`argmin` under `.backward()`, `torch.func` and `vmap`: every route gives the Jacobian of the KKT system."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

import blo
from tests import oracles
from tests.integration.problems import (
    EXACT,
    TIGHT,
    as_tensor,
    assert_near,
    few,
    projection_by_hand,
    quick,
    slope_by_hand,
    solution,
)
from tests.oracles import BatchedCase, QuadraticCase
from tests.strategies import SEEDS, batched_cases, normal, quadratic_cases

ALL = [EXACT, blo.Implicit(), blo.KKTClosedForm(), blo.HessianFree(4.0), blo.Unrolled()]


def nearby(case: QuadraticCase, seed: int, lanes: int = 3) -> Tensor:
    """Return a stack of theta at which the case's set is not empty."""
    return case.start() + 0.02 * normal(seed, lanes, len(case.theta))


def jacobians(case: QuadraticCase, thetas: Tensor) -> oracles.Array:
    return np.stack([case.jacobian(theta) for theta in thetas.numpy()])


@quick
@given(quadratic_cases())
def test_backward_accumulates_the_hypergradient(case: QuadraticCase) -> None:
    theta = case.start().requires_grad_()
    case.upper(theta, solution(case)(theta)).backward()
    assert theta.grad is not None
    assert_near(theta.grad, case.hypergradient(case.theta))


@quick
@given(quadratic_cases())
def test_jacrev_is_the_jacobian(case: QuadraticCase) -> None:
    for gradient in (EXACT, blo.Implicit()):
        assert_near(torch.func.jacrev(solution(case, gradient=gradient))(case.start()), case.jacobian(case.theta))


@quick
@given(quadratic_cases(), SEEDS)
def test_grad_inside_vmap(case: QuadraticCase, seed: int) -> None:
    thetas = nearby(case, seed)
    gradient = torch.func.grad(lambda theta: case.upper(theta, solution(case)(theta)))
    assert_near(torch.vmap(gradient)(thetas), np.stack([case.hypergradient(theta) for theta in thetas.numpy()]))


@quick
@given(quadratic_cases(), SEEDS)
def test_jacrev_inside_vmap_and_vmap_inside_jacrev(case: QuadraticCase, seed: int) -> None:
    thetas = nearby(case, seed)
    truth = jacobians(case, thetas)
    assert_near(torch.vmap(torch.func.jacrev(solution(case)))(thetas), truth)
    outside = torch.func.jacrev(torch.vmap(solution(case)))(thetas)
    for i in range(len(thetas)):
        for j in range(len(thetas)):  # one problem does not see the theta of another
            assert_near(outside[i, :, j], truth[i] if i == j else np.zeros_like(truth[i]))


@few
@given(quadratic_cases(), SEEDS)
def test_vmap_inside_vmap(case: QuadraticCase, seed: int) -> None:
    thetas = nearby(case, seed, 6)
    gradient = torch.func.grad(lambda theta: case.upper(theta, solution(case)(theta)))
    found = torch.vmap(torch.vmap(gradient))(thetas.reshape(2, 3, -1))
    truth = np.stack([case.hypergradient(theta) for theta in thetas.numpy()])
    assert_near(found, truth.reshape(2, 3, -1))


@quick
@given(quadratic_cases(), SEEDS)
def test_vmap_over_the_start_reaches_the_one_solution_from_everywhere(case: QuadraticCase, seed: int) -> None:
    starts = normal(seed, 3, len(case.c), scale=3.0)
    theta = case.start().requires_grad_()

    def solved(z0: Tensor) -> Tensor:
        z: Tensor = blo.argmin(case.lower(), theta, z0, solver=TIGHT, gradient=EXACT)
        return z

    found = torch.vmap(solved)(starts)
    assert_near(found.detach(), np.tile(case.solution(case.theta), (3, 1)))
    w = normal(seed + 1, len(case.c))
    pulled = torch.autograd.grad(found, theta, w.expand(3, -1), allow_unused=True, materialize_grads=True)[0]
    assert_near(pulled, 3 * case.jacobian(case.theta).T @ w.numpy())


@few
@given(quadratic_cases(), SEEDS)
def test_vmap_takes_the_axis_it_is_told(case: QuadraticCase, seed: int) -> None:
    thetas = nearby(case, seed)
    found = torch.vmap(solution(case), in_dims=1, out_dims=1)(thetas.T.contiguous())
    assert_near(found.T, np.stack([case.solution(theta) for theta in thetas.numpy()]))


@few
@given(quadratic_cases(), SEEDS)
def test_vmap_over_one_leaf_of_theta_shares_the_other(case: QuadraticCase, seed: int) -> None:
    shifts = 0.02 * normal(seed, 3, len(case.theta))
    lower = blo.LowerProblem(
        lambda theta, z: case.objective(theta["base"] + theta["shift"], z),
        lambda theta: case.constraint(theta["base"] + theta["shift"]),
    )

    def value(base: Tensor, shift: Tensor) -> Tensor:
        z = blo.argmin(lower, {"base": base, "shift": shift}, case.z0(), solver=TIGHT, gradient=EXACT)
        return case.upper(base + shift, z)

    thetas = (case.start() + shifts).numpy()
    truth = np.stack([case.hypergradient(theta) for theta in thetas])
    assert_near(torch.vmap(torch.func.grad(value), in_dims=(None, 0))(case.start(), shifts), truth)
    shared = torch.func.grad(lambda base: torch.vmap(value, in_dims=(None, 0))(base, shifts).sum())
    assert_near(shared(case.start()), truth.sum(0))


@few
@given(batched_cases(), SEEDS)
def test_vmap_over_a_batched_problem(case: BatchedCase, seed: int) -> None:
    thetas = case.start() + 0.02 * normal(seed, 2, len(case.theta))

    def value(theta: Tensor) -> Tensor:
        return case.upper(theta, blo.argmin(case.lower(), theta, case.z0(), solver=TIGHT, gradient=EXACT))

    found = torch.vmap(torch.func.grad(value))(thetas)
    assert_near(found, np.stack([case.hypergradient(theta) for theta in thetas.numpy()]))


@pytest.mark.parametrize("gradient", ALL, ids=str)
@few
@given(case=quadratic_cases(), seed=SEEDS)
def test_every_strategy_on_a_linearised_problem_is_autodiff_through_the_step(
    gradient: blo.gradients.Strategy, case: QuadraticCase, seed: int
) -> None:
    """With the curvature that `HessianFree` assumes, all of them are exact, under every transform."""
    anchor, thetas = normal(seed, len(case.c)), nearby(case, seed)
    lower = case.lower().linearize(anchor, 4.0)

    def solved(theta: Tensor) -> Tensor:
        z: Tensor = blo.argmin(lower, theta, anchor, solver=blo.OneStep(0.25), gradient=gradient)
        return z

    def by_hand(theta: Tensor) -> Tensor:
        return projection_by_hand(case, theta, anchor - slope_by_hand(case, theta, anchor) / 4.0)

    truth = torch.stack([torch.autograd.functional.jacobian(by_hand, theta) for theta in thetas])
    assert_near(torch.func.jacrev(solved)(thetas[0]), truth[0], 1e-10)
    assert_near(torch.vmap(torch.func.jacrev(solved))(thetas), truth, 1e-10)
    live = thetas[0].clone().requires_grad_()
    w = normal(seed + 1, len(case.c))
    assert_near(torch.autograd.grad(solved(live), live, w)[0], w @ truth[0], 1e-10)


@few
@given(quadratic_cases(), SEEDS)
def test_unrolled_works_under_transforms(case: QuadraticCase, seed: int) -> None:
    """With two steps: far from a solution, so that only autodiff through the same two steps agrees."""
    thetas = nearby(case, seed)
    solver = blo.ProjectedGradient(step=0.3, max_steps=2, tol=None)

    def by_hand(theta: Tensor) -> Tensor:
        z = case.z0()
        for _ in range(2):
            z = projection_by_hand(case, theta, z - 0.3 * slope_by_hand(case, theta, z))
        return z

    truth = torch.stack([torch.autograd.functional.jacobian(by_hand, theta) for theta in thetas])
    solved = solution(case, solver=solver, gradient=blo.Unrolled())
    assert_near(torch.func.jacrev(solved)(thetas[0]), truth[0], 1e-11)
    assert_near(torch.vmap(torch.func.jacrev(solved))(thetas), truth, 1e-11)


@few
@given(quadratic_cases(), SEEDS)
def test_zero_gives_a_constant_under_every_transform(case: QuadraticCase, seed: int) -> None:
    solved = solution(case, gradient=blo.Zero())
    thetas = nearby(case, seed)
    assert not solved(case.start().requires_grad_()).requires_grad
    assert not torch.vmap(torch.func.jacrev(solved))(thetas).any()
    direct = torch.vmap(torch.func.grad(lambda theta: case.upper(theta, solved(theta))))(thetas)
    assert_near(direct, np.stack([case.direct(theta) for theta in thetas.numpy()]))


def test_an_optimiser_descends_on_the_value_function() -> None:
    case = oracles.draw("simplex", 4, 3, seed=7)
    theta = torch.nn.Parameter(case.start())
    optimizer = torch.optim.SGD([theta], lr=0.05)
    solver = blo.ProjectedGradient(tol=1e-10)
    values = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = case.upper(theta, blo.argmin(case.lower(), theta, case.z0(), solver=solver))
        loss.backward()
        values.append(loss.item())
        assert_near(theta.grad, case.hypergradient(theta.detach().numpy()), 1e-8)
        optimizer.step()
    assert values == sorted(values, reverse=True)
    assert as_tensor(values[-1]) < as_tensor(values[0])
