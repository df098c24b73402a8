"""The derivative of the algorithm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import blo
from tests.strategies import SEEDS, normal

quick = settings(deadline=None, max_examples=15)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
@pytest.mark.parametrize("direction", ["gradient", "sign", "normalized"])
@quick
@given(seed=SEEDS)
def test_it_is_autodiff_through_a_loop_by_hand(direction: Any, momentum: float, seed: int) -> None:
    weights, z0, target = normal(seed, 3, 3), normal(seed + 1, 4, 3), normal(seed + 2, 4, 3)

    def slope(theta: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(z @ weights.T + theta) @ weights + 0.1 * z

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        inner = z @ weights.T + theta
        return torch.logaddexp(inner, -inner).sum(-1) + 0.05 * z.square().sum(-1)

    theta = normal(seed + 3, 3).requires_grad_()
    z, velocity = z0, torch.zeros_like(z0)
    for _ in range(4):
        move = slope(theta, z)
        if direction == "sign":
            move = move.sign()
        elif direction == "normalized":
            move = move / move.square().sum(-1, keepdim=True).sqrt()
        velocity = momentum * velocity + move
        z = (z - 0.2 * velocity).clamp(-0.8, 0.8)
    (truth,) = torch.autograd.grad((z - target).square().sum() + theta.square().sum(), theta)
    out = blo.value_and_hypergrad(
        lambda t, z: (z - target).square().sum() + t.square().sum(),
        blo.LowerProblem(objective, blo.Box(-0.8, 0.8), batched=True),
        theta,
        z0,
        solver=blo.ProjectedGradient(0.2, max_steps=4, tol=None, direction=direction, momentum=momentum),
        gradient=blo.Unrolled(),
    )
    torch.testing.assert_close(out.z, z.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out.grad, truth, rtol=1e-10, atol=1e-10)
    assert not out.z.requires_grad


def test_the_start_is_a_constant() -> None:
    lower = blo.LowerProblem(lambda t, z: 0.5 * (z - t).square().sum())
    z0 = torch.zeros(2, requires_grad=True)
    theta = torch.ones(2, requires_grad=True)
    z = blo.argmin(lower, theta, z0, solver=blo.OneStep(0.25), gradient=blo.Unrolled())
    grads = torch.autograd.grad(z.sum(), (theta, z0), allow_unused=True)
    assert torch.equal(grads[0], torch.full((2,), 0.25)) and grads[1] is None


def test_a_found_step_counts_as_a_constant() -> None:
    """The step that the solver finds depends on theta; as any step leads to the solution, its slope is left out."""
    lower = blo.LowerProblem(lambda t, z: 0.5 * (t.exp() * (z - 1).square()).sum())
    theta = torch.tensor([0.5, 2.0]).double()
    solver = blo.ProjectedGradient(max_steps=1, tol=None)
    out = blo.value_and_hypergrad(
        lambda t, z: z.sum(), lower, theta, torch.zeros(2).double(), solver=solver, gradient=blo.Unrolled()
    )
    step = out.z / theta.exp()
    torch.testing.assert_close(step[0], step[1], rtol=1e-14, atol=0)
    torch.testing.assert_close(out.grad, step * theta.exp(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("strategy", [blo.Unrolled(), blo.Unrolled(checkpoint=True), blo.Unrolled(mode="forward")])
@pytest.mark.parametrize("solver", [None, blo.ProjectedGradient(max_steps=4000), blo.FISTA()])
@pytest.mark.parametrize("batched", [False, True])
def test_a_coordinate_that_is_solved_to_the_last_bit_does_not_blow_up(
    solver: blo.solvers.Solver | None, strategy: blo.Unrolled, batched: bool
) -> None:
    """Its gradient is zero, so steps beyond 2 / curvature do it no harm, but its derivative grows with each of them."""
    curvatures = torch.logspace(0, -2, 5, dtype=torch.float64)
    lower = blo.LowerProblem(lambda t, z: (curvatures * (0.5 * z * z - t * z)).sum(-1), batched=batched)
    theta, weights = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta, weights = (theta, weights) if batched else (theta[0], weights[0])
    out = blo.value_and_hypergrad(
        lambda t, z: (weights * z).sum(), lower, theta, torch.zeros_like(theta), solver=solver, gradient=strategy
    )
    torch.testing.assert_close(out.z, theta, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.grad, weights, rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", [None, blo.ProjectedGradient(tol=1e-12), blo.FISTA(tol=1e-12)])
@pytest.mark.parametrize("value", [0.09, 0.11, 0.33, 0.65, 1.83])
def test_the_derivative_arrives_with_the_solution(value: float, solver: blo.solvers.Solver | None) -> None:
    """A step of one over the only curvature squares the error of z and not that of its derivative."""
    lower = blo.LowerProblem(lambda t, z: (0.5 * t.exp() * z.square() - 3 * t * z).sum())
    theta = torch.tensor([value], dtype=torch.float64)
    out = blo.value_and_hypergrad(
        lambda t, z: z.sum(), lower, theta, torch.zeros_like(theta), solver=solver, gradient=blo.Unrolled()
    )
    torch.testing.assert_close(out.grad, 3 * (1 - theta) * (-theta).exp(), rtol=1e-9, atol=0)
