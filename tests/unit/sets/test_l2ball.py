"""The ball, whose boundary is curved: K, a moving radius and centre, extreme sizes."""

from __future__ import annotations

import pytest
import torch

from blo import InfeasibleError, L2Ball, StructureError
from blo._layout import Layout
from tests.strategies import normal


@pytest.mark.parametrize("size", [1e-20, 1e-3, 1.0, 1e4, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projected_points_are_on_the_boundary_at_every_size(size: float, dtype: torch.dtype) -> None:
    point = normal(0, 64, 50, scale=10 * size).to(dtype)
    ball = L2Ball(size)
    z = ball.project(point)
    norms = z.double().norm(dim=-1) / size
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-6, atol=0)
    assert (ball.tangent(z, z - point).counts().active == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projected_points_are_on_the_boundary_around_a_distant_center(dtype: torch.dtype) -> None:
    center = normal(0, 64, 50, scale=30.0).to(dtype)
    ball = L2Ball(1.0, center)
    z = ball.project(center + normal(1, 64, 50).to(dtype))
    assert (ball.tangent(z, center - z).counts().active == 1).all()


def test_points_inside_are_free() -> None:
    z = torch.tensor([0.3, 0.4], dtype=torch.float64)
    tangent = L2Ball(torch.tensor(1.0), torch.zeros(2)).tangent(z, torch.zeros(2, dtype=torch.float64))
    assert torch.equal(tangent.project(z), z)
    assert (torch.as_tensor(tangent.curvature) == 0).all()
    assert [int(c) for c in tangent.counts()] == [2, 0, 0]


def test_an_inner_point_is_not_carried() -> None:
    z = torch.tensor([0.3, 0.4], dtype=torch.float64)
    ball = L2Ball(torch.tensor(1.0, requires_grad=True), torch.zeros(2, dtype=torch.float64, requires_grad=True))
    grads = torch.autograd.grad(ball.motion(L2Ball(1.0), z).sum(), (ball.radius, ball.center))
    assert not any(grad.any() for grad in grads)


def test_one_coordinate_on_the_boundary_is_held() -> None:
    z = torch.tensor([[2.0], [-2.0], [0.5]], dtype=torch.float64)
    tangent = L2Ball(2.0).tangent(z, -z)
    assert tangent.project(torch.ones_like(z)).tolist() == [[0.0], [0.0], [1.0]]


def test_the_center_itself_has_derivatives() -> None:
    z = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(torch.func.jacrev(L2Ball(1.0).project)(z), torch.eye(3, dtype=torch.float64))
    (grad,) = torch.autograd.grad(L2Ball(1.0).tangent(z, z + 1).curvature.sum(), z)
    assert grad.isfinite().all()


def test_a_radius_of_zero_holds_everything_and_is_degenerate() -> None:
    ball = L2Ball(0.0, torch.ones(3))
    z = ball.project(torch.randn(3))
    tangent = ball.tangent(z, torch.ones(3))
    assert torch.equal(z, torch.ones(3))
    assert not tangent.project(torch.ones(3)).any()
    assert [int(c) for c in tangent.counts()] == [0, 3, 1]


@pytest.mark.parametrize("noise", [0.0, 1e-12])
def test_a_boundary_without_force_is_counted(noise: float) -> None:
    z = torch.tensor([[0.6, 0.8], [0.6, 0.8]], dtype=torch.float64)
    slope = torch.tensor([[noise, -noise], [-0.6, -0.8]], dtype=torch.float64)
    assert L2Ball(1.0).tangent(z, slope).counts().degenerate.tolist() == [1, 0]


def test_each_lane_may_have_its_radius() -> None:
    z = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0]])
    ball = L2Ball(torch.tensor([1.0, 2.0, 10.0])).fit(Layout.of(z, batched=True))
    torch.testing.assert_close(ball.project(z).norm(dim=-1), torch.tensor([1.0, 2.0, 5.0]))


@pytest.mark.parametrize("radius", [-1.0, float("nan"), torch.tensor([1.0, -1.0])])
def test_a_negative_radius_is_refused(radius: float | torch.Tensor) -> None:
    with pytest.raises(InfeasibleError, match="radius >= 0"):
        L2Ball(radius)


def test_a_radius_of_another_shape_is_named() -> None:
    with pytest.raises(StructureError, match=r"L2Ball\.radius.*\(3,\)"):
        L2Ball(torch.ones(3)).fit(Layout.of(torch.zeros(2, 3), batched=True))


@pytest.mark.parametrize("pull", [-1e-10, 1e-10])
def test_a_multiplier_smaller_than_the_residual_is_counted_whichever_its_sign(pull: float) -> None:
    z = torch.tensor([0.6, 0.8], dtype=torch.float64)
    normal, across = z, torch.tensor([-0.8, 0.6], dtype=torch.float64)
    counts = L2Ball(1.0).tangent(z, pull * normal + 1e-9 * across).counts()
    assert int(counts.degenerate) == 1
