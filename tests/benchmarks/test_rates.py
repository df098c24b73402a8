"""The exact hypergradients that rates are measured with, and the fit, on what is known."""

from __future__ import annotations

import pytest
import torch

import blo
from benchmarks.answers._finite_sum import FiniteSum
from benchmarks.answers._logistic import logistic
from benchmarks.answers._simulated import simulated
from benchmarks.answers._trajectory import last_tenfold, trajectory


def value(problem: FiniteSum, theta: torch.Tensor) -> torch.Tensor:
    """F, from all examples at the lower solution."""
    return problem.upper(theta[None], problem.solve(theta[None]), problem.full[0])


@pytest.mark.parametrize(
    "problem",
    [simulated(0, size=4, examples=64, batch=8), logistic(0), logistic(0).in_units(10.0)],
    ids=["simulated", "logistic", "units"],
)
def test_the_exact_hypergradient_is_the_slope_of_the_solved_problem(problem: FiniteSum) -> None:
    theta = problem.theta0
    z = problem.solve(theta[None]).requires_grad_()
    (slope,) = torch.autograd.grad(problem.lower(theta[None], z, problem.full[1]), z)
    assert slope.abs().max() < 1e-10

    found = problem.hypergradient(theta[None])[0]
    for index in (0, 2, 3):
        step = 1e-4 * torch.eye(len(theta), dtype=theta.dtype)[index]
        central = (value(problem, theta + step) - value(problem, theta - step)) / 2e-4
        torch.testing.assert_close(found[index], central, rtol=1e-6, atol=1e-9)


def test_the_objective_over_all_examples_is_the_mean_over_the_batches() -> None:
    for problem in (simulated(1, size=4, examples=64, batch=8), logistic(1)):
        theta, z = problem.theta0[None], problem.z0[None]
        parts = [problem.lower(theta, z, tuple(p[i : i + 1] for p in problem.lower_batches)) for i in range(4)]
        joined = problem.lower(theta, z, tuple(p[:1] for p in problem.join(problem.lower_batches, 4)))
        torch.testing.assert_close(joined, torch.stack(parts).mean(), rtol=1e-12, atol=0)


def test_the_fit_finds_the_exponent_of_a_power() -> None:
    at = torch.arange(1, 2001, dtype=torch.float64)
    slope, first, last = last_tenfold(at, 3 * at**-0.5)
    assert slope == pytest.approx(-0.5, abs=2e-3)
    assert first > last


def test_a_trajectory_begins_at_the_start_and_ends_at_the_last_step() -> None:
    problem = simulated(0, size=4, examples=64, batch=8)
    at, values = trajectory(problem, blo.SOBA(lower_step=0.2, upper_step=0.2), 7, 3)
    assert at.tolist() == list(range(8))
    assert values[0] == problem.squared(problem.theta0[None])[0]
    assert values[-1] < values[0]
