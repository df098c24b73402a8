"""Small sets and far points: projections onto intersections against closed forms and roots of one multiplier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq

import blo
from blo import Box, Halfspaces, Intersection, L2Ball, Simplex
from blo._layout import Layout
from blo.sets import Set
from tests import oracles

Array = NDArray[np.float64]
ROW = np.array([0.6, -0.3, 0.2, 0.7]) / np.linalg.norm([0.6, -0.3, 0.2, 0.7])
EPS = float(np.finfo(np.float64).eps)


def flat(v: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(v), dtype=torch.float64)


def meet_of_balls(z: Array, c: Array, r: float, d: Array, s: float) -> Array:
    """Return the nearest common point of two balls that overlap: on one of them, or on the sphere where both end."""
    for one, radius, other, limit in ((c, r, d, s), (d, s, c, r)):
        near = one + (z - one) * min(1.0, radius / np.linalg.norm(z - one))
        if np.linalg.norm(near - other) <= limit:
            return near
    length = np.linalg.norm(d - c)
    axis = (d - c) / length
    height = (length**2 + r**2 - s**2) / (2 * length)
    across = (z - c) - ((z - c) @ axis) * axis
    found: Array = c + height * axis + np.sqrt(r**2 - height**2) * across / np.linalg.norm(across)
    return found


def meet_with_ball(z: Array, onto: Callable[[Array], Array], c: Array, r: float) -> Array:
    """Return the nearest point of a ball and a set: the projection of `(z + y c) / (1 + y)` with the multiplier y."""

    def at(logarithm: float) -> Array:
        y = np.exp(logarithm)
        return onto((z + y * c) / (1 + y))

    if np.linalg.norm(onto(z) - c) <= r:
        return onto(z)
    return at(brentq(lambda t: np.linalg.norm(at(t) - c) / r - 1, -60.0, 60.0, xtol=1e-15, rtol=1e-15))


def onto_simplex(v: Array, total: float) -> Array:
    descending = np.sort(v)[::-1]
    levels = (np.cumsum(descending) - total) / np.arange(1, len(v) + 1)
    found: Array = np.maximum(v - levels[np.nonzero(descending > levels)[0][-1]], 0.0)
    return found


#: Of a size s and a centre c: the set, and the nearest point by other means.
CASES: dict[str, tuple[Callable[[Any, Array], Set], Callable[[Array, float, Array], Array]]] = {
    "two balls": (
        lambda s, c: Intersection(L2Ball(s, flat(c)), L2Ball(0.8 * s, flat(c) + s * flat([0.7, -0.6, 0.2, 0.3]))),
        lambda z, s, c: meet_of_balls(z, c, s, c + s * np.array([0.7, -0.6, 0.2, 0.3]), 0.8 * s),
    ),
    "a ball and a box": (
        lambda s, c: Intersection(L2Ball(0.9 * s, flat(c)), Box(flat(c) - 0.4 * s, flat(c) + 0.6 * s)),
        lambda z, s, c: meet_with_ball(z, lambda v: np.clip(v, c - 0.4 * s, c + 0.6 * s), c, 0.9 * s),
    ),
    "a ball and a half space": (
        lambda s, c: Intersection(L2Ball(s, flat(c)), Halfspaces(flat(ROW[None]), flat([ROW @ c]) + 0.3 * s)),
        lambda z, s, c: meet_with_ball(z, lambda v: v - ROW * max(0.0, ROW @ (v - c) - 0.3 * s), c, s),
    ),
    "a ball and a simplex": (
        lambda s, c: Intersection(L2Ball(0.6 * s, 0.2 * s), Simplex(s)),
        lambda z, s, c: meet_with_ball(z, lambda v: onto_simplex(v, s), np.full(4, 0.2 * s), 0.6 * s),
    ),
}
FLAT = ["a ball and a half space", "a ball and a simplex"]
CENTER = np.array([0.3, -0.4, 0.5, 0.1])


def far_points(seed: int, count: int, distance: float) -> Array:
    drawn = np.random.default_rng(seed).normal(size=(count, 4))
    found: Array = distance * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return found


@pytest.mark.parametrize("center", [0.0, 1.0])
@pytest.mark.parametrize(("size", "distance"), [(1.0, 1e5), (1e-5, 3.0), (1e-7, 3.0), (1e-8, 10.0)])
@pytest.mark.parametrize("name", CASES)
def test_far_points_are_projected_on_small_sets(name: str, size: float, distance: float, center: float) -> None:
    made, truth = CASES[name]
    at = center * CENTER
    points = at + far_points(0, 12, distance)
    near = made(size, at).fit(Layout.of(flat(points), batched=True)).project(flat(points)).numpy()
    expected = np.stack([truth(point, size, at) for point in points])
    # A flat face keeps the rounding of z, and the set is no more exact than its centre.
    rounding = 8 * EPS * (center + (distance if name in FLAT else 0.0))
    np.testing.assert_allclose(near, expected, rtol=0, atol=1e-8 * size + rounding)


@pytest.mark.parametrize("name", ["two balls", "a ball and a box"])
def test_points_too_far_to_tell_are_right_or_reported(name: str) -> None:
    """At 1e11 times the size, the last digits of Newton's system decide: most points are found, none is wrong."""
    made, truth = CASES[name]
    points = far_points(0, 12, 1e3)
    near = made(1e-8, 0 * CENTER).fit(Layout.of(flat(points), batched=True)).project(flat(points)).numpy()
    found = np.isfinite(near).all(-1)
    assert found.sum() >= 9
    expected = np.stack([truth(point, 1e-8, 0 * CENTER) for point in points])
    np.testing.assert_allclose(near[found], expected[found], rtol=0, atol=1e-16)


