"""Small networks on the digits, healthy and with one mistake each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from adv_train import data
from adv_train.data import Dataset


@cache
def digits() -> Dataset:
    return data.load("digits", root="")


def fitted(model: nn.Module, steps: int = 80, *, images: Callable[[Tensor], Tensor] = lambda x: x) -> nn.Module:
    """Train on the digits, all in one batch."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_uniform_(parameter, nonlinearity="relu")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = images(digits().train.images), digits().train.labels
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def perceptron(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), *between, nn.ReLU(), nn.Linear(64, 10))


@cache
def healthy() -> nn.Module:
    return fitted(perceptron())


def linear(weight_decay: float) -> nn.Module:
    """Least squares."""
    x, y = digits().train.images.flatten(1), digits().train.labels
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
    gram = x.T @ x + weight_decay * torch.eye(64)
    model[1].weight.data = torch.linalg.solve(gram, x.T @ nn.functional.one_hot(y, 10).float()).T
    return model


class Before(nn.Module):
    """Does something to the images first."""

    def __init__(self, change: Callable[[Tensor], Tensor], body: nn.Module) -> None:
        super().__init__()
        self.body, self.change = body, change

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(self.change(x))
        return found


class After(nn.Module):
    """Does something to the logits last."""

    def __init__(self, body: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.change = body, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.body(x))


class Noise(nn.Module):
    """Adds noise in every mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * torch.randn_like(x)


class _Turned(torch.autograd.Function):
    """The identity, whose gradient is turned round where a pixel is off the grid of the digits (or everywhere)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, everywhere: bool) -> Tensor:
        off = ((16 * x).round() - 16 * x).abs() > 1e-3
        ctx.save_for_backward(off.flatten(1).any(1) | everywhere)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None]:
        (turned,) = ctx.saved_tensors
        return torch.where(turned.view(-1, 1, 1, 1), -gradient[0], gradient[0]), None


def turned(x: Tensor, *, everywhere: bool) -> Tensor:
    found: Tensor = _Turned.apply(x, everywhere)  # type: ignore[no-untyped-call]
    return found


def quantised(x: Tensor) -> Tensor:
    """Round to the grid of the digits, where they lie: clean images do not change, and no gradient is left."""
    return (16 * x).round() / 16


def shattered(x: Tensor) -> Tensor:
    """Add a fine ripple, which is zero on the grid of the digits and has all of the gradient."""
    return x + 2e-2 * torch.sin(16 * 1001 * torch.pi * x)
