"""What the integration tests share: settings that leave only rounding, steps by hand, counted functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import settings
from torch import Tensor

import blo
from tests import oracles
from tests.oracles import Array, QuadraticCase

quick = settings(deadline=None, max_examples=20)
few = settings(deadline=None, max_examples=8)

#: Solves to rounding, with the adjoint from a factorisation.
TIGHT = blo.ProjectedGradient(tol=1e-12, max_steps=20_000)
EXACT = blo.Implicit(blo.Direct())


def as_tensor(array: Array) -> Tensor:
    """Return the numbers in double precision."""
    return torch.as_tensor(array, dtype=torch.float64)


def assert_near(found: Tensor | Array, truth: Tensor | Array | float, tolerance: float = 1e-9) -> None:
    """Compare shapes, and values to an absolute and relative tolerance."""
    truth = torch.as_tensor(truth, dtype=torch.float64)
    torch.testing.assert_close(torch.as_tensor(found), truth, rtol=tolerance, atol=tolerance)


def hypergradient(case: QuadraticCase, **options: Any) -> blo.Hypergradient:
    """Return the library's hypergradient of a case, to rounding unless the options say otherwise."""
    options = {"solver": TIGHT, "gradient": EXACT, **options}
    return blo.value_and_hypergrad(case.upper, case.lower(), case.start(), case.z0(), **options)


def solution(case: QuadraticCase, **options: Any) -> Callable[[Tensor], Tensor]:
    """Return the library's differentiable solution map of a case."""
    options = {"solver": TIGHT, "gradient": EXACT, **options}
    return lambda theta: blo.argmin(case.lower(), theta, case.z0(), **options)


def slope_by_hand(case: QuadraticCase, theta: Tensor, z: Tensor) -> Tensor:
    """Return the gradient of the case's lower objective in z, written out."""
    bend = (as_tensor(case.w) @ theta).exp() * as_tensor(case.e)
    return as_tensor(case.A) @ z + bend * z + as_tensor(case.B) @ theta + as_tensor(case.c)


def projection_by_hand(case: QuadraticCase, theta: Tensor, point: Tensor) -> Tensor:
    """Return the nearest point of the case's set, differentiable in theta and the point."""
    size = case.size + as_tensor(case.size_slope) @ theta
    if case.kind == "box":
        low = as_tensor(case.low) + as_tensor(case.low_slope) @ theta
        high = as_tensor(case.high) + as_tensor(case.high_slope) @ theta
        return torch.minimum(torch.maximum(point, low), high)
    if case.kind == "ball":
        center = as_tensor(case.center) + as_tensor(case.center_slope) @ theta
        distance = (point - center).square().sum().sqrt()
        return center + (point - center) * size / distance if distance > size else point
    if case.kind == "simplex":
        nearest = oracles.project_simplex(point.detach().numpy(), float(size.detach()))
        support = torch.as_tensor(nearest > 0)
        return torch.where(support, point - (point[support].sum() - size) / support.sum(), 0.0)
    return point


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls = 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self.function(*arguments)
