"""Picard iteration, damped and accelerated, all lanes at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.optimize import fsolve
from torch import Tensor

import blo
from tests.lower import THETA, assert_unrolls, bind, project, solve
from tests.oracles import Array, QuadraticCase
from tests.strategies import SEEDS, normal, quadratic_cases

quick = settings(deadline=None, max_examples=15)


def of(function: Callable[[Tensor], Tensor], *, batched: bool = False) -> blo.LowerProblem:
    return blo.LowerProblem.fixed_point(lambda theta, z: function(z), batched=batched)


def draw(seed: int, n: int, radius: float) -> tuple[Array, Array]:
    """Return a matrix of this spectral radius, not symmetric, and a vector."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(n, n))
    return radius * matrix / np.abs(np.linalg.eigvals(matrix)).max(), rng.normal(size=n)


def squash(matrix: Array, shift: Array) -> Callable[[Tensor], Tensor]:
    weight, bias = torch.as_tensor(matrix), torch.as_tensor(shift)
    return lambda z: torch.tanh(z @ weight.T + bias)


@pytest.mark.parametrize("relaxation", [1.0, 0.4])
@quick
@given(case=quadratic_cases(("free", "box", "simplex")), seed=SEEDS)
def test_without_memory_the_steps_are_those_of_a_loop_in_numpy(
    relaxation: float, case: QuadraticCase, seed: int
) -> None:
    z0 = normal(seed, len(case.c))
    solver = blo.FixedPoint(0.2, relaxation, memory=0, max_steps=5, tol=None)
    z = origin = z0.numpy()
    for _ in range(5):
        origin = (1 - relaxation) * origin + relaxation * (z - 0.2 * case.gradient(case.theta, z))
        z = project(case, origin)
    found = solve(case.lower(), z0, solver, case.start())
    np.testing.assert_allclose(found.z, z, rtol=1e-10, atol=1e-10)
    assert (found.residual, found.tol, found.steps) == (None, None, 5)


@pytest.mark.parametrize("memory", [0, 1, 5])
@quick
@given(seed=SEEDS)
def test_it_finds_the_root_that_scipy_finds(memory: int, seed: int) -> None:
    matrix, shift = draw(seed, 6, 0.5)
    found = solve(of(squash(matrix, shift)), normal(seed, 6), blo.FixedPoint(memory=memory, tol=1e-12))
    truth = fsolve(lambda z: z - np.tanh(matrix @ z + shift), np.zeros(6), xtol=1e-13)
    np.testing.assert_allclose(found.z, truth, rtol=1e-9, atol=1e-9)
    residual = np.linalg.norm(found.z.numpy() - np.tanh(matrix @ found.z.numpy() + shift))
    assert found.residual <= 1e-12 and abs(float(found.residual) - residual) < 1e-14


