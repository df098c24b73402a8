"""Optimisers of torch.optim as lower solvers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import blo
from tests.lower import THETA, Counted, assert_lanes_rest, minimise, quadratic
from tests.oracles import Array
from tests.strategies import normal

Factory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def adam(lr: float = 0.1) -> Factory:
    return lambda p: torch.optim.Adam(p, lr=lr)


def sgd(lr: float = 0.3, momentum: float = 0.0) -> Factory:
    return lambda p: torch.optim.SGD(p, lr=lr, momentum=momentum)


def adam_by_hand(slope: Callable[[Array], Array], z: Array, lr: float, steps: int, low: float, high: float) -> Array:
    mean, square = np.zeros_like(z), np.zeros_like(z)
    for t in range(1, steps + 1):
        g = slope(z)
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
        z = z - lr * (mean / (1 - 0.9**t)) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
        z = np.clip(z, low, high)
    return z


@pytest.mark.parametrize("bound", [np.inf, 0.3])
def test_its_steps_are_those_of_a_loop_in_numpy(bound: float) -> None:
    matrix, b = quadratic(0, 5, 30.0)
    box = blo.Box(-bound, bound)
    solver = blo.TorchOptim(adam(), steps=25)
    found = minimise(lambda z: 0.5 * z @ matrix @ z - b @ z, torch.zeros(5).double(), solver, box)
    truth = adam_by_hand(lambda z: matrix.numpy() @ z - b.numpy(), np.zeros(5), 0.1, 25, -bound, bound)
    np.testing.assert_allclose(found.z, truth, rtol=1e-10, atol=1e-12)
    assert (found.residual, found.tol, found.steps) == (None, None, 25)


@pytest.mark.parametrize(
    "factory",
    [
        adam(0.05),
        sgd(0.5, 0.5),
        lambda p: torch.optim.LBFGS(p, line_search_fn="strong_wolfe", tolerance_grad=0, tolerance_change=0),
    ],
)
def test_it_stops_at_the_solution(factory: Factory) -> None:
    matrix, b = quadratic(0, 5, 5.0)
    solver = blo.TorchOptim(factory, 1000, tol=1e-6)
    found = minimise(lambda z: 0.5 * z @ matrix @ z - b @ z, torch.zeros(5).double(), solver)
    assert found.residual is not None and found.residual <= 1e-6 and found.steps < 1000
    np.testing.assert_allclose(found.z, np.linalg.solve(matrix.numpy(), b.numpy()), atol=1e-5)
    residual = (matrix @ found.z - b).norm()
    torch.testing.assert_close(found.residual, residual, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("tol", "calls"), [(None, 6), (1e-12, 7)])
def test_a_step_takes_one_evaluation_and_a_tolerance_one_more(tol: float | None, calls: int) -> None:
    loss = Counted(lambda z: z.square().sum())
    minimise(loss, torch.ones(2), blo.TorchOptim(sgd(0.1), 6, tol))
    assert loss.calls == calls


def test_a_lane_that_is_done_rests() -> None:
    curvature = torch.tensor([[1.0], [0.1], [0.01]], dtype=torch.float64)

    def function(z: Tensor) -> Tensor:
        return 0.5 * (curvature * (z - 1).square()).sum(-1)

    def solved(steps: int) -> blo.solvers.Solution:
        return minimise(function, normal(1, 3, 2), blo.TorchOptim(sgd(0.5), steps, tol=1e-8), batched=True)

    assert_lanes_rest(solved, [5, 50, 500, 3000], 1e-8)


def test_the_hypergradient_is_implicit_and_theta_stays_untouched() -> None:
    matrix, b = quadratic(0, 4, 4.0)
    theta = normal(0, 4).requires_grad_()
    theta.grad = torch.full((4,), 7.0).double()
    z0 = torch.zeros(4).double()
    lower = blo.LowerProblem(lambda t, z: 0.5 * z @ matrix @ z - t @ z)
    solver = blo.TorchOptim(
        lambda p: torch.optim.LBFGS(p, line_search_fn="strong_wolfe", tolerance_grad=0, tolerance_change=0),
        50,
        tol=1e-9,
    )
    z = blo.argmin(lower, theta, z0, solver=solver, gradient=blo.Implicit(blo.Direct()))
    (found,) = torch.autograd.grad(b @ z, theta)
    np.testing.assert_allclose(found, np.linalg.solve(matrix.numpy(), b.numpy()), rtol=1e-8)
    assert torch.equal(theta.grad, torch.full((4,), 7.0).double())
    assert torch.equal(z0, torch.zeros(4).double())


def test_transforms_of_an_implicit_gradient_see_no_step() -> None:
    """`argmin` solves below the transforms: every theta in its own lane."""
    matrix, _ = quadratic(0, 4, 4.0)
    lower = blo.LowerProblem(lambda t, z: 0.5 * z @ matrix @ z - t @ z)
    solver = blo.TorchOptim(sgd(0.8, 0.3), 2000, tol=1e-10)

    def solved(theta: Tensor) -> Tensor:
        z: Tensor = blo.argmin(
            lower, theta, torch.zeros(4).double(), solver=solver, gradient=blo.Implicit(blo.Direct())
        )
        return z

    thetas = normal(1, 3, 4)
    inverse = np.linalg.inv(matrix.numpy())
    np.testing.assert_allclose(torch.vmap(solved)(thetas), thetas.numpy() @ inverse, atol=1e-8)
    np.testing.assert_allclose(torch.func.jacrev(solved)(thetas[0]), inverse, atol=1e-8)


def test_it_cannot_be_unrolled() -> None:
    lower = blo.LowerProblem(lambda t, z: (z - t).square().sum())
    theta = torch.ones(2, requires_grad=True)
    with pytest.raises(blo.StructureError, match="`TorchOptim` writes to its own copy"):
        blo.argmin(lower, theta, torch.zeros(2), solver=blo.TorchOptim(adam(), 3), gradient=blo.Unrolled())


def test_factories_that_make_something_else_are_refused() -> None:
    def elsewhere(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)

    not_one: Any = lambda params: params  # noqa: E731
    for factory, message in ((elsewhere, "returned one of other parameters"), (not_one, "but returned list")):
        with pytest.raises(blo.StructureError, match=message):
            minimise(lambda z: z.square().sum(), torch.ones(2), blo.TorchOptim(factory, 3))
    with pytest.raises(blo.StructureError, match=r"`factory` must be a function.*of type SGD.*lambda p"):
        blo.TorchOptim(torch.optim.SGD([torch.ones(2)], lr=0.1), 3)  # type: ignore[arg-type]


def test_divergence_is_reported() -> None:
    lower = blo.LowerProblem(lambda t, z: (z - t).square().sum())
    solver = blo.TorchOptim(sgd(0.9), 5, tol=1e-6)
    with pytest.warns(blo.ConvergenceWarning, match="has not converged"):
        blo.argmin(lower, THETA, torch.ones(1).double(), solver=solver, gradient=blo.Zero())
