"""Balls cut by bounds: the search, faces that ball and bounds share, corners, what is degenerate or refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import blo
from blo import InfeasibleError, L1Ball, L2Ball, StructureError
from blo._layout import Layout
from tests import cut_oracles, oracles
from tests.strategies import SEEDS, normal

BALLS = {1: L1Ball, 2: L2Ball}
norms = pytest.mark.parametrize("norm", BALLS)


def parameters(rng: np.random.Generator, n: int) -> dict[str, Any]:
    """Return a ball that meets its bounds: some open, some closed on one value, the centre not always between them."""
    center = rng.normal(size=n)
    low = center - rng.uniform(-0.3, 0.6, size=n)
    high = low + rng.exponential(size=n) * rng.choice([0.0, 1.0, np.inf], size=n, p=[0.1, 0.8, 0.1])
    low = np.where(rng.uniform(size=n) < 0.1, np.minimum(-np.inf, low), low)
    return {"center": center, "low": low, "high": high}


def fitted(kind: Any, z: Tensor, *parts: Any, **options: Any) -> Any:
    return kind(*parts, **options).fit(Layout.of(z, batched=z.ndim > 1))


@settings(deadline=None, max_examples=100)
@given(SEEDS, st.integers(1, 30), st.sampled_from([1, 2]), st.sampled_from([torch.float32, torch.float64]))
def test_the_projection_is_that_of_bisection_in_each_lane(seed: int, n: int, norm: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(seed)
    rows = [parameters(rng, n) for _ in range(3)]
    for row in rows:
        gap = np.linalg.norm(np.clip(row["center"], row["low"], row["high"]) - row["center"], norm)
        row["radius"] = gap + rng.exponential() * rng.choice([0.01, 1.0, 10.0])
    point = torch.as_tensor(rng.normal(size=(3, n)) * rng.choice([0.1, 1.0, 100.0]), dtype=dtype)
    stacked = {key: torch.as_tensor(np.stack([row[key] for row in rows]), dtype=dtype) for key in rows[0]}
    found = fitted(BALLS[norm], point, **stacked).project(point)
    truth = [
        cut_oracles.project(point[i].numpy(), **{k: v[i].numpy() for k, v in stacked.items()}, norm=norm)
        for i in range(3)
    ]
    assert found.dtype == dtype
    assert ((found >= stacked["low"]) & (found <= stacked["high"])).all()
    size = float(stacked["center"].abs().max() + point.abs().max() + stacked["radius"].max())
    np.testing.assert_allclose(found, np.stack(truth), rtol=0, atol=50 * torch.finfo(dtype).eps * size)


@norms
@pytest.mark.parametrize("size", [1e-25, 1e-3, 1e4, 1e22])
def test_extreme_sizes_are_projected_like_ordinary_ones(norm: int, size: float) -> None:
    point = 10 * normal(0, 8, 20)
    truth = fitted(BALLS[norm], point, 0.5, 0.1, -0.11, 0.23).project(point)
    assert ((truth > -0.11) & (truth < 0.23)).any() and (truth == 0.23).any()
    single = (size * point).float()
    found = fitted(BALLS[norm], single, 0.5 * size, 0.1 * size, -0.11 * size, 0.23 * size).project(single)
    torch.testing.assert_close(found.double() / size, truth, rtol=0, atol=1e-5)


@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_ball_within_its_bounds_is_the_ball(norm: int, dtype: torch.dtype) -> None:
    point, center = normal(0, 9, 6, scale=3.0).to(dtype), normal(1, 9, 6).to(dtype)
    radius = torch.linspace(0.5, 40.0, 9, dtype=dtype)
    plain, cut = (fitted(BALLS[norm], point, radius, center, *sides) for sides in ((), (-1e3, 1e3)))
    z, v = plain.project(point), normal(2, 9, 6).to(dtype)
    assert torch.equal(cut.project(point), z)
    mine, theirs = cut.tangent(z, z - point), plain.tangent(z, z - point)
    torch.testing.assert_close(mine.project(v), theirs.project(v))
    torch.testing.assert_close(mine.curve(v), theirs.curve(v))
    assert all(torch.equal(a, b) for a, b in zip(mine.counts(), theirs.counts(), strict=True))


@norms
def test_a_ball_around_its_bounds_is_the_box(norm: int) -> None:
    point = normal(0, 9, 6, scale=3.0)
    low = -normal(1, 9, 6).abs()
    box, cut = fitted(blo.Box, point, low, 0.4), fitted(BALLS[norm], point, 100.0, 0.3, low, 0.4)
    z, v = box.project(point), normal(2, 9, 6)
    assert torch.equal(cut.project(point), z)
    mine, theirs = cut.tangent(z, z - point), box.tangent(z, z - point)
    assert torch.equal(mine.project(v), theirs.project(v))
    assert not mine.curve(v).any()
    assert all(torch.equal(a, b) for a, b in zip(mine.counts(), theirs.counts(), strict=True))


@norms
def test_bounds_that_are_infinite_or_none_are_no_bounds(norm: int) -> None:
    point = normal(0, 4, 5, scale=3.0)
    truth = fitted(BALLS[norm], point, 1.0).project(point)
    for low, high in ((None, math.inf), (-math.inf, None), (-math.inf, torch.tensor(math.inf))):
        assert torch.equal(fitted(BALLS[norm], point, 1.0, 0.0, low, high).project(point), truth)
    one = fitted(BALLS[norm], point, 1.0, 0.0, None, 0.1).project(point)
    assert torch.equal(one, fitted(BALLS[norm], point, 1.0, 0.0, -9.0, 0.1).project(point))


@norms
def test_trees_of_bounds_lie_like_z(norm: int) -> None:
    z = {"a": normal(0, 2, 3, scale=3.0), "b": normal(1, 2, 2, 2, scale=3.0)}
    low = {"a": normal(2, 2, 3) - 2, "b": normal(3, 2, 2, 2) - 2}
    high = {key: value + 1.5 for key, value in low.items()}
    layout = Layout.of(z, batched=True)
    found = BALLS[norm](9.0, 0.0, low, high).fit(layout).project(layout.ravel(z))
    truth = BALLS[norm](9.0, 0.0, layout.ravel(low), layout.ravel(high)).fit(Layout.of(layout.ravel(z), batched=True))
    assert torch.equal(found, truth.project(layout.ravel(z)))


def moving(norm: int, n: int = 5) -> Any:
    """Return theta -> ball, whose radius, centre and both bounds are all of theta."""
    return lambda t: BALLS[norm](t[0], t[1 : n + 1], t[n + 1 : 2 * n + 1], t[2 * n + 1 :], validate=False)


@norms
@pytest.mark.parametrize("seed", range(6))
def test_the_face_moves_with_radius_centre_and_bounds(norm: int, seed: int) -> None:
    """With H = I the solution moves by `N - P N / (1 + mu)`; N from the tangent, and from the set alone."""
    rng, n = np.random.default_rng(seed), 5
    center = 0.3 * rng.normal(size=n)
    low, high = -rng.uniform(0.2, 0.7, size=n), rng.uniform(0.2, 0.7, size=n)
    radius = np.linalg.norm(np.clip(center, low, high) - center, norm) + 0.3 * norm**-1 + 0.4
    theta, point = torch.as_tensor(np.concatenate([[radius], center, low, high])), normal(seed, n)
    ball = moving(norm)(theta)
    z = ball.project(point)
    tangent = ball.tangent(z, z - point)
    assert int(tangent.counts().degenerate) == 0
    truth = oracles.central_difference(
        lambda t: cut_oracles.project(point.numpy(), t[0], t[1 : n + 1], t[n + 1 : 2 * n + 1], t[2 * n + 1 :], norm),
        theta.numpy(),
        1e-4,
    )
    for carry in (lambda t: tangent.carry(ball, moving(norm)(t), z), lambda t: moving(norm)(t).motion(ball, z)):
        N = torch.func.jacrev(carry)(theta)
        dz = N - torch.stack([tangent.project(column / (1 + tangent.curvature)) for column in N.T], dim=-1)
        np.testing.assert_allclose(dz, truth, rtol=0, atol=1e-10)
    by_autodiff = torch.func.jacrev(lambda t: moving(norm)(t).project(point))(theta)
    np.testing.assert_allclose(by_autodiff, truth, rtol=0, atol=1e-10)


@norms
def test_a_bound_holds_what_the_ball_pulls_out_against_the_gradient(norm: int) -> None:
    """The objective draws the first coordinate up, off its lower bound; the ball presses it there."""
    point, low = torch.tensor([0.6, 3.0], dtype=torch.float64), torch.tensor([0.5, -1.0], dtype=torch.float64)
    rest = 0.6 if norm == 2 else 0.7
    theta = torch.tensor([float(np.linalg.norm([0.5, rest], norm)), 0.5], dtype=torch.float64)
    out = hypergradient(lambda t: BALLS[norm](t[0], 0.0, torch.stack([t[1], t[1] - 2]), 9.0), theta, point)
    np.testing.assert_allclose(out.z, [0.5, rest], rtol=0, atol=1e-10)
    share = [theta[0] / rest, 0.5 / rest] if norm == 2 else [1.0, 1.0]
    np.testing.assert_allclose(out.grad, [2 * share[0], 1 - 2 * share[1]], rtol=0, atol=1e-9)
    counts = BALLS[norm](theta[0], 0.0, low, 9.0).tangent(out.z, out.z - point).counts()
    assert [int(c) for c in counts] == [0, 2, 0]


def hypergradient(constraint: Any, theta: Tensor, point: Tensor, **options: Any) -> Any:
    """Return the outcome for `min |z - point|^2 / 2` and a linear upper objective."""
    v = torch.arange(1.0, point.shape[-1] + 1, dtype=point.dtype)
    lower = blo.LowerProblem(lambda t, z: 0.5 * (z - point).square().sum(-1), constraint, batched=point.ndim > 1)
    return blo.value_and_hypergrad(lambda t, z: (v * z).sum(), lower, theta, torch.zeros_like(point), **options)


CORNER = torch.tensor([3.0, 2.0], dtype=torch.float64)
ONE = torch.ones((), dtype=torch.float64)


@norms
def test_a_corner_on_the_boundary_holds_everything(norm: int) -> None:
    radius = float(np.linalg.norm([1.0, 1.0], norm))
    ball = BALLS[norm](radius, 0.0, -1.0, 1.0)
    z = ball.project(CORNER)
    tangent = ball.tangent(z, z - CORNER)
    assert torch.equal(z, torch.ones(2, dtype=torch.float64))
    assert not tangent.project(torch.ones_like(z)).any()
    assert [int(c) for c in tangent.counts()] == [0, 2, 0]


@norms
def test_a_corner_is_degenerate_where_theta_parts_ball_and_bounds(norm: int) -> None:
    radius = float(np.linalg.norm([1.0, 1.0], norm))
    still = hypergradient(lambda t: BALLS[norm](radius, t - 1, t - 2, t), ONE, CORNER, on_failure="raise")
    assert still.grad.item() == pytest.approx(3.0)  # it moves as a whole
    with pytest.warns(blo.errors.DegenerateWarning):
        hypergradient(lambda t: BALLS[norm](radius * t, 0.0, -1.0, 1.0), ONE, CORNER)
    with pytest.warns(blo.errors.DegenerateWarning):
        hypergradient(lambda t: BALLS[norm](radius, 0.0, -1.0, t), ONE, CORNER)


def test_a_bound_at_the_centre_is_no_tie_until_theta_parts_them() -> None:
    """Black pixels: the 1-norm has its kink where the bound is, and holds them together with it."""
    point = torch.tensor([3.0, 0.4, -2.0], dtype=torch.float64)  # held by kink, held by both, held by both
    both = hypergradient(lambda t: L1Ball(t, 0.0, 0.0, 9.0), ONE, point, on_failure="raise")
    assert both.grad.item() == pytest.approx(1.0)
    with pytest.warns(blo.errors.DegenerateWarning):
        hypergradient(lambda t: L1Ball(1.0, 0.0, t - 1, 9.0), ONE, point)


@norms
@pytest.mark.parametrize("noise", [0.0, 1e-12])
def test_weak_multipliers_of_ball_and_bounds_are_counted(norm: int, noise: float) -> None:
    z = torch.tensor([0.6, 0.8, 0.5], dtype=torch.float64)
    ball = BALLS[norm](float(torch.linalg.vector_norm(z, norm)), 0.0, -1.0, torch.tensor([9.0, 9.0, 0.5]))
    normal_ = z.sign() if norm == 1 else z / z.norm()
    bound = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    for gradient, degenerate in (
        (-normal_ - bound, 0),
        (-normal_ - noise * bound, 1),
        (-noise * normal_ - bound, 1),
        (0.0 * normal_, 2),
    ):
        counts = ball.tangent(z, gradient).counts()
        assert [int(c) for c in counts] == [1, 2, degenerate]


@norms
@pytest.mark.parametrize("distance", [5e-8, 1e-9, -1e-9, -5e-8])
def test_the_multiplier_tells_whether_a_near_bound_or_sphere_holds(norm: int, distance: float) -> None:
    inside, pressed = max(distance, 0.0), max(-distance, 0.0)
    z = torch.tensor([0.4, 0.3, 0.2], dtype=torch.float64)
    across = z.sign() if norm == 1 else z / z.norm()
    first = torch.eye(3, dtype=torch.float64)[0]
    size = float(torch.linalg.vector_norm(z, norm))
    lone = BALLS[norm](9.0, 0.1, 0.0, torch.tensor([0.4, 1.0, 1.0], dtype=torch.float64) + inside * first)
    near = BALLS[norm](size + inside, 0.0, -1.0, 1.0)
    both = BALLS[norm](size, 0.0, -1.0, torch.tensor([0.4, 1.0, 1.0], dtype=torch.float64) + inside * first)
    for ball, gradient, held in (
        (lone, -pressed * first, 1),
        (near, -pressed * across, 1),
        (both, -0.3 * across - pressed * first, 2),
    ):
        counts = ball.tangent(z, gradient).counts()
        assert int(counts.active) == (held if pressed else held - 1)


def test_undecided_coordinates_at_the_centre_are_counted() -> None:
    z = torch.tensor([0.6, -0.4, 0.0, 0.0], dtype=torch.float64)
    ball = L1Ball(1.0, 0.0, torch.tensor([-1.0, -0.4, -1.0, 0.0]), 1.0)
    for gradient, degenerate in (([-2.0, 3.0, 1.0, 5.0], 0), ([-2.0, 3.0, 2.0, 0.0], 1), ([-2.0, 3.0, 1.0, -2.0], 1)):
        counts = ball.tangent(z, torch.tensor(gradient, dtype=torch.float64)).counts()
        assert [int(c) for c in counts] == [0, 4, degenerate]


def test_coordinates_without_room_are_held_and_no_tie() -> None:
    point = torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)
    for kind in (L1Ball, L2Ball):
        ball = fitted(kind, point, 1.0, 0.0, torch.tensor([-1.0, -1.0, 0.25]), torch.tensor([1.0, 1.0, 0.25]))
        z = ball.project(point)
        alone = -2 * (z if kind is L2Ball else z.sign())  # the ball balances it, and leaves nothing for the bounds
        for pull in (-1.0, 0.0, 1.0):
            tangent = ball.tangent(z, alone + pull * torch.eye(3, dtype=torch.float64)[2])
            assert z[2] == 0.25 and tangent.project(torch.ones_like(z))[2] == 0
            assert int(tangent.counts().degenerate) == 0


def test_a_radius_of_zero_holds_everything_and_is_degenerate() -> None:
    ball = L2Ball(0.0, torch.tensor([0.5, 0.0, 1.0]), 0.0, 1.0)
    z = ball.project(torch.randn(3))
    tangent = ball.tangent(z, torch.ones(3))
    assert torch.equal(z, torch.tensor([0.5, 0.0, 1.0]))
    assert not tangent.project(torch.ones(3)).any()
    assert (int(tangent.counts().free), int(tangent.counts().degenerate) > 0) == (0, True)


@pytest.mark.parametrize("seed", range(20))
def test_bounds_that_only_touch_the_sphere_leave_one_point_and_are_degenerate(seed: int) -> None:
    low = torch.cat([normal(seed, 4).abs() + 0.1, torch.full((2,), -9.0, dtype=torch.float64)])
    point = torch.full((6,), 8.0, dtype=torch.float64)
    ball = fitted(L2Ball, point, float(np.linalg.norm(low[:4])), 0.0, low, 9.0)
    z = ball.project(point)
    tangent = ball.tangent(z, z - point)
    torch.testing.assert_close(z, low.clamp(min=0.0), rtol=0, atol=1e-6)
    assert not tangent.project(torch.ones_like(z)).any() and int(tangent.counts().degenerate) > 0


@norms
@pytest.mark.parametrize("radius", [1e-5, 5e-8, 1e-12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_ball_smaller_than_its_slack_grows_with_its_radius(norm: int, radius: float, dtype: torch.dtype) -> None:
    """Every coordinate is near a bound, as in an image in black and white; one of them lets two coordinates go."""
    point, v = torch.tensor([1.0, -0.7, -0.5, 0.9], dtype=dtype), torch.tensor([3.0, -1.0, 2.0, 1.0], dtype=dtype)
    low = torch.tensor([0.0, -1.0, 0.0, -1.0], dtype=dtype)
    lower = blo.LowerProblem(lambda r, z: 0.5 * (z - point).square().sum(), lambda r: BALLS[norm](r, 0.0, low, low + 1))
    free = torch.tensor([1.0, -0.7, 0.0, 0.0], dtype=torch.float64)
    truth = v.double() @ free / free.norm() if norm == 2 else 3.0
    theta = torch.tensor(radius, dtype=dtype)
    out = blo.value_and_hypergrad(lambda r, z: v @ z, lower, theta, torch.zeros(4, dtype=dtype), on_failure="raise")
    assert out.grad.item() == pytest.approx(float(truth), rel=5e-5)


@norms
def test_a_batch_has_its_own_radii_and_bounds(norm: int) -> None:
    point = normal(0, 3, 4, scale=2.0)
    low, theta = -normal(1, 3, 4).abs() - 0.1, torch.tensor([0.5, 1.0, 30.0], dtype=torch.float64)
    out = hypergradient(lambda t: BALLS[norm](t, 0.0, low, low + 0.8), theta, point)
    for i in range(3):
        alone = hypergradient(lambda t, i=i: BALLS[norm](t, 0.0, low[i], low[i] + 0.8), theta[i], point[i])
        torch.testing.assert_close(out.grad[i], alone.grad, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(out.z[i], alone.z, rtol=1e-10, atol=1e-10)


@norms
@pytest.mark.parametrize("low", [2.0, torch.tensor([0.0, 0.0, 2.0]), {"only": torch.tensor([0.9, 0.9, 0.9])}])
def test_bounds_out_of_reach_are_refused(norm: int, low: Any) -> None:
    z = {"only": torch.zeros(3)} if isinstance(low, dict) else torch.zeros(3)
    with pytest.raises(InfeasibleError, match=f"`L{norm}Ball` needs a point within `radius`.*1 of 1"):
        BALLS[norm](1.5, 0.0, low, {"only": torch.full((3,), 3.0)} if isinstance(low, dict) else 3.0).fit(
            Layout.of(z, batched=False)
        )


@norms
def test_lanes_out_of_reach_are_refused_or_nan(norm: int) -> None:
    z, radius = torch.zeros(2, 3), torch.tensor([0.5, 9.0])
    layout = Layout.of(z, batched=True)
    with pytest.raises(InfeasibleError, match="1 of 2"):
        BALLS[norm](radius, 0.0, 1.0, 2.0).fit(layout)
    found = BALLS[norm](radius, 0.0, 1.0, 2.0, validate=False).fit(layout).project(z)
    assert found[0].isnan().all() and torch.equal(found[1], torch.ones(3))


@norms
def test_bounds_that_cross_are_refused(norm: int) -> None:
    for low, high in ((1.0, 0.0), (torch.tensor([0.0, 2.0]), 1.0), (math.nan, 1.0)):
        with pytest.raises(InfeasibleError, match=f"`L{norm}Ball` needs low <= high"):
            BALLS[norm](1.0, 0.0, low, high)
    tree, layout = {"a": torch.ones(2)}, Layout.of({"a": torch.ones(2)}, batched=False)
    with pytest.raises(InfeasibleError, match="needs low <= high"):
        BALLS[norm](5.0, 0.0, tree, {"a": torch.zeros(2)}).fit(layout)


@norms
def test_a_radius_out_of_range_is_refused_with_bounds_too(norm: int) -> None:
    for radius in (-1.0, math.nan, torch.tensor([1.0, -1.0])):
        with pytest.raises(InfeasibleError, match="radius >"):
            BALLS[norm](radius, 0.0, -1.0, 1.0)


@norms
def test_a_bound_of_another_shape_is_named(norm: int) -> None:
    with pytest.raises(StructureError, match=rf"L{norm}Ball\.high"):
        BALLS[norm](1.0, 0.0, None, torch.ones(7)).fit(Layout.of(torch.zeros(3), batched=False))
