"""Strategies that divide instead of solving."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import blo
from tests.oracles import QuadraticCase
from tests.strategies import SEEDS, normal, quadratic_cases

quick = settings(deadline=None, max_examples=20)
TIGHT = blo.ProjectedGradient(tol=1e-12, max_steps=20_000)


def implicit_of(case: QuadraticCase, gradient: blo.gradients.Strategy) -> Tensor:
    out = blo.value_and_hypergrad(
        case.upper, case.lower(), case.start(), case.z0(), solver=TIGHT, gradient=gradient, on_failure="ignore"
    )
    found: Tensor = out.implicit
    return found


@quick
@given(quadratic_cases(kinds=("box", "free"), moving=False), st.floats(0.1, 10.0))
def test_hessian_free_divides_the_masked_upper_gradient(case: QuadraticCase, curvature: float) -> None:
    theta, found = case.theta, case.solve(case.theta)
    free = ~np.abs(found.rows).any(axis=0)
    mixed = case.B + np.exp(case.w @ theta) * np.outer(case.e * found.z, case.w)
    truth = -mixed.T @ (free * case.cotangent(theta)) / curvature
    np.testing.assert_allclose(implicit_of(case, blo.HessianFree(curvature)), truth, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(implicit_of(case, blo.HessianFree(-curvature)), -truth, rtol=1e-9, atol=1e-9)


@quick
@given(quadratic_cases(kinds=("ball",), moving=False), st.floats(0.1, 10.0))
def test_hessian_free_keeps_the_curvature_of_the_ball(case: QuadraticCase, curvature: float) -> None:
    theta, found = case.theta, case.solve(case.theta)
    outward = found.rows / np.linalg.norm(found.rows) if len(found.rows) else np.zeros((1, len(found.z)))
    v = case.cotangent(theta)
    mixed = case.B + np.exp(case.w @ theta) * np.outer(case.e * found.z, case.w)
    truth = -mixed.T @ (v - outward[0] * (outward[0] @ v)) / (curvature + found.bend)
    np.testing.assert_allclose(implicit_of(case, blo.HessianFree(curvature)), truth, rtol=1e-8, atol=1e-8)


def test_hessian_free_needs_no_second_derivative_in_z_beyond_the_cross_term() -> None:
    """A piecewise linear objective has no curvature for the closed form to read; this strategy brings its own."""
    lower = blo.LowerProblem(lambda t, z: (t * z).sum(), blo.Box(-1.0, 1.0))
    interior = torch.tensor([0.5, -0.5]).double()
    out = blo.value_and_hypergrad(
        lambda t, z: z.square().sum(),
        lower,
        torch.zeros(2).double(),
        interior,
        solver=blo.ProjectedGradient(0.1, tol=None, max_steps=1),
        gradient=blo.HessianFree(4.0),
    )
    torch.testing.assert_close(out.grad, -2 * interior / 4.0, rtol=1e-14, atol=0)


@quick
@given(SEEDS, st.floats(0.5, 20.0), st.booleans())
def test_the_closed_form_holds_block_by_block_on_a_product(seed: int, curvature: float, batched: bool) -> None:
    """Each ball has its own boundary curvature; the truth is autodiff through the step."""
    lanes = (3,) if batched else ()
    weights, anchor, target = normal(seed, 5), normal(seed + 1, *lanes, 5), normal(seed + 2, *lanes, 5)
    radius = torch.tensor([0.2, 0.4], dtype=torch.float64)

    def objective(theta: Tensor, z: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return (theta.exp() * weights * torch.cat(z, -1)).sin().sum(-1)

    def upper(theta: Tensor, z: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return (torch.cat(z, -1) - target).square().sum() + theta.square().sum()

    theta, parts = 0.3 * normal(seed + 3, 5), anchor.split([2, 2, 1], -1)
    sets = blo.Product(blo.L2Ball(0.2), blo.L2Ball(0.4), blo.Box(-0.3, 0.3))
    lower = blo.LowerProblem(objective, sets, batched=batched).linearize(parts, curvature)
    out = blo.value_and_hypergrad(
        upper, lower, theta, parts, solver=blo.OneStep(1 / curvature), gradient=blo.KKTClosedForm()
    )
    live = theta.clone().requires_grad_()
    slope = live.exp() * weights * (live.exp() * weights * anchor).cos()
    first, second, third = (anchor - slope / curvature).split([2, 2, 1], -1)
    a, b = (
        part * (r / part.norm(dim=-1, keepdim=True)).clamp(max=1.0)
        for part, r in zip((first, second), radius, strict=True)
    )
    (truth,) = torch.autograd.grad(upper(live, (a, b, third.clamp(-0.3, 0.3))), live)
    torch.testing.assert_close(out.grad, truth, rtol=1e-10, atol=1e-10)
    assert out.report.ok


@pytest.mark.parametrize("lanes", [(), (3,)])
def test_the_closed_form_reads_the_curvature_of_each_lane(lanes: tuple[int, ...]) -> None:
    scale = torch.tensor([0.5, 2.0, 8.0]).double() if lanes else torch.tensor(2.0).double()

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        return 0.5 * scale * z.square().sum(-1) - (theta * z).sum(-1)

    theta = torch.tensor([0.3, -0.7]).double()
    out = blo.value_and_hypergrad(
        lambda t, z: z.sum(),
        blo.LowerProblem(objective, batched=bool(lanes)),
        theta,
        torch.zeros(*lanes, 2).double(),
        solver=blo.ProjectedGradient(tol=1e-10),
        gradient=blo.KKTClosedForm(),
    )
    torch.testing.assert_close(out.grad, (1 / scale).sum().expand(2), rtol=1e-12, atol=0)
    assert out.report.ok


def test_an_upper_gradient_of_zero_gives_an_adjoint_of_zero() -> None:
    lower = blo.LowerProblem(lambda t, z: 0.5 * (z - t).square().sum(-1), batched=True)
    theta = torch.tensor([0.3]).double()
    for gradient in (blo.KKTClosedForm(), blo.HessianFree(1.0), blo.Implicit(), blo.Implicit(blo.Direct())):
        out = blo.value_and_hypergrad(
            lambda t, z: t.sum() + 0 * z.sum(), lower, theta, torch.zeros(3, 1).double(), gradient=gradient
        )
        assert torch.equal(out.state["q"], torch.zeros(3, 1).double())
        assert torch.equal(out.grad, torch.ones(1).double())
        assert out.report.ok


def test_a_curvature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`curvature` must not be zero.*Zero\(\)"):
        blo.HessianFree(0.0)


def test_a_curved_boundary_is_not_reported_as_indefinite() -> None:
    """The objective is linear, so that all curvature on the tangent space is that of the boundary."""
    found = []
    for ball in (blo.SmoothConstraints(inequalities=lambda z: z.square().sum() - 1), blo.L2Ball(1.0)):
        lower = blo.LowerProblem(lambda theta, z: -(theta * z).sum(), ball)
        theta = torch.tensor([3.0, 4.0]).double()
        out = blo.value_and_hypergrad(
            lambda t, z: z[0], lower, theta, theta / 5, solver=blo.Given(), gradient=blo.KKTClosedForm()
        )
        found.append(out.grad)
    truth = torch.tensor([16.0, -12.0]).double() / 125  # dz/dtheta = (I - z z') / |theta|
    for grad in found:
        torch.testing.assert_close(grad, truth, rtol=1e-9, atol=1e-9)
