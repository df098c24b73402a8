"""Limited-memory BFGS, free and on bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.optimize import minimize
from torch import Tensor

import blo
from blo.solvers._lbfgs import _step
from tests import oracles
from tests.lower import THETA, Counted, bind, logistic, minimise, project, quadratic, rosenbrock, solve
from tests.oracles import Array, QuadraticCase
from tests.strategies import SEEDS, normal, quadratic_cases

quick = settings(deadline=None, max_examples=20)
TIGHT = blo.LBFGS(tol=1e-10, max_steps=6000)


@quick
@given(quadratic_cases(("free", "box")), SEEDS)
def test_it_finds_the_minimiser_from_anywhere(case: QuadraticCase, seed: int) -> None:
    z0 = normal(seed, len(case.c), scale=10.0)
    found = solve(case.lower(), z0, blo.LBFGS(tol=1e-11), case.start())
    np.testing.assert_allclose(found.z, case.solution(case.theta), rtol=1e-9, atol=1e-9)
    z = found.z.numpy()
    residual = np.linalg.norm(z - project(case, z - case.gradient(case.theta, z)))
    assert found.residual is not None and found.residual <= 1e-11 and abs(float(found.residual) - residual) < 1e-14


@pytest.mark.parametrize("n", [2, 10])
def test_rosenbrock(n: int) -> None:
    found = minimise(rosenbrock, torch.full((n,), -1.2).double(), TIGHT)
    assert found.residual is not None and found.residual <= 1e-10
    torch.testing.assert_close(found.z, torch.ones(n).double(), rtol=1e-9, atol=1e-9)


def test_rosenbrock_on_a_box_agrees_with_scipy() -> None:
    low, high = np.array([-2.0, 0.1, -0.5, 0.2, -1.0]), np.array([0.5, 2.0, 0.6, 2.0, 2.0])
    start = np.array([-1.0, 1.0, 0.0, 1.0, 2.0])
    box = blo.Box(torch.as_tensor(low), torch.as_tensor(high))
    found = minimise(rosenbrock, torch.as_tensor(start), TIGHT, box)

    def value(z: Array) -> tuple[float, Array]:
        point = torch.as_tensor(z).requires_grad_()
        loss = rosenbrock(point)
        return loss.item(), torch.autograd.grad(loss, point)[0].numpy()

    truth = minimize(value, start, jac=True, bounds=list(zip(low, high, strict=True)), method="L-BFGS-B", tol=1e-14)
    assert found.residual is not None and found.residual <= 1e-10
    np.testing.assert_allclose(found.z, truth.x, rtol=1e-6, atol=1e-6)


def test_logistic_regression() -> None:
    loss = Counted(logistic(0))
    found = minimise(loss, torch.zeros(8).double(), TIGHT)
    quasi = loss.calls
    assert found.residual is not None and found.residual <= 1e-10 and quasi == found.steps + 1
    truth = minimize(
        lambda z: float(logistic(0)(torch.as_tensor(z))),
        np.zeros(8),
        jac=lambda z: torch.func.grad(logistic(0))(torch.as_tensor(z)).numpy(),
        hess=lambda z: torch.func.jacrev(torch.func.grad(logistic(0)))(torch.as_tensor(z)).numpy(),
        method="trust-exact",
        options={"gtol": 1e-13},
    )
    np.testing.assert_allclose(found.z, truth.x, rtol=1e-7, atol=1e-7)
    minimise(loss, torch.zeros(8).double(), blo.ProjectedGradient(tol=1e-10, max_steps=20 * quasi))
    assert loss.calls - quasi > 4 * quasi


@pytest.mark.parametrize("condition", [1e1, 1e3, 1e5])
def test_quadratics(condition: float) -> None:
    matrix, b = quadratic(0, 12, condition)
    found = minimise(lambda z: 0.5 * z @ matrix @ z - b @ z, torch.zeros(12).double(), TIGHT)
    assert found.residual is not None and found.residual <= 1e-10
    truth = np.linalg.solve(matrix.numpy(), b.numpy())
    np.testing.assert_allclose(found.z, truth, atol=1e-10 * condition + 1e-9)


def test_quadratics_on_the_orthant() -> None:
    """The optimality conditions name the solution: z >= 0, slope >= 0, z' slope = 0."""
    matrix, b = quadratic(1, 40, 1e4)
    found = minimise(lambda z: 0.5 * z @ matrix @ z - b @ z, torch.ones(40).double(), TIGHT, blo.NonNegative())
    z, slope = found.z.numpy(), (matrix @ found.z - b).numpy()
    assert 5 < (z > 0).sum() < 35
    assert z.min() == 0 and slope.min() > -1e-9 and np.abs(z * slope).max() < 1e-7