@quick
@given(case=quadratic_cases(), seed=SEEDS)
def test_acceleration_keeps_to_the_set_and_finds_the_minimiser(case: QuadraticCase, seed: int) -> None:
    """Step sizes below 2 over the largest curvature; the solution is NumPy's, active set and all."""
    step = 1.0 / float(np.linalg.eigvalsh(case.hessian(case.theta)).max())
    solver = blo.FixedPoint(step, tol=1e-12, max_steps=3000)
    found = solve(case.lower(), normal(seed, len(case.c)), solver, case.start())
    np.testing.assert_allclose(found.z, case.solution(case.theta), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("radius", [0.9, 3.0])
def test_with_memory_for_all_directions_a_linear_map_takes_as_many_steps_as_it_has_unknowns(radius: float) -> None:
    """As GMRES does, contraction or not (Walker and Ni, theorem 2.2); a step or two more for rounding."""
    for seed in range(5):
        matrix, shift = draw(seed, 8, radius)
        weight, bias = torch.as_tensor(matrix), torch.as_tensor(shift)
        solver = blo.FixedPoint(memory=8, tol=1e-9, max_steps=60)
        found = solve(of(lambda z, weight=weight, bias=bias: weight @ z + bias), normal(seed, 8), solver)
        np.testing.assert_allclose(found.z, np.linalg.solve(np.eye(8) - matrix, shift), rtol=1e-7, atol=1e-7)
        assert found.steps <= (11 if radius < 1 else 16)


def test_acceleration_saves_evaluations() -> None:
    matrix, shift = draw(0, 20, 0.97)
    calls = {}
    for memory in (0, 5):
        count: list[int] = []

        def function(z: Tensor, count: list[int] = count) -> Tensor:
            count.append(1)
            return torch.as_tensor(matrix) @ z + torch.as_tensor(shift)

        found = solve(of(function), torch.zeros(20).double(), blo.FixedPoint(memory=memory, tol=1e-10))
        assert found.residual <= 1e-10 and 0 <= len(count) - found.steps - 1 <= found.steps // 200
        calls[memory] = len(count)
    assert calls[5] * 6 < calls[0]


def test_a_step_that_leads_further_away_is_taken_back() -> None:
    """The secant method runs off on `atan(z) = 0` from 10; the plain steps `z - atan(z)` do not."""
    tried: list[float] = []
    kept: list[float] = []

    def function(z: Tensor) -> Tensor:
        tried.append(abs(z.item()))
        return z - z.atan()

    problem, start = bind(of(function), torch.tensor([10.0]).double())
    solver = blo.FixedPoint(memory=3, tol=1e-12, max_steps=60)
    found = solver.solve(problem, start, lambda step, running: kept.append(abs(running.state.z.item())))
    assert found.residual is not None and found.residual <= 1e-12
    assert max(tried) > 50 and max(kept) <= 10.0
    # `tried` begins with the start, `kept` with the state before the first step: the last of a pair was taken back.
    back = [k for k in range(1, len(kept)) if kept[k] == kept[k - 1] and tried[k] != kept[k]]
    assert back
    for k in back:
        assert abs(tried[k + 1] - abs(kept[k] - np.arctan(kept[k]))) < 1e-12  # the step after it is a plain one


def test_a_step_to_where_the_map_has_no_value_is_taken_back() -> None:
    """`z - atan(z)` has no value here beyond 20, where the first secant of 10 and 8.5 leads."""

    def function(z: Tensor) -> Tensor:
        return torch.where(z.abs() > 20, torch.nan, z - z.atan())

    found = solve(of(function), torch.tensor([10.0]).double(), blo.FixedPoint(memory=3, tol=1e-12, max_steps=60))
    assert found.residual <= 1e-12


@pytest.mark.parametrize("memory", [0, 4])
def test_lanes_do_not_see_each_other_and_rest_when_done(memory: int) -> None:
    weights = torch.tensor([0.1, 0.7, 0.95], dtype=torch.float64)[:, None]
    shift = normal(0, 3, 2)
    lower = of(lambda z: torch.tanh(weights * z.flip(-1) + shift), batched=True)
    solver = blo.FixedPoint(memory=memory, tol=1e-11)
    z0 = normal(1, 3, 2)
    together = solve(lower, z0, solver)
    for lane in range(3):
        alone = solve(of(lambda z, i=lane: torch.tanh(weights[i] * z.flip(-1) + shift[i])), z0[lane], solver)
        torch.testing.assert_close(together.z[lane], alone.z, rtol=1e-14, atol=1e-14)
        assert alone.steps <= together.steps
    fewer = solve(lower, z0, blo.FixedPoint(memory=memory, tol=1e-11, max_steps=together.steps - 1))
    assert torch.equal(fewer.z[0], together.z[0]) and not torch.equal(fewer.z, together.z)


@pytest.mark.parametrize("memory", [0, 3])
def test_unrolled_is_autodiff_through_central_differences(memory: int) -> None:
    """Of four steps, far from the solution, so that only the derivative of these steps agrees."""
    matrix, shift = draw(5, 3, 0.8)
    solver = blo.FixedPoint(relaxation=0.8, memory=memory, max_steps=4, tol=None)
    lower = blo.LowerProblem.fixed_point(lambda t, z: torch.tanh(torch.as_tensor(matrix) @ z + t))
    assert_unrolls(lower, torch.as_tensor(shift), torch.zeros(3).double(), solver, step=1e-3)


def test_a_diverging_iteration_is_reported() -> None:
    lower = of(lambda z: 3 * z + 1)
    with pytest.warns(blo.ConvergenceWarning, match="has not converged"):
        solver = blo.FixedPoint(memory=0, max_steps=20)
        blo.argmin(lower, THETA, torch.zeros(1).double(), solver=solver, gradient=blo.Zero())


def test_single_precision_stays_single() -> None:
    found = solve(of(torch.cos), torch.ones(2), blo.FixedPoint(tol=1e-6))
    assert found.z.dtype == torch.float32 and found.residual <= 1e-6
    np.testing.assert_allclose(found.z, 0.7390851332151607, rtol=2e-6)


@pytest.mark.parametrize("memory", [0, 5])
def test_a_lane_that_runs_in_circles_is_given_up_and_reported(memory: int) -> None:
    """`z <- atan(c z) + 3 (-1)^k` has no fixed point within reach of plain steps: one lane flips between two values."""
    calls: list[int] = []

    def function(z: Tensor) -> Tensor:
        calls.append(1)
        steep = torch.tensor([0.5, 0.3, 1.0, 0.1], dtype=torch.float64)[:, None]
        # The third lane has a jump in place of its root.
        return torch.where(torch.arange(4)[:, None] == 2, -torch.sign(z) - 0.01 * z, torch.tanh(steep * z) + 0.5)

    lower, z0 = of(function, batched=True), torch.full((4, 3), 0.7, dtype=torch.float64)
    solver = blo.FixedPoint(memory=memory, tol=1e-10)
    found = solve(lower, z0, solver)
    assert found.steps < 200 and len(calls) < 220
    assert found.stuck is not None and found.stuck.tolist() == [False, False, True, False]
    assert found.tol is not None and (found.residual <= found.tol).tolist() == [True, True, False, True]
    rest = torch.tensor([0, 1, 3])
    truth = fsolve(lambda z: z - np.tanh(0.5 * z) - 0.5, 1.0, xtol=1e-14)
    np.testing.assert_allclose(found.z[0], truth.repeat(3), rtol=1e-9)
    assert torch.isfinite(found.z[rest]).all()
    with pytest.warns(blo.ConvergenceWarning, match=r"in 1 of 4 problems.*less than a tenth in 128 steps.*relaxation"):
        blo.argmin(lower, THETA, z0, solver=solver, gradient=blo.Zero())


def test_a_slow_contraction_is_not_given_up() -> None:
    """At a rate of 0.99 a residual falls by a tenth in eleven steps."""
    found = solve(
        of(lambda z: 0.99 * z + 1), torch.zeros(2).double(), blo.FixedPoint(memory=0, tol=1e-8, max_steps=3000)
    )
    assert found.residual <= 1e-8 and not found.stuck.any()
    np.testing.assert_allclose(found.z, 100.0, rtol=1e-7)


def test_as_long_as_plain_steps_halve_the_residual_they_are_all_that_is_made() -> None:
    matrix, shift = draw(0, 40, 0.2)
    calls = {}
    for memory in (0, 5):
        found = solve(of(squash(matrix, shift)), torch.zeros(40).double(), blo.FixedPoint(memory=memory, tol=1e-11))
        calls[memory] = found
    assert torch.equal(calls[0].z, calls[5].z) and calls[0].steps == calls[5].steps
