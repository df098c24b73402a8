"""A set of the user's own with `bounds`: solvers for bounds take it, alone and in a product, against SciPy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear
from torch import Tensor

import blo
from blo.sets import Counts, Set, Tangent
from blo.testing import check_set
from tests.strategies import normal

N, K = 5, 9
MATRIX, TARGET, CENTER = normal(1, K, N), 2.0 * normal(2, K), 0.1 * normal(3, N)


@dataclass(frozen=True, eq=False)
class Near(Set):
    """`{ z : |z - center| <= radius }` in each coordinate, written without any set of the library."""

    center: Tensor
    radius: Tensor | float
    wrong: float = 0.0

    def project(self, z: Tensor) -> Tensor:
        low, high = self.center - self.radius, self.center + self.radius
        return torch.minimum(torch.maximum(z, low.to(z.dtype)), high.to(z.dtype))

    def bounds(self, z: Tensor) -> tuple[Tensor | float, Tensor | float]:
        return self.center - self.radius - self.wrong, self.center + self.radius

    def side(self, z: Tensor) -> Tensor:
        away = z - self.center
        return torch.where(away.abs() >= self.radius - 1e-7, away.sign(), 0.0).detach()

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        free = self.side(z) == 0

        def count() -> Counts:
            number = free.sum(-1)
            return Counts(number, z.shape[-1] - number, torch.zeros_like(number))

        return Tangent(lambda v: v * free, 0.0, count)

    def motion(self, origin: Near, z: Tensor) -> Tensor:  # type: ignore[override]
        return origin.side(z) * (self.radius - origin.radius)


class Silent(Near):
    """The same set without its bounds."""

    def bounds(self, z: Tensor) -> None:  # type: ignore[override]
        return None


def residual(theta: Tensor, z: Tensor) -> Tensor:
    return torch.cat([MATRIX @ z - TARGET * theta[1], 0.3 * z])


def nearest(theta: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the solution that SciPy finds."""
    rows = np.vstack([MATRIX.numpy(), 0.3 * np.eye(N)])
    right = np.concatenate([TARGET.numpy() * theta[1], np.zeros(N)])
    center, radius = CENTER.numpy(), np.exp(theta[0])
    return np.asarray(lsq_linear(rows, right, (center - radius, center + radius), method="bvls", tol=1e-15).x)


THETA = np.array([-1.0, 0.7])
SOLVERS = {
    "the default": None,
    "LBFGS": blo.LBFGS(tol=1e-11),
    "Newton": blo.Newton(tol=1e-11),
    "LevenbergMarquardt": blo.LevenbergMarquardt(tol=1e-11),
}


def pull(z: Tensor) -> Tensor:
    return torch.arange(1.0, N + 1).double() @ z


@pytest.mark.parametrize("name", SOLVERS)
def test_solution_and_hypergradient_are_those_of_scipy(name: str) -> None:
    lower = blo.LowerProblem.least_squares(residual, lambda theta: Near(CENTER, theta[0].exp()))
    theta, weights = torch.as_tensor(THETA), np.arange(1.0, N + 1)
    out = blo.value_and_hypergrad(
        lambda theta, z: pull(z), lower, theta, torch.zeros(N).double(), solver=SOLVERS[name], on_failure="raise"
    )
    truth, step = nearest(THETA), 1e-4
    held = np.abs(np.abs(truth - CENTER.numpy()) - np.exp(THETA[0])) < 1e-9
    assert 0 < held.sum() < N
    assert np.abs(out.z.numpy() - truth).max() < 1e-9
    # The solution is linear in the bounds and in theta[1] while the same bounds are active.
    slopes = [(weights @ (nearest(THETA + d) - nearest(THETA - d))) / (2 * step) for d in step * np.eye(2)]
    assert np.abs(out.grad.numpy() - slopes).max() < 1e-7


def test_without_solver_it_gets_lbfgs_and_without_bounds_fista() -> None:
    def steps(constraint: Set) -> int:
        lower = blo.LowerProblem.least_squares(residual, constraint)
        args = (lambda theta, z: pull(z), lower, torch.as_tensor(THETA), torch.zeros(N).double())
        default, named = (blo.value_and_hypergrad(*args, solver=solver) for solver in (None, best))
        assert torch.equal(default.z, named.z)
        return default.report.lower_steps

    best: Any = blo.LBFGS(max_steps=10_000, tol=1e-11, relative=True)
    quick = steps(Near(CENTER, 0.4))
    best = blo.FISTA(max_steps=10_000, tol=1e-11, relative=True)
    assert quick < steps(Silent(CENTER, 0.4))


@pytest.mark.parametrize(
    "solver", [blo.LBFGS(), blo.Newton(), blo.LevenbergMarquardt()], ids=lambda s: type(s).__name__
)
def test_a_set_that_gives_no_bounds_is_refused(solver: blo.solvers.Solver) -> None:
    lower = blo.LowerProblem.least_squares(residual, Silent(CENTER, 0.4))
    with pytest.raises(blo.StructureError, match=r"a set of your own with `bounds`, but got Silent"):
        blo.argmin(lower, torch.as_tensor(THETA).requires_grad_(), torch.zeros(N).double(), solver=solver)


def test_in_a_product_each_part_gets_its_bounds() -> None:
    """Beside a free part and the orthant, whose bounds are numbers."""
    parts = blo.Product({"a": Near(CENTER, 0.3), "b": blo.Free(), "c": blo.NonNegative()})

    def objective(theta: Tensor, z: dict[str, Tensor]) -> Tensor:
        return (z["a"] - 1.0).square().sum() + (z["b"] - theta).square().sum() + (z["c"] + 1.0).square().sum()

    z0 = {name: torch.zeros(size).double() for name, size in (("a", N), ("b", 2), ("c", 3))}
    theta = torch.tensor([5.0, -7.0], dtype=torch.float64, requires_grad=True)
    for solver in (None, blo.Newton()):
        z = blo.argmin(blo.LowerProblem(objective, parts), theta, z0, solver=solver)
        for found, truth in ((z["a"], CENTER + 0.3), (z["b"], theta), (z["c"], torch.zeros(3))):
            assert (found - truth).abs().max() < 1e-9


def test_a_step_for_each_coordinate_and_steepest_descent_in_the_1_norm_know_the_bounds() -> None:
    lower = blo.LowerProblem(lambda theta, z: 0.5 * (z - 1.0).square().sum(), Near(torch.zeros(2).double(), 0.5))
    theta, z0 = torch.tensor([0.3, 0.1], dtype=torch.float64, requires_grad=True), torch.tensor([0.5, 0.0]).double()
    each = blo.ProjectedGradient(lambda theta: theta, max_steps=1, tol=None)
    assert torch.allclose(
        blo.argmin(lower, theta, z0, solver=each, gradient=blo.Unrolled()), z0 + z0.new_tensor([0, 0.1])
    )
    largest = blo.OneStep(0.2, "coordinate")  # the first coordinate is at its bound, so the second one moves
    tilted = blo.LowerProblem(lambda theta, z: -2 * z[0] - z[1], Near(torch.zeros(2).double(), 0.5))
    assert torch.allclose(
        blo.argmin(tilted, theta, z0, solver=largest, gradient=blo.Zero()), z0 + z0.new_tensor([0, 0.2])
    )


def test_the_suite_compares_bounds_with_the_projection() -> None:
    made = Near(CENTER, 0.5)
    assert "the projection clips to the bounds" in check_set(made, torch.zeros(N)).properties
    with pytest.raises(AssertionError, match="the projection clips to the bounds"):
        check_set(replace(made, wrong=0.1), torch.zeros(N))
