"""The oracles agree with each other and with SciPy, so that no test leans on one mistake."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from scipy.optimize import LinearConstraint, NonlinearConstraint, minimize

from tests import oracles
from tests.strategies import quadratic_cases


@settings(deadline=None, max_examples=25)
@given(quadratic_cases())
def test_the_kkt_hypergradient_is_that_of_differences(case: oracles.QuadraticCase) -> None:
    found, truth = case.hypergradient(case.theta), case.differences(case.theta)
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", oracles.KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_scipy_finds_no_other_solution(kind: oracles.Kind, seed: int) -> None:
    case = oracles.draw(kind, 3, 2, seed)
    theta, n = case.theta, 3
    H, b = case.hessian(theta), case.B @ theta + case.c
    size = case.size + case.size_slope @ theta
    center = case.center + case.center_slope @ theta
    low, high = case.low + case.low_slope @ theta, case.high + case.high_slope @ theta
    constraints = {
        "free": [],
        "box": [LinearConstraint(np.eye(n), low, high)],
        "ball": [NonlinearConstraint(lambda z: (z - center) @ (z - center), 0.0, size**2)],
        "simplex": [LinearConstraint(np.eye(n), 0.0, np.inf), LinearConstraint(np.ones((1, n)), size, size)],
    }[kind]
    found = minimize(
        lambda z: 0.5 * z @ H @ z + b @ z,
        np.full(n, size / n),
        jac=lambda z: H @ z + b,
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(case.solution(theta), found.x, rtol=0, atol=1e-5)


def test_differences_are_exact_for_a_polynomial_of_sixth_degree() -> None:
    powers = oracles.central_difference(lambda x: np.array([x[0] ** 6, x[0] * x[1]]), np.array([1.0, 2.0]))
    np.testing.assert_allclose(powers, [[6.0, 0.0], [2.0, 1.0]], rtol=1e-11, atol=1e-11)
