"""Where solvers stop that start far away, where curvature and rounding are nothing like those of the solution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import blo
from blo._curvature import unaligned
from blo._vectors import irregular
from blo.solvers import Solver
from blo.solvers._stopping import curvature
from tests.lower import bind, minimise
from tests.strategies import normal

DEFAULT = blo.LBFGS(max_steps=10_000, tol=1e-11, relative=True)


@pytest.mark.parametrize("start", [20.0, 30.0, 60.0])
@pytest.mark.parametrize("solver", [DEFAULT, blo.LBFGS(), blo.Newton()], ids=str)
def test_a_steep_start_does_not_end_the_solve(solver: Solver, start: float) -> None:
    """The first gradient of `exp(z) - 2z` at 60 is 1e26, and its rounding 1e10."""
    found = minimise(lambda z: (z.exp() - 2 * z).sum(), torch.tensor([start]).double(), solver)
    assert abs(float(found.z) - 0.6931471805599453) <= 1e-6
    assert found.residual is not None and found.tol is not None and found.residual <= found.tol <= 1e-6


@pytest.mark.parametrize("n", [1, 255, 256, 1000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_curvature_is_measured_in_every_precision_and_size(dtype: torch.dtype, n: int) -> None:
    problem, z = bind(blo.LowerProblem(lambda theta, z: 50 * (z - 0.01).square().sum()), torch.zeros(n, dtype=dtype))
    for found in curvature(problem, z, problem.gradient(z)):
        assert float(found) == pytest.approx(100, rel=2 * torch.finfo(dtype).eps ** 0.5)
    expected = np.cos(np.arange(1.0, n + 1) ** 2)
    np.testing.assert_allclose(irregular(n, z), expected, atol=1e-6)
    direction = unaligned(z).double()
    np.testing.assert_allclose(direction, expected / np.linalg.norm(expected), atol=torch.finfo(dtype).eps)


def test_lanes_go_on_by_themselves() -> None:
    starts = torch.tensor([[0.7], [30.0], [-1.0]]).double()
    found = minimise(lambda z: (z.exp() - 2 * z).sum(-1), starts, blo.LBFGS(tol=1e-9), batched=True)
    torch.testing.assert_close(found.z, torch.full((3, 1), 2.0).double().log(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", [DEFAULT, blo.FISTA(max_steps=10_000, tol=1e-11, relative=True)], ids=str)
def test_a_stiff_coordinate_does_not_loosen_the_others(solver: Solver) -> None:
    weights, target = torch.tensor([1e5, 1.0, 1.0]).double(), torch.tensor([1.0, 2.0, 3.0]).double()
    found = minimise(lambda z: 0.5 * (weights * (z - target).square()).sum(), torch.zeros(3).double(), solver)
    torch.testing.assert_close(found.z, target, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", ["least absolute deviations", "hinge"])
def test_a_jump_of_the_gradient_is_no_rounding(loss: str, dtype: torch.dtype) -> None:
    """Minimisers of piecewise functions lie on kinks, where the gradient of one side is large and no residual small."""
    for seed in range(4):
        rows, aims = normal(seed, 40, 8).to(dtype), normal(seed + 100, 40).to(dtype)

        def objective(theta: Tensor, z: Tensor, rows: Tensor = rows, aims: Tensor = aims) -> Tensor:
            if loss == "hinge":
                return (1 - rows @ z * aims.sign()).relu().sum() + 0.5 * z.square().sum()
            return (rows @ z - aims).abs().sum() + 0.01 * z.square().sum()

        tol = 1e-5 if dtype is torch.float32 else 1e-11
        out = blo.value_and_hypergrad(
            lambda theta, z: z.sum() + theta,
            blo.LowerProblem(objective),
            torch.zeros((), dtype=dtype),
            torch.zeros(8, dtype=dtype),
            solver=blo.LBFGS(max_steps=1000, tol=tol),
            gradient=blo.Zero(),
            on_failure="ignore",
        )
        assert out.report.lower_residual > 0.1
        assert out.report.lower_status is blo.Status.UNCONVERGED, seed
