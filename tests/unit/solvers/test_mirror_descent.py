"""Exponentiated gradient steps, against closed forms of problems with an entropy."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import blo
from blo import MirrorDescent, NonNegative, Product, Simplex
from blo.sets import Tangent
from blo.testing import check_solver
from tests.lower import minimise
from tests.strategies import normal

TAU = 0.03
TIGHT = MirrorDescent(tol=1e-12, max_steps=2000)


def entropic(cost: Tensor, z: Tensor) -> Tensor:
    return (cost * z).sum(-1) + TAU * (z * z.log()).sum(-1)


def costs(seed: int, *shape: int, spread: float = 0.4) -> Tensor:
    return spread * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0, 30.0])
def test_it_finds_the_softmax(spread: float) -> None:
    cost = costs(0, 4, 20, spread=spread)
    found = minimise(lambda z: entropic(cost, z), torch.full_like(cost, 0.05), TIGHT, Simplex(1.0), batched=True)
    torch.testing.assert_close(found.z, torch.softmax(-cost / TAU, -1), rtol=0, atol=1e-10)
    assert found.residual is not None and (found.residual <= 1e-11).all() and found.steps <= 60


def test_where_projected_gradients_get_stuck() -> None:
    """The smallest coordinate has a curvature of 1e13, and steps in the metric of z are as short as that asks."""
    cost = costs(0, 20, spread=1.0)
    start = torch.full_like(cost, 0.05)
    truth = torch.softmax(-cost / TAU, -1)
    slow = minimise(lambda z: entropic(cost, z), start, blo.ProjectedGradient(tol=1e-12, max_steps=2000), Simplex(1.0))
    fast = minimise(lambda z: entropic(cost, z), start, TIGHT, Simplex(1.0))
    assert (slow.z - truth).abs().max() > 1e-2 and (fast.z - truth).abs().max() < 1e-10 and fast.steps <= 60


def test_a_step_of_one_over_the_weight_of_the_entropy_is_exact() -> None:
    cost = costs(1, 6)
    found = minimise(lambda z: entropic(cost, z), torch.rand(6).double() + 0.1, MirrorDescent(1 / TAU, 1), Simplex(2.0))
    torch.testing.assert_close(found.z, 2 * torch.softmax(-cost / TAU, -1), rtol=1e-12, atol=1e-13)


def test_the_orthant_and_a_product() -> None:
    cost = costs(2, 7)

    def function(z: dict[str, Tensor]) -> Tensor:
        return entropic(cost[:4], z["share"]) + entropic(cost[4:], z["rate"])

    lower = blo.LowerProblem(lambda theta, z: function(z), Product({"share": Simplex(0.5), "rate": NonNegative()}))
    z0 = {"share": torch.zeros(4).double(), "rate": torch.ones(3).double()}
    z = blo.argmin(lower, torch.zeros(1), z0, solver=TIGHT, gradient=blo.Zero())
    torch.testing.assert_close(z["share"], 0.5 * torch.softmax(-cost[:4] / TAU, -1), rtol=0, atol=1e-10)
    torch.testing.assert_close(z["rate"], (-cost[4:] / TAU - 1).exp(), rtol=0, atol=1e-10)


def test_quadratics_end_on_faces_too() -> None:
    root = normal(0, 8, 8)
    matrix, b = root @ root.mT / 8 + 0.2 * torch.eye(8).double(), normal(1, 8)

    def function(z: Tensor) -> Tensor:
        return 0.5 * z @ matrix @ z - b @ z

    for made in (Simplex(1.5), NonNegative()):
        truth = minimise(function, torch.ones(8).double(), blo.FISTA(tol=1e-12), made)
        found = minimise(function, torch.ones(8).double(), MirrorDescent(tol=1e-11, max_steps=20_000), made)
        assert (truth.z == 0).any() and (found.z > 0).all()
        torch.testing.assert_close(found.z, truth.z, rtol=0, atol=1e-9)


def by_hand(cost: Tensor, steps: int, step: float, total: float) -> Tensor:
    """Return the point after so many steps in plain torch, from equal shares."""
    z = torch.full_like(cost, total / cost.shape[-1])
    for _ in range(steps):
        weight = z * (-step * (cost + TAU * (z.log() + 1))).exp()
        z = total * weight / weight.sum(-1, keepdim=True)
    return z


@pytest.mark.parametrize(
    "gradient", [blo.Unrolled(), blo.Unrolled(checkpoint=True), blo.Unrolled(mode="forward")], ids=str
)
def test_unrolled_is_the_derivative_of_steps_by_hand(gradient: blo.Unrolled) -> None:
    cost, step, total = costs(3, 5), 8.0, 1.5
    weight = normal(4, 5)
    lower = blo.LowerProblem(entropic, Simplex(total))
    slopes = []
    for final in (
        lambda c: blo.argmin(
            lower, c, torch.full_like(c, total / 5), solver=MirrorDescent(step, 7, tol=None), gradient=gradient
        ),
        lambda c: by_hand(c, 7, step, total),
    ):
        live = cost.clone().requires_grad_()
        z = final(live)
        slopes.append((z.detach(), *torch.autograd.grad((weight * z).sum(), live)))
    for found, truth in zip(*slopes, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10)
    assert slopes[0][1].abs().max() > 0.1


def jacobian(cost: Tensor, **options: Any) -> Tensor:
    live = cost.clone().requires_grad_()
    lower = blo.LowerProblem(entropic, Simplex(1.0, **options))
    z = blo.argmin(lower, live, torch.full_like(cost, 1 / len(cost)), solver=TIGHT, on_failure="raise")
    return torch.stack([torch.autograd.grad(part, live, retain_graph=True)[0] for part in z])


def softmax_jacobian(cost: Tensor) -> Tensor:
    z = torch.softmax(-cost / TAU, -1)
    return (z[:, None] * z - torch.diag(z)) / TAU


def test_implicit_gradients_are_those_of_the_softmax() -> None:
    cost = costs(0, 6, spread=0.3)
    torch.testing.assert_close(jacobian(cost), softmax_jacobian(cost), rtol=0, atol=1e-10)


@pytest.mark.parametrize("gap", [0.3, 0.6, 0.75])
def test_tiny_coordinates_count_as_free_without_slack(gap: float) -> None:
    """They are exp(-gap / tau), and the objective's curvature there is the inverse of that."""
    cost = torch.cat([costs(0, 4, spread=0.05), torch.tensor([gap, gap + 0.01], dtype=torch.float64)])
    truth = softmax_jacobian(cost)
    assert 1e-12 < -truth[4, 4] * TAU < 1e-3
    torch.testing.assert_close(jacobian(cost, slack=0.0), truth, rtol=0, atol=1e-10)


