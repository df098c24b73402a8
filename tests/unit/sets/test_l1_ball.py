"""The 1-norm ball: its faces, extreme sizes, undecided coordinates; the rest is tried in `test_base`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blo import InfeasibleError, L1Ball, StructureError
from blo._layout import Layout
from tests import oracles
from tests.strategies import normal


@pytest.mark.parametrize("seed", range(5))
def test_the_ball_carries_z_like_the_projection_of_a_fixed_point(seed: int) -> None:
    """With H = I the solution moves by `N - P N`, as radius and centre move."""
    point, center = normal(seed, 5, scale=4.0), normal(seed + 50, 5, scale=0.3)
    theta = torch.cat([torch.full((1,), 5.0), center])

    def ball(theta: torch.Tensor) -> L1Ball:
        return L1Ball(theta[0], theta[1:], validate=False)

    z = ball(theta).project(point)
    tangent = ball(theta).tangent(z, z - point)
    N = torch.func.jacrev(lambda t: ball(t).motion(ball(theta), z))(theta)
    dz = N - torch.stack([tangent.project(column) for column in N.T], dim=-1)
    truth = oracles.central_difference(lambda t: ball(torch.as_tensor(t)).project(point).numpy(), theta.numpy(), 1e-4)
    assert 0 < int(tangent.counts().free) < 5
    np.testing.assert_allclose(dz, truth, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projected_points_are_on_the_boundary_at_every_size(size: float, dtype: torch.dtype) -> None:
    point = normal(0, 64, 50, scale=10 * size).to(dtype)
    z = L1Ball(size).project(point)
    norms = z.double().abs().sum(-1) / size
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-5, atol=0)
    assert (L1Ball(size).tangent(z, z - point).counts().active > 0).all()


def test_points_inside_are_free_and_not_carried() -> None:
    z = torch.tensor([0.3, -0.4, 0.0], dtype=torch.float64)
    tangent = L1Ball(1.0).tangent(z, torch.zeros(3, dtype=torch.float64))
    assert torch.equal(tangent.project(z + 1), z + 1)
    assert [int(c) for c in tangent.counts()] == [3, 0, 0]
    assert not L1Ball(2.0, 0.5).motion(L1Ball(1.0), z).any()


@pytest.mark.parametrize(
    ("gradient", "degenerate"),
    [([-2.0, 2.0, 1.0], 0), ([-2.0, 2.0, 2.0], 1), ([-2.0, 2.0, -2.0], 1), ([0.0, 0.0, 0.0], 2)],
)
def test_undecided_coordinates_and_a_loose_boundary_are_counted(gradient: list[float], degenerate: int) -> None:
    z = torch.tensor([0.6, -0.4, 0.0], dtype=torch.float64)
    counts = L1Ball(1.0).tangent(z, torch.tensor(gradient, dtype=torch.float64)).counts()
    assert [int(c) for c in counts] == [1, 2, degenerate]


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan"), torch.tensor([1.0, 0.0])])
def test_a_radius_that_is_not_positive_is_refused(radius: float | torch.Tensor) -> None:
    with pytest.raises(InfeasibleError, match="radius > 0"):
        L1Ball(radius)


def test_a_radius_of_another_shape_is_named() -> None:
    with pytest.raises(StructureError, match=r"L1Ball\.radius.*\(3,\)"):
        L1Ball(torch.ones(3)).fit(Layout.of(torch.zeros(2, 3), batched=True))


@pytest.mark.parametrize("pull", [-1e-10, 1e-10])
def test_a_multiplier_smaller_than_the_residual_is_counted_whichever_its_sign(pull: float) -> None:
    z = torch.tensor([0.5, 0.5], dtype=torch.float64)
    normal, across = torch.ones(2).double(), torch.tensor([1.0, -1.0], dtype=torch.float64)
    counts = L1Ball(1.0).tangent(z, pull * normal + 1e-9 * across).counts()
    assert int(counts.degenerate) == 1


def test_a_coordinate_that_a_solver_leaves_at_zero_too_early_is_counted() -> None:
    z, gradient = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([-1e-9, -3e-9], dtype=torch.float64)
    assert int(L1Ball(1.0).tangent(z, gradient).counts().degenerate) == 1
