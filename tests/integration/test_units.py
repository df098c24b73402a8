"""Units and stiffness: a hypergradient is right in every unit of z and of the objective, or it is reported."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import blo
from blo.solvers import Solver

CURVATURES = {"equal": [1.0, 1.0], "two": [1e2, 1e-2], "three": [1e6, 3.0, 0.1]}
#: Units of z, and what the objective is multiplied with.
UNITS = [(1.0, 1e-24), (1e-6, 1.0), (1e4, 1e6), (1e6, 1e-12)]
SETS: dict[str, Callable[[float], blo.sets.Set]] = {
    "free": lambda unit: blo.Free(),
    "box": lambda unit: blo.Box(-10 * unit, 10 * unit),
    "ball": lambda unit: blo.L2Ball(100 * unit),
}
both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


class Case:
    """`1/2 scale sum d (z / unit - theta)^2`, solved by `unit theta`, below `1/2 |z / unit|^2`, of gradient theta."""

    def __init__(self, name: str, unit: float, scale: float, dtype: torch.dtype) -> None:
        d = torch.tensor(CURVATURES[name], dtype=dtype)
        self.unit, self.theta = unit, torch.linspace(1, 2, len(d), dtype=dtype)
        self.solution = unit * self.theta
        self.objective = lambda theta, z: 0.5 * scale * (d * (z / unit - theta).square()).sum()

    def judge(self, solver: Solver, term: str, start: float) -> tuple[float, bool]:
        """Return the largest error in units of theta, and whether anything was reported."""
        z0 = start * self.unit * torch.ones_like(self.theta)
        lower = blo.LowerProblem(self.objective, SETS[term](self.unit))
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            found = blo.value_and_hypergrad(self.upper, lower, self.theta, z0, solver=solver)
        apart = (found.z - self.solution) / self.unit, found.grad - self.theta
        error = max(float(part.abs().max()) for part in apart)
        assert not (given and found.report.ok)
        return error, not found.report.ok

    def upper(self, theta: Tensor, z: Tensor) -> Tensor:
        return 0.5 * (z / self.unit).square().sum()


@both
@pytest.mark.parametrize("name", CURVATURES)
@pytest.mark.parametrize("solver", [blo.LBFGS(max_steps=100), blo.Newton(max_steps=30)], ids=str)
def test_a_residual_within_tolerance_hides_no_error(solver: Solver, name: str, dtype: torch.dtype) -> None:
    for unit, scale in UNITS:
        for term, start in (("free", 3.0), ("box", 0.0)):
            error, reported = Case(name, unit, scale, dtype).judge(solver, term, start)
            assert reported or error <= 1e-3, (unit, scale, term)


@both
@pytest.mark.parametrize("solver", [blo.ProjectedGradient(max_steps=60), blo.FISTA(max_steps=60)], ids=str)
def test_nor_does_that_of_a_first_order_solver(solver: Solver, dtype: torch.dtype) -> None:
    for unit, scale in UNITS:
        for term in ("free", "ball"):
            error, reported = Case("two", unit, scale, dtype).judge(solver, term, 3.0)
            assert reported or error <= 1e-3, (unit, scale, term)


@both
@pytest.mark.parametrize("name", ["equal", "three"])
def test_points_that_no_solver_has_confirmed_are_looked_at(name: str, dtype: torch.dtype) -> None:
    """Where the objective is in a small unit, points that are not solutions pass every absolute tolerance."""
    for unit, scale in UNITS:
        case = Case(name, unit, scale, dtype)
        beside = case.solution + 0.01 * unit * torch.eye(len(case.theta), dtype=dtype)[-1]
        for solver in (
            blo.External(lambda theta, z, beside=beside: beside),
            blo.TorchOptim(lambda p: torch.optim.SGD(p, lr=1e-9), steps=2),
            blo.OneStep(1e-9),
        ):
            for term in SETS:
                error, reported = case.judge(solver, term, 0.0)
                assert reported or error <= 1e-3, (type(solver).__name__, unit, scale, term)


@both
def test_exact_points_pass(dtype: torch.dtype) -> None:
    for unit, scale in UNITS:
        case = Case("two", unit, scale, dtype)
        for term in SETS:
            error, reported = case.judge(blo.External(lambda theta, z, case=case: case.solution), term, 0.0)
            assert error <= 1e-3 and not reported, (unit, scale, term)


@pytest.mark.parametrize(
    "solver",
    [blo.FISTA(tol=1e-5, max_steps=100), blo.ProjectedGradient(tol=1e-5, max_steps=100), blo.LBFGS(tol=1e-5)],
    ids=str,
)
@pytest.mark.parametrize(
    ("d", "unit", "scale"), [((1e3, 1e-3), 1e-6, 1e-6), ((1e4, 1e-4), 1e-6, 1e-12), ((1e4, 1e-4), 1e-2, 1e-12)]
)
def test_a_named_tolerance_holds_no_interior_solution_and_hides_no_small_curvature(
    solver: Solver, d: tuple[float, float], unit: float, scale: float
) -> None:
    turn = torch.linalg.qr(torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64))[0]
    theta = torch.tensor([0.5, 1.0], dtype=torch.float64)
    for basis in (turn, torch.eye(2, dtype=torch.float64)):

        def objective(theta: Tensor, z: Tensor, basis: Tensor = basis) -> Tensor:
            return 0.5 * scale * (torch.tensor(d) * (basis.T @ (z / unit - theta)).square()).sum()

        for term in (blo.Free(), blo.NonNegative(), blo.Box(0.0, 10 * unit)):
            for start in (0.0, 3.0):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", blo.errors.BloWarning)
                    found = blo.value_and_hypergrad(
                        lambda theta, z: 0.5 * (z / unit).square().sum(),
                        blo.LowerProblem(objective, term),
                        theta,
                        start * unit * torch.ones_like(theta),
                        solver=solver,
                    )
                assert not found.report.ok or (found.grad - theta).abs().max() <= 1e-3, (basis, term, start)


@pytest.mark.parametrize("term", [blo.NonNegative(), blo.Box(0.0, 1.0)])
def test_a_large_multiplier_beside_a_bound_is_a_short_way_where_the_curvature_is_large(term: blo.sets.Set) -> None:
    theta = torch.tensor([1.0, 2.0], dtype=torch.float64)
    beside = 1e-6 * (theta + 4e-9)
    found = blo.value_and_hypergrad(
        lambda theta, z: 1e6 * z.sum(),
        blo.LowerProblem(lambda theta, z: 0.5 * 1e9 * (z - 1e-6 * theta).square().sum(), term),
        theta,
        torch.zeros_like(theta),
        solver=blo.External(lambda theta, z: beside, tol=1e-5),
    )
    torch.testing.assert_close(found.grad, torch.ones_like(theta), rtol=1e-8, atol=0)


#: Sets in which the solution lies well inside.
INSIDE: dict[str, Callable[[float], blo.sets.Set]] = {
    "box": lambda unit: blo.Box(-0.3 * unit, 0.3 * unit),
    "unequal box": lambda unit: blo.Box(-0.2 * unit, 0.11 * unit),
    "ball": lambda unit: blo.L2Ball(0.3 * unit),
    "cut ball": lambda unit: blo.L2Ball(0.3 * unit, low=-0.2 * unit),
    "l1 ball": lambda unit: blo.L1Ball(0.3 * unit),
    "halfspace": lambda unit: blo.Halfspaces(torch.ones(1, 3).double(), torch.full((1,), 0.3 * unit).double()),
}


@pytest.mark.parametrize("term", INSIDE)
def test_a_solution_inside_a_set_smaller_than_its_slack_is_right_or_reported(term: str) -> None:
    """There the rounding of the gradient exceeds the distance from the boundary, as a multiplier would."""
    A = torch.tensor([[1.0, 0.2, 0.0], [0.2, 2.0, 0.3], [0.0, 0.3, 3.0]], dtype=torch.float64)
    theta, w = (torch.tensor(x, dtype=torch.float64) for x in ([0.05, 0.045, -0.04], [1.0, 2.0, -1.0]))
    truth = torch.linalg.solve(A, w)
    for unit, scale in itertools.product((1e-4, 1e-6, 1e-7, 1e-8, 1e-10), (1e-8, 1e-4, 1.0, 1e4, 1e8)):

        def objective(t: Tensor, z: Tensor, unit: float = unit, scale: float = scale) -> Tensor:
            return scale * (0.5 * (z / unit) @ A @ (z / unit) - t @ z / unit)

        def upper(t: Tensor, z: Tensor, unit: float = unit) -> Tensor:
            return w @ z / unit

        lower, z0 = blo.LowerProblem(objective, INSIDE[term](unit)), torch.full_like(theta, 0.01 * unit)
        found = blo.value_and_hypergrad(upper, lower, theta, z0, on_failure="ignore")
        assert bool((found.grad - truth).abs().max() < 1e-3) or not found.report.ok, (unit, scale)