def test_tiny_coordinates_within_the_slack_are_reported() -> None:
    cost = torch.tensor([0.0, 0.01, 0.75], dtype=torch.float64)
    with warnings.catch_warnings(), pytest.raises(blo.ConvergenceError, match="zero multiplier"):
        jacobian(cost)


@pytest.mark.parametrize("start", [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-3.0, 5.0, 0.0]], ids=str)
def test_a_start_on_the_boundary_is_moved_off_it(start: list[float]) -> None:
    cost = costs(5, 3)
    z0 = torch.tensor(start, dtype=torch.float64)
    for made, truth in ((Simplex(1.0), torch.softmax(-cost / TAU, -1)), (NonNegative(), (-cost / TAU - 1).exp())):
        found = minimise(lambda z: entropic(cost, z), z0, TIGHT, made)
        torch.testing.assert_close(found.z, truth, rtol=0, atol=1e-10)


def test_a_coordinate_that_starts_at_zero_soon_grows() -> None:
    target = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    for made in (Simplex(1.0), NonNegative()):
        vertex = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        found = minimise(lambda z: 0.5 * (z - target).square().sum(), vertex, MirrorDescent(), made)
        torch.testing.assert_close(found.z, target, rtol=0, atol=1e-7)
        assert found.steps <= 200


