"""Tangent spaces beside matrices whose entries differ by many powers of ten."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import blo
from blo.linsolve._bordered import bordered
from blo.operators import Dense, Restricted
from tests.strategies import normal, spd


def shares(power: float) -> tuple[Restricted, Tensor, Tensor]:
    """Return the Hessian of an entropy on the simplex at `z`, a right-hand side, and the solution in closed form."""
    z = torch.softmax(torch.linspace(0.0, -power, 6, dtype=torch.float64) * 2.302585, -1).expand(2, 6)
    v = normal(0, 2, 6)
    system = Restricted(
        Dense(torch.diag_embed(1 / z), symmetric=True), blo.Simplex(slack=0.0).tangent(z, 0 * z), beside=0
    )
    return system, v - v.mean(-1, keepdim=True), z * v - z * (z * v).sum(-1, keepdim=True)


@pytest.mark.parametrize("power", [0.0, 6.0, 10.0, 12.0])
def test_large_entries_are_not_spread(power: float) -> None:
    system, b, truth = shares(power)
    found = blo.Direct().solve(system, b)
    torch.testing.assert_close(found.x, truth, rtol=0, atol=1e-11)
    assert found.converged(1e-10).all() and not found.indefinite.any()


def test_curvature_and_damping_are_part_of_the_system() -> None:
    z = torch.tensor([[0.6, 0.8, 0.0]], dtype=torch.float64)
    matrix, b = spd(1, (1,), 3, 10.0), normal(2, 1, 3)
    tangent = blo.L2Ball(1.0).tangent(z, -2 * z)
    b = tangent.project(b)
    x, residual = bordered(Restricted(Dense(matrix, symmetric=True), tangent), b, 0.3)
    truth = blo.Direct(0.3).solve(Restricted(Dense(matrix, symmetric=True), tangent), b).x
    torch.testing.assert_close(x, truth, rtol=1e-12, atol=1e-13)
    assert residual.item() < 1e-14


def test_a_matrix_that_is_not_finite_leaves_the_other_lanes_alone() -> None:
    system, b, truth = shares(3.0)
    matrix = system.operator.dense(b).clone()
    matrix[0, 0, 0] = torch.nan
    x, _ = bordered(Restricted(Dense(matrix, symmetric=True), system.tangent), b, 0.0)
    assert x[0].isnan().all()
    torch.testing.assert_close(x[1], truth[1], rtol=0, atol=1e-13)
