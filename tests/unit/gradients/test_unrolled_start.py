"""Unrolling from a start that depends on theta."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import blo
from tests.integration.test_unrolled_solvers import CONSTRAINTS, SOLVERS, objective
from tests.strategies import SEEDS, normal

MODES: dict[str, dict[str, Any]] = {"plain": {}, "checkpoint": {"checkpoint": True}, "forward": {"mode": "forward"}}
SOLVER = blo.ProjectedGradient(0.2, max_steps=6, tol=None)
WEIGHTS, TARGET, SPREAD = normal(1, 3, 3), normal(2, 4, 3), normal(3, 4, 3)
THETA = normal(4, 3)


def start(theta: Tensor) -> Tensor:
    return theta.sin() * SPREAD


def inner(theta: Tensor, z: Tensor) -> Tensor:
    return (z @ WEIGHTS.T + theta).cosh().log().sum(-1)


def by_hand(theta: Tensor, steps: int = 6) -> Tensor:
    z = start(theta)
    for _ in range(steps):
        z = (z - 0.2 * torch.tanh(z @ WEIGHTS.T + theta) @ WEIGHTS).clamp(-0.7, 0.8)
    return z


def solved(theta: Tensor, mode: str, solver: blo.solvers.Solver = SOLVER) -> Tensor:
    lower = blo.LowerProblem(inner, blo.Box(-0.7, 0.8), batched=True)
    gradient = blo.Unrolled(start=start, **MODES[mode])
    z: Tensor = blo.argmin(lower, theta, torch.full_like(TARGET, torch.nan), solver=solver, gradient=gradient)
    return z


def upper(theta: Tensor, z: Tensor) -> Tensor:
    return (z - TARGET).square().sum() + theta.prod()


@pytest.mark.parametrize("mode", MODES)
def test_it_bears_gradients_that_are_none(mode: str) -> None:
    assert torch.autograd.gradcheck(lambda theta: solved(theta, mode), THETA.clone().requires_grad_())


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=10)
@given(seed=SEEDS)
def test_it_is_autodiff_through_a_loop_by_hand(mode: str, seed: int) -> None:
    theta = normal(seed, 3).requires_grad_()
    (truth,) = torch.autograd.grad(upper(theta, by_hand(theta)), theta)
    (found,) = torch.autograd.grad(upper(theta, solved(theta, mode)), theta)
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10)
    lower = blo.LowerProblem(inner, blo.Box(-0.7, 0.8), batched=True)
    gradient = blo.Unrolled(start=start, **MODES[mode])
    out = blo.value_and_hypergrad(upper, lower, theta, torch.zeros_like(TARGET), solver=SOLVER, gradient=gradient)
    torch.testing.assert_close(out.z, by_hand(theta).detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out.grad, truth, rtol=1e-10, atol=1e-10)
    again = blo.value_and_hypergrad(
        upper, lower, theta, torch.zeros_like(TARGET), solver=SOLVER, gradient=gradient, state=out.state
    )
    assert torch.equal(again.grad, out.grad), "what `state` remembers is not a start"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transform", ["grad", "jacrev", "vmap", "vmap of grad", "vmap of vjp"])
def test_transforms_give_the_same_derivatives(mode: str, transform: str) -> None:
    thetas = torch.stack([THETA, THETA + 0.3, -THETA])

    def through(solve: Callable[[Tensor], Tensor]) -> Tensor:
        def value(theta: Tensor) -> Tensor:
            return upper(theta, solve(theta))

        if transform == "grad":
            return torch.func.grad(value)(THETA)
        if transform == "jacrev":
            return torch.func.jacrev(solve)(THETA)
        if transform == "vmap":
            return torch.func.vmap(solve)(thetas)
        if transform == "vmap of grad":
            return torch.func.vmap(torch.func.grad(value))(thetas)
        pullback = torch.func.vjp(solve, THETA)[1]
        found: Tensor = torch.func.vmap(pullback)(normal(7, 5, 4, 3))[0]
        return found

    torch.testing.assert_close(through(lambda t: solved(t, mode)), through(by_hand), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_a_captured_tensor_of_the_start_is_seen_by_transforms(mode: str) -> None:
    lower = blo.LowerProblem(inner, batched=True)

    def value(scale: Tensor) -> Tensor:
        gradient = blo.Unrolled(start=lambda theta: scale * SPREAD, **MODES[mode])
        return blo.argmin(lower, THETA, TARGET, solver=SOLVER, gradient=gradient).sum()

    def plain(scale: Tensor) -> Tensor:
        z = scale * SPREAD
        for _ in range(6):
            z = z - 0.2 * torch.tanh(z @ WEIGHTS.T + THETA) @ WEIGHTS
        return z.sum()

    point = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(torch.func.grad(value)(point), torch.func.grad(plain)(point), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=["free", "box"])
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_starts_there(name: str, constraint: blo.sets.Set, mode: str) -> None:
    """The same steps, displaced: from a constant zero, with the start in the objective and in the set."""
    solver, _ = SOLVERS[name]
    pattern, z0 = 0.2 * normal(8, 4, 3), torch.zeros(2, 3, dtype=torch.float64)

    def begin(theta: Tensor) -> Tensor:
        return torch.stack([theta, theta.sin()]) @ pattern

    def displaced(theta: Tensor) -> blo.sets.Set:
        return blo.Box(-0.25 - begin(theta), 0.3 - begin(theta)) if isinstance(constraint, blo.Box) else constraint

    theta = (0.4 * normal(4, 4)).requires_grad_()
    lower = blo.LowerProblem(objective, constraint, batched=True)
    z = blo.argmin(
        lower, theta, z0, solver=solver, gradient=blo.Unrolled(start=begin, **MODES[mode]), on_failure="ignore"
    )
    lower = blo.LowerProblem(lambda t, d: objective(t, begin(t) + d), displaced, batched=True)
    shift = blo.argmin(lower, theta, z0, solver=solver, gradient=blo.Unrolled(), on_failure="ignore")
    torch.testing.assert_close(z, begin(theta) + shift, rtol=1e-10, atol=1e-12)
    found, truth = (torch.autograd.grad(end.square().sum(), theta)[0] for end in (z, begin(theta) + shift))
    torch.testing.assert_close(found, truth, rtol=1e-8, atol=1e-10)


def test_theta_itself_as_the_start_is_told_from_theta_in_the_objective() -> None:
    """`g = a theta z + z^2`, one step of 1/4 from z = theta: `z = theta - (a theta + 2 theta)/4`."""
    theta = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    lower = blo.LowerProblem(lambda t, z: (3 * t * z + z.square()).sum())
    for gradient in (blo.Unrolled(start=lambda t: t), blo.Unrolled(start=lambda t: t, mode="forward")):
        z = blo.argmin(lower, theta, theta, solver=blo.OneStep(0.25), gradient=gradient)
        (slope,) = torch.autograd.grad(z.sum(), theta)
        torch.testing.assert_close(z.item(), 0.7 * (1 - 5 / 4), rtol=1e-15, atol=0)
        torch.testing.assert_close(slope.item(), 1 - 5 / 4, rtol=1e-15, atol=0)


def test_second_derivatives_are_those_of_the_steps() -> None:
    def value(solve: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda theta: upper(theta, solve(theta))

    found = torch.func.jacrev(torch.func.jacrev(value(lambda t: solved(t, "plain"))))(THETA)
    truth = torch.func.jacrev(torch.func.jacrev(value(by_hand)))(THETA)
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_a_solve_without_a_step_has_the_derivative_of_the_start(mode: str) -> None:
    theta = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    lower = blo.LowerProblem(lambda t, z: (z - t.detach()).square().sum() + 0 * t.sum())
    gradient = blo.Unrolled(start=lambda t: t, **MODES[mode])
    z = blo.argmin(lower, theta, theta, solver=blo.ProjectedGradient(0.1), gradient=gradient)
    (found,) = torch.autograd.grad(z @ torch.tensor([3.0, 5.0], dtype=torch.float64), theta)
    assert found.tolist() == [3.0, 5.0]


def test_a_start_that_is_not_like_z_is_refused() -> None:
    theta, lower = THETA.clone().requires_grad_(), blo.LowerProblem(inner, batched=True)
    with pytest.raises(blo.StructureError, match=r"`start\(theta\)` must have the structure of `z0`"):
        blo.argmin(lower, theta, TARGET, gradient=blo.Unrolled(start=lambda t: t))
    with pytest.raises(blo.StructureError, match=r"`start\(theta\)` must be torch.float64"):
        blo.argmin(lower, theta, TARGET, gradient=blo.Unrolled(start=lambda t: SPREAD.float()))
    with pytest.raises(ValueError, match="cannot be combined with `start`"):
        blo.Unrolled(last=3, start=start)
    with pytest.raises(blo.StructureError, match=r"`start` must be a function of theta.*of type Tensor.*`z0`"):
        blo.Unrolled(start=THETA)  # type: ignore[arg-type]
