"""Every iterative solver unrolled: checkpointed, truncated and in forward mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchopt
from torch import Tensor

import blo
from tests.strategies import normal

STEPS, LAST = 7, 3

#: Solvers of a fixed number of steps, and how often each evaluates the objective in one.
SOLVERS: dict[str, tuple[blo.solvers.Solver, int]] = {
    "projected gradient": (blo.ProjectedGradient(0.6, STEPS, tol=None, momentum=0.5), 1),
    "fista": (blo.FISTA(0.6, STEPS, tol=None), 1),
    "lbfgs": (blo.LBFGS(3, STEPS, tol=None), 1),
    "newton": (blo.Newton(STEPS, tol=None), 2),
    "picard": (blo.FixedPoint(0.6, memory=0, max_steps=STEPS, tol=None), 1),
    "anderson": (blo.FixedPoint(0.6, memory=2, max_steps=STEPS, tol=None), 1),
    "torchopt": (blo.TorchOpt(torchopt.adam(0.05), STEPS), 1),
    "torchopt with a number": (blo.TorchOpt(torchopt.adamax(0.05), STEPS), 1),
}
CONSTRAINTS = [blo.Free(), blo.Box(-0.25, 0.3)]
WEIGHTS = 0.6 * normal(3, 4, 3)
TARGET = normal(5, 2, 3)


def objective(theta: Tensor, z: Tensor) -> Tensor:
    return (z @ WEIGHTS.T + theta).cosh().log().sum(-1) + 0.1 * z.square().square().sum(-1)


def slope(solver: blo.solvers.Solver, constraint: blo.sets.Set, gradient: Any, function: Any = objective) -> Tensor:
    """Return the gradient of the distance between what a solver returns and a target."""
    theta = 0.4 * normal(4, 4).requires_grad_()
    theta = theta.detach().requires_grad_()
    lower = blo.LowerProblem(function, constraint, batched=True)
    z = blo.argmin(lower, theta, 0.1 * TARGET, solver=solver, gradient=gradient, on_failure="ignore")
    (found,) = torch.autograd.grad((z - TARGET).square().sum(), theta)
    assert found.abs().max() > 1e-3
    return found


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=["free", "box"])
@pytest.mark.parametrize("name", SOLVERS)
def test_checkpoints_and_forward_mode_change_nothing(name: str, constraint: blo.sets.Set) -> None:
    solver, _ = SOLVERS[name]
    whole = slope(solver, constraint, blo.Unrolled())
    torch.testing.assert_close(slope(solver, constraint, blo.Unrolled(checkpoint=True)), whole, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(slope(solver, constraint, blo.Unrolled(mode="forward")), whole, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(slope(solver, constraint, blo.Unrolled(last=STEPS)), whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=["free", "box"])
@pytest.mark.parametrize("name", [name for name in SOLVERS if name not in ("lbfgs", "anderson")])
def test_truncation_cuts_theta_out_of_the_first_steps(name: str, constraint: blo.sets.Set) -> None:
    """The whole is differentiated through an objective that holds theta constant until the last steps begin.

    Solvers that remember the slope before the last steps, as L-BFGS does, would carry theta along in it there.
    """
    solver, calls_per_step = SOLVERS[name]
    calls = 0

    def switching(theta: Tensor, z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return objective(theta if calls > calls_per_step * (STEPS - LAST) else theta.detach(), z)

    truth = slope(solver, constraint, blo.Unrolled(), switching)
    found = slope(solver, constraint, blo.Unrolled(last=LAST))
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-12)
    whole = slope(solver, constraint, blo.Unrolled())
    if name != "newton":  # which forgets its start as fast as it converges
        assert (found - whole).abs().max() > 1e-6


def steep(theta: Tensor, z: Tensor) -> Tensor:
    return (z.exp() * theta - 2 * z).sum() + 2 * (z[0] - z[1]).square()


def saddle(theta: Tensor, z: Tensor) -> Tensor:
    return (theta * z.cos()).sum() + 0.05 * z.square().square().sum() + 0.3 * z[0] * z[1]


#: Solvers that choose the length of their steps, with a start from which they have to.
ADAPTIVE: dict[str, tuple[Any, blo.solvers.Solver, list[float]]] = {
    "projected gradient": (steep, blo.ProjectedGradient(max_steps=3, tol=None), [2.0, -1.0]),
    "projected gradient that stops early": (steep, blo.ProjectedGradient(tol=0.1), [2.0, -1.0]),
    "fista": (steep, blo.FISTA(max_steps=3, tol=None), [2.0, -1.0]),
    "lbfgs, first length": (steep, blo.LBFGS(max_steps=3, tol=None), [2.0, -1.0]),
    "lbfgs, backtracking": (steep, blo.LBFGS(max_steps=4, tol=None), [-3.0, 4.0]),
    "newton, indefinite": (saddle, blo.Newton(max_steps=3, tol=None), [0.3, -0.4]),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_it_is_the_derivative_of_what_the_solver_computes(name: str) -> None:
    function, solver, start = ADAPTIVE[name]
    lower, z0 = blo.LowerProblem(function), torch.tensor(start, dtype=torch.float64)

    def solved(theta: Tensor) -> Tensor:
        z = blo.argmin(lower, theta, z0, solver=solver, gradient=blo.Unrolled(), on_failure="ignore")
        return z @ torch.tensor([1.0, 2.0], dtype=torch.float64)

    theta = torch.tensor([1.3, 0.4], dtype=torch.float64)
    (found,) = torch.autograd.grad(solved(live := theta.clone().requires_grad_()), live)
    for coordinate in range(2):
        h = 1e-4 * torch.eye(2, dtype=torch.float64)[coordinate]
        near, far = solved(theta + h) - solved(theta - h), solved(theta + 2 * h) - solved(theta - 2 * h)
        torch.testing.assert_close(found[coordinate], (8 * near - far) / 12e-4, rtol=1e-8, atol=1e-10)