def test_the_step_is_that_of_dense_bfgs() -> None:
    """The inverse is built by the recursion `(I - r s y') H (I - r y s') + r s s'` in NumPy, from oldest to newest."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    s = rng.normal(size=(4, 6))
    y = s @ (root @ root.T + np.eye(6))
    inverse = np.eye(6) * (s[-1] @ y[-1]) / (y[-1] @ y[-1])
    for move, turn in zip(s, y, strict=True):
        side = np.eye(6) - np.outer(move, turn) / (move @ turn)
        inverse = side @ inverse @ side.T + np.outer(move, move) / (move @ turn)
    slope = rng.normal(size=6)
    lower = blo.LowerProblem(lambda t, z: (torch.as_tensor(slope) * z).sum())
    state = blo.LBFGS(memory=5).start(*bind(lower, torch.zeros(6).double()))
    pad = torch.zeros(1, 6, dtype=torch.float64)
    pairs = {"moves": torch.cat([pad, torch.as_tensor(s)]), "turns": torch.cat([pad, torch.as_tensor(y)])}
    np.testing.assert_allclose(_step(state._replace(**pairs), None), -inverse @ slope, rtol=1e-10)


def test_values_that_drown_in_rounding_do_not_stop_it() -> None:
    matrix, b = quadratic(2, 20, 1e3)
    found = minimise(lambda z: 1e9 + 0.5 * z @ matrix @ z - b @ z, torch.zeros(20).double(), TIGHT)
    assert found.residual is not None and found.residual <= 1e-10


def test_it_leaves_a_region_of_negative_curvature() -> None:
    found = minimise(lambda z: (0.25 * z**4 - 0.5 * z**2).sum(), torch.tensor([1e-3, -0.2, 0.5]).double(), TIGHT)
    torch.testing.assert_close(found.z, torch.tensor([1.0, -1.0, 1.0]).double(), rtol=1e-9, atol=1e-9)


def test_it_stays_where_the_objective_has_values() -> None:
    """`z - t log z`: steps that are too long end left of zero, where the value is NaN and the gradient is finite."""
    tried: list[float] = []

    def barrier(z: Tensor) -> Tensor:
        tried.append(z.min().item())
        return (z - 1e-3 * z.log()).sum()

    found = minimise(barrier, torch.tensor([5.0, 0.2]).double(), TIGHT)
    assert min(tried) < 0
    torch.testing.assert_close(found.z, torch.full((2,), 1e-3).double(), rtol=1e-7, atol=1e-9)


def test_it_stays_where_the_objective_has_slopes() -> None:
    """Left of zero the value is lower than anywhere, and the slope is NaN."""
    tried: list[float] = []

    def function(z: Tensor) -> Tensor:
        tried.append(z.min().item())
        return torch.where(z > 0, z - 0.1 * z.sqrt(), -5.0).sum()

    found = minimise(function, torch.tensor([2.0]).double(), TIGHT)
    assert min(tried) < 0
    torch.testing.assert_close(found.z, torch.full((1,), 0.0025).double(), rtol=1e-7, atol=1e-10)


def test_lanes_do_not_see_each_other_and_rest_when_done() -> None:
    scales = torch.tensor([1.0, 30.0, 1000.0], dtype=torch.float64)[:, None]
    box = blo.Box(-0.5, 1.5)

    def function(z: Tensor, scale: Tensor = scales) -> Tensor:
        return 0.5 * (scale * z[..., :1] ** 2 + (z[..., 1:] - z[..., :1] ** 2 + 1) ** 2).sum(-1)

    z0 = normal(1, 3, 2)
    together = minimise(function, z0, TIGHT, box, batched=True)
    for lane in range(3):
        alone = minimise(lambda z, i=lane: function(z, scales[i]), z0[lane], TIGHT, box)
        torch.testing.assert_close(together.z[lane], alone.z, rtol=1e-12, atol=1e-12)
        assert alone.steps <= together.steps
    fewer = minimise(function, z0, blo.LBFGS(tol=1e-10, max_steps=together.steps - 1), box, batched=True)
    assert 1 <= (fewer.z == together.z).all(-1).sum() < 3


def test_a_product_of_bounds() -> None:
    lower = blo.LowerProblem(
        lambda t, z: 0.5 * (z[0] - 2).square().sum() + 0.5 * (z[1] + 1).square().sum() + z[0].sum() * z[1].sum(),
        blo.Product(blo.Free(), blo.NonNegative()),
    )
    z = blo.argmin(lower, THETA, (torch.zeros(1).double(), torch.ones(2).double()), solver=TIGHT, gradient=blo.Zero())
    torch.testing.assert_close(z, (torch.tensor([2.0]).double(), torch.zeros(2).double()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("constraint", [blo.Free(), blo.Box(-0.3, 0.4)], ids=["free", "box"])
def test_unrolled_is_the_derivative_of_its_steps(constraint: blo.sets.Set) -> None:
    """Where slopes are smaller than one and no step is taken back, so that no length depends on theta."""
    weights = 0.4 * normal(3, 4, 3)
    solver = blo.LBFGS(memory=3, max_steps=5, tol=None)

    def final(theta: Tensor, gradient: Any) -> Tensor:
        lower = blo.LowerProblem(lambda t, z: (weights @ z + t).cosh().log().sum() + 0.05 * z @ z, constraint)
        z: Tensor = blo.argmin(lower, theta, torch.zeros(3).double(), solver=solver, gradient=gradient)
        return z

    theta = normal(4, 4)
    truth = oracles.central_difference(lambda t: final(torch.as_tensor(t), blo.Zero()).numpy(), theta.numpy(), 1e-4)
    found = torch.autograd.functional.jacobian(lambda t: final(t, blo.Unrolled()), theta)
    np.testing.assert_allclose(found, truth, rtol=1e-7, atol=1e-7)
    found = torch.func.jacrev(lambda t: final(t, blo.Unrolled()))(theta)
    np.testing.assert_allclose(found, truth, rtol=1e-7, atol=1e-7)
    each = torch.vmap(lambda t: final(t, blo.Unrolled()))(torch.stack([theta, 2 * theta]))
    torch.testing.assert_close(each[1], final(2 * theta, blo.Zero()), rtol=1e-12, atol=1e-12)


@quick
@given(quadratic_cases(("free", "box")))
def test_hypergradients_and_transforms(case: QuadraticCase) -> None:
    def value(theta: Tensor) -> Tensor:
        solver = blo.LBFGS(tol=1e-12)
        z = blo.argmin(case.lower(), theta, case.z0(), solver=solver, gradient=blo.Implicit(blo.Direct()))
        return case.upper(theta, z)

    truth = case.hypergradient(case.theta)
    np.testing.assert_allclose(torch.func.grad(value)(case.start()), truth, rtol=1e-9, atol=1e-9)
    found = torch.vmap(torch.func.grad(value))(torch.stack([case.start()] * 2))
    np.testing.assert_allclose(found[1], truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("constraint", [blo.L2Ball(1.0), blo.Simplex(1.0)], ids=str)
def test_other_sets_are_refused(constraint: blo.sets.Set) -> None:
    with pytest.raises(blo.StructureError, match="`LBFGS` bounds each coordinate"):
        minimise(lambda z: z.square().sum(), torch.ones(2), blo.LBFGS(), constraint)


def test_a_fixed_point_is_refused() -> None:
    with pytest.raises(blo.StructureError, match="no objective"):
        solve(blo.LowerProblem.fixed_point(lambda t, z: z.cos()), torch.ones(2), blo.LBFGS())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 0}, "`memory` must be at least 1"),
        ({"max_steps": 0}, "`max_steps` must be at least 1"),
        ({"max_steps": 2.5}, "`max_steps` must be at least 1 and whole, but is 2.5"),
        ({"tol": 0.0}, "`tol` must be positive"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blo.LBFGS(**options)
