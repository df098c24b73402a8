"""Where solvers stop that start far away, where curvature and rounding are nothing like those of the solution."""

from __future__ import annotations

import pytest
import torch

import blo
from blo.solvers import Solver
from tests.lower import minimise

DEFAULT = blo.LBFGS(max_steps=10_000, tol=1e-11, relative=True)


@pytest.mark.parametrize("start", [20.0, 30.0, 60.0])
@pytest.mark.parametrize("solver", [DEFAULT, blo.LBFGS(), blo.Newton()], ids=str)
def test_a_steep_start_does_not_end_the_solve(solver: Solver, start: float) -> None:
    """The first gradient of `exp(z) - 2z` at 60 is 1e26, and its rounding 1e10."""
    found = minimise(lambda z: (z.exp() - 2 * z).sum(), torch.tensor([start]).double(), solver)
    assert abs(float(found.z) - 0.6931471805599453) <= 1e-6
    assert found.residual is not None and found.tol is not None and found.residual <= found.tol <= 1e-6


def test_lanes_go_on_by_themselves() -> None:
    starts = torch.tensor([[0.7], [30.0], [-1.0]]).double()
    found = minimise(lambda z: (z.exp() - 2 * z).sum(-1), starts, blo.LBFGS(tol=1e-9), batched=True)
    torch.testing.assert_close(found.z, torch.full((3, 1), 2.0).double().log(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", [DEFAULT, blo.FISTA(max_steps=10_000, tol=1e-11, relative=True)], ids=str)
def test_a_stiff_coordinate_does_not_loosen_the_others(solver: Solver) -> None:
    weights, target = torch.tensor([1e5, 1.0, 1.0]).double(), torch.tensor([1.0, 2.0, 3.0]).double()
    found = minimise(lambda z: 0.5 * (weights * (z - target).square()).sum(), torch.zeros(3).double(), solver)
    torch.testing.assert_close(found.z, target, rtol=0, atol=1e-8)
