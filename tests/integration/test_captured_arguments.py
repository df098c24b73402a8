"""Transforms act on tensors that an objective or a set captures and that are also its theta or its start."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import blo

A = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Q = A @ A.mT + torch.eye(3, dtype=torch.float64)
W = torch.tensor([0.7, -1.2, 0.4], dtype=torch.float64)
X = torch.tensor([0.5, -0.3, 0.8], dtype=torch.float64)
LAM = torch.tensor(0.7, dtype=torch.float64)
ZERO = torch.zeros(3, dtype=torch.float64)
STRATEGIES = {
    "implicit": blo.Implicit(blo.Direct()),
    "value function": blo.ValueFunction(penalty=1e4, two_sided=True),
    "checkpoints": blo.Unrolled(checkpoint=True),
    "forward": blo.Unrolled(mode="forward"),
}
SOLVER = blo.FISTA(tol=1e-13, max_steps=20_000)
Value = Callable[[Tensor], Tensor]

grad = torch.func.grad


def grad_in_vmap(value: Value) -> Value:
    return lambda x: torch.vmap(grad(value))(torch.stack([x, 0.9 * x]))


def hessian(value: Value) -> Value:
    return torch.func.jacrev(torch.func.jacrev(value))


def start(strategy: blo.gradients.Strategy) -> tuple[Value, Value]:
    """Return a value whose objective captures the start, which is a constant elsewhere, and its closed form."""

    def value(x: Tensor) -> Tensor:
        lower = blo.LowerProblem(lambda t, z: 0.5 * z @ Q @ z - z.sum() + t / 2 * (z - x).square().sum())
        return blo.argmin(lower, LAM, x, solver=SOLVER, gradient=strategy).sin() @ W

    return value, lambda x: torch.linalg.solve(Q + LAM * torch.eye(3, dtype=x.dtype), 1 + LAM * x).sin() @ W


def leaf(strategy: blo.gradients.Strategy) -> tuple[Value, Value]:
    """Return a value whose objective captures a leaf of theta and of the start."""

    def value(x: Tensor) -> Tensor:
        lower = blo.LowerProblem(lambda t, z: 0.5 * z["z"] @ Q @ z["z"] - t["t"] @ z["z"] * x.sum())
        return blo.argmin(lower, {"t": x}, {"z": x}, solver=SOLVER, gradient=strategy)["z"].sin() @ W

    return value, lambda x: torch.linalg.solve(Q, x * x.sum()).sin() @ W


def moving_set(strategy: blo.gradients.Strategy) -> tuple[Value, Value]:
    """Return a value whose set captures theta."""

    def value(x: Tensor) -> Tensor:
        lower = blo.LowerProblem(lambda t, z: (z - t - 30).square().sum(), lambda t: blo.Box(-9 - x, x.exp() + t.sin()))
        return blo.argmin(lower, x, ZERO, solver=SOLVER, gradient=strategy).sin() @ W

    return value, lambda x: (x.exp() + x.sin()).sin() @ W


@pytest.mark.parametrize("case", [start, leaf, moving_set])
@pytest.mark.parametrize(
    ("strategy", "transform"),
    [("implicit", hessian), *((name, transform) for name in STRATEGIES for transform in (grad, grad_in_vmap))],
)
def test_no_part_of_the_derivative_is_lost(
    strategy: str, transform: Callable[[Value], Value], case: Callable[..., tuple[Value, Value]]
) -> None:
    value, truth = case(STRATEGIES[strategy])
    assert (transform(value)(X) - transform(truth)(X)).abs().max() <= 1e-8


@pytest.mark.parametrize("strategy", ["checkpoints", "forward"])
def test_a_step_size_that_captures_theta(strategy: str) -> None:
    """Each of three steps from zero on `(z - t)^2 / 2` leaves `1 - s` of the distance."""

    def value(x: Tensor) -> Tensor:
        solver = blo.ProjectedGradient(step=lambda t: x.exp() * t.exp(), max_steps=3, tol=None)
        lower = blo.LowerProblem(lambda t, z: 0.5 * (z - t.sum()).square().sum())
        return blo.argmin(lower, x, ZERO, solver=solver, gradient=STRATEGIES[strategy]).sum()

    at = torch.tensor(-0.4, dtype=torch.float64)
    assert (grad(value)(at) - grad(lambda x: 3 * x * (1 - (1 - (2 * x).exp()) ** 3))(at)).abs() <= 1e-10


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_under_backward_the_captured_theta_is_a_constant(strategy: str) -> None:
    def slope(seen: Callable[[Tensor], Tensor]) -> Tensor:
        x = X.clone().requires_grad_()
        lower = blo.LowerProblem(lambda t, z: 0.5 * z @ Q @ z - t @ z * seen(x).sum())
        z = blo.argmin(lower, x, x, solver=SOLVER, gradient=STRATEGIES[strategy])
        return torch.autograd.grad(z.sin() @ W, x)[0]

    truth = grad(lambda t: torch.linalg.solve(Q, t * X.sum()).sin() @ W)(X)
    assert torch.equal(slope(lambda x: x), slope(torch.Tensor.detach))
    assert (slope(lambda x: x) - truth).abs().max() <= 1e-8
