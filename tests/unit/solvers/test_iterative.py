"""The one loop of all iterative solvers, and what lower solvers promise alike."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torchopt
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

import blo
from blo.solvers import Solver
from tests import oracles
from tests.lower import minimise, project, rosenbrock, solve
from tests.oracles import QuadraticCase
from tests.strategies import SEEDS, normal, quadratic_cases

quick = settings(deadline=None, max_examples=20)

SOLVERS = (
    blo.ProjectedGradient(),
    blo.ProjectedGradient(0.5),
    blo.FISTA(),
    blo.FISTA(0.5),
    blo.LBFGS(),
    blo.Newton(),
    blo.FixedPoint(),
)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_a_lane_without_a_gradient_stops_after_one_step_and_shows_it(solver: Solver) -> None:
    theta = torch.tensor([[0.3], [float("nan")]], dtype=torch.float64)

    def squares(theta: Tensor, z: Tensor) -> Tensor:
        return (z - theta).square().sum(-1)

    for lanes in ([1], [0, 1]):
        lower = blo.LowerProblem(squares, batched=True)
        found = solve(lower, torch.zeros(len(lanes), 1, dtype=torch.float64), solver, theta[lanes])
        assert found.residual is not None and found.residual[-1].isnan()
        assert found.steps <= (1 if lanes == [1] else 60)
        if lanes == [0, 1]:
            assert found.residual[0] <= 1e-8
            torch.testing.assert_close(found.z[0], theta[0], rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", [blo.ProjectedGradient, blo.FISTA, blo.LBFGS, blo.Newton], ids=str)
def test_a_solve_that_uses_its_very_last_step_is_confirmed_too(solver: type[Solver]) -> None:
    """The first gradient, 1e13, has a rounding of 0.04, which is too coarse at the end, where the curvature is 2."""
    lower = blo.LowerProblem(lambda theta, z: (z.exp() - theta * z).sum())
    theta, z0 = torch.tensor([2.0], dtype=torch.float64), torch.tensor([30.0], dtype=torch.float64)
    for max_steps in range(1, 60):
        found = solve(lower, z0, solver(max_steps=max_steps, tol=1e-8), theta)  # type: ignore[call-arg]
        assert found.residual is not None and found.tol is not None
        slope = float(found.z.exp() - 2)
        if bool(found.residual <= found.tol):
            assert abs(slope) <= 1e-8


# The minimiser.

EVERYWHERE = [
    blo.ProjectedGradient(tol=1e-11, max_steps=5000),
    blo.FISTA(tol=1e-11, max_steps=5000),
    blo.LBFGS(tol=1e-11),
    blo.Newton(tol=1e-11, max_steps=300),
]
second_order = pytest.mark.parametrize(
    "solver", [blo.LBFGS(tol=1e-10, max_steps=6000), blo.Newton(tol=1e-11, max_steps=99)], ids=["lbfgs", "newton"]
)


@pytest.mark.parametrize("solver", EVERYWHERE, ids=lambda solver: type(solver).__name__)
@quick
@given(data=st.data(), seed=SEEDS)
def test_it_finds_the_minimiser_from_anywhere(solver: Solver, data: st.DataObject, seed: int) -> None:
    bounds = isinstance(solver, blo.LBFGS | blo.Newton)
    case = data.draw(quadratic_cases(("free", "box") if bounds else oracles.KINDS))
    found = solve(case.lower(), normal(seed, len(case.c), scale=10.0), solver, case.start())
    np.testing.assert_allclose(found.z, case.solution(case.theta), rtol=1e-9, atol=1e-9)
    z = found.z.numpy()
    residual = np.linalg.norm(z - project(case, z - case.gradient(case.theta, z)))
    assert found.residual is not None and found.residual <= 1e-11 and abs(float(found.residual) - residual) < 1e-14


@pytest.mark.parametrize("solver", [blo.LBFGS(tol=1e-12), EVERYWHERE[-1]], ids=["lbfgs", "newton"])
@quick
@given(case=quadratic_cases(("free", "box")))
def test_hypergradients_and_transforms(solver: Solver, case: QuadraticCase) -> None:
    def value(theta: Tensor) -> Tensor:
        z = blo.argmin(case.lower(), theta, case.z0(), solver=solver, gradient=blo.Implicit(blo.Direct()))
        return case.upper(theta, z)

    truth = case.hypergradient(case.theta)
    np.testing.assert_allclose(torch.func.grad(value)(case.start()), truth, rtol=1e-9, atol=1e-9)
    found = torch.vmap(torch.func.grad(value))(torch.stack([case.start()] * 2))
    np.testing.assert_allclose(found[1], truth, rtol=1e-9, atol=1e-9)


@second_order
@pytest.mark.parametrize("n", [2, 10])
def test_rosenbrock(n: int, solver: Solver) -> None:
    found = minimise(rosenbrock, torch.full((n,), -1.2).double(), solver)
    assert found.residual is not None and solver.tol is not None and found.residual <= solver.tol
    torch.testing.assert_close(found.z, torch.ones(n).double(), rtol=1e-9, atol=1e-9)


@second_order
def test_rosenbrock_on_a_box_agrees_with_scipy(solver: Solver) -> None:
    low, high = np.array([-2.0, 0.1, -0.5, 0.2, -1.0]), np.array([0.5, 2.0, 0.6, 2.0, 2.0])
    start = np.array([-1.0, 1.0, 0.0, 1.0, 2.0])
    found = minimise(rosenbrock, torch.as_tensor(start), solver, blo.Box(torch.as_tensor(low), torch.as_tensor(high)))
    truth = minimize(
        lambda z: float(rosenbrock(torch.as_tensor(z))),
        start,
        jac=lambda z: torch.func.grad(rosenbrock)(torch.as_tensor(z)).numpy(),
        bounds=list(zip(low, high, strict=True)),
        method="L-BFGS-B",
        tol=1e-14,
    )
    assert found.residual is not None and solver.tol is not None and found.residual <= solver.tol
    np.testing.assert_allclose(found.z, truth.x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "solver",
    [
        blo.LBFGS(tol=1e-10, max_steps=6000),
        *(blo.Newton(tol=1e-11, linear_solver=each) for each in (blo.Direct(), blo.CG(), blo.MINRES())),
    ],
    ids=str,
)
def test_it_leaves_a_region_of_negative_curvature(solver: Solver) -> None:
    """There, plain Newton goes to the maximum at zero."""
    found = minimise(lambda z: (0.25 * z**4 - 0.5 * z**2).sum(), torch.tensor([1e-3, -0.2, 0.5]).double(), solver)
    torch.testing.assert_close(found.z, torch.tensor([1.0, -1.0, 1.0]).double(), rtol=1e-9, atol=1e-9)


# Steps of their own finding.


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1.0, 1e4, 1e8])
@pytest.mark.parametrize(("make", "most"), [(blo.ProjectedGradient, 999), (blo.FISTA, 150)])
def test_the_found_step_suits_every_curvature(make: Any, most: int, scale: float) -> None:
    curvature = scale * torch.tensor([1.0, 4.0, 10.0], dtype=torch.float64)
    target = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    solver = make(tol=1e-9 * scale, max_steps=most)
    found = minimise(lambda z: 0.5 * (curvature * (z - target).square()).sum(), torch.zeros(3).double(), solver)
    assert found.residual is not None and found.residual <= solver.tol
    torch.testing.assert_close(found.z, target, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", [blo.ProjectedGradient(tol=1e-9), blo.FISTA(tol=1e-10)], ids=str)
def test_steps_stay_where_the_objective_has_slopes(solver: Solver) -> None:
    """The slope `sqrt(z) - 1/2` is NaN left of zero, where growing steps land on their way to 1/4."""
    tried: list[float] = []

    def function(z: Tensor) -> Tensor:
        tried.append(z.item())
        return (z.pow(1.5) / 1.5 - 0.5 * z).sum()

    found = minimise(function, torch.full((1,), 1000.0).double(), solver)
    assert min(tried) < 0
    torch.testing.assert_close(found.z, torch.full((1,), 0.25).double(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("solver", "start", "weight"),
    [
        (blo.ProjectedGradient(tol=1e-10), [2.0, 0.5], 0.1),
        (blo.FISTA(tol=1e-11, max_steps=5000), [2.0, 0.5], 0.1),
        (blo.LBFGS(tol=1e-10, max_steps=6000), [5.0, 0.2], 1e-3),
    ],
    ids=["projected gradient", "fista", "lbfgs"],
)
def test_steps_stay_where_the_objective_has_values(solver: Solver, start: list[float], weight: float) -> None:
    """`z - t log z`: left of zero it has a slope and no value, and decreases for ever."""
    tried: list[float] = []

    def barrier(z: Tensor) -> Tensor:
        tried.append(z.min().item())
        return (z - weight * z.log()).sum()

    found = minimise(barrier, torch.tensor(start).double(), solver)
    assert min(tried) < 0
    torch.testing.assert_close(found.z, torch.full((2,), weight).double(), rtol=1e-7, atol=1e-9)


# What is refused.

ITERATIVE = (blo.ProjectedGradient, blo.FISTA, blo.FixedPoint, blo.Newton, blo.LBFGS)
OTHERS = (partial(blo.TorchOpt, torchopt.sgd(0.1)), partial(blo.TorchOptim, lambda p: torch.optim.SGD(p, lr=0.1)))
DIRECTIONS = "`direction` must be 'gradient', 'sign', 'normalized' or 'coordinate'"
NAN = float("nan")


@second_order
@pytest.mark.parametrize("constraint", [blo.L2Ball(1.0), blo.Simplex(1.0)], ids=str)
def test_other_sets_are_refused(constraint: blo.sets.Set, solver: Solver) -> None:
    with pytest.raises(blo.StructureError, match=f"`{type(solver).__name__}` needs a set that bounds each coordinate"):
        minimise(lambda z: z.square().sum(), torch.ones(2), solver, constraint)


@pytest.mark.parametrize("make", [blo.LBFGS, blo.Newton, partial(OTHERS[1], 3)], ids=["lbfgs", "newton", "torch.optim"])
def test_a_fixed_point_is_refused(make: Any) -> None:
    with pytest.raises(blo.StructureError, match="no objective"):
        solve(blo.LowerProblem.fixed_point(lambda t, z: z.cos()), torch.ones(2), make())


@pytest.mark.parametrize("make", OTHERS, ids=["torchopt", "torch.optim"])
def test_a_penalty_is_refused(make: Any) -> None:
    lower, solver = blo.LowerProblem(lambda t, z: z.square().sum(), penalty=blo.L1(0.1)), make(steps=3)
    with pytest.raises(blo.StructureError, match=f"`{type(solver).__name__}` projects onto a constraint set"):
        solve(lower, torch.ones(2), solver)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        *((make, {"max_steps": 0}, "`max_steps` must be at least 1") for make in ITERATIVE),
        *((make, {"steps": 0}, "`steps` must be at least 1") for make in OTHERS),
        *((make, {"tol": 0.0}, "`tol` must be positive") for make in ITERATIVE),
        *((make, {"steps": 1, "tol": 0.0}, "`tol` must be positive") for make in OTHERS),
        *((make, {"step": 0.0}, "`step` must be positive, but is 0.0") for make in (*ITERATIVE[:3], blo.OneStep)),
        *((blo.OneStep, {"step": step}, f"`step` must be positive, but is {step}") for step in (-1.0, NAN)),
        *((blo.OneStep, {"step": 0.1, "direction": name}, DIRECTIONS) for name in ("Sign", "", "newton", None)),
        *((blo.ProjectedGradient, {"step": step}, "`step` must be positive") for step in (-0.1, NAN)),
        (blo.ProjectedGradient, {"max_steps": -3}, "`max_steps` must be at least 1"),
        *((blo.ProjectedGradient, {"momentum": m, "step": 0.1}, "`momentum` must lie in") for m in (1.0, -0.1, NAN)),
        *((blo.ProjectedGradient, {"tol": tol}, "`tol` must be positive") for tol in (-1e-6, NAN)),
        (blo.ProjectedGradient, {"direction": "up", "step": 0.1}, "`direction` must be"),
        (blo.ProjectedGradient, {"direction": "sign"}, "give `step` as a number"),
        (blo.ProjectedGradient, {"momentum": 0.5}, "give `step` as a number"),
        *((blo.FixedPoint, {"relaxation": relaxation}, "`relaxation` must lie in") for relaxation in (0.0, 1.1, NAN)),
        (blo.FixedPoint, {"memory": -1}, "`memory` must be at least 0"),
        *((blo.Newton, {"forcing": forcing}, "`forcing` must be at least 0 and below 1") for forcing in (1.0, NAN)),
        (blo.LBFGS, {"memory": 0}, "`memory` must be at least 1"),
        (blo.LBFGS, {"max_steps": 2.5}, "`max_steps` must be at least 1 and whole, but is 2.5"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_settings_out_of_range_are_refused(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
