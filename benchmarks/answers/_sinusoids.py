"""Few-shot regression tasks that are sine waves, and a network for them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks.registry import Setting

Parameters: TypeAlias = dict[str, Tensor]


class Tasks(NamedTuple):
    """Points for adaptation and held-out points, each of shape (tasks, points, 1)."""

    x: Tensor
    y: Tensor
    x_held: Tensor
    y_held: Tensor


def draw(setting: Setting) -> Tasks:
    """Draw sines of amplitude 0.1 to 5 and phase 0 to pi, at points in [-5, 5]."""
    count = 3 if setting.quick else 25
    random = partial(torch.rand, generator=torch.Generator().manual_seed(setting.seed), dtype=torch.float64)
    amplitude, phase = 0.1 + 4.9 * random(count, 1, 1), math.pi * random(count, 1, 1)
    x, x_held = 10 * random(count, 10, 1) - 5, 10 * random(count, 10, 1) - 5
    parts = (x, amplitude * torch.sin(x - phase), x_held, amplitude * torch.sin(x_held - phase))
    return Tasks(*(part.to(setting.device) for part in parts))


def network(width: int, seed: int) -> torch.nn.Module:
    """Return a smooth network with two hidden layers in double precision."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (torch.nn.Linear(1, width), torch.nn.Tanh(), torch.nn.Linear(width, width), torch.nn.Tanh())
        return torch.nn.Sequential(*layers, torch.nn.Linear(width, 1)).double()


def loss(net: torch.nn.Module, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared error of the network with these parameters."""
    found: Tensor = (functional_call(net, parameters, (x,)) - y).square().mean()
    return found


def flat(parts: Iterable[Tensor]) -> Tensor:
    """Return all entries of tensors as one vector."""
    return torch.cat([part.flatten() for part in parts])
