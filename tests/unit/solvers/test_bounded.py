"""L-BFGS within bounds: its step, and how many evaluations it takes beside SciPy's L-BFGS-B."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

import blo
from blo.solvers import _line
from blo.solvers._lbfgs import _State, _step
from tests.lower import Counted, logistic, minimise, rosenbrock
from tests.oracles import Array

Function = Callable[[Tensor], Tensor]


class Problem(NamedTuple):
    """A function on a box, where to start, and the minimiser where it is known."""

    function: Function
    low: Array
    high: Array
    start: Array
    solution: Array | None = None

    def residual(self, z: Array) -> float:
        slope = torch.func.grad(self.function)(torch.as_tensor(z)).numpy()
        return float(np.linalg.norm(z - np.clip(z - slope, self.low, self.high)))

    def box(self, unit: float = 1.0) -> blo.Box:
        return blo.Box(unit * torch.as_tensor(self.low), unit * torch.as_tensor(self.high))


def quadratic(seed: int, condition: float, active: float, start: str = "middle", n: int = 40) -> Problem:
    """A quadratic on the unit box with this share of the coordinates on bounds; multipliers from 0.01 to 1."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    hessian = torch.as_tensor((basis * np.logspace(0, -np.log10(condition), n)) @ basis.T)
    held = rng.permutation(n)[: round(active * n)]
    solution, multiplier = rng.uniform(0.1, 0.9, n), np.zeros(n)
    solution[held] = rng.integers(0, 2, len(held))
    multiplier[held] = np.where(solution[held] == 0, 1, -1) * 10 ** rng.uniform(-2, 0, len(held))
    starts = {"middle": np.full(n, 0.5), "corner": np.zeros(n), "opposite": (solution < 0.5).astype(float)}
    at, slope = torch.as_tensor(solution), torch.as_tensor(multiplier)

    def function(z: Tensor) -> Tensor:
        return 0.5 * (z - at) @ hessian @ (z - at) + slope @ (z - at)

    return Problem(function, np.zeros(n), np.ones(n), starts[start], solution)


def visited(problem: Problem, memory: int = 10) -> tuple[list[Array], list[Array]]:
    """Return where blo and SciPy evaluate."""
    ours: list[Array] = []
    theirs: list[Array] = []

    def watched(z: Tensor) -> Tensor:
        ours.append(z.detach().numpy().copy())
        return problem.function(z)

    def valued(z: Array) -> tuple[float, Array]:
        theirs.append(z.copy())
        slope, value = torch.func.grad_and_value(problem.function)(torch.as_tensor(z))
        return value.item(), slope.numpy()

    solver = blo.LBFGS(memory=memory, tol=1e-9 * problem.residual(problem.start), max_steps=1500)
    minimise(watched, torch.as_tensor(problem.start), solver, problem.box())
    bounds = list(zip(problem.low, problem.high, strict=True))
    options = {
        "ftol": 0,
        "gtol": 1e-10 * problem.residual(problem.start),
        "maxcor": memory,
        "maxiter": 1500,
        "maxfun": 1500,
    }
    minimize(valued, problem.start, jac=True, bounds=bounds, method="L-BFGS-B", options=options)
    return ours, theirs


def arrival(problem: Problem, points: list[Array]) -> int:
    """Return the number of evaluations until the residual is 1e-8 of the first."""
    target = 1e-8 * problem.residual(problem.start)
    return next(i for i, z in enumerate(points, 1) if problem.residual(z) <= target)