@pytest.mark.parametrize("size", [1e-5, 1e-7])
@pytest.mark.parametrize("name", CASES)
def test_their_derivatives_are_finite_differences_of_the_truth(name: str, size: float) -> None:
    made, truth = CASES[name]
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    for point in far_points(1, 4, 3.0):
        z = flat(point).requires_grad_()
        near = made(size * scale, 0 * CENTER).fit(Layout.of(flat(point), batched=False)).project(z)
        rows = [torch.autograd.grad(near[i], (z, scale), retain_graph=True) for i in range(4)]
        turned, grown = (torch.stack(column) / size for column in zip(*rows, strict=True))
        expected = oracles.central_difference(lambda p: truth(p, size, 0 * CENTER) / size, point, 1e-4)
        np.testing.assert_allclose(turned, expected, rtol=0, atol=1e-8)
        expected = oracles.central_difference(
            lambda t, at=point: truth(at, size * t[0], 0 * CENTER) / size, np.ones(1), 1e-4
        )
        np.testing.assert_allclose(grown.unsqueeze(-1), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["two balls", "a ball and a box"])
def test_hypergradients_through_small_sets_are_finite_differences_of_the_truth(name: str) -> None:
    made, truth = CASES[name]
    lower = blo.LowerProblem(lambda t, z: 0.5 * (z - t).square().sum(), made(1e-5, CENTER))
    point = CENTER + far_points(2, 1, 3.0)[0]
    theta = flat(point).requires_grad_()
    z = blo.argmin(lower, theta, flat(truth(point, 1e-5, CENTER)), solver=blo.Given(), gradient=blo.Implicit())
    rows = torch.stack([torch.autograd.grad(z[i], theta, retain_graph=True)[0] for i in range(4)]) / 1e-5
    expected = oracles.central_difference(lambda p: truth(p, 1e-5, CENTER) / 1e-5, point, 1e-3)
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-6)


def test_single_precision_is_as_right_as_it_can_be() -> None:
    made, truth = CASES["a ball and a box"]
    points = far_points(3, 12, 3.0)
    near = made(1e-4, 0 * CENTER).fit(Layout.of(flat(points).float(), batched=True)).project(flat(points).float())
    expected = np.stack([truth(point, 1e-4, 0 * CENTER) for point in points])
    np.testing.assert_allclose(near, expected, rtol=0, atol=1e-5 * 1e-4)


def test_an_empty_set_is_refused_however_small() -> None:
    empty = Intersection(L2Ball(1e-9, flat(CENTER)), L2Ball(1e-9, flat(CENTER) + 1.1e-9))
    with pytest.raises(blo.InfeasibleError, match="`Intersection` needs a point"):
        empty.fit(Layout.of(flat(CENTER), batched=False))
    loose = Intersection(*empty.sets, max_cycles=20, validate=False).fit(Layout.of(flat(CENTER), batched=False))
    assert loose.project(1e4 * flat(CENTER)).isnan().all()
