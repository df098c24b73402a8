"""Projections on smooth constraints: how often they evaluate the functions, and where they end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from blo import SmoothConstraints
from blo._layout import Layout
from tests.lower import Counted
from tests.strategies import normal

A, B = normal(0, 3, 6), normal(1, 3).abs()


def planes(z: Tensor) -> Tensor:
    return z @ A.T - B


def bowls(z: Tensor) -> Tensor:
    return z @ A.T - B + 0.5 * z.square().sum(-1, keepdim=True)


def calls(function: Any, z: Tensor) -> int:
    counted = Counted(function)
    constraints = SmoothConstraints(None, counted).fit(Layout.of(z, batched=z.ndim > 1))
    before = counted.calls  # looked at once for what it captures
    assert function(constraints.project(z)).amax() < 1e-13
    return counted.calls - before


@pytest.mark.parametrize("lanes", [(), (7,)])
def test_planes_take_one_programme(lanes: tuple[int, ...]) -> None:
    """At the start, at the trial, to second order where it led to, and once more for the proof."""
    assert calls(planes, normal(2, *lanes, 6, scale=3.0)) <= 5


@pytest.mark.parametrize("distance", [1.0, 1e-3, 1e-6])
def test_curved_sets_take_fewer_programmes_from_nearby(distance: float) -> None:
    z = normal(2, 6, scale=3.0)
    inside = SmoothConstraints(None, bowls).fit(Layout.of(z, batched=False)).project(z)
    allowed = {1.0: 20, 1e-3: 10, 1e-6: 7}
    assert calls(bowls, inside + distance * (z - inside)) <= allowed[distance]


@pytest.mark.parametrize("seed", range(6))
def test_the_nearest_point_is_that_of_slsqp_with_balanced_multipliers(seed: int) -> None:
    """SLSQP finds the place; non-negative least squares proves it, far below SLSQP's own accuracy."""
    point = normal(seed, 6, scale=4.0)
    near = SmoothConstraints(None, bowls).fit(Layout.of(point, batched=False)).project(point)
    p, x = point.numpy(), near.numpy()
    found = scipy.optimize.minimize(
        lambda z: 0.5 * ((z - p) ** 2).sum(),
        np.zeros(6),
        jac=lambda z: z - p,
        method="SLSQP",
        constraints={
            "type": "ineq",
            "fun": lambda z: -bowls(torch.as_tensor(z)).numpy(),
            "jac": lambda z: -(A.numpy() + z),
        },
        options={"ftol": 1e-15, "maxiter": 500},
    )
    np.testing.assert_allclose(x, found.x, rtol=0, atol=1e-6)
    held = bowls(near).numpy() > -1e-9
    _, unbalanced = scipy.optimize.nnls((A.numpy() + x)[held].T, p - x)
    assert held.any() and unbalanced < 1e-12 and bowls(near).amax() < 1e-14
