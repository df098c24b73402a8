"""Weights of a logistic regression from 1e-8 to infinity: bounds where slopes and coordinates differ by many orders."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import blo
from benchmarks.answers import logistic
from tests.lower import Counted, minimise
from tests.oracles import Array


class _HeldOut(torch.autograd.Function):
    """The held-out loss as a function of `s = h / (1 + h)`, by NumPy."""

    @staticmethod
    def forward(context: Any, s: Tensor, data: logistic.Data) -> Tensor:
        at = s.detach().numpy()
        value, slope = logistic.truth(data, at / (1 - at))
        context.slope = torch.as_tensor(slope / (1 - at) ** 2)
        return torch.tensor(value, dtype=torch.float64)

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * context.slope, None


def solve(data: logistic.Data, start: float) -> tuple[int, Array]:
    """Return the evaluations that it takes, and the weights."""
    loss = Counted(lambda s: _HeldOut.apply(s, data))
    s0 = torch.full((20,), start, dtype=torch.float64)
    found = minimise(loss, s0, blo.LBFGS(tol=1e-9), blo.Box(logistic.LOW, logistic.HIGH))
    assert found.residual is not None and found.tol is not None and bool(found.residual <= found.tol)
    return loss.calls, (found.z / (1 - found.z)).numpy()


@pytest.mark.parametrize("start", [0.5, 0.05])
@pytest.mark.parametrize("seed", [2, 5])
def test_lbfgs_finds_the_best_weights(seed: int, start: float) -> None:
    data = logistic.draw(seed=seed)
    calls, h = solve(data, start)
    assert calls <= 350
    assert abs(logistic.truth(data, h)[0] - logistic.optimum(data)[0]) <= 1e-10


def test_lbfgs_finds_stationary_weights() -> None:
    """Of these data there are several."""
    data = logistic.draw(seed=3)
    calls, h = solve(data, 0.05)
    assert calls <= 700
    assert logistic.stationarity(data, h) <= 1e-6
