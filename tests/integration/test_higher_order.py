"""Second and third derivatives, and a third level: against differences of exact first derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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
from tests.oracles import Array, BatchedCase, QuadraticCase
from tests.strategies import SEEDS, batched_cases, normal, quadratic_cases


def value_of(case: QuadraticCase, gradient: blo.gradients.Strategy = EXACT):  # type: ignore[no-untyped-def]
    """Return F as a differentiable function of theta."""
    return lambda theta: case.upper(theta, solution(case, gradient=gradient)(theta))


@pytest.mark.parametrize("kind", oracles.KINDS)
@quick
@given(seed=SEEDS, moving=st.booleans(), n=st.integers(1, 4), m=st.integers(1, 3))
def test_the_hessian_of_the_value_function(kind: oracles.Kind, seed: int, moving: bool, n: int, m: int) -> None:
    case = oracles.draw(kind, n, m, seed, moving=moving)
    truth = oracles.central_difference(case.hypergradient, case.theta)
    assert_near(torch.func.jacrev(torch.func.grad(value_of(case)))(case.start()), truth)


@few
@given(quadratic_cases())
def test_the_hessian_by_conjugate_gradients_and_by_double_backward(case: QuadraticCase) -> None:
    truth = oracles.central_difference(case.hypergradient, case.theta)
    found = torch.autograd.functional.hessian(value_of(case, blo.Implicit()), case.start())
    assert_near(found, truth)


@few
@given(quadratic_cases(), SEEDS)
def test_the_hessian_inside_vmap(case: QuadraticCase, seed: int) -> None:
    thetas = case.start() + 0.01 * normal(seed, 2, len(case.theta))
    truth = [oracles.central_difference(case.hypergradient, theta) for theta in thetas.numpy()]
    found = torch.vmap(torch.func.jacrev(torch.func.grad(value_of(case))))(thetas)
    for each, expected, theta in zip(found, truth, thetas.numpy(), strict=True):
        if case.margin(theta) > 0.02:
            assert_near(each, expected)


@few
@given(batched_cases())
def test_the_hessian_of_a_batched_problem(case: BatchedCase) -> None:
    def value(theta: Tensor) -> Tensor:
        return case.upper(theta, blo.argmin(case.lower(), theta, case.z0(), solver=TIGHT, gradient=EXACT))

    truth = oracles.central_difference(case.hypergradient, case.theta)
    assert_near(torch.func.jacrev(torch.func.grad(value))(case.start()), truth)


@few
@given(quadratic_cases(), SEEDS)
def test_the_closed_form_differentiates_twice_like_the_step_it_stands_for(case: QuadraticCase, seed: int) -> None:
    anchor = normal(seed, len(case.c))
    lower = case.lower().linearize(anchor, 3.0)

    def value(theta: Tensor, gradient: blo.gradients.Strategy) -> Tensor:
        return case.upper(theta, blo.argmin(lower, theta, anchor, solver=blo.OneStep(1 / 3.0), gradient=gradient))

    def by_hand(theta: Tensor) -> Tensor:
        z = projection_by_hand(case, theta, anchor - slope_by_hand(case, theta, anchor) / 3.0)
        return case.upper(theta, z)

    truth = torch.autograd.functional.hessian(by_hand, case.start())
    for gradient in (blo.KKTClosedForm(), blo.Implicit(), blo.HessianFree(3.0), blo.Unrolled()):
        found = torch.func.jacrev(torch.func.grad(value))(case.start(), gradient)
        assert_near(found, truth, 1e-10)


@pytest.mark.parametrize("kind", oracles.KINDS)
def test_third_derivatives(kind: oracles.Kind) -> None:
    case = oracles.draw(kind, 3, 2, seed=5, margin=0.1)

    def hessian(theta: Array) -> Array:
        return oracles.central_difference(case.hypergradient, theta, step=4e-3).ravel()

    truth = oracles.central_difference(hessian, case.theta, step=4e-3).reshape(2, 2, 2)
    found = torch.func.jacrev(torch.func.jacrev(torch.func.grad(value_of(case))))(case.start())
    assert_near(found, truth, 1e-8)


def test_the_hessian_on_a_product_of_moving_sets() -> None:
    cases = [oracles.draw(kind, 3, 2, seed=11, theta=np.array([0.3, -0.4])) for kind in ("ball", "simplex", "box")]
    lower = blo.LowerProblem(
        lambda theta, z: sum(case.objective(theta, part) for case, part in zip(cases, z, strict=True)),
        lambda theta: blo.Product(*(case.constraint(theta) for case in cases)),
    )
    z0 = tuple(case.z0() for case in cases)

    def value(theta: Tensor) -> Tensor:
        z = blo.argmin(lower, theta, z0, solver=TIGHT, gradient=EXACT)
        return sum((case.upper(theta, part) for case, part in zip(cases, z, strict=True)), theta.new_zeros(()))

    def slope(theta: Array) -> Array:
        return np.sum([case.hypergradient(theta) for case in cases], axis=0)

    truth = oracles.central_difference(slope, cases[0].theta)
    assert_near(torch.func.jacrev(torch.func.grad(value))(cases[0].start()), truth)


class ThreeLevels:
    """Lower: a case in z, whose upper variable is (theta, y). Middle: in y, with z*(theta, y) in its objective.

    Middle objective `1/2 |y - D theta|^2 + a/2 |z*|^2`, upper objective `sum(cos y) + theta . y`.
    """

    weight = 0.1

    def __init__(self, kind: oracles.Kind, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.D = rng.normal(size=(2, 2))
        self.theta = 0.5 * rng.normal(size=2)
        while True:
            joint = np.concatenate([self.theta, 0.5 * rng.normal(size=2)])
            self.inner = oracles.draw(kind, 3, 4, int(rng.integers(2**31)), theta=joint)
            if self.inner.margin(np.concatenate([self.theta, self.middle(self.theta)])) > 0.05:
                return

    def middle(self, theta: Array) -> Array:
        """Return y*, the fixed point of `y = D theta - a (dz/dy)' z`."""
        y = self.D @ theta
        for _ in range(200):
            joint = np.concatenate([theta, y])
            y = self.D @ theta - self.weight * self.inner.jacobian(joint)[:, 2:].T @ self.inner.solution(joint)
        return y

    def value(self, theta: Array) -> Array:
        y = self.middle(theta)
        return np.array([np.cos(y).sum() + theta @ y])

    def middle_objective(self, theta: Tensor, y: Tensor) -> Tensor:
        z = solution(self.inner)(torch.cat([theta, y]))
        return 0.5 * (y - as_tensor(self.D) @ theta).square().sum() + 0.5 * self.weight * z.square().sum()

    @staticmethod
    def upper(theta: Tensor, y: Tensor) -> Tensor:
        return y.cos().sum() + theta @ y


@pytest.mark.parametrize("kind", oracles.KINDS)
def test_an_argmin_inside_an_objective_is_a_third_level(kind: oracles.Kind) -> None:
    levels = ThreeLevels(kind, seed=3)
    truth = oracles.central_difference(levels.value, levels.theta)[0]
    lower = blo.LowerProblem(levels.middle_objective)
    z0, theta = torch.zeros(2, dtype=torch.float64), as_tensor(levels.theta)
    solver = blo.ProjectedGradient(tol=1e-11)
    out = blo.value_and_hypergrad(levels.upper, lower, theta, z0, solver=solver, gradient=EXACT)
    assert_near(out.z, levels.middle(levels.theta))
    assert_near(out.grad, truth)
    by_func = torch.func.grad(lambda t: levels.upper(t, blo.argmin(lower, t, z0, solver=solver, gradient=EXACT)))
    assert_near(by_func(theta), truth)
