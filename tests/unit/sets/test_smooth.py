"""Constraints written as functions: against the sets that have formulas, SciPy's root finder, and autodiff."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import blo
from blo import L2Ball, SmoothConstraints, StructureError
from blo._layout import Layout
from tests.strategies import normal

AXES = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)


def fitted(z: Any, *functions: Any, batched: bool = False, **options: Any) -> SmoothConstraints:
    return SmoothConstraints(*functions, **options).fit(Layout.of(z, batched=batched))


def ball(z: Tensor, theta: Tensor) -> SmoothConstraints:
    """Return the ball of radius theta[0] around theta[1:]."""
    return fitted(z, None, lambda t, z: (z - t[1:]).square().sum(-1) - t[0] ** 2, theta=theta, batched=z.ndim > 1)


@pytest.mark.parametrize("distance", [0.5, 1.0 + 1e-9, 2.0, 1e4])
def test_a_ball_is_the_ball(distance: float) -> None:
    theta, v = torch.cat([torch.ones(1), normal(0, 3)]), normal(1, 3)
    known = L2Ball(theta[0], theta[1:])
    point = theta[1:] + distance * normal(2, 3) / normal(2, 3).norm()
    smooth = ball(point, theta)
    near = known.project(point)
    torch.testing.assert_close(smooth.project(point), near, rtol=1e-11, atol=1e-11)
    slope = near - point - (distance <= 1) * normal(3, 3)
    ours, theirs = smooth.tangent(near, slope), known.tangent(near, slope)
    torch.testing.assert_close(ours.project(v), theirs.project(v), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours.curve(v), theirs.curve(v), rtol=1e-9, atol=1e-12)
    assert ours.counts() == theirs.counts()
    N = torch.func.jacrev(lambda t: ball(point, t).motion(smooth, near))(theta)
    # The known ball is carried along with its centre; a general face only across itself.
    truth = torch.func.jacrev(lambda t: L2Ball(t[0], t[1:]).motion(known, near))(theta)
    across = truth - torch.stack([theirs.project(column) for column in truth.T], -1)
    torch.testing.assert_close(N, across, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_an_ellipsoid_is_projected_on_like_by_its_secular_equation(seed: int, scale: float) -> None:
    point = scale * normal(seed, 3)
    a, p = AXES.numpy(), point.numpy()

    def excess(y: float) -> float:
        return float((a * (p / (1 + y * a)) ** 2).sum() - 1)

    truth = p if excess(0.0) <= 0 else p / (1 + a * brentq(excess, 0.0, 1e8, xtol=1e-15, rtol=1e-15))
    found = fitted(point, None, lambda z: 0.5 * AXES @ z.square() - 0.5).project(point)
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-9)


def test_linear_functions_are_halfspaces_and_equations() -> None:
    A, point = normal(0, 6, 4), normal(1, 4, scale=2.0)
    b = normal(2, 6).abs()
    near = fitted(point, None, lambda z: A @ z - b).project(point)
    torch.testing.assert_close(near, blo.Halfspaces(A, b).project(point), rtol=1e-12, atol=1e-12)
    near = fitted(point, lambda z: A[:2] @ z - b[:2]).project(point)
    torch.testing.assert_close(near, blo.Affine(A[:2], b[:2]).project(point), rtol=1e-12, atol=1e-12)


def test_an_equation_that_is_not_convex_holds_from_both_sides() -> None:
    for point in (torch.tensor([0.1, 0.2]), torch.tensor([3.0, -4.0])):
        point = point.double()
        circle = fitted(point, lambda z: z.square().sum() - 1)
        torch.testing.assert_close(circle.project(point), point / point.norm(), rtol=1e-12, atol=1e-12)
        assert [int(c) for c in circle.tangent(point / point.norm(), 0 * point).counts()] == [1, 1, 0]


def test_inequalities_that_do_not_bind_are_not_active() -> None:
    z = torch.tensor([1.0, 0.0], dtype=torch.float64)
    constraints = fitted(z, None, lambda z: torch.stack([z[0] - 1, z[1] - 1e-3, z.square().sum() - 2]))
    tangent = constraints.tangent(z, torch.tensor([-1.0, 0.0], dtype=torch.float64))
    assert tangent.project(torch.ones_like(z)).tolist() == [0.0, 1.0]
    assert not tangent.curve(torch.ones_like(z)).any()
    assert [int(c) for c in tangent.counts()] == [1, 1, 0]


@pytest.mark.parametrize(("slope", "degenerate"), [([-0.6, -0.8], 0), ([0.0, 0.0], 1), ([1e-12, -1e-12], 1)])
def test_a_boundary_without_force_is_counted_and_an_equation_never(slope: list[float], degenerate: int) -> None:
    z, gradient = torch.tensor([0.6, 0.8], dtype=torch.float64), torch.tensor(slope, dtype=torch.float64)
    disc = fitted(z, None, lambda z: z.square().sum() - 1)
    assert [int(c) for c in disc.tangent(z, gradient).counts()] == [1, 1, degenerate]
    circle = fitted(z, lambda z: z.square().sum() - 1)
    assert [int(c) for c in circle.tangent(z, gradient).counts()] == [1, 1, 0]


def two(theta: Tensor, z: Tensor) -> Tensor:
    """An ellipsoid and a bound on exponentials, which meet."""
    return torch.stack([(theta[:3].exp() * z.square()).sum(-1) - 1, (theta[3:] * z).exp().sum(-1) - 3.1], -1)


def test_projections_can_be_differentiated_twice_in_point_and_theta() -> None:
    theta = torch.cat([AXES.log(), normal(0, 3)])
    point = torch.tensor([2.0, 1.0, -1.0], dtype=torch.float64)

    def project(point: Tensor, theta: Tensor) -> Tensor:
        return fitted(point.detach(), None, two, theta=theta).project(point)

    near = project(point, theta)
    assert int(fitted(point, None, two, theta=theta).tangent(near, near - point).counts().active) == 2
    for scale in (1.0, 0.7):  # at both constraints, and at one
        live = (scale * point).requires_grad_(), (theta * scale).requires_grad_()
        assert gradcheck(project, live) and gradgradcheck(project, live)


def test_each_lane_is_a_problem_of_its_own() -> None:
    theta = torch.cat([AXES.log(), normal(0, 3)])
    points = torch.stack([torch.zeros(3).double(), *normal(1, 4, 3, scale=2.0)])
    lower = SmoothConstraints(None, two, theta=theta)
    together = lower.fit(Layout.of(points, batched=True))
    alone = lower.fit(Layout.of(points[0], batched=False))
    near, v = together.project(points), normal(2, 5, 3)
    torch.testing.assert_close(near, torch.stack([alone.project(p) for p in points]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.vmap(alone.project)(points), near, rtol=1e-12, atol=1e-12)
    tangent = together.tangent(near, near - points)
    for i in range(5):
        one = alone.tangent(near[i], near[i] - points[i])
        torch.testing.assert_close(tangent.project(v)[i], one.project(v[i]), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(tangent.curve(v)[i], one.curve(v[i]), rtol=1e-11, atol=1e-11)
        assert [int(c[i]) for c in tangent.counts()] == [int(c) for c in one.counts()]


def test_theta_and_z_may_be_trees() -> None:
    z = {"a": torch.tensor([3.0, 0.0]).double(), "b": torch.tensor(4.0).double()}
    layout = Layout.of(z, batched=False)

    def disc(theta: dict[str, Tensor], z: dict[str, Tensor]) -> Tensor:
        return (z["a"].square().sum() + z["b"].square()) * theta["scale"] - theta["size"]

    theta = {"size": torch.tensor(4.0).double(), "scale": torch.tensor(4.0).double()}
    found = layout.unravel(SmoothConstraints(None, disc, theta).fit(layout).project(layout.ravel(z)))
    torch.testing.assert_close(found["a"], z["a"] / 5, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found["b"], z["b"] / 5, rtol=1e-12, atol=1e-12)


def test_an_empty_set_and_a_nan_are_never_silent_and_leave_other_lanes_alone() -> None:
    points = torch.tensor([[3.0, 0.0], [float("nan"), 0.0], [0.0, 2.0]], dtype=torch.float64)
    sizes = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    constraints = fitted(points, None, lambda t, z: z.square().sum(-1) - t, theta=sizes, batched=True)
    near = constraints.project(points)
    assert near[:2].isnan().all()
    torch.testing.assert_close(near[2], torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=1e-12, atol=1e-12)
    empty = SmoothConstraints(inequalities=lambda z: z.square().sum() + 1)
    lower, z0 = blo.LowerProblem(lambda t, z: (z - t).square().sum(), empty), torch.ones(2, dtype=torch.float64)
    with pytest.raises(blo.NonFiniteError):
        blo.argmin(lower, z0.clone().requires_grad_(), z0, solver=blo.ProjectedGradient(max_steps=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_of_z_is_kept(dtype: torch.dtype) -> None:
    point = normal(0, 3, scale=3.0).to(dtype)
    disc = fitted(point, None, lambda z: z.square().sum() - 1)
    near = disc.project(point)
    assert near.dtype == dtype and abs(float(near.norm()) - 1) < 8 * torch.finfo(dtype).eps
    assert int(disc.tangent(near, near - point).counts().active) == 1


def test_a_product_passes_on_the_curvature_and_force_of_its_parts() -> None:
    """Two balls, one written as a function, moving with theta: the answer is that of two known balls."""
    target, theta = normal(0, 2, 3, scale=3.0), torch.tensor([0.3, -0.2], dtype=torch.float64)

    def solve(parts: Any) -> Tensor:
        lower = blo.LowerProblem(
            lambda t, z: sum(((i + 1.5) * AXES * (z[i] - target[i]).square()).sum() for i in range(2)),
            lambda t: blo.Product(parts(t[0]), L2Ball(t[1].exp(), t[0])),
        )
        z0, solver = (torch.zeros(3).double(), torch.zeros(3).double()), blo.ProjectedGradient(tol=1e-11)
        out = blo.value_and_hypergrad(
            lambda t, z: (z[0] * z[1]).sum() + z[0].sum(),
            lower,
            theta,
            z0,
            solver=solver,
            gradient=blo.Implicit(blo.Direct()),
        )
        return out.grad

    def written(t: Tensor) -> SmoothConstraints:
        return SmoothConstraints(None, lambda t, z: (z - t).square().sum() - (2 * t).exp(), theta=t)

    torch.testing.assert_close(solve(written), solve(lambda t: L2Ball(t.exp(), t)), rtol=1e-9, atol=1e-9)


def test_what_does_not_fit_is_named() -> None:
    z = torch.zeros(2, 3)
    with pytest.raises(StructureError, match="needs `equalities` or `inequalities`"):
        SmoothConstraints()
    with pytest.raises(StructureError, match=r"call `fit\(layout\)`"):
        SmoothConstraints(torch.sin).project(z)
    with pytest.raises(StructureError, match="`theta` must hold tensors only"):
        SmoothConstraints(torch.sin, theta=[1.0])
    with pytest.raises(StructureError, match=r"`inequalities` must return a tensor of shape \(2, 'k'\)"):
        fitted(z, None, lambda z: z.sum(), batched=True).project(z)


@pytest.mark.parametrize(("theta", "truth"), [(-1e-9, 0.5), (1e-9, 0.0), (0.0, None)])
def test_functions_with_one_normal_are_told_apart_or_counted(theta: float, truth: float | None) -> None:
    def cap(t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return torch.stack([z.square().sum() - 2, z[0] + z[1] - 2 - t])

    lower = blo.LowerProblem(
        lambda t, z: 0.5 * (z - 5.0).square().sum(), lambda t: blo.SmoothConstraints(None, cap, theta=t)
    )
    at, z0 = torch.tensor(theta, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    out = blo.value_and_hypergrad(lambda t, z: z[0], lower, at, z0, on_failure="ignore")
    assert bool(out.report.degenerate) == (truth is None)
    assert truth is None or out.grad.item() == pytest.approx(truth, abs=1e-7)


def test_a_captured_tensor_that_is_to_be_differentiated_is_refused() -> None:
    def solution(c: torch.Tensor) -> torch.Tensor:
        plane = blo.SmoothConstraints(None, lambda z: (z.sum() - c).reshape(1))
        found: torch.Tensor = blo.argmin(blo.LowerProblem(lambda t, z: (z - t).square().sum(), plane), z0 + 3, z0)
        return found[0]

    z0, one = torch.zeros(2), torch.tensor(1.0)
    with pytest.raises(blo.StructureError, match="`SmoothConstraints` capture a tensor"):
        torch.func.grad(solution)(one)
    with pytest.raises(blo.StructureError, match="`SmoothConstraints` capture a tensor"):
        solution(one.clone().requires_grad_())
