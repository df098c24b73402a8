"""The estimator from first derivatives alone: its bias is of the stated order in the penalty."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import blo
from tests import oracles
from tests.integration.problems import TIGHT, assert_near, hypergradient
from tests.oracles import QuadraticCase
from tests.strategies import quadratic_cases

quick = settings(deadline=None, max_examples=10)
PRECISE = blo.ProjectedGradient(tol=1e-14, max_steps=20_000)


def error(case: QuadraticCase, gradient: blo.ValueFunction) -> float:
    found = hypergradient(case, gradient=gradient, solver=PRECISE, on_failure="ignore").implicit
    return float(np.abs(found.numpy() - case.implicit(case.theta)).max())


@pytest.mark.parametrize(("two_sided", "order"), [(False, 1), (True, 2)])
@pytest.mark.parametrize("kind", ["ball"])
def test_the_bias_falls_with_the_power_of_the_penalty_that_is_stated(kind: str, two_sided: bool, order: int) -> None:
    """On a curved boundary, since on flat faces a quadratic problem has no bias at all."""
    case = oracles.draw("ball", 4, 3, seed=2, moving=True)
    assert case.solve(case.theta).multipliers.size
    errors = [error(case, blo.ValueFunction(penalty, two_sided=two_sided)) for penalty in (1e2, 1e3)]
    assert errors[0] > 1e-7
    assert abs(np.log10(errors[0] / errors[1]) - order) < 0.15


@quick
@given(quadratic_cases())
def test_it_tends_to_the_exact_implicit_part_on_every_set(case: QuadraticCase) -> None:
    size = 1 + np.abs(case.implicit(case.theta)).max()
    assert error(case, blo.ValueFunction(1e4, two_sided=True)) < 2e-6 * size


def test_no_second_derivative_is_taken() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
            return 2 * x * g

    lower = blo.LowerProblem(lambda t, z: 0.5 * (t.exp() * Once.apply(z - 1)).sum() + 0.5 * z.square().sum())
    theta = torch.tensor([0.3, -0.5]).double()
    out = blo.value_and_hypergrad(
        lambda t, z: z.square().sum(),
        lower,
        theta,
        torch.zeros(2).double(),
        solver=TIGHT,
        gradient=blo.ValueFunction(1e4),
    )
    weight = theta.exp()
    z = weight / (1 + weight)
    assert_near(out.grad, 2 * z * weight / (1 + weight).square(), 1e-3)


def test_it_works_under_backward_and_transforms() -> None:
    case = oracles.draw("box", 4, 3, seed=1)
    strategy = blo.ValueFunction(1e4, two_sided=True)

    def value(theta: Tensor) -> Tensor:
        z = blo.argmin(case.lower(), theta, case.z0(), solver=PRECISE, gradient=strategy, on_failure="ignore")
        return case.upper(theta, z)

    theta = case.start().requires_grad_()
    value(theta).backward()  # type: ignore[no-untyped-call]
    truth = case.hypergradient(case.theta)
    assert theta.grad is not None
    assert_near(theta.grad, truth, 1e-6)
    assert_near(torch.func.grad(value)(case.start()), truth, 1e-6)
    assert_near(torch.func.vmap(torch.func.grad(value))(case.start().expand(2, 3))[1], truth, 1e-6)


def test_the_penalty_must_be_positive() -> None:
    with pytest.raises(ValueError, match="`penalty` must be positive"):
        blo.ValueFunction(0.0)
