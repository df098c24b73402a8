"""Momentum and optimisers that go on from call to call."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torchopt
from torch import Tensor

import blo
from tests.strategies import normal

DATA, START, THETA = normal(1, 12, 4, 3), 0.3 * normal(2, 3), normal(4, 4)


def objective(theta: Tensor, z: Tensor, rows: Tensor) -> Tensor:
    return (rows @ z + theta).cosh().log().mean(0).sum() + 0.1 * z.square().sum()


def slope(theta: Tensor, z: Tensor, rows: Tensor) -> Tensor:
    return torch.einsum("bij,bi->j", rows, torch.tanh(rows @ z + theta)) / len(rows) + 0.2 * z


LOWER = blo.LowerProblem(objective, batches=list(DATA.split(2)))
SOLVERS = {
    "momentum": lambda steps, carry: blo.ProjectedGradient(0.2, steps, tol=None, momentum=0.6, carry=carry),
    "learned momentum": lambda steps, carry: blo.ProjectedGradient(
        0.2, steps, tol=None, momentum=lambda t: 0.6 + 0 * t[0], carry=carry
    ),
    "plain": lambda steps, carry: blo.ProjectedGradient(0.2, steps, tol=None, carry=carry),
    "adam": lambda steps, carry: blo.TorchOpt(torchopt.adam(0.1), steps, carry=carry),
    "sgd": lambda steps, carry: blo.TorchOpt(torchopt.sgd(0.1, momentum=0.9), steps, carry=carry),
}
MODES = {
    "reverse": blo.Unrolled(),
    "checkpoint": blo.Unrolled(checkpoint=True),
    "forward": blo.Unrolled(mode="forward"),
    "last": blo.Unrolled(last=2),
    "zero": blo.Zero(),
}


def upper(theta: Tensor, z: Tensor) -> Tensor:
    return (z - 1).square().sum() + theta.sum()


def run(solver: Any, gradient: Any, state: Any = None, lower: blo.LowerProblem = LOWER) -> blo.Hypergradient:
    return blo.value_and_hypergrad(upper, lower, THETA, START, solver=solver, gradient=gradient, state=state)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SOLVERS)
def test_three_calls_of_two_steps_are_one_of_six(name: str, mode: str) -> None:
    whole = run(SOLVERS[name](6, False), blo.Zero())
    solver, state = SOLVERS[name](2, True), None
    for _ in range(3):
        found = run(solver, MODES[mode], state)
        saved = io.BytesIO()
        torch.save(found.state, saved)
        saved.seek(0)
        state = torch.load(saved, weights_only=True)
    torch.testing.assert_close(found.z, whole.z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["reverse", "checkpoint", "forward", "last"])
def test_the_momentum_that_is_carried_is_a_constant(mode: str) -> None:
    theta, z, velocity = THETA.clone().requires_grad_(), START, torch.zeros(3).double()
    batches, solver, state = DATA.split(2), SOLVERS["momentum"](2, True), None
    for call in range(3):
        z, velocity = z.detach(), velocity.detach()
        for k in (2 * call, 2 * call + 1):
            velocity = 0.6 * velocity + slope(theta, z, batches[k % 6])
            z = z - 0.2 * velocity
        (truth,) = torch.autograd.grad(upper(theta, z), theta)
        found = run(solver, MODES[mode], state)
        state = found.state
        torch.testing.assert_close(found.grad, truth, rtol=1e-10, atol=1e-10)


def test_a_state_that_does_not_fit_is_refused() -> None:
    solver = SOLVERS["momentum"](2, True)
    state = run(solver, blo.Unrolled()).state
    for wrong in (run(SOLVERS["momentum"](2, False), blo.Unrolled()).state, {"z": START, "q": None}):
        with pytest.raises(blo.StructureError, match="the state of a solver with carry=True"):
            run(solver, blo.Unrolled(), wrong)
    with pytest.raises(blo.StructureError, match="with z and q, but holds"):
        run(SOLVERS["momentum"](2, False), blo.Unrolled(), state)
    for other in (SOLVERS["adam"](2, True), solver):
        left = state if other is not solver else {**state, "solver": state["solver"][:1]}
        with pytest.raises(blo.StructureError, match=r"`state\['solver'\]` must hold the tensors that the same solver"):
            run(other, blo.Unrolled(), left)


@pytest.mark.parametrize(
    "make",
    [
        lambda: blo.ProjectedGradient(0.1, carry=True),
        lambda: blo.ProjectedGradient(tol=None, carry=True),
        lambda: blo.TorchOpt(torchopt.adam(0.1), 3, tol=1e-3, carry=True),
    ],
    ids=["tolerance", "own step", "torchopt"],
)
def test_a_solve_of_no_fixed_steps_is_not_carried_on(make: Any) -> None:
    with pytest.raises(ValueError, match="`carry=True` needs a fixed number of steps"):
        make()


def test_argmin_has_no_state_to_carry() -> None:
    with pytest.raises(blo.StructureError, match="returns no `state`"):
        blo.argmin(LOWER, THETA, START, solver=SOLVERS["plain"](2, True), gradient=blo.Unrolled())
