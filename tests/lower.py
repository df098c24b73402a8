"""Lower problems for the tests of solvers, and the way to hand one to a solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import blo
from blo._parametric_problem import ParametricProblem
from blo._problem_at_theta import ProblemAtTheta
from tests import oracles
from tests.oracles import Array, QuadraticCase
from tests.strategies import normal

THETA = torch.zeros(1, dtype=torch.float64)
_BOWL = 0.4 * normal(3, 4, 3)


def bind(lower: blo.LowerProblem, z0: Tensor, theta: Tensor = THETA) -> tuple[ProblemAtTheta, Tensor]:
    """Return what a solver sees of a lower problem, and its flat start."""
    problem, start, leaves = ParametricProblem.of(lower, theta, z0)
    return problem.bind(leaves).detach(), start


def solve(
    lower: blo.LowerProblem, z0: Tensor, solver: blo.solvers.Solver, theta: Tensor = THETA
) -> blo.solvers.Solution:
    """Let a solver solve."""
    return solver.solve(*bind(lower, z0, theta))


def minimise(
    function: Callable[[Tensor], Tensor],
    z0: Tensor,
    solver: blo.solvers.Solver,
    constraint: Any = None,
    *,
    batched: bool = False,
) -> blo.solvers.Solution:
    """Let a solver minimise a function of z alone."""
    lower = blo.LowerProblem(lambda theta, z: function(z), constraint or blo.Free(), batched=batched)
    return solve(lower, z0, solver)


def project(case: QuadraticCase, z: Array) -> Array:
    """Return the nearest point of a case's set, by NumPy."""
    if case.kind == "simplex":
        return oracles.project_simplex(z, case.size + float(case.size_slope @ case.theta))
    if case.kind == "box":
        return np.clip(z, case.low + case.low_slope @ case.theta, case.high + case.high_slope @ case.theta)
    if case.kind == "ball":
        center, radius = case.center + case.center_slope @ case.theta, case.size + case.size_slope @ case.theta
        return center + (z - center) * min(1.0, radius / np.linalg.norm(z - center))
    return z


def quadratic(seed: int, n: int, condition: float) -> tuple[Tensor, Tensor]:
    """Return a symmetric matrix with eigenvalues from 1/condition to 1, and a vector."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    matrix = (q * np.logspace(0, -np.log10(condition), n)) @ q.T
    return torch.as_tensor((matrix + matrix.T) / 2), torch.as_tensor(rng.normal(size=n))


def rosenbrock(z: Tensor) -> Tensor:
    """Return Rosenbrock's function, least at ones."""
    return (100 * (z[..., 1:] - z[..., :-1] ** 2) ** 2 + (1 - z[..., :-1]) ** 2).sum(-1)


def bowl(theta: Tensor, z: Tensor) -> Tensor:
    """Return `sum log cosh(W z + theta) + |z|^2 / 20` for three unknowns and four parameters."""
    return (_BOWL @ z + theta).cosh().log().sum() + 0.05 * z @ z


def logistic(seed: int, samples: int = 60, n: int = 8, ridge: float = 1e-3) -> Callable[[Tensor], Tensor]:
    """Return the mean logistic loss of random data with a ridge penalty."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(samples, n)) * np.logspace(0, -1, n)
    labels = np.sign(features @ rng.normal(size=n) + 0.3 * rng.normal(size=samples))
    x, y = torch.as_tensor(features), torch.as_tensor(labels)
    return lambda z: torch.nn.functional.softplus(-(z @ x.T) * y).mean(-1) + 0.5 * ridge * z.square().sum(-1)


class Counted:
    """A function of z that counts its calls."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function
        self.calls = 0

    def __call__(self, z: Tensor) -> Tensor:
        self.calls += 1
        return self.function(z)


def assert_lanes_rest(solved: Callable[[int], blo.solvers.Solution], budgets: Sequence[int], tol: float) -> None:
    """Solve three lanes with ever more steps: what has arrived does not move any more."""
    done: dict[int, Tensor] = {}
    for steps in budgets:
        found = solved(steps)
        assert found.residual is not None
        for lane in range(3):
            if lane in done:
                assert torch.equal(found.z[lane], done[lane])
            elif found.residual[lane] <= tol:
                done[lane] = found.z[lane]
    assert len(done) == 3


def assert_unrolls(
    lower: blo.LowerProblem, theta: Tensor, z0: Tensor, solver: blo.solvers.Solver, step: float = 1e-4
) -> None:
    """Compare the derivative of a solver's steps with central differences: backward, `jacrev` and `vmap`."""

    def final(theta: Tensor, gradient: blo.gradients.Strategy) -> Tensor:
        z: Tensor = blo.argmin(lower, theta, z0, solver=solver, gradient=gradient)
        return z

    def unrolled(theta: Tensor) -> Tensor:
        return final(theta, blo.Unrolled())

    truth = oracles.central_difference(
        lambda t: final(torch.as_tensor(t), blo.Zero()).numpy(), theta.numpy(), step=step
    )
    assert np.abs(truth).max() > 0.01  # there is something to compare
    for found in (torch.autograd.functional.jacobian(unrolled, theta), torch.func.jacrev(unrolled)(theta)):
        np.testing.assert_allclose(found, truth, rtol=1e-8, atol=1e-8)
    each = torch.vmap(unrolled)(torch.stack([theta, 2 * theta]))
    torch.testing.assert_close(each[1], final(2 * theta, blo.Zero()), rtol=1e-12, atol=1e-12)
