"""Limited-memory BFGS, free and on bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

import blo
from blo.solvers._lbfgs import _step
from tests.lower import THETA, Counted, assert_unrolls, bind, bowl, logistic, minimise, quadratic
from tests.strategies import normal

TIGHT = blo.LBFGS(tol=1e-10, max_steps=6000)


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
    solver = blo.LBFGS(memory=3, max_steps=5, tol=None)
    assert_unrolls(blo.LowerProblem(bowl, constraint), 0.5 * normal(4, 4), torch.zeros(3).double(), solver)
