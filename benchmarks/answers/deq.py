"""A deep equilibrium layer: z = tanh(W z + U x + b), for a batch of inputs, with a trained linear read-out.

The Jacobian I - diag(1 - z^2) W is not symmetric: the layer minimises no objective, and CG would be wrong here.
Truth: Newton's method on each equilibrium, and its dense Jacobian, in NumPy.
Source: Bai, Kolter and Koltun, NeurIPS 2019.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import blo
from benchmarks.answers._compare import Answers, numpy
from benchmarks.registry import Outcome, Setting, benchmark

Array = npt.NDArray[np.float64]
RATE, STEPS = 0.1, 5


class Layer(NamedTuple):
    """Parameters: W (n, n), U (n, inputs), b (n,), and the read-out r (n,)."""

    w: Array
    u: Array
    b: Array
    r: Array


class Data(NamedTuple):
    """Inputs of shape (samples, inputs), targets of shape (samples,)."""

    x: Array
    y: Array


def draw(setting: Setting) -> tuple[Layer, Data]:
    """Draw a layer with |W| = 0.9, so that it has one equilibrium, and targets of a function of two inputs."""
    n, samples, inputs = (5, 4, 3) if setting.quick else (50, 64, 10)
    random = np.random.default_rng(setting.seed)
    w = random.normal(size=(n, n))
    w *= 0.9 / np.linalg.norm(w, 2)
    x = random.normal(size=(samples, inputs))
    u = random.normal(size=(n, inputs)) / inputs**0.5
    layer = Layer(w, u, 0.1 * random.normal(size=n), random.normal(size=n) / n)
    return layer, Data(x, np.sin(x[:, 0]) * x[:, 1])


def problem(layer: Layer, data: Data, device: torch.device) -> dict[str, Any]:
    """State the problem as arguments for blo."""
    x, y = (torch.as_tensor(part, device=device) for part in data)
    theta = {name: torch.as_tensor(part, device=device) for name, part in layer._asdict().items()}

    def cell(theta: dict[str, Tensor], z: Tensor) -> Tensor:
        return torch.tanh(z @ theta["w"].T + x @ theta["u"].T + theta["b"])

    return {
        "upper": lambda theta, z: (z @ theta["r"] - y).square().mean(),
        "lower": blo.LowerProblem.fixed_point(cell, batched=True),
        "theta": theta,
        "z0": x.new_zeros(len(x), len(layer.b)),
    }


def truth(layer: Layer, data: Data) -> tuple[float, Layer]:
    """Return the loss and its gradient in each parameter.

    Raises:
        RuntimeError: if an equilibrium is not found.
    """
    n = len(layer.b)
    loss, slope = 0.0, Layer(*(np.zeros_like(part) for part in layer))
    for x, y in zip(*data, strict=True):
        z = np.zeros(n)
        for _ in range(100):
            at = np.tanh(layer.w @ z + layer.u @ x + layer.b)
            jacobian = np.eye(n) - (1 - at**2)[:, None] * layer.w
            z = z - np.linalg.solve(jacobian, z - at)
        if np.abs(z - np.tanh(layer.w @ z + layer.u @ x + layer.b)).max() > 1e-14:
            raise RuntimeError("Newton's method found no equilibrium; the truth is not known.")
        off = layer.r @ z - y
        weight = 2 * off / len(data.y)
        push = np.linalg.solve(jacobian.T, weight * layer.r) * (1 - z**2)
        loss += off**2 / len(data.y)
        parts = (np.outer(push, z), np.outer(push, x), push, weight * z)
        slope = Layer(*(total + part for total, part in zip(slope, parts, strict=True)))
    return float(loss), slope


@benchmark("answer-deq", "A deep equilibrium layer against its dense Jacobian")
def run(setting: Setting) -> Outcome:
    layer, data = draw(setting)
    given = problem(layer, data, setting.device)
    value, slope = truth(layer, data)
    answers = Answers()
    for name, strategy in (("by default", None), ("GMRES", blo.Implicit(blo.GMRES()))):
        at = blo.value_and_hypergrad(**given, gradient=strategy)
        answers.add(f"{name}: loss", at.value, value)
        for part, found in at.grad.items():
            answers.add(f"{name}: gradient in {part}", found, getattr(slope, part))
    fitted = blo.fit(**given, optimizer=partial(torch.optim.SGD, lr=RATE), steps=STEPS)
    for _ in range(STEPS):
        _, slope = truth(layer, data)
        layer = Layer(*(part - RATE * down for part, down in zip(layer, slope, strict=True)))
    for part in ("w", "r"):
        answers.add(f"{part} after {STEPS} steps", numpy(fitted.theta[part]), getattr(layer, part))
    return answers.outcome("DEQ")
