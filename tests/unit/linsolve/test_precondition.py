"""A preconditioner for the whole space on a tangent space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blo.linsolve import CG, GMRES, MINRES, Nystrom
from blo.linsolve._precondition import inverse_of
from blo.operators import Dense, Restricted
from blo.sets import Box, L2Ball
from tests.strategies import SEEDS, normal, spd
from tests.unit.linsolve.krylov import least_error, least_residual, symmetric, tensor

KRYLOV = [CG, MINRES, GMRES]
quick = settings(deadline=None, max_examples=15)


@pytest.mark.parametrize("make", KRYLOV)
@quick
@given(seed=SEEDS, steps=st.integers(1, 3))
def test_on_a_box_with_active_coordinates_it_acts_among_the_free_ones(
    make: Callable[..., Any], seed: int, steps: int
) -> None:
    """Each iterate is the best of the Krylov space of the free block with the free block of `M^-1`."""
    rng = np.random.default_rng(seed)
    z = np.array([0.0, 0.2, 1.0, 0.4, 0.6, 1.0, 0.9])
    free = (z > 0) & (z < 1)
    H, inverse = symmetric(seed, 7), symmetric(seed + 1, 7)
    b = rng.normal(size=7) * free
    tangent = Box(0.0, 1.0).tangent(tensor(z), tensor(b))
    seen: list[Tensor] = []

    def whole(v: Tensor) -> Tensor:
        seen.append(v)
        return tensor(inverse) @ v

    solver = make(max_iter=steps, tol=0.0, preconditioner=whole)
    found = solver.solve(Restricted(Dense(tensor(H), symmetric=True), tangent), tensor(b))
    block, small, rhs = H[free][:, free], inverse[free][:, free], b[free]
    if make is CG:
        best = least_error(block, rhs, steps, small)
    else:
        best = least_residual(block, rhs, steps, small, small if make is MINRES else None)
    np.testing.assert_allclose(found.x.numpy()[free], best, rtol=1e-8, atol=1e-9)
    assert not found.x.numpy()[~free].any()
    assert all(not v.numpy()[~free].any() for v in seen)


@pytest.mark.parametrize("make", KRYLOV)
def test_on_a_ball_the_solution_is_that_of_the_kkt_system(make: Callable[..., Any]) -> None:
    H, z, slope = spd(0, (), 5, 100.0), normal(1, 5), normal(2, 5)
    z, normal_vector = z / z.norm(), z / z.norm()
    slope = -0.7 * z  # multiplier 0.7: the gradient is normal to the ball
    tangent = L2Ball(1.0).tangent(z, slope)
    b = tangent.project(normal(3, 5))
    solver = make(preconditioner=Dense(torch.linalg.inv(H)))
    found = solver.solve(Restricted(Dense(H, symmetric=True), tangent), b)
    kkt = torch.zeros(6, 6, dtype=torch.float64)
    kkt[:5, :5] = H + 0.7 * torch.eye(5, dtype=H.dtype)
    kkt[:5, 5] = kkt[5, :5] = normal_vector
    truth = torch.linalg.solve(kkt, torch.cat([b, torch.zeros(1)]))[:5]
    torch.testing.assert_close(found.x, truth, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", KRYLOV)
def test_the_exact_inverse_takes_one_step_in_every_lane(make: Callable[..., Any]) -> None:
    matrix, b = spd(0, (3,), 6, 1e4), normal(1, 3, 6)
    solver = make(
        tol=1e-8, damping=0.1, preconditioner=Dense(torch.linalg.inv(matrix + 0.1 * torch.eye(6, dtype=b.dtype)))
    )
    found = solver.solve(Dense(matrix, symmetric=True), b)
    assert found.iterations.tolist() == [1, 1, 1] and found.converged(1e-8).all()
    assert not solver.solve(Dense(matrix, symmetric=True), 0 * b).x.any()


@pytest.mark.parametrize("make", KRYLOV)
def test_the_tolerance_is_on_the_residual_itself(make: Callable[..., Any]) -> None:
    """Badly scaled, so that the residual and its preconditioned norm differ by far."""
    matrix, b = spd(0, (4,), 30, 1e3), normal(1, 4, 30)
    scale = torch.logspace(-2, 2, 30, dtype=torch.float64)
    for tol in (1e-3, 1e-7):
        solver = make(tol=tol, max_iter=2000, preconditioner=lambda v: scale * v)
        solution = solver.solve(Dense(matrix, symmetric=True), b)
        defect = b - (matrix @ solution.x[..., None])[..., 0]
        assert (defect.norm(dim=-1) <= 1.001 * tol * b.norm(dim=-1)).all()


@pytest.mark.parametrize("make", KRYLOV)
def test_under_vmap_it_is_mapped_along(make: Callable[..., Any]) -> None:
    matrix, b = spd(0, (3,), 5, 100.0), normal(1, 3, 5)
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)

    def alone(matrix: Tensor, diagonal: Tensor, b: Tensor) -> Tensor:
        return make(preconditioner=lambda v: v / diagonal).solve(Dense(matrix, symmetric=True), b).x

    torch.testing.assert_close(
        torch.vmap(alone)(matrix, diagonal, b), torch.linalg.solve(matrix, b[..., None])[..., 0], rtol=1e-7, atol=1e-7
    )


def test_one_that_is_made_for_each_system_gets_the_system() -> None:
    z = torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64)
    H = spd(0, (), 4, 10.0)
    system = Restricted(Dense(H, symmetric=True), Box(0.0, 1.0).tangent(z, 1 - 2 * z))  # pressed against its bounds
    inverse = inverse_of(Nystrom(2, 1e-9), system, z)
    assert inverse is not None
    inside = torch.tensor([0.0, 1.0, -2.0, 0.0], dtype=torch.float64)
    found = inverse(inside)
    # At full rank on the tangent space it is the inverse up to a factor, and the space is left to itself.
    exact = torch.zeros(4, dtype=torch.float64)
    exact[1:3] = torch.linalg.solve(H[1:3, 1:3], inside[1:3])
    ratio = found[1:3] / exact[1:3]
    torch.testing.assert_close(ratio[0], ratio[1], rtol=1e-7, atol=0)
    torch.testing.assert_close(found[[0, 3]], torch.zeros(2).double(), rtol=0, atol=1e-12)