def test_it_conforms() -> None:
    held = check_solver(MirrorDescent(max_steps=5000), constraints=(Simplex(1.0), NonNegative())).properties
    assert "easy problems are solved to the tolerance" in held
    check_solver(MirrorDescent(0.5, 400, tol=None), constraints=(Simplex(1.0),))


@pytest.mark.parametrize(
    "made", [blo.Free(), blo.Box(0.0, 1.0), Simplex(1.0, cap=0.9), blo.L2Ball(1.0)], ids=lambda s: type(s).__name__
)
def test_other_sets_are_refused(made: blo.sets.Set) -> None:
    with pytest.raises(blo.StructureError, match="`MirrorDescent` needs a set of positive numbers"):
        minimise(lambda z: z.square().sum(), torch.full((3,), 1 / 3), MirrorDescent(), made)


class Shares(blo.sets.Set):
    """The unit simplex, as somebody else would write it."""

    def project(self, z: Tensor) -> Tensor:
        return Simplex(1.0).project(z)

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        return Simplex(1.0).tangent(z, gradient)

    def from_logarithms(self, logarithms: Tensor) -> Tensor:
        return logarithms.softmax(-1)


def test_a_set_of_the_users_own_is_taken_alone_and_in_a_product() -> None:
    cost = costs(0, 20)
    found = minimise(lambda z: entropic(cost, z), torch.full_like(cost, 0.05), TIGHT, Shares())
    torch.testing.assert_close(found.z, torch.softmax(-cost / TAU, -1), rtol=0, atol=1e-10)
    lower = blo.LowerProblem(lambda t, z: entropic(cost, z[0]) + entropic(t, z[1]), Product(Shares(), Simplex(1.0)))
    z = blo.argmin(lower, 2 * cost, (found.z, found.z), solver=TIGHT, gradient=blo.Zero())
    torch.testing.assert_close(z[1], torch.softmax(-2 * cost / TAU, -1), rtol=0, atol=1e-10)
    lower = blo.LowerProblem(lambda t, z: z[0].sum() + t.sum(), Product(Shares(), blo.Box(0.0, 1.0)))
    with pytest.raises(blo.StructureError, match="but got Product"):
        blo.argmin(lower, cost, (found.z, found.z), solver=TIGHT, gradient=blo.Zero())


def test_penalties_are_refused() -> None:
    lower = blo.LowerProblem(lambda t, z: (z - t).square().sum(), penalty=blo.L1(1.0))
    with pytest.raises(blo.StructureError, match="but got L1"):
        blo.argmin(lower, torch.ones(1), torch.ones(3), solver=MirrorDescent(), gradient=blo.Zero())


def test_to_unroll_it_wants_a_step() -> None:
    lower, z0 = blo.LowerProblem(entropic, Simplex(1.0)), torch.full((3,), 1 / 3, dtype=torch.float64)
    with pytest.raises(blo.StructureError, match="cannot be unrolled without `step`"):
        blo.argmin(lower, costs(0, 3).requires_grad_(), z0, solver=MirrorDescent(), gradient=blo.Unrolled())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0.0}, "`step` must be positive"),
        ({"step": float("nan")}, "`step` must be positive"),
        ({"max_steps": 0}, "`max_steps` must be at least 1"),
        ({"tol": -1.0}, "`tol` must be positive"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MirrorDescent(**options)


def test_a_step_that_is_to_be_learned_is_refused() -> None:
    with pytest.raises(blo.StructureError, match="`step` must be a number"):
        MirrorDescent(torch.tensor(1.0, requires_grad=True))  # type: ignore[arg-type]
