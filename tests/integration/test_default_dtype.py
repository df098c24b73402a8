"""Torch's default dtype is for the tensors that users make; those of a solve have the dtype of z."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import blo
from blo.gradients import Strategy

A = torch.tensor([[1.0, 0.2, 0.0], [0.2, 2.0, 0.3], [0.0, 0.3, 3.0]])
W, THETA = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.5, 0.45, -0.4])


def size(theta: Tensor) -> Tensor:
    return 0.3 + 0.1 * theta.sum().sin()


TERMS: dict[str, Callable[[Tensor], blo.sets.Set]] = {
    "box": lambda t: blo.Box(-0.05 * t.abs(), 0.1 * size(t)),
    "l2-ball": lambda t: blo.L2Ball(0.4 * size(t)),
    "centre": lambda t: blo.L2Ball(0.12, center=0.1 * t),
    "cut": lambda t: blo.L2Ball(0.4 * size(t), low=-0.05, high=0.2),
    "l1-ball": lambda t: blo.L1Ball(0.5 * size(t)),
    "simplex": lambda t: blo.Simplex(size(t)),
    "capped": lambda t: blo.Simplex(size(t), cap=0.15),
    "halfspaces": lambda t: blo.Halfspaces(A[:2].to(t), 0.1 * size(t)),
    "affine": lambda t: blo.Affine(A[:1].to(t), 0.1 * size(t).expand(1)),
    "intersection": lambda t: blo.Intersection(blo.Box(-0.4, 0.4), blo.L2Ball(0.5 * size(t))),
}
STRATEGIES: dict[str, Strategy] = {
    "implicit": blo.Implicit(),
    "unrolled": blo.Unrolled(),
    "value function": blo.ValueFunction(),
}


@pytest.fixture
def default() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


def results(term: str, strategy: str) -> list[Tensor]:
    """Return what one call computes, and the second derivatives where the strategy has them."""
    lower = blo.LowerProblem(lambda t, z: 0.5 * (z @ A) @ z - t @ z, TERMS[term])
    options: dict[str, Any] = {
        "solver": blo.ProjectedGradient(0.2, max_steps=30, tol=None),
        "gradient": STRATEGIES[strategy],
    }
    found = blo.value_and_hypergrad(
        lambda t, z: W @ z, lower, THETA, torch.zeros_like(W), on_failure="ignore", **options
    )
    tensors = [found.value, found.grad, found.z, found.direct, found.implicit]
    if strategy == "value function":
        return tensors
    theta = THETA.clone().requires_grad_()
    z = blo.argmin(lower, theta, torch.zeros_like(W), on_failure="ignore", **options)
    (slope,) = torch.autograd.grad(z.square().sum(), theta, create_graph=True)
    return [*tensors, slope.detach(), *torch.autograd.grad(slope.sum(), theta)]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.usefixtures("default")
def test_results_have_the_dtype_of_z_and_no_other_bits(term: str, strategy: str) -> None:
    expected = results(term, strategy)
    torch.set_default_dtype(torch.float64)
    for found, like in zip(results(term, strategy), expected, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, like, rtol=0, atol=0)


FORWARD: dict[str, Callable[[Tensor], blo.sets.Set | blo.penalties.Penalty]] = {
    **TERMS,
    "smooth": lambda t: blo.SmoothConstraints(lambda theta, z: z.square().sum() - 0.07 * size(theta), theta=t),
    "l1": lambda t: blo.L1(0.3 * size(t)),
    "elastic net": lambda t: blo.ElasticNet(0.3 * size(t), size(t)),
    "group lasso": lambda t: blo.GroupLasso(0.3 * size(t), torch.tensor([0, 0, 1])),
}


@pytest.mark.parametrize("term", FORWARD)
def test_forward_mode_keeps_single_precision(term: str) -> None:
    """Torch gives `0.1 x` for x of shape `()` a tangent in double precision, which matrix products refuse."""

    def found(dtype: torch.dtype) -> Tensor:
        kind = "penalty" if term in ("l1", "elastic net", "group lasso") else "constraint"
        given: dict[str, Any] = {kind: FORWARD[term]}
        lower = blo.LowerProblem(lambda t, z: 0.5 * (z @ A.to(z)) @ z - t @ z, **given)
        grad: Tensor = blo.value_and_hypergrad(
            lambda t, z: W.to(z) @ z,
            lower,
            THETA.to(dtype),
            torch.full((3,), 0.1, dtype=dtype),
            solver=blo.ProjectedGradient(0.2, max_steps=30, tol=None),
            gradient=blo.Unrolled(mode="forward"),
        ).grad
        return grad

    grad = found(torch.float32)
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad.double(), found(torch.float64), rtol=1e-3, atol=1e-5)
