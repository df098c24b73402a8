"""Transforms reach captured tensors that only an `autograd.Function`, or an `argmin` inside the objective, uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import blo

T = torch.tensor([0.5, -0.7, 1.1], dtype=torch.float64)
C = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
ZERO = torch.zeros(3, dtype=torch.float64)
SOLVER = blo.FISTA(tol=1e-13, max_steps=20_000)
Value = Callable[[Tensor], Tensor]
Objective = Callable[[Tensor, Tensor], Tensor]
grad = torch.func.grad


class Square(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        return 2 * v * ctx.saved_tensors[0]


class Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return x * y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        return v * y, v * x


def squared(x: Tensor) -> Tensor:
    """Return `x^2`, by an argmin with x as theta."""
    return blo.argmin(blo.LowerProblem(lambda t, y: 0.5 * (y - t**2).square().sum()), x, ZERO, solver=SOLVER)


def captured(x: Tensor) -> Tensor:
    """Return `x^2`, by an argmin that captures x."""
    lower = blo.LowerProblem(lambda t, y: 0.5 * (y - t * x**2).square().sum())
    return blo.argmin(lower, torch.ones_like(x), ZERO, solver=SOLVER)


def third(x: Tensor) -> Tensor:
    """Return `x^2`, by an argmin whose objective holds another one that captures x."""
    lower = blo.LowerProblem(lambda t, y: 0.5 * (y - t * captured(x)).square().sum())
    return blo.argmin(lower, torch.ones_like(x), ZERO, solver=SOLVER)


def near(square: Value) -> Callable[[Tensor], Objective]:
    return lambda x: lambda t, z: 0.5 * (z - t * square(x)).square().sum()


#: Each has the minimiser `theta x^2` for the captured x.
OBJECTIVES: dict[str, Callable[[Tensor], Objective]] = {
    "function": near(Square.apply),
    "function of z": lambda x: lambda t, z: 0.5 * z.square().sum() - (t * Product.apply(x, z)) @ x,
    "argmin": near(squared),
    "argmin that captures": near(captured),
    "third level": near(third),
}
STRATEGIES: list[tuple[blo.gradients.Strategy, float]] = [
    (blo.Implicit(blo.Direct()), 1e-10),
    (blo.ValueFunction(penalty=1e3, two_sided=True), 1e-8),
    (blo.Unrolled(checkpoint=True), 1e-8),
]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(("strategy", "tol"), STRATEGIES)
def test_no_part_of_the_derivative_is_lost(strategy: blo.gradients.Strategy, tol: float, name: str) -> None:
    def value(x: Tensor) -> Tensor:
        return blo.argmin(blo.LowerProblem(OBJECTIVES[name](x)), C, ZERO, solver=SOLVER, gradient=strategy).sum()

    assert (grad(value)(T) - 2 * T * C).abs().max() <= tol
    if name != "third level":
        assert (torch.vmap(grad(value))(torch.stack([T, -T])) - torch.stack([2 * T * C, -2 * T * C])).abs().max() <= tol


@pytest.mark.parametrize(("strategy", "tol"), STRATEGIES)
def test_an_argmin_that_captures_theta_and_z_of_the_objective_around_it(
    strategy: blo.gradients.Strategy, tol: float
) -> None:
    """The objective is `|z - t^2|^2 / 2 + |z|^2 / 2`, up to the argmins."""

    def objective(t: Tensor, z: Tensor) -> Tensor:
        return 0.5 * (z - captured(t)).square().sum() + 0.5 * captured(z).sum()

    def value(x: Tensor) -> Tensor:
        return blo.argmin(blo.LowerProblem(objective), x, ZERO, solver=SOLVER, gradient=strategy).sum()

    assert (grad(value)(T) - T).abs().max() <= tol


def test_a_set_and_a_step_size_that_a_function_computes() -> None:
    def value(x: Tensor) -> Tensor:
        solver = blo.ProjectedGradient(step=lambda t: Square.apply(x).sum() / 10, max_steps=2, tol=None)
        lower = blo.LowerProblem(
            lambda t, z: 0.5 * (z - t).square().sum(), lambda t: blo.Box(-1.0, Square.apply(x), slack=1e-9)
        )
        return blo.argmin(lower, C, ZERO, solver=solver, gradient=blo.Unrolled(checkpoint=True)).sum()

    def by_hand(x: Tensor) -> Tensor:
        z, step = ZERO, (x * x).sum() / 10
        for _ in range(2):
            z = torch.minimum(z - step * (z - C), x * x)
        return z.sum()

    assert (grad(value)(T) - grad(by_hand)(T)).abs().max() <= 1e-10
