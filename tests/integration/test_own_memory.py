"""The tensors of a result share no memory with each other or with what the report reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import blo


def both(theta: list[Tensor], z: Tensor) -> Tensor:
    return (z - theta[0]).square().sum()


def partly(theta: list[Tensor], z: Tensor) -> Tensor:
    """theta[1] enters here alone, so its gradient is the direct part; that of a sum has stride zero."""
    return z.sum() + 3 * theta[1].sum() + theta[0].sin().sum()


def run(gradient: blo.gradients.Strategy) -> blo.Hypergradient:
    theta = [torch.tensor([0.3, -0.4], dtype=torch.float64), torch.tensor([1.3, 0.6], dtype=torch.float64)]
    lower = blo.LowerProblem(both, strong_convexity=2.0)
    return blo.value_and_hypergrad(partly, lower, theta, torch.zeros(2, dtype=torch.float64), gradient=gradient)


PARTS: dict[str, Callable[[blo.Hypergradient], list[Tensor]]] = {
    "value": lambda out: [out.value],
    "grad": lambda out: out.grad,
    "direct": lambda out: out.direct,
    "implicit": lambda out: out.implicit,
    "z": lambda out: [out.z],
    "state": lambda out: [out.state["z"]],
}


@pytest.mark.parametrize("gradient", [blo.Implicit(), blo.Zero()], ids=["implicit", "zero"])
@pytest.mark.parametrize("changed", [name for name in PARTS if name != "state"])  # the report reads z from the state
def test_a_change_in_place_changes_nothing_else(changed: str, gradient: blo.gradients.Strategy) -> None:
    wanted, out = run(gradient), run(gradient)
    for tensor in PARTS[changed](out):
        tensor.mul_(0).add_(100)  # raises an error for a tensor whose elements share memory
    assert str(out.report) == str(wanted.report)
    for name, part in PARTS.items():
        for found, right in zip(part(out), part(wanted), strict=True):
            assert torch.equal(found, torch.full_like(right, 100) if name == changed else right), name


def test_a_gradient_can_be_clipped() -> None:
    out = run(blo.Zero())
    parameters = [torch.zeros(2, dtype=torch.float64).requires_grad_() for _ in out.grad]
    for parameter, grad in zip(parameters, out.grad, strict=True):
        parameter.grad = grad
    torch.nn.utils.clip_grad_norm_(parameters, 0.1)
    assert torch.cat(out.grad).norm().item() == pytest.approx(0.1, rel=1e-4)
    assert torch.cat(out.direct).norm().item() > 1
