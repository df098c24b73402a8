"""The multipliers of constraints satisfy the KKT conditions, which are written out by hand for each set."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import blo
from blo.sets import Set, Tangent

N = 5
PULL = torch.tensor([1.9, -1.3, 0.8, 0.3, -0.6], dtype=torch.float64)
ROWS = torch.tensor([[2.0, 1.0, 0.0, -1.0, 0.5], [0.0, -3.0, 1.0, 0.2, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]]).double()


def quadratic(theta: Tensor, z: Tensor) -> Tensor:
    """Return a strongly convex objective with coupled coordinates, of each lane."""
    mixed = z + 0.3 * z.roll(1, -1)
    return (0.5 * mixed.square() - (PULL * theta[1] + theta[2]) * z).sum(-1)


@dataclass(frozen=True)
class Case:
    """A set that moves with theta[0], and its constraints as a Lagrangian term for multipliers y."""

    set_at: Callable[[Tensor], Set]
    lagrangian: Callable[[Tensor, Any, Tensor], Tensor]
    sign: str | None = None  # where the multiplier of theta[0] is: a key of y
    equations: tuple[str, ...] = ()


def bounds(low: float, high: Any) -> Callable[[Any, Tensor], Tensor]:
    return lambda y, z: (y["low"] * (low - z)).sum(-1) + (y["high"] * (z - high)).sum(-1)


def ball(norm: int, t: Tensor, y: Any, z: Tensor) -> Tensor:
    return y["radius"] * (torch.linalg.vector_norm(z - 0.1, ord=norm, dim=-1) - t)


def smooth(t: Tensor) -> blo.SmoothConstraints:
    return blo.SmoothConstraints(
        lambda s, z: z[..., :2].sum(-1, keepdim=True) - 0.2, lambda s, z: z.square().sum(-1, keepdim=True) - s**2, t
    )


CASES = {
    "box": Case(lambda t: blo.Box(-0.4, t), lambda t, y, z: bounds(-0.4, t)(y, z)),
    "non-negative": Case(lambda t: blo.NonNegative(), lambda t, y, z: -(y["low"] * z).sum(-1) + 0 * y["high"].sum(-1)),
    "simplex": Case(
        lambda t: blo.Simplex(t),
        lambda t, y, z: y["total"] * (z.sum(-1) - t) - (y["low"] * z).sum(-1),
        "total",
        ("total",),
    ),
    "capped simplex": Case(
        lambda t: blo.Simplex(t, cap=0.5),
        lambda t, y, z: y["total"] * (z.sum(-1) - t) - (y["low"] * z).sum(-1) + (y["cap"] * (z - 0.5)).sum(-1),
        "total",
        ("total",),
    ),
    "l2 ball": Case(lambda t: blo.L2Ball(t, 0.1), lambda t, y, z: ball(2, t, y, z), "radius"),
    "l1 ball": Case(lambda t: blo.L1Ball(t, 0.1), lambda t, y, z: ball(1, t, y, z), "radius"),
    "l2 ball in bounds": Case(
        lambda t: blo.L2Ball(t, 0.1, -0.2, 0.7), lambda t, y, z: ball(2, t, y, z) + bounds(-0.2, 0.7)(y, z), "radius"
    ),
    "l1 ball in bounds": Case(
        lambda t: blo.L1Ball(t, 0.1, -0.2, 0.5), lambda t, y, z: ball(1, t, y, z) + bounds(-0.2, 0.5)(y, z), "radius"
    ),
    "affine": Case(
        lambda t: blo.Affine(ROWS[:2], torch.stack([t, 0.3 * t])),
        lambda t, y, z: (y["b"] * (z @ ROWS[:2].T - torch.stack([t, 0.3 * t]))).sum(-1),
        None,
        ("b",),
    ),
    "halfspaces": Case(
        lambda t: blo.Halfspaces(ROWS, torch.stack([t, t, 5 * t])),
        lambda t, y, z: (y["b"] * (z @ ROWS.T - torch.stack([t, t, 5 * t]))).sum(-1),
    ),
    "smooth": Case(
        smooth,
        lambda t, y, z: (
            y["equalities"][..., 0] * (z[..., :2].sum(-1) - 0.2)
            + y["inequalities"][..., 0] * (z.square().sum(-1) - t**2)
        ),
        None,
        ("equalities",),
    ),
    "intersection of rows": Case(
        lambda t: blo.Intersection(blo.Box(-0.4, t), blo.Halfspaces(ROWS[:2], torch.stack([t, t]))),
        lambda t, y, z: bounds(-0.4, t)(y[0], z) + (y[1]["b"] * (z @ ROWS[:2].T - t)).sum(-1),
    ),
    "intersection with a ball": Case(
        lambda t: blo.Intersection(blo.L2Ball(t, 0.1), blo.Affine(ROWS[2:], torch.stack([0.5 * t]))),
        lambda t, y, z: ball(2, t, y[0], z) + (y[1]["b"] * (z @ ROWS[2:].T - 0.5 * t)).sum(-1),
        None,
        ("b",),
    ),
}


def named(y: Any) -> list[tuple[str, Tensor]]:
    parts = y if isinstance(y, list) else [y]
    return [(name, value) for part in parts for name, value in part.items()]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_the_multipliers_satisfy_the_kkt_conditions(name: str, batched: bool) -> None:
    case = CASES[name]
    lower = blo.LowerProblem(quadratic, lambda theta: case.set_at(theta[0]), batched=batched)
    theta = torch.tensor([0.6, 1.0, 0.2], dtype=torch.float64)
    z0 = torch.zeros((3, N) if batched else (N,), dtype=torch.float64)
    z = blo.argmin(lower, theta, z0, on_failure="ignore").detach()
    y = blo.duals(lower, theta, z)

    at = z.clone().requires_grad_()
    pressure = case.lagrangian(theta[0], y, at)
    (slope,) = torch.autograd.grad((quadratic(theta, at) + pressure).sum(), at)
    if name.startswith("l1 ball"):  # any number of absolute value below 1 is a slope of the norm at its kink
        kinks = (z - 0.1).abs() < 1e-9
        assert bool((slope.abs() <= y["radius"].unsqueeze(-1)).masked_select(kinks).all())
        slope = torch.where(kinks, 0.0, slope)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-8)
    torch.testing.assert_close(pressure, torch.zeros_like(pressure), rtol=0, atol=1e-8)  # complementary slackness
    assert all(bool((value >= 0).all()) for key, value in named(y) if key not in case.equations)
    assert max(float(value.abs().max()) for _, value in named(y)) > 0.1, "nothing is active: the test shows nothing"


@pytest.mark.parametrize("name", CASES)
def test_the_multipliers_are_differentiated_through_the_solution(name: str) -> None:
    case = CASES[name]
    lower = blo.LowerProblem(quadratic, lambda theta: case.set_at(theta[0]))

    def mixed(theta: Tensor) -> Tensor:
        z = blo.argmin(lower, theta, torch.zeros(N, dtype=torch.float64))
        parts = [value.reshape(-1) for _, value in named(blo.duals(lower, theta, z, on_failure="ignore"))]
        flat = torch.cat(parts)
        return (flat * torch.arange(1.0, 1.0 + len(flat)).cos()).sum() + flat.square().sum()

    theta = torch.tensor([0.6, 1.0, 0.2], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(mixed(theta), theta)
    h = 1e-5
    steps = h * torch.eye(3, dtype=torch.float64)
    with torch.no_grad():
        near = torch.stack([(mixed(theta + s) - mixed(theta - s)) / (2 * h) for s in steps])
        far = torch.stack([(mixed(theta + 2 * s) - mixed(theta - 2 * s)) / (4 * h) for s in steps])
    torch.testing.assert_close(slope, (4 * near - far) / 3, rtol=1e-8, atol=2e-8)
    assert float(slope.abs().max()) > 0.1


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.sign])
def test_a_multiplier_is_the_slope_of_the_optimal_value(name: str) -> None:
    case = CASES[name]
    assert case.sign
    lower = blo.LowerProblem(quadratic, lambda theta: case.set_at(theta[0]))

    def best(right: float) -> tuple[float, Tensor, Tensor]:
        theta = torch.tensor([right, 1.0, 0.2], dtype=torch.float64)
        with torch.no_grad():
            z = blo.argmin(lower, theta, torch.zeros(N, dtype=torch.float64))
        return float(quadratic(theta, z)), theta, z

    h = 1e-4
    slopes = [(best(0.6 + k * h)[0] - best(0.6 - k * h)[0]) / (2 * k * h) for k in (1, 2)]
    _, theta, z = best(0.6)
    y = blo.duals(lower, theta, z)[case.sign]
    assert float(y) == pytest.approx(-(4 * slopes[0] - slopes[1]) / 3, abs=1e-9)


def test_a_product_names_the_multipliers_of_each_part() -> None:
    def objective(theta: Tensor, z: dict[str, Tensor]) -> Tensor:
        return (z["w"] - theta).square().sum() + (z["b"] + theta).square().sum()

    sets = {"w": blo.Simplex(1.0), "b": blo.Intersection(blo.NonNegative(), blo.Box(-1.0, 0.5))}
    theta = torch.tensor([0.7, 0.9], dtype=torch.float64)
    z0 = {"w": torch.zeros(2, dtype=torch.float64), "b": torch.zeros(1, 2, dtype=torch.float64)}
    lower = blo.LowerProblem(objective, blo.Product(sets))
    z = blo.argmin(lower, theta.requires_grad_(), z0)
    y = blo.duals(lower, theta, z)
    assert set(y) == {"w", "b"}
    torch.testing.assert_close(y["w"]["total"].detach(), torch.tensor(0.6, dtype=torch.float64))
    assert [set(part) for part in y["b"]] == [{"low", "high"}, {"low", "high"}]
    torch.testing.assert_close(y["b"][0]["low"].detach(), 2 * theta.detach()[None])
    assert not y["b"][1]["low"].any()


def test_a_sequence_of_parts_gives_a_list() -> None:
    lower = blo.LowerProblem(
        lambda theta, z: (z[0] - theta).square().sum() + (z[1] - theta).square().sum(),
        blo.Product(blo.Free(), blo.L2Ball(0.0)),
    )
    theta, zero = torch.tensor(2.0, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    found = blo.duals(lower, theta, (theta.reshape(1), zero), on_failure="ignore")
    assert found[0] == {}
    assert float(found[1]["radius"]) == pytest.approx(4.0, abs=1e-12)  # the force that a point takes


def at_two(constraint: Any = None, **changes: Any) -> blo.LowerProblem:
    return blo.LowerProblem(
        lambda theta, z: (z - 2.0 * theta).square().sum(), constraint or blo.Box(-1.0, 1.0), **changes
    )


ONE = torch.ones(1, dtype=torch.float64)


def test_a_point_that_is_no_solution_is_reported() -> None:
    with pytest.warns(blo.ConvergenceWarning, match="has not converged"):
        blo.duals(at_two(), ONE, 0.5 * ONE)
    with pytest.raises(blo.ConvergenceError):
        blo.duals(at_two(), ONE, 0.5 * ONE, on_failure="raise")
    with pytest.raises(blo.NonFiniteError):
        blo.duals(at_two(), ONE, math.nan * ONE)


def test_multipliers_that_are_zero_or_not_unique_are_reported() -> None:
    with pytest.warns(blo.DegenerateWarning, match="zero multiplier"):
        blo.duals(at_two(), 0.5 * ONE, ONE)
    for kind in (blo.Halfspaces, blo.Affine):
        with pytest.warns(blo.DegenerateWarning, match="not unique"):
            y = blo.duals(at_two(kind(torch.ones(2, 1, dtype=torch.float64), 1.0)), ONE, ONE)["b"]
        assert float(y.sum()) == pytest.approx(2.0, abs=1e-12)


class Line(Set):
    """A set of the user's own, without multipliers."""

    def project(self, z: Tensor) -> Tensor:
        return z.clamp(max=1.0)

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        return Tangent(lambda v: 0 * v, 0.0, lambda: blo.sets.Counts(*3 * [torch.zeros((), dtype=torch.int64)]))


