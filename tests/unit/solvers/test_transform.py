"""Functions between the gradient and the step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchopt
from torch import Tensor

import blo
from tests import oracles
from tests.strategies import normal

STEPS = 5
WEIGHTS, START, TARGET, THETA = normal(3, 4, 3), normal(6, 3), normal(5, 3), normal(4, 4)
Tensors = dict[str, Tensor]


def objective(theta: Tensor, z: Tensors) -> Tensor:
    flat = torch.cat([z["a"], z["b"]])
    return (WEIGHTS @ flat + theta).cosh().log().sum() + 0.1 * flat @ flat


def slope(theta: Tensor, z: Tensor) -> Tensor:
    return WEIGHTS.T @ torch.tanh(WEIGHTS @ z + theta) + 0.2 * z


def clip(gradient: Tensors) -> Tensors:
    """Clip the norm of both together to a half, and drop a quarter of one."""
    norm = torch.linalg.vector_norm(torch.cat(list(gradient.values())))
    factor = 0.5 / norm.clamp(min=0.5)
    return {"a": factor * gradient["a"], "b": 0.75 * factor * gradient["b"]}


def clip_by_hand(g: Tensor) -> Tensor:
    factor = 0.5 / (g @ g).sqrt() if (g @ g).sqrt() > 0.5 else 1.0
    return factor * g * torch.tensor([1.0, 1.0, 0.75], dtype=torch.float64)


def momentum_by_hand(theta: Tensor) -> Tensor:
    z, velocity = START, torch.zeros(3).double()
    for _ in range(STEPS):
        velocity = 0.6 * velocity + clip_by_hand(slope(theta, z))
        z = z - 0.3 * velocity
    return z


def adam_by_hand(theta: Tensor) -> Tensor:
    z, mean, square = START, torch.zeros(3).double(), torch.zeros(3).double()
    for k in range(1, STEPS + 1):
        decay = [1 - beta ** torch.tensor(k) for beta in (0.9, 0.999)]  # torchopt's are single precision, too
        g = clip_by_hand(slope(theta, z))
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        z = z - 0.1 * (mean / decay[0]) / ((square / decay[1]).sqrt() + 1e-8)
    return z


SOLVERS: dict[str, Any] = {
    "momentum": (blo.ProjectedGradient(0.3, STEPS, tol=None, momentum=0.6, transform=clip), momentum_by_hand),
    "adam": (blo.TorchOpt(torchopt.adam(0.1), STEPS, transform=clip), adam_by_hand),
}
MODES = {
    "reverse": blo.Unrolled(),
    "checkpoint": blo.Unrolled(checkpoint=True),
    "forward": blo.Unrolled(mode="forward"),
    "all the last": blo.Unrolled(last=STEPS),
}


def solved(theta: Tensor, solver: Any, gradient: Any) -> Tensor:
    z0 = {"a": START[:2], "b": START[2:]}
    z = blo.argmin(blo.LowerProblem(objective), theta, z0, solver=solver, gradient=gradient, on_failure="raise")
    return torch.cat([z["a"], z["b"]])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SOLVERS)
def test_the_derivative_is_autodiff_through_a_loop_by_hand(name: str, mode: str) -> None:
    solver, hand = SOLVERS[name]
    theta = THETA.clone().requires_grad_()
    expected = hand(theta)
    truth = torch.autograd.grad((expected - TARGET).square().sum(), theta)
    found = solved(theta, solver, MODES[mode])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    slopes = torch.autograd.grad((found - TARGET).square().sum(), theta)
    torch.testing.assert_close(slopes, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch maps `addcmul_` lane by lane
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SOLVERS)
def test_the_derivative_is_that_of_central_differences_in_each_lane_of_vmap(name: str, mode: str) -> None:
    def final(theta: Tensor, gradient: Any) -> Tensor:
        return (solved(theta, SOLVERS[name][0], gradient) - TARGET).square().sum()

    thetas = torch.stack([THETA, 0.5 * THETA])
    found = torch.vmap(torch.func.grad(lambda t: final(t, MODES[mode])))(thetas)
    for lane, theta in enumerate(thetas):
        truth = oracles.central_difference(
            lambda t: final(torch.as_tensor(t), blo.Zero()).numpy().reshape(1), theta.numpy(), 1e-4
        )
        np.testing.assert_allclose(found[lane], truth[0], rtol=1e-7, atol=1e-8)


def test_the_residual_is_that_of_the_gradient_itself() -> None:
    solver = blo.ProjectedGradient(0.05, 5000, tol=1e-10, transform=clip)
    theta = THETA.clone().requires_grad_()
    z = solved(theta, solver, blo.Implicit(blo.Direct()))
    assert slope(THETA, z.detach()).norm() < 1e-9
    matrix = torch.autograd.functional.jacobian(lambda z: slope(THETA, z), z.detach())
    cross = torch.autograd.functional.jacobian(lambda t: slope(t, z.detach()), THETA)
    torch.testing.assert_close(
        torch.autograd.grad(z.sum(), theta)[0], -cross.T @ torch.linalg.solve(matrix.T, torch.ones(3).double())
    )


def in_place(gradient: Tensors) -> Tensors:
    gradient["a"].mul_(0.5)
    return gradient


@pytest.mark.parametrize(
    ("transform", "match"),
    [
        (lambda gradient: gradient["a"], "`transform\\(gradient\\)` must have the structure of `z0`"),
        (lambda gradient: None, "`transform\\(gradient\\)` must hold tensors only"),
        (in_place, "`transform` must not write to the gradient"),
        (3, "`transform` must be a function of a gradient"),
    ],
    ids=["another tree", "nothing", "in place", "number"],
)
def test_what_is_no_function_from_gradients_to_gradients_is_refused(transform: Any, match: str) -> None:
    for make in (
        lambda: blo.ProjectedGradient(0.3, STEPS, tol=None, transform=transform),
        lambda: blo.TorchOpt(torchopt.sgd(0.1), STEPS, transform=transform),
    ):
        with pytest.raises(blo.StructureError, match=match):
            solved(THETA, make(), blo.Zero())


def test_a_step_that_is_sought_is_one_for_the_gradient_itself() -> None:
    with pytest.raises(ValueError, match="step=None needs direction='gradient', no momentum and no transform"):
        blo.ProjectedGradient(transform=clip)


def test_what_a_transform_of_torch_would_not_reach_is_refused() -> None:
    def final(factor: Tensor, gradient: Any) -> Tensor:
        solver = blo.ProjectedGradient(
            0.3, STEPS, tol=None, transform=lambda g: {"a": factor * g["a"], "b": factor * g["b"]}
        )
        return solved(THETA, solver, gradient).sum()

    found = torch.vmap(lambda f: final(f, blo.Unrolled()))(torch.tensor([1.0, 0.5]).double())
    torch.testing.assert_close(found[1], final(torch.tensor(0.5).double(), blo.Zero()))
    with pytest.raises(blo.StructureError, match="`transform` captures a tensor on which a"):
        torch.vmap(lambda f: final(f, blo.Unrolled(checkpoint=True)))(torch.tensor([1.0, 0.5]).double())
