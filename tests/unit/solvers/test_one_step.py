"""One projected gradient step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import blo
from tests.lower import solve
from tests.oracles import QuadraticCase
from tests.strategies import SEEDS, normal, quadratic_cases

quick = settings(deadline=None, max_examples=20)


@quick
@given(quadratic_cases(kinds=("box",)), SEEDS, st.floats(0.01, 2.0))
def test_a_step_is_the_clipped_point_of_numpy(case: QuadraticCase, seed: int, step: float) -> None:
    z0 = normal(seed, len(case.c))
    slope = case.gradient(case.theta, z0.numpy())
    low, high = case.low + case.low_slope @ case.theta, case.high + case.high_slope @ case.theta
    for direction, move in {
        "gradient": slope,
        "sign": np.sign(slope),
        "normalized": slope / np.linalg.norm(slope),
    }.items():
        found = solve(case.lower(), z0, blo.OneStep(step, direction), case.start())
        np.testing.assert_allclose(found.z, np.clip(z0.numpy() - step * move, low, high), rtol=1e-12, atol=1e-12)
        assert (found.residual, found.tol, found.steps) == (None, None, 1)


@pytest.mark.parametrize("direction", ["gradient", "sign", "normalized", "coordinate"])
def test_a_stationary_lane_stays_and_its_derivative_is_finite(direction: Any) -> None:
    lower = blo.LowerProblem(lambda t, z: 0.5 * (z - t).square().sum(-1), batched=True)
    theta = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    solver = blo.OneStep(0.5, direction)
    z = blo.argmin(lower, theta, torch.zeros(2, 2).double(), solver=solver, gradient=blo.Unrolled())
    assert torch.equal(z[0], torch.zeros(2).double())
    (grad,) = torch.autograd.grad(z.sum(), theta)
    assert torch.isfinite(grad).all()


def test_each_lane_is_normalised_by_its_own_length() -> None:
    lower = blo.LowerProblem(lambda t, z: (t * z).sum(-1), batched=True)
    theta = torch.tensor([[3.0, 4.0], [-30.0, 40.0]], dtype=torch.float64)
    z = blo.argmin(lower, theta, torch.zeros(2, 2).double(), solver=blo.OneStep(1.0, "normalized"), gradient=blo.Zero())
    torch.testing.assert_close(z, torch.tensor([[-0.6, -0.8], [0.6, -0.8]], dtype=torch.float64), rtol=1e-15, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_gradient_whose_squares_underflow_or_overflow_is_normalised_all_the_same(scale: float) -> None:
    lower = blo.LowerProblem(lambda t, z: (t * z).sum(-1))
    theta = scale * torch.tensor([3.0, 4.0])
    z = blo.argmin(lower, theta, torch.zeros(2), solver=blo.OneStep(1.0, "normalized"), gradient=blo.Zero())
    torch.testing.assert_close(z, torch.tensor([-0.6, -0.8]), rtol=1e-6, atol=0)
