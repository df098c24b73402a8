"""The lower problem on flat tensors, and its linearisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import blo
from blo._parametric_problem import ParametricProblem
from tests.oracles import QuadraticCase
from tests.strategies import SEEDS, normal, quadratic_cases

quick = settings(deadline=None, max_examples=25)


@quick
@given(quadratic_cases(), SEEDS)
def test_gradient_projection_and_residual_are_those_of_numpy(case: QuadraticCase, seed: int) -> None:
    problem, start, leaves = ParametricProblem.of(case.lower(), case.start(), case.z0())
    bound = problem.bind(leaves)
    z = normal(seed, len(start))
    slope = bound.gradient(z)
    torch.testing.assert_close(slope, torch.as_tensor(case.gradient(case.theta, z.numpy())), rtol=1e-12, atol=1e-12)
    assert not slope.requires_grad
    solution = torch.as_tensor(case.solution(case.theta))
    assert bound.residual(solution, bound.gradient(solution)) < 1e-12
    moved = bound.prox(z - slope, 1.0)
    torch.testing.assert_close(bound.residual(z, slope), (z - moved).norm(), rtol=1e-14, atol=1e-14)


@quick
@given(quadratic_cases(), SEEDS)
def test_the_linear_model_is_the_first_order_expansion_with_a_proximal_term(case: QuadraticCase, seed: int) -> None:
    anchor, z = normal(seed, 2, len(case.c))
    lower = case.lower().linearize(anchor, 2.5)
    slope = torch.as_tensor(case.gradient(case.theta, anchor.numpy()))
    value = slope @ (z - anchor) + 1.25 * (z - anchor).square().sum()
    torch.testing.assert_close(lower.objective(case.start(), z), value, rtol=1e-12, atol=1e-12)
    gradient = torch.func.grad(lambda z: lower.objective(case.start(), z))(z)
    torch.testing.assert_close(gradient, slope + 2.5 * (z - anchor), rtol=1e-12, atol=1e-12)
    at = torch.func.jacrev(lambda t: torch.func.grad(lambda z: lower.objective(t, z))(z))(case.start())
    cross = torch.func.jacrev(lambda t: torch.func.grad(lambda z: case.objective(t, z))(anchor))(case.start())
    torch.testing.assert_close(at, cross, rtol=1e-12, atol=1e-12)


def test_the_linear_model_keeps_constraint_lanes_and_structure() -> None:
    def objective(theta: Tensor, z: dict[str, Tensor]) -> Tensor:
        return (theta * z["a"].sin()).sum(-1) + z["b"].square()

    anchor = {"a": normal(0, 4, 3), "b": normal(1, 4)}
    box = blo.Box(-1.0, 1.0)
    lower = blo.LowerProblem(objective, box, batched=True).linearize(anchor, 3.0)
    z = {"a": normal(2, 4, 3), "b": normal(3, 4)}
    theta = torch.tensor(0.7, dtype=torch.float64)
    da, db = z["a"] - anchor["a"], z["b"] - anchor["b"]
    value = (theta * anchor["a"].cos() * da).sum(-1) + 2 * anchor["b"] * db
    value = value + 1.5 * (da.square().sum(-1) + db.square())
    torch.testing.assert_close(lower.objective(theta, z), value, rtol=1e-12, atol=1e-12)
    assert lower.constraint is box and lower.batched


def test_the_anchor_is_a_constant() -> None:
    anchor = torch.tensor([0.5], requires_grad=True)
    lower = blo.LowerProblem(lambda t, z: (t * z).sum()).linearize(anchor, 1.0)
    assert not lower.objective(torch.tensor(1.0), torch.ones(1)).requires_grad


@pytest.mark.parametrize(
    "anchor",
    [torch.zeros(1), torch.zeros(2).double(), {"a": torch.zeros(2)}],
    ids=["another shape, which would broadcast", "another dtype", "another structure"],
)
def test_an_anchor_unlike_the_start_is_refused(anchor: Any) -> None:
    lower = blo.LowerProblem(lambda t, z: (t * z).sum()).linearize(anchor, 1.0)
    theta, z0 = torch.ones(3, 2, requires_grad=True), torch.zeros(2)
    with pytest.raises(blo.StructureError, match="`anchor` must"):
        blo.argmin(lower, theta[0], z0)
    with pytest.raises(blo.StructureError, match="`anchor` must"):
        torch.vmap(lambda t: blo.argmin(lower, t, z0))(theta)


@pytest.mark.parametrize("curvature", [0.0, -1.0, float("nan")])
def test_a_model_without_a_minimiser_is_refused(curvature: float) -> None:
    lower = blo.LowerProblem(lambda t, z: z.sum())
    with pytest.raises(ValueError, match="`curvature` must be positive"):
        lower.linearize(torch.zeros(2), curvature)


def test_a_problem_is_unconstrained_and_unbatched_unless_told_otherwise() -> None:
    lower = blo.LowerProblem(lambda t, z: z.sum())
    assert isinstance(lower.constraint, blo.Free) and not lower.batched
    with pytest.raises(blo.StructureError, match=r"`penalty` must be a blo penalty or a callable.*bool"):
        blo.LowerProblem(lambda t, z: z.sum(), blo.Free(), True)  # type: ignore[arg-type]


def test_constants_are_detached_and_share_the_slope_of_a_linear_model() -> None:
    calls = []

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        calls.append(theta.requires_grad)
        return (theta * z.sin()).sum()

    theta = torch.ones(2, requires_grad=True)
    problem, start, leaves = ParametricProblem.of(
        blo.LowerProblem(objective).linearize(torch.zeros(2), 1.0), theta, torch.zeros(2)
    )
    bound = problem.bind(leaves)
    for _ in range(3):
        assert not bound.detach().gradient(start).requires_grad
        bound.gradient(start)
    assert len(calls) == 1
