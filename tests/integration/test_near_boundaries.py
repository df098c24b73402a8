"""Solutions next to a constraint, nearer than `slack`: inside it they are free, pressed against it they are held."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import blo

N = 4
WEIGHT = 0.2


class Near(NamedTuple):
    """A solution, the lower gradient there, a basis of its tangent space, and the curvature K."""

    z: Tensor
    gradient: Tensor
    basis: np.ndarray
    curvature: np.ndarray
    term: dict[str, Any]


def interior(seed: int) -> Tensor:
    return 0.25 + 0.5 * torch.rand(N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def beside(normal: Tensor) -> np.ndarray:
    """Return an orthonormal basis of what is orthogonal to one vector."""
    return np.linalg.svd(normal.numpy()[None])[2][1:].T


def coordinate(make: Callable[[Tensor], dict[str, Any]], z: Tensor, inside: float, pressed: float) -> Near:
    """The first coordinate is next to its bound at zero."""
    z[0] = inside
    gradient = torch.zeros(N, dtype=torch.float64)
    gradient[0] = pressed
    basis = np.eye(N) if inside else np.eye(N)[:, 1:]
    return Near(z, gradient, basis, np.zeros((N, N)), make(z))


def simplex(z: Tensor, inside: float, pressed: float) -> Near:
    near = coordinate(lambda z: {"constraint": blo.Simplex(float(z.sum()))}, z, inside, pressed)
    support = torch.tensor([float(inside > 0), 1.0, 1.0, 1.0], dtype=torch.float64)
    basis = beside(support) if inside else beside(support) @ np.linalg.svd(beside(support)[:1])[2][1:].T
    return near._replace(gradient=near.gradient + 0.3, basis=basis)


def l1(make: Callable[[], blo.penalties.Penalty], z: Tensor, inside: float, pressed: float) -> Near:
    near = coordinate(lambda z: {"penalty": make()}, z, inside, 0.0)
    gradient = torch.full((N,), -WEIGHT, dtype=torch.float64)
    gradient[0] += pressed
    return near._replace(gradient=gradient)


def boundary(
    make: Callable[[Tensor, float], blo.sets.Set], normal: Callable[[Tensor], Tensor], round_: bool
) -> Callable[[Tensor, float, float], Near]:
    """A set with one smooth boundary next to z."""

    def near(z: Tensor, inside: float, pressed: float) -> Near:
        u = normal(z)
        curvature = (pressed / z.norm().item() if round_ else 0.0) * np.eye(N)
        basis = np.eye(N) if inside else beside(u)
        return Near(z, -pressed * u, basis, curvature, {"constraint": make(z, inside)})

    return near


def beside_ball(norm: int, z: Tensor, inside: float, pressed: float) -> Near:
    """The first coordinate is next to its bound, and the ball holds the solution with a multiplier of 0.3."""
    z[0] = 0.5 - inside
    u = z / z.norm() if norm == 2 else torch.ones_like(z)
    first = torch.eye(N, dtype=torch.float64)[0]
    kind, radius = (blo.L2Ball, z.norm()) if norm == 2 else (blo.L1Ball, z.sum())
    ball = kind(radius, 0.0, -1.0, 1.5 - first)
    basis = beside(u) if inside else beside(u) @ np.linalg.svd(beside(u)[:1])[2][1:].T
    curvature = 0.3 / z.norm().item() if norm == 2 else 0.0
    return Near(z, -0.3 * u - pressed * first, basis, curvature * np.eye(N), {"constraint": ball})


def unit(z: Tensor) -> Tensor:
    return z / z.norm()


def row(z: Tensor) -> Tensor:
    return unit(torch.arange(1.0, N + 1, dtype=torch.float64).cos())


def smooth(z: Tensor, inside: float) -> blo.SmoothConstraints:
    radius = z.norm() + inside
    return blo.SmoothConstraints(inequalities=lambda at: (at.norm() - radius).reshape(1))


TERMS: dict[str, Callable[[Tensor, float, float], Near]] = {
    "box": lambda *at: coordinate(lambda z: {"constraint": blo.Box(0.0, 1.0)}, *at),
    "nonnegative": lambda *at: coordinate(lambda z: {"constraint": blo.NonNegative()}, *at),
    "simplex": simplex,
    "l1": lambda *at: l1(lambda: blo.L1(WEIGHT), *at),
    "elastic net": lambda *at: l1(lambda: blo.ElasticNet(WEIGHT, 0.0), *at),
    "l2 ball": boundary(lambda z, inside: blo.L2Ball(z.norm() + inside), unit, round_=True),
    "l1 ball": boundary(lambda z, inside: blo.L1Ball(z.sum() + inside), lambda z: z.sign(), round_=False),
    "cut l2 ball": boundary(lambda z, inside: blo.L2Ball(z.norm() + inside, 0.0, -1.0, 1.0), unit, round_=True),
    "bound on an l2 ball": lambda *at: beside_ball(2, *at),
    "bound on an l1 ball": lambda *at: beside_ball(1, *at),
    "halfspaces": boundary(lambda z, inside: blo.Halfspaces(row(z)[None], row(z) @ z + inside), row, round_=False),
    "smooth": boundary(smooth, unit, round_=True),
}


@pytest.mark.parametrize("distance", [5e-8, 1e-9, -1e-9, -5e-8], ids=lambda d: f"{d:g}")
@pytest.mark.parametrize("name", TERMS)
def test_the_multiplier_tells_whether_a_near_constraint_holds(name: str, distance: float) -> None:
    for seed in range(3):
        near = TERMS[name](interior(seed), max(distance, 0.0), max(-distance, 0.0))
        root, v = torch.randn(2, N, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        H, v = root @ root.T + torch.eye(N), v[0]
        theta = H @ near.z - near.gradient
        lower = blo.LowerProblem(lambda t, z, H=H: 0.5 * z @ H @ z - t @ z, **near.term)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", blo.errors.DegenerateWarning)
            out = blo.value_and_hypergrad(
                lambda t, z, v=v: v @ z, lower, theta, near.z.clone(), solver=blo.External(lambda t, z: z)
            )
        B = near.basis
        truth = B @ np.linalg.solve(B.T @ (H.numpy() + near.curvature) @ B, B.T @ v.numpy())
        np.testing.assert_allclose(out.implicit.numpy(), truth, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", TERMS)
def test_what_cannot_be_told_is_reported(name: str) -> None:
    near = TERMS[name](interior(0), 1e-10, 1e-10)
    lower = blo.LowerProblem(lambda t, z: 0.5 * z @ z - t @ z, **near.term)
    with pytest.warns(blo.errors.DegenerateWarning, match="strict complementarity fails"):
        blo.value_and_hypergrad(
            lambda t, z: z.sum(), lower, near.z - near.gradient, near.z, solver=blo.External(lambda t, z: z)
        )


@pytest.mark.parametrize("distance", [3e-7, 8e-7], ids=lambda d: f"{d:g}")
@pytest.mark.parametrize("name", TERMS)
def test_a_constraint_holds_a_solution_that_its_solver_left_beside_it(name: str, distance: float) -> None:
    near = TERMS[name](interior(0), 0.0, 0.2)
    root, v = torch.randn(2, N, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    H, v = root @ root.T / N + torch.eye(N), v[0]
    theta = H @ near.z - near.gradient
    lower = blo.LowerProblem(lambda t, z: 0.5 * z @ H @ z - t @ z, **near.term)
    # Inwards along the normal; on the simplex within the plane of the sum.
    inwards = {"simplex": torch.eye(N)[0] - 1 / N}.get(name, unit(near.gradient - near.gradient[1:].mean()))
    inwards = torch.eye(N)[0] if name in ("l1", "elastic net") else inwards
    inwards = unit(near.gradient) if name in ("l2 ball", "l1 ball", "halfspaces", "smooth") else inwards
    theta, solver = theta.requires_grad_(), blo.External(lambda t, z: near.z + distance * unit(inwards.double()))
    z = blo.argmin(lower, theta, near.z.clone(), solver=solver, on_failure="raise")
    (found,) = torch.autograd.grad(v @ z, theta)
    B = near.basis
    truth = B @ np.linalg.solve(B.T @ (H.numpy() + near.curvature) @ B, B.T @ v.numpy())
    np.testing.assert_allclose(found.numpy(), truth, rtol=0, atol=1e-5)  # that of another point


def test_a_solver_told_to_stop_early_leaves_constraints_that_hold_its_solution() -> None:
    # The stiff coordinate keeps the steps so short that the other one is stopped before it reaches zero.
    h, p, d = torch.tensor([1e4, 1.0, 2.0]).double(), torch.tensor([0.0, -0.8, 0.3]).double(), 9e-5
    lower = blo.LowerProblem(lambda t, z: 0.5 * h @ (z - t - p).square(), blo.NonNegative())
    z0 = torch.tensor([0.0, d, 0.3]).double()
    out = blo.value_and_hypergrad(
        lambda t, z: z.sum(),
        lower,
        torch.tensor([0.5, 0.0, 0.0]).double(),
        z0 + torch.tensor([0.5, 0.0, 0.0]),
        solver=blo.ProjectedGradient(step=1e-4, tol=1e-4),
        on_failure="raise",
    )
    assert out.z[1].item() == pytest.approx(d)  # the test is of something
    np.testing.assert_allclose(out.grad.numpy(), [1.0, 0.0, 1.0], rtol=0, atol=1e-8)


@pytest.mark.parametrize("other", [0.3, torch.nan], ids=["unconverged", "nan"])
@pytest.mark.filterwarnings("ignore")
def test_another_lane_that_has_not_converged_frees_no_constraint(other: float) -> None:
    """The first lane ends 2e-5 inside the bound that holds its first coordinate, within the tolerance of its solver."""
    target = torch.tensor([[2.0, 0.3], [-2.0, 0.3]]).double()
    lower = blo.LowerProblem(lambda t, z: (z - t * target).square().sum(-1), blo.Box(-1.0, 1.0), batched=True)
    ended = torch.tensor([[1 - 2e-5, 0.3], [other, 0.3]]).double()
    found = []
    for solver in (
        blo.External(lambda t, z: ended, tol=1e-4),
        blo.External(lambda t, z: ended[:1].expand(2, 2), tol=1e-4),
    ):
        theta = torch.ones((), dtype=torch.float64, requires_grad=True)
        z = blo.argmin(lower, theta, torch.zeros(2, 2).double(), solver=solver, on_failure="ignore")
        found.append(torch.autograd.grad(z[0].sum(), theta)[0].item())
    assert found[0] == pytest.approx(0.3, abs=1e-7) == found[1]