def test_problems_without_multipliers_are_refused() -> None:
    with pytest.raises(blo.StructureError, match=r"Tangent\.duals"):
        blo.duals(at_two(Line()), ONE, ONE)
    with pytest.raises(blo.StructureError, match="has a penalty"):
        blo.duals(blo.LowerProblem(lambda theta, z: z.square().sum(), penalty=blo.L1(1.0)), ONE, ONE)
    with pytest.raises(blo.StructureError, match="a fixed-point problem has none"):
        blo.duals(blo.LowerProblem.fixed_point(lambda theta, z: 0.5 * z), ONE, ONE)


def test_the_transforms_of_torch_reach_theta() -> None:
    lower = at_two(lambda theta: blo.Box(-1.0, theta**2))

    def high(theta: Tensor) -> Tensor:
        return blo.duals(lower, theta, blo.argmin(lower, theta, torch.zeros_like(theta)))["high"].sum()

    # The objective's slope at z = theta^2 is 2 (theta^2 - 2 theta), the multiplier minus that.
    torch.testing.assert_close(torch.func.grad(high)(ONE), torch.zeros_like(ONE))
    torch.testing.assert_close(torch.func.jacrev(torch.func.grad(high))(ONE), -4.0 * ONE.reshape(1, 1))
    many = torch.tensor([[0.5], [1.0], [1.5]], dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(high)(many), (4 * many - 2 * many**2).squeeze(-1))
