"""Accelerated proximal gradient descent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from sklearn.linear_model import Lasso
from torch import Tensor

import blo
from tests.lower import Counted, assert_unrolls, bowl, minimise, project, quadratic, solve
from tests.oracles import QuadraticCase
from tests.strategies import SEEDS, normal, quadratic_cases

quick = settings(deadline=None, max_examples=20)
TIGHT = blo.FISTA(tol=1e-11, max_steps=5000)


@quick
@given(quadratic_cases(), SEEDS)
def test_the_steps_are_those_of_a_loop_in_numpy(case: QuadraticCase, seed: int) -> None:
    step = 0.5 / float(np.linalg.eigvalsh(case.hessian(case.theta)).max())
    z0 = normal(seed, len(case.c), scale=3.0)
    base = last = z0.numpy()
    age = 1.0
    for _ in range(12):
        near = project(case, base - step * case.gradient(case.theta, base))
        if (base - near) @ (near - last) > 0:
            age = 1.0
        older = (1 + np.sqrt(1 + 4 * age**2)) / 2
        base, last, age = near + (age - 1) / older * (near - last), near, older
    found = solve(case.lower(), z0, blo.FISTA(step, max_steps=12, tol=None), case.start())
    # The last trial is the proximal point itself, not the extrapolated one.
    np.testing.assert_allclose(found.z, last, rtol=1e-10, atol=1e-10)
    assert (found.residual, found.tol, found.steps) == (None, None, 12)


@pytest.mark.parametrize("max_steps", [1, 2, 3, 7, 20, 50])
@pytest.mark.parametrize("constraint", [blo.Simplex(1.0), blo.Box(-0.2, 0.3), blo.L2Ball(0.5)], ids=str)
def test_whatever_is_returned_is_feasible_and_its_residual_is_measured_there(
    constraint: blo.sets.Set, max_steps: int
) -> None:
    matrix, b = quadratic(3, 8, 1e3)
    z0 = constraint.project(torch.zeros(8).double())
    solver = blo.FISTA(max_steps=max_steps, tol=1e-9)
    found = minimise(lambda z: 0.5 * z @ matrix @ z - b @ z, z0, solver, constraint)
    torch.testing.assert_close(constraint.project(found.z), found.z, rtol=0, atol=1e-15)
    residual = (found.z - constraint.project(found.z - (matrix @ found.z - b))).norm()
    torch.testing.assert_close(found.residual, residual, rtol=1e-10, atol=1e-15)
    start = (z0 - constraint.project(z0 - (matrix @ z0 - b))).norm()
    assert found.residual is not None and found.residual < start


def test_the_lasso_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    features, weights = rng.normal(size=(40, 15)), rng.normal(size=15) * (rng.uniform(size=15) < 0.4)
    targets = features @ weights + 0.1 * rng.normal(size=40)
    x, y = torch.as_tensor(features), torch.as_tensor(targets)
    lower = blo.LowerProblem(lambda t, z: (x @ z - y).square().sum() / 80, penalty=blo.L1(0.1))
    found = solve(lower, torch.zeros(15).double(), TIGHT)
    truth = Lasso(alpha=0.1, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(features, targets).coef_
    np.testing.assert_allclose(found.z, truth, rtol=1e-7, atol=1e-9)
    assert 0 < (truth == 0).sum() < 15
    np.testing.assert_array_equal(found.z.numpy() == 0, truth == 0)  # sparse to the bit


@pytest.mark.parametrize("constraint", [blo.Free(), blo.NonNegative()], ids=str)
@pytest.mark.parametrize("step", [None, 1.0])
def test_an_ill_conditioned_problem_takes_far_fewer_gradients_than_plain_descent(
    step: float | None, constraint: blo.sets.Set
) -> None:
    matrix, b = quadratic(1, 40, 2000.0)
    loss = Counted(lambda z: 0.5 * z @ matrix @ z - b @ z)
    found = minimise(loss, torch.zeros(40).double(), blo.FISTA(step, tol=1e-9, max_steps=3000), constraint)
    calls = loss.calls
    assert found.residual is not None and found.residual <= 1e-9
    assert 0 <= calls - found.steps - 1 <= found.steps // 200
    plain = blo.ProjectedGradient(step, tol=1e-9, max_steps=3 * calls)
    slow = minimise(loss, torch.zeros(40).double(), plain, constraint)
    assert slow.residual is not None and slow.residual > 1e-9


def test_a_condition_of_ten_thousand_takes_a_small_multiple_of_its_root() -> None:
    """Linear convergence at the rate of `1 - 1/sqrt(condition)`, which a step lost in growing must not spoil."""
    matrix, b = quadratic(1, 50, 1e4)
    found = minimise(
        lambda z: 0.5 * z @ matrix @ z - b @ z / b.norm(),
        torch.zeros(50).double(),
        blo.FISTA(tol=1e-10, max_steps=4000),
    )
    assert found.residual is not None and found.residual <= 1e-10


def test_lanes_do_not_see_each_other_and_rest_when_done() -> None:
    curvature = torch.tensor([[1.0, 0.5], [1.0, 0.1], [3.0, 0.01]], dtype=torch.float64)

    def function(z: Tensor, curvature: Tensor = curvature) -> Tensor:
        return 0.5 * (curvature * (z - 1).square()).sum(-1)

    z0 = normal(1, 3, 2)
    ball = blo.L2Ball(5.0)
    together = minimise(function, z0, TIGHT, ball, batched=True)
    steps = []
    for lane in range(3):
        alone = minimise(lambda z, i=lane: function(z, curvature[i]), z0[lane], TIGHT, ball)
        torch.testing.assert_close(together.z[lane], alone.z, rtol=1e-13, atol=1e-13)
        steps.append(alone.steps)
    assert max(steps) == together.steps and min(steps) < together.steps


@pytest.mark.parametrize("constraint", [blo.Free(), blo.L2Ball(0.5), blo.Simplex(1.0)], ids=str)
def test_unrolled_is_the_derivative_of_its_steps(constraint: blo.sets.Set) -> None:
    solver = blo.FISTA(0.7, max_steps=6, tol=None)
    assert_unrolls(blo.LowerProblem(bowl, constraint), 0.5 * normal(4, 4), torch.full((3,), 0.1).double(), solver)


def test_the_start_is_not_changed_and_kept_when_it_solves() -> None:
    z0 = torch.ones(2).double()
    assert torch.equal(minimise(lambda z: (z - 1).square().sum(), z0, blo.FISTA()).z, z0)
    minimise(lambda z: (z - 3).square().sum(), z0, blo.FISTA())
    assert torch.equal(z0, torch.ones(2).double())
