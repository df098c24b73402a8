"""Somebody else's solver."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import blo


def squares(theta: Any, z: Any) -> Tensor:
    return 0.5 * ((z["a"] - theta["t"]).square().sum(-1) + (z["b"] + theta["t"]).square().sum(-1))


def test_the_function_gets_trees_of_constants_and_its_result_is_measured() -> None:
    seen: list[Any] = []

    def solver(theta: Any, z0: Any) -> Any:
        seen.append((theta, z0))
        return {"a": theta["t"] + 0.3, "b": -theta["t"] - 0.4}

    theta = {"t": torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)}
    z0 = {"a": torch.zeros(2).double(), "b": torch.ones(2).double()}
    lower = blo.LowerProblem(squares)
    out = blo.value_and_hypergrad(
        lambda t, z: z["a"].sum(), lower, theta, z0, solver=blo.External(solver, tol=1.0), gradient=blo.Implicit()
    )
    (given_theta, given_z0) = seen[0]
    assert len(seen) == 1
    assert not given_theta["t"].requires_grad and torch.equal(given_theta["t"], theta["t"])
    assert all(torch.equal(given_z0[name], z0[name]) for name in z0)
    assert out.report.lower_residual == pytest.approx((2 * 0.3**2 + 2 * 0.4**2) ** 0.5, rel=1e-12)
    assert out.report.lower_status is blo.Status.CONVERGED
    assert out.report.lower_steps == 0


def test_a_batch_goes_through_in_one_call() -> None:
    calls = []

    def solver(theta: Tensor, z0: Tensor) -> Tensor:
        calls.append(z0.shape)
        return theta.expand_as(z0)

    lower = blo.LowerProblem(lambda t, z: 0.5 * (z - t).square().sum(-1), batched=True)
    theta = torch.tensor([1.0, 2.0], dtype=torch.float64)
    out = blo.value_and_hypergrad(
        lambda t, z: z.sum(), lower, theta, torch.zeros(5, 2).double(), solver=blo.External(solver)
    )
    assert calls == [(5, 2)]
    torch.testing.assert_close(out.grad, torch.full((2,), 5.0).double(), rtol=1e-12, atol=0)


def test_the_function_sees_its_own_theta_under_transforms() -> None:
    """Also when the objective captures tensors of the transform, which then travel beside theta."""
    lower_of = lambda shift: blo.LowerProblem(  # noqa: E731
        lambda t, z: 0.5 * (z - t - shift).square().sum(), lambda t: blo.Box(-10.0 + 0 * t, 10.0 + 0 * t)
    )

    def value(theta: Tensor, shift: Tensor) -> Tensor:
        solver = blo.External(lambda t, z0: t + 0.25)
        return blo.argmin(lower_of(shift), theta, torch.zeros(2).double(), solver=solver).square().sum()

    theta, shift = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.full((2,), 0.25, dtype=torch.float64)
    for argument in (0, 1):
        found = torch.func.grad(value, argnums=argument)(theta, shift)
        torch.testing.assert_close(found, 2 * (theta + shift), rtol=1e-12, atol=0)


def test_what_it_returned_is_measured_once_by_whoever_has_the_gradient() -> None:
    evaluations = []

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        evaluations.append(z)
        return 0.5 * (z - theta).square().sum()

    lower, theta = blo.LowerProblem(objective), torch.ones(2, dtype=torch.float64, requires_grad=True)
    solver = blo.External(lambda t, z0: t + 1e-3, tol=1e-4)
    with pytest.warns(blo.ConvergenceWarning, match="residual 1.41e-03, tolerance 1.00e-04"):
        blo.value_and_hypergrad(lambda t, z: z.sum(), lower, theta, torch.zeros(2).double(), solver=solver)
    assert len(evaluations) == 1  # the graph that the products need is the one that measures
    for gradient in (blo.Implicit(), blo.Zero()):
        with pytest.warns(blo.ConvergenceWarning, match="residual 1.41e-03, tolerance 1.00e-04"):
            blo.argmin(lower, theta, torch.zeros(2).double(), solver=solver, gradient=gradient)
    with pytest.warns(blo.ConvergenceWarning, match="residual 1.41e-03, tolerance 1.00e-04"):
        blo.value_and_hypergrad(
            lambda t, z: z.sum(), lower, theta, torch.zeros(2).double(), solver=solver, gradient=blo.Zero()
        )


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(blo.StructureError, match=r"`function` must be a function of theta and z0.*of type Tensor"):
        blo.External(torch.zeros(2))  # type: ignore[arg-type]


def test_a_solution_taken_as_it_is_freezes_no_coordinate_inside_the_set() -> None:
    """Whatever its residual, here 0.5: with `tol=inf` nothing says how far it is from constraints that hold it."""
    point = torch.tensor([0.3, 2.0], dtype=torch.float64)
    lower = blo.LowerProblem(lambda theta, z: 0.5 * (z - theta).square().sum(), blo.NonNegative())
    theta = torch.tensor([-0.2, 1.0], dtype=torch.float64)
    solver = blo.External(lambda theta, z0: point, tol=math.inf)
    out = blo.value_and_hypergrad(lambda theta, z: z.sum(), lower, theta, point, solver=solver)
    assert out.report.active == 0
    torch.testing.assert_close(out.grad, torch.ones_like(point))  # dz/dtheta is the identity inside


def test_a_result_that_is_theta_itself_is_copied() -> None:
    lower = blo.LowerProblem(lambda theta, z: 0.5 * (z - theta).square().sum())
    theta = torch.ones(2, dtype=torch.float64)
    solver = blo.External(lambda theta, z0: theta)
    out = blo.value_and_hypergrad(lambda t, z: z.square().sum(), lower, theta, torch.zeros_like(theta), solver=solver)
    theta.mul_(3.0)  # as an optimiser does
    assert torch.equal(out.z, torch.ones_like(theta))
