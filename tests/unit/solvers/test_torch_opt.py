"""Optimisers of torchopt as lower solvers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchopt
from hypothesis import given, settings
from torch import Tensor

import blo
from tests import oracles
from tests.lower import Counted, assert_lanes_rest, minimise, quadratic
from tests.oracles import Array
from tests.strategies import SEEDS, normal

quick = settings(deadline=None, max_examples=10)
WEIGHTS = 0.6 * normal(3, 4, 3)


def objective(theta: Tensor, z: Tensor) -> Tensor:
    return (z @ WEIGHTS.T + theta).cosh().log().sum(-1) + 0.05 * z.square().sum(-1)


def slope(theta: Tensor, z: Tensor) -> Tensor:
    return torch.tanh(z @ WEIGHTS.T + theta) @ WEIGHTS + 0.1 * z


def adam_by_hand(theta: Tensor, z: Tensor, steps: int, bound: float) -> Tensor:
    mean, square = torch.zeros_like(z), torch.zeros_like(z)
    for t in range(1, steps + 1):
        decay = [1 - beta ** torch.tensor(t) for beta in (0.9, 0.999)]  # torchopt's are single precision, too
        g = slope(theta, z)
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        z = z - 0.1 * (mean / decay[0]) / ((square / decay[1]).sqrt() + 1e-8)
        z = z.clamp(-bound, bound)
    return z


def sgd_by_hand(theta: Tensor, z: Tensor, steps: int, bound: float) -> Tensor:
    velocity = torch.zeros_like(z)
    for t in range(steps):
        g = slope(theta, z)
        velocity = g if t == 0 else 0.9 * velocity + g
        z = (z - 0.1 * velocity).clamp(-bound, bound)
    return z


CASES = {
    "adam": (torchopt.adam(0.1), adam_by_hand),
    "sgd": (torchopt.sgd(0.1, momentum=0.9, moment_requires_grad=False), sgd_by_hand),
}


@pytest.mark.parametrize("bound", [9.0, 0.4])
@pytest.mark.parametrize("name", CASES)
@quick
@given(seed=SEEDS)
def test_it_is_autodiff_through_a_loop_by_hand(name: str, bound: float, seed: int) -> None:
    optimizer, by_hand = CASES[name]
    z0, target, theta = normal(seed, 2, 3), normal(seed + 1, 2, 3), normal(seed + 2, 4).requires_grad_()
    z = by_hand(theta, z0, 6, bound)
    (truth,) = torch.autograd.grad((z - target).square().sum(), theta)
    out = blo.value_and_hypergrad(
        lambda t, z: (z - target).square().sum(),
        blo.LowerProblem(objective, blo.Box(-bound, bound), batched=True),
        theta,
        z0,
        solver=blo.TorchOpt(optimizer, steps=6),
        gradient=blo.Unrolled(),
    )
    torch.testing.assert_close(out.z, z.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out.grad, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch maps `addcmul_` lane by lane
def test_the_derivative_is_that_of_central_differences_under_transforms() -> None:
    solver = blo.TorchOpt(torchopt.adam(0.1), steps=5)

    def final(theta: Tensor, gradient: Any) -> Tensor:
        z0 = torch.full((3,), 0.2).double()
        z: Tensor = blo.argmin(blo.LowerProblem(objective), theta, z0, solver=solver, gradient=gradient)
        return z

    def number(theta: Array) -> Array:
        found: Array = final(torch.as_tensor(theta), blo.Zero()).numpy()
        return found

    theta = normal(4, 4)
    truth = oracles.central_difference(number, theta.numpy(), 1e-3)
    found = torch.func.jacrev(lambda t: final(t, blo.Unrolled()))(theta)
    np.testing.assert_allclose(found, truth, rtol=1e-7, atol=1e-8)
    each = torch.vmap(lambda t: final(t, blo.Unrolled()))(torch.stack([theta, 2 * theta]))
    torch.testing.assert_close(each[1], final(2 * theta, blo.Zero()), rtol=1e-12, atol=1e-12)


def test_it_stops_at_the_solution_and_implicit_gradients_follow() -> None:
    matrix, b = quadratic(0, 4, 4.0)
    theta = normal(0, 4).requires_grad_()
    lower = blo.LowerProblem(lambda t, z: 0.5 * z @ matrix @ z - t @ z)
    solver = blo.TorchOpt(torchopt.sgd(1.0), 2000, tol=1e-10)
    z = blo.argmin(lower, theta, torch.zeros(4).double(), solver=solver, gradient=blo.Implicit(blo.Direct()))
    np.testing.assert_allclose(z.detach(), np.linalg.solve(matrix.numpy(), theta.detach().numpy()), atol=1e-9)
    (found,) = torch.autograd.grad(b @ z, theta)
    np.testing.assert_allclose(found, np.linalg.solve(matrix.numpy(), b.numpy()), rtol=1e-8)


@pytest.mark.parametrize("optimizer", [torchopt.adam(0.05), torchopt.adamax(0.05), torchopt.sgd(0.3)])
def test_a_lane_that_is_done_rests(optimizer: Any) -> None:
    curvature = torch.tensor([[1.0], [0.1], [0.03]], dtype=torch.float64)

    def function(z: Tensor) -> Tensor:
        return 0.5 * (curvature * (z - 1).square()).sum(-1)

    def solved(steps: int) -> blo.solvers.Solution:
        return minimise(function, normal(1, 3, 2), blo.TorchOpt(optimizer, steps, tol=1e-4), batched=True)

    assert_lanes_rest(solved, [1, 50, 200, 500, 1000, 2000], 1e-4)


@pytest.mark.parametrize(("tol", "calls"), [(None, 6), (1e-12, 8)])
def test_a_step_takes_one_evaluation_and_a_tolerance_that_is_not_reached_two_more(
    tol: float | None, calls: int
) -> None:
    loss = Counted(lambda z: z.square().sum())
    minimise(loss, torch.ones(2), blo.TorchOpt(torchopt.sgd(0.1), 6, tol))
    assert loss.calls == calls


def test_something_else_is_refused() -> None:
    optimizer: Any = torch.optim.SGD([torch.ones(1)], lr=0.1)
    with pytest.raises(blo.StructureError, match="`optimizer` must have the functions"):
        blo.TorchOpt(optimizer, 3)


RELATIVES = {
    "adam": torchopt.adam(0.1),
    "adamw": torchopt.adamw(0.1),
    "radam": torchopt.radam(0.1),
    "rmsprop": torchopt.rmsprop(0.1),
    "centred rmsprop": torchopt.rmsprop(0.1, centered=True),
    "adagrad": torchopt.adagrad(0.1),
}
MODES = {
    "reverse": blo.Unrolled(),
    "checkpoint": blo.Unrolled(checkpoint=True),
    "forward": blo.Unrolled(mode="forward"),
    "all the last": blo.Unrolled(last=9),
}


def dead(theta: Tensor, z: Tensor) -> Tensor:
    """An objective whose gradient in the first coordinate is exactly zero."""
    return objective(theta, z * (torch.arange(3) > 0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", RELATIVES)
def test_where_a_gradient_is_exactly_zero_the_derivative_is_that_of_central_differences(name: str, mode: str) -> None:
    solver, z0 = blo.TorchOpt(RELATIVES[name], steps=4), torch.full((3,), 0.7).double()

    def value(theta: Tensor, gradient: Any) -> Tensor:
        lower = blo.LowerProblem(dead)
        z: Tensor = blo.argmin(lower, theta, z0, solver=solver, gradient=gradient, on_failure="raise")
        return (z - 1.0).square().sum()

    theta = normal(4, 4)
    truth = oracles.central_difference(lambda t: value(torch.as_tensor(t), blo.Zero()).numpy(), theta.numpy(), 1e-3)
    (found,) = torch.autograd.grad(value(theta.requires_grad_(), MODES[mode]), theta)
    np.testing.assert_allclose(found, truth, rtol=1e-7, atol=1e-8)


def test_a_gradient_whose_square_underflows_leaves_the_derivative_finite() -> None:
    solver = blo.TorchOpt(torchopt.adam(0.1), steps=1)

    def moved(slope: Tensor) -> Tensor:
        lower = blo.LowerProblem(lambda t, z: t * z.sum())
        z: Tensor = blo.argmin(lower, slope, torch.zeros(1), solver=solver, gradient=blo.Unrolled())
        return z.sum()

    # One step is -0.1 g / (|g| + 1e-8), of derivative -0.1 1e-8 / (|g| + 1e-8)^2.
    slope = torch.tensor(1e-30, requires_grad=True)
    (found,) = torch.autograd.grad(moved(slope), slope)
    assert float(found) == pytest.approx(-1e7, rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "eps"), [("adam", 1e-8), ("adamw", 1e-8), ("rmsprop", 1e-8), ("centred rmsprop", 1e-8), ("adagrad", 1e-10)]
)
def test_a_zero_gradient_that_theta_moves_has_the_derivative_of_the_step(name: str, eps: float, mode: str) -> None:
    # One step is -0.1 g / (|g| + eps) or a relative of it, of derivative -0.1 / eps at 0.
    lower, theta = blo.LowerProblem(lambda t, z: 0.5 * (z - t).square().sum()), torch.zeros(2).double().requires_grad_()
    solver = blo.TorchOpt(RELATIVES[name], steps=1)
    z = blo.argmin(lower, theta, torch.zeros(2).double(), solver=solver, gradient=MODES[mode])
    (found,) = torch.autograd.grad(z.sum(), theta)
    np.testing.assert_allclose(found, 0.1 / eps, rtol=1e-6)


def clipped(largest: float, **options: Any) -> blo.TorchOpt:
    chain = torchopt.combine.chain(torchopt.clip.clip_grad_norm(largest, **options), torchopt.sgd(0.1))
    return blo.TorchOpt(chain, steps=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"norm_type": torch.inf}], ids=["2", "inf"])
@pytest.mark.parametrize("mode", MODES)
def test_clipping_that_autograd_does_not_see_is_refused(mode: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    theta = normal(4, 4).to(dtype).requires_grad_()

    def value(theta: Tensor) -> Tensor:
        lower = blo.LowerProblem(lambda t, z: objective(t.double(), z.double()))
        z = blo.argmin(lower, theta, torch.ones(3, dtype=dtype), solver=clipped(0.1, **options), gradient=MODES[mode])
        found: Tensor = z.sum()
        return found

    with pytest.raises(blo.StructureError, match=r"`optimizer` must be differentiable.*clip_grad_norm"):
        value(theta).backward()  # type: ignore[no-untyped-call]
    with pytest.raises(blo.StructureError, match="`optimizer` must be differentiable"):
        torch.func.grad(value)(theta.detach())


@pytest.mark.parametrize("mode", MODES)
def test_clipping_that_nothing_reaches_is_no_matter(mode: str) -> None:
    found = [
        blo.value_and_hypergrad(
            lambda t, z: z.square().sum(),
            blo.LowerProblem(objective),
            normal(4, 4),
            torch.ones(3).double(),
            solver=solver,
            gradient=MODES[mode],
        ).grad
        for solver in (clipped(1e3), blo.TorchOpt(torchopt.sgd(0.1), steps=3))
    ]
    assert torch.equal(*found)


def test_clipping_is_no_matter_to_implicit_gradients() -> None:
    matrix, b = quadratic(0, 4, 4.0)
    out = blo.value_and_hypergrad(
        lambda t, z: b @ z,
        blo.LowerProblem(lambda t, z: 0.5 * z @ matrix @ z - t @ z),
        normal(0, 4),
        torch.zeros(4).double(),
        solver=blo.TorchOpt(torchopt.combine.chain(torchopt.clip.clip_grad_norm(0.5), torchopt.sgd(1.0)), 5000, 1e-10),
    )
    np.testing.assert_allclose(out.grad, np.linalg.solve(matrix.numpy(), b.numpy()), rtol=1e-8)


def test_an_operation_that_transforms_do_not_take_is_named() -> None:
    solver = blo.TorchOpt(torchopt.adam(0.1, use_accelerated_op=True), steps=2)
    with pytest.raises(blo.StructureError, match="use_accelerated_op=False"):
        blo.argmin(
            blo.LowerProblem(objective),
            normal(4, 4).requires_grad_(),
            torch.ones(3).double(),
            solver=solver,
            gradient=blo.Unrolled(mode="forward"),
        )


def test_each_solve_is_the_same_function_though_an_optimiser_remembers_its_first_update() -> None:
    solver = blo.TorchOpt(torchopt.sgd(0.1, momentum=0.9, dampening=0.5), steps=4)
    solves = [
        blo.argmin(
            blo.LowerProblem(objective), normal(4, 4), torch.ones(3).double(), solver=solver, gradient=blo.Zero()
        )
        for _ in range(2)
    ]
    assert torch.equal(*solves)


@pytest.mark.parametrize("gradient", [blo.Unrolled(), blo.Unrolled(checkpoint=True), blo.Unrolled(mode="forward")])
def test_a_setting_that_torch_takes_as_a_number_cannot_be_learned(gradient: blo.gradients.Strategy) -> None:
    """In forward mode torch would drop its derivative, so that the hypergradient were zero."""
    solver = blo.TorchOpt(lambda theta: torchopt.adamw(lr=theta[0], weight_decay=theta[1]), 3)
    lower = blo.LowerProblem(lambda theta, z: z.square().sum() - z.sum())
    with pytest.raises(blo.StructureError, match="passes a setting that is a function of theta to torch as a number"):
        blo.value_and_hypergrad(
            lambda theta, z: z.sum(), lower, torch.tensor([0.1, 0.3]), torch.ones(3), solver=solver, gradient=gradient
        )
