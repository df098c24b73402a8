"""Projected gradient descent, all lanes at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import blo
from tests.lower import assert_lanes_rest, project, solve
from tests.oracles import QuadraticCase
from tests.strategies import SEEDS, normal, quadratic_cases

quick = settings(deadline=None, max_examples=20)


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("direction", ["gradient", "sign", "normalized"])
@quick
@given(case=quadratic_cases(), seed=SEEDS)
def test_the_steps_are_those_of_a_loop_in_numpy(
    direction: Any, momentum: float, case: QuadraticCase, seed: int
) -> None:
    z0 = normal(seed, len(case.c))
    solver = blo.ProjectedGradient(0.1, max_steps=6, tol=None, direction=direction, momentum=momentum)
    z, velocity = z0.numpy(), np.zeros(len(z0))
    for _ in range(6):
        slope = case.gradient(case.theta, z)
        scaled = {"gradient": slope, "sign": np.sign(slope), "normalized": slope / np.linalg.norm(slope)}[direction]
        velocity = momentum * velocity + scaled
        z = project(case, z - 0.1 * velocity)
    found = solve(case.lower(), z0, solver, case.start())
    np.testing.assert_allclose(found.z, z, rtol=1e-10, atol=1e-10)
    assert (found.residual, found.tol, found.steps) == (None, None, 6)


def lanes(theta: Tensor, z: Tensor) -> Tensor:
    """Return lanes of the curvatures 1, 0.1 and 0.01, which take ever longer."""
    return 0.5 * torch.tensor([1.0, 0.1, 0.01], dtype=z.dtype) * (z - theta).square().sum(-1)


@pytest.mark.parametrize("step", [0.9, None])
def test_a_lane_that_is_done_does_not_move_while_others_go_on(step: float | None) -> None:
    lower = blo.LowerProblem(lanes, blo.L2Ball(5.0), batched=True)
    theta, z0 = normal(0, 2), normal(1, 3, 2)

    def solved(steps: int) -> blo.solvers.Solution:
        return solve(lower, z0, blo.ProjectedGradient(step, steps, tol=1e-9), theta)

    assert_lanes_rest(solved, [1, 5, 20, 60, 200, 900, 5000], 1e-9)
    assert 1 < solved(5000).steps < 5000


@pytest.mark.parametrize("step", [0.9, None])
def test_a_lane_takes_the_steps_it_would_take_alone(step: float | None) -> None:
    theta, z0 = normal(0, 2), normal(1, 3, 2)
    solver = blo.ProjectedGradient(step, 5000, tol=1e-9)
    together = solve(blo.LowerProblem(lanes, batched=True), z0, solver, theta)
    for lane in range(3):
        alone = solve(blo.LowerProblem(lambda t, z, lane=lane: lanes(t, z)[lane]), z0[lane], solver, theta)
        torch.testing.assert_close(together.z[lane], alone.z, rtol=1e-14, atol=1e-14)
        assert alone.steps <= together.steps


def calls_of(solver: blo.ProjectedGradient, z0: float) -> tuple[int, blo.solvers.Solution]:
    calls = []

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        calls.append(1)
        return 0.5 * (z - theta).square().sum()

    found = solve(blo.LowerProblem(objective), torch.tensor([z0]), solver, torch.tensor(0.0))
    return len(calls), found


def test_each_step_takes_one_gradient_and_a_tolerance_one_more_for_the_last_residual_and_one_if_that_is_large() -> None:
    assert calls_of(blo.ProjectedGradient(0.1, max_steps=7, tol=None), 1.0)[0] == 7
    calls, found = calls_of(blo.ProjectedGradient(0.1, max_steps=7, tol=1e-9), 1.0)
    assert (calls, found.steps) == (9, 7)
    torch.testing.assert_close(found.residual, torch.tensor(0.9**7))
    calls, found = calls_of(blo.ProjectedGradient(0.1, max_steps=7, tol=1e-9), 0.0)
    assert (calls, found.steps) == (1, 0)


@pytest.mark.parametrize("scale", [1.0, 1e8])
def test_it_stops_at_the_rounding_of_the_gradients_and_is_judged_by_what_was_asked(scale: float) -> None:
    """Each lane by itself: the small objective goes on to the tolerance asked for."""
    weights = torch.tensor([1.0, scale], dtype=torch.float64)
    lower = blo.LowerProblem(lambda t, z: 0.5 * weights * (z - t).square().sum(-1), batched=True)
    theta = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) / 3
    found = solve(lower, torch.zeros(2, 3).double(), blo.ProjectedGradient(0.9 / scale, tol=1e-14, max_steps=50), theta)
    tol = torch.as_tensor(found.tol)
    assert found.residual is not None and tol.min() == 1e-14
    assert found.residual[1] <= tol[1] <= 1e-14 * scale
    assert scale > 1 or (found.residual <= tol).all()