PROBLEMS = {
    "well conditioned": quadratic(0, 10.0, 0.5),
    "few bounds": quadratic(1, 1e3, 0.3),
    "many bounds": quadratic(2, 1e4, 0.8),
    "ill-conditioned": quadratic(3, 1e5, 0.6),
    "from a corner": quadratic(4, 1e3, 0.5, "corner"),
    "from the opposite corner": quadratic(5, 1e3, 0.5, "opposite"),
    "every variable on a bound": quadratic(6, 1e4, 1.0, "opposite"),
    "logistic": Problem(logistic(1), np.zeros(8), np.full(8, 9.0), np.ones(8)),
    "rosenbrock of the L-BFGS-B paper's code": Problem(
        rosenbrock, np.where(np.arange(25) % 2, -100.0, 1.0), np.full(25, 100.0), np.full(25, 3.0)
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_it_takes_no_more_evaluations_than_scipy_and_ends_where_it_does(name: str) -> None:
    problem = PROBLEMS[name]
    ours, theirs = visited(problem)
    assert arrival(problem, ours) <= 1.05 * arrival(problem, theirs) + 2
    value, truth = (float(problem.function(torch.as_tensor(points[-1]))) for points in (ours, theirs))
    assert abs(value - truth) <= 1e-10
    if problem.solution is not None:
        np.testing.assert_array_equal(ours[-1] % 1 == 0, problem.solution % 1 == 0)


@pytest.mark.parametrize("z_unit", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_evaluations_do_not_depend_on_units(unit: float, z_unit: float) -> None:
    """The first steps differ, whose length no pair tells; what follows does not."""
    problem = quadratic(7, 100.0, 0.5)
    ours, _ = visited(problem)
    budget = arrival(problem, ours) + 12
    loss = Counted(lambda z: unit * problem.function(z / z_unit))
    start = z_unit * torch.as_tensor(problem.start)
    found = minimise(loss, start, blo.LBFGS(tol=None, max_steps=budget), problem.box(z_unit))
    assert loss.calls <= budget
    assert problem.solution is not None
    np.testing.assert_allclose(found.z / z_unit, problem.solution, atol=1e-7)


def bounded_step(z: Tensor, slope: Tensor, low: Tensor, high: Tensor, moves: Tensor, turns: Tensor) -> Tensor:
    """Return the step of L-BFGS between the bounds, from these pairs."""
    one = torch.ones(1).double()
    return _step(_State(z, slope, z, one, moves, turns, _line.start(one.sum(), one)), (low, high))


@pytest.mark.parametrize("gamma", [1e-3, 1.0, 1e3])
def test_the_step_is_that_of_dense_bfgs_on_the_free_coordinates(gamma: float) -> None:
    """The Hessian is built by the recursion `B - B s s' B / s' B s + y y' / s' y` in NumPy; held coordinates go apart.

    Those are all but on their bound. The unit of inverse curvature is gamma.
    """
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    s = rng.normal(size=(4, 6))
    y = s @ (root @ root.T + np.eye(6)) / gamma
    free = np.array([True, False, True, True, False, True])
    share = s[-1, free] @ y[-1, free]
    assert share > 0.2 * (s[-1] @ y[-1])
    hessian = np.eye(6) * (y[-1, free] @ y[-1, free]) / share
    for move, turn in zip(s, y, strict=True):
        image = hessian @ move
        hessian += np.outer(turn, turn) / (turn @ move) - np.outer(image, image) / (move @ image)
    slope = np.abs(rng.normal(size=6))
    truth = -(s[-1] @ y[-1]) / (y[-1] @ y[-1]) * slope
    truth[free] = -np.linalg.solve(hessian[np.ix_(free, free)], slope[free])
    low, pad = np.where(free, -1e9, 0.0), np.zeros((1, 6))
    near = np.where(free, 0.0, 1e-9 * gamma)
    z, g, below, moves, turns = map(torch.as_tensor, (near, slope, low, np.r_[pad, s], np.r_[pad, y]))
    found = bounded_step(z, g, below, below + 2e9, moves, turns)
    np.testing.assert_allclose(found, truth, rtol=1e-10)


def test_a_move_along_which_the_slope_turned_on_held_coordinates_alone_tells_the_curvature_of_the_free_one() -> None:
    """Cut down to the free coordinate, this pair has a curvature of 1e-9 where the Hessian has 1: a step of 1e8."""
    hessian = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    moves = torch.tensor([[1.0, (1e-9 - 1) / 0.9]], dtype=torch.float64)
    z, slope = torch.tensor([0.5, 0.0], dtype=torch.float64), torch.tensor([0.1, 1.0], dtype=torch.float64)
    low, high = torch.zeros(2).double(), torch.ones(2).double()
    step = bounded_step(z, slope, low, high, moves, moves @ hessian)
    assert -1.0 <= step[0] < 0
