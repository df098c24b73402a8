"""Boxes: bounds that are numbers, tensors and trees, and the box around an image."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings

import blo
from blo import Box, InfeasibleError, StructureError
from blo._layout import Layout
from tests import oracles
from tests.strategies import SEEDS, normal


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_the_box_carries_z_like_the_projection_of_a_fixed_point(seed: int) -> None:
    low = -normal(seed, 4).abs() - 0.1
    high = normal(seed + 1, 4).abs() + 0.1
    point = normal(seed + 2, 4, scale=2.0)
    box = Box(low, high)
    z = box.project(point)
    at = torch.cat([low, high])
    by_autodiff = torch.func.jacrev(lambda p: Box(p[:4], p[4:]).motion(box, z))(at)
    by_differences = oracles.central_difference(
        lambda p: Box(*torch.as_tensor(p).split(4)).project(point).numpy(), at.numpy(), step=1e-5
    )
    torch.testing.assert_close(by_autodiff, torch.as_tensor(by_differences), rtol=0, atol=1e-9)


def test_bounds_may_be_numbers_and_tensors_in_any_mixture() -> None:
    z = torch.tensor([-2.0, 0.1, 3.0])
    low, high = torch.full((3,), -1.0), torch.full((3,), 0.5)
    expected = torch.tensor([-1.0, 0.1, 0.5])
    for box in (Box(-1.0, 0.5), Box(low, 0.5), Box(-1.0, high), Box(low, high), Box(low[0], high)):
        assert torch.equal(box.fit(Layout.of(z, batched=False)).project(z), expected)


def test_bounds_may_be_trees_like_z() -> None:
    z = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    layout = Layout.of(z, batched=True)
    box = Box({"a": torch.ones(3), "b": torch.tensor([2.0, 3.0])}, math.inf).fit(layout)
    assert torch.equal(box.project(layout.ravel(z)), torch.tensor([[1.0, 1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 3.0]]))


@pytest.mark.parametrize(
    ("low", "high", "count"),
    [
        (1.0, 0.0, "1 of 1"),
        (torch.tensor([0.0, 2.0]), 1.0, "1 of 2"),
        (math.nan, 0.0, "1 of 1"),
        (torch.tensor([math.nan]), 0.0, "1 of 1"),
    ],
)
def test_crossed_bounds_are_refused(low: float | torch.Tensor, high: float, count: str) -> None:
    with pytest.raises(InfeasibleError, match=f"low <= high everywhere, but {count}"):
        Box(low, high)


def test_crossed_bounds_of_a_tree_are_refused_when_it_meets_z() -> None:
    box = Box({"a": torch.ones(2)}, {"a": torch.zeros(2)})
    with pytest.raises(InfeasibleError, match="2 of 2"):
        box.fit(Layout.of({"a": torch.zeros(2)}, batched=False))


def test_validation_can_be_switched_off() -> None:
    Box(torch.ones(2), torch.zeros(2), validate=False)


def test_a_box_can_be_made_inside_transforms() -> None:
    project = torch.func.vmap(torch.func.grad(lambda r: Box(-r, r).project(torch.tensor(3.0))))
    assert torch.equal(project(torch.tensor([1.0, 2.0, 4.0])), torch.tensor([1.0, 1.0, 0.0]))


def test_free_is_what_the_published_mask_is() -> None:
    box = Box(torch.tensor(0.0), torch.tensor(1.0))
    z = torch.tensor([0.0, 1e-7, 2e-7, 0.5, 1 - 2e-7, 1.0])
    outwards = (0.5 - z).sign()  # a gradient that presses each coordinate against the nearer bound
    assert torch.equal(box.free(z, outwards), (z > 0.0 + 1e-7) & (z < 1.0 - 1e-7))


def test_the_box_around_an_image_is_the_intersection() -> None:
    x = torch.tensor([0.0, 0.02, 0.5, 0.99, 1.0], dtype=torch.float64)
    box = Box.around(x, 0.03, 0.0, 1.0)
    low = torch.tensor([0.0, -0.02, -0.03, -0.03, -0.03], dtype=torch.float64)
    high = torch.tensor([0.03, 0.03, 0.03, 0.01, 0.0], dtype=torch.float64)
    torch.testing.assert_close(box.low, low, rtol=0, atol=1e-15)
    torch.testing.assert_close(box.high, high, rtol=0, atol=1e-15)


def test_the_box_around_a_tree_is_a_tree() -> None:
    x = {"a": torch.tensor([0.0]), "b": torch.tensor([1.0, 0.5])}
    box = Box.around(x, {"a": torch.tensor(0.1), "b": torch.tensor(0.2)}, 0.0, torch.tensor(1.0))
    assert torch.equal(box.low["b"], torch.tensor([-0.2, -0.2]))
    assert torch.equal(box.high["a"], torch.tensor([0.1]))
    assert torch.equal(box.high["b"], torch.tensor([0.0, 0.2]))


def test_the_box_around_moves_with_its_radius() -> None:
    radius = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([0.5, 0.5, 0.95], dtype=torch.float64)
    z = torch.tensor([-0.1, 0.03, 0.05], dtype=torch.float64)
    motion = Box.around(x, radius, 0.0, 1.0).motion(Box.around(x, radius.detach(), 0.0, 1.0), z)
    (slope,) = torch.autograd.grad(motion @ torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64), radius)
    assert slope == -1.0  # held by the radius, free, held by the image


def test_an_image_outside_its_range_is_refused() -> None:
    with pytest.raises(InfeasibleError, match="x already lies in"):
        Box.around(torch.tensor([0.5, 1.2]), 0.1, 0.0, 1.0)


def test_a_radius_of_zero_holds_everything() -> None:
    x = torch.rand(4)
    box = Box.around(x, 0.0, 0.0, 1.0)
    tangent = box.tangent(box.project(torch.randn(4)), torch.zeros(4))
    assert [int(c) for c in tangent.counts()] == [0, 4, 0]
    assert not tangent.project(torch.ones(4)).any()


def test_equal_bounds_carry_the_derivative_of_both_paths() -> None:
    at = torch.tensor([0.3], requires_grad=True)
    for point in (-1.0, 1.0):
        (slope,) = torch.autograd.grad(Box(at, at).project(torch.tensor([point])).sum(), at)
        assert slope == 1.0


@pytest.mark.parametrize(
    ("gradient", "degenerate"),
    [
        ([1.0, 0.5, 0.0], 0),  # both bounds hold with a force
        ([0.0, 0.5, 0.0], 1),
        ([0.0, 0.0, 0.0], 2),
        ([1e-12, 0.5, 0.0], 1),  # rounding
        ([1e-12, 1e-13, 1e-10], 2),  # below what the free coordinate says of the solve
    ],
)
def test_a_bound_without_force_is_counted(gradient: list[float], degenerate: int) -> None:
    z = torch.tensor([0.0, 0.0, 0.5], dtype=torch.float64)
    counts = Box(0.0, 1.0).tangent(z, torch.tensor(gradient, dtype=torch.float64)).counts()
    assert [int(c) for c in counts] == [1, 2, degenerate]


def test_open_sides_hold_nothing() -> None:
    z = torch.tensor([-1e30, 0.0, 1e30], dtype=torch.float64)
    box = blo.Box(-math.inf, torch.full((3,), math.inf, dtype=torch.float64))
    assert torch.equal(box.project(z), z)
    assert torch.equal(box.tangent(z, z).project(z), z)
    assert torch.equal(box.motion(box, z), torch.zeros_like(z))


@pytest.mark.parametrize("bounds", [(0.0, None), (None, torch.zeros(3)), (torch.zeros(3), None)])
def test_a_bound_that_is_none_is_refused(bounds: tuple[Any, Any]) -> None:
    with pytest.raises(StructureError, match=r"`Box` needs two bounds.*-inf or inf"):
        Box(*bounds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("radius", [1e-6, 5e-8, 1e-9, 0.0])
def test_of_two_bounds_that_are_near_that_one_moves_z_which_holds_it(radius: float, dtype: torch.dtype) -> None:
    push = torch.tensor([1.0, -1.0, 2.0], dtype=dtype)
    lower = blo.LowerProblem(lambda t, z: -push @ z, lambda t: Box(-t, t))
    theta = torch.tensor(radius, dtype=dtype)
    out = blo.value_and_hypergrad(lambda t, z: push @ z, lower, theta, torch.zeros(3, dtype=dtype), on_failure="raise")
    assert out.grad == 4.0  # z = radius sign(push)


def test_an_interior_solution_of_a_box_narrower_than_the_slack_moves() -> None:
    theta = torch.tensor([2e-8], dtype=torch.float64)
    lower = blo.LowerProblem(lambda t, z: 0.5 * (z - t).square().sum(), Box(-5e-8, 5e-8))
    z0 = torch.zeros(1, dtype=torch.float64)
    out = blo.value_and_hypergrad(lambda t, z: z.sum(), lower, theta, z0, on_failure="raise")
    assert out.grad == 1.0


def test_an_interior_solution_that_is_as_near_to_a_narrow_bound_as_it_is_accurate_is_counted() -> None:
    z = torch.tensor([5e-9], dtype=torch.float64)
    counts = Box(0.0, 5e-8).tangent(z, torch.tensor([9e-9], dtype=torch.float64)).counts()
    assert int(counts.degenerate) == 1


@pytest.mark.parametrize("start", [0.0, 1.0])
@pytest.mark.parametrize("width", [1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_solver_that_stops_on_a_bound_within_its_tolerance_does_not_hold_it_there(
    width: float, start: float, dtype: torch.dtype
) -> None:
    theta, z0 = torch.tensor(0.3, dtype=dtype), torch.tensor([start * width], dtype=dtype)
    lower = blo.LowerProblem(lambda t, z: 0.5 * (z[0] - t * width) ** 2, Box(0.0, width))
    out = blo.value_and_hypergrad(lambda t, z: z[0] / width, lower, theta, z0, on_failure="raise")
    assert out.grad.item() == pytest.approx(1.0, rel=1e-6)
