"""Ridge regression: one weight, or one for each coordinate, chosen by the loss on held-out data.

The upper variable is the square root of the weights: they stay nonnegative and can reach 0, as with a logarithm they
could not.

Truth: the normal equations, their derivative, and SciPy's minimisers of the closed form.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

import blo
from benchmarks.answers._compare import Answers, numpy
from benchmarks.answers._held_out import Data
from benchmarks.registry import Outcome, Setting, benchmark

# A line search compares values, which need more correct digits than the hypergradient. `Newton` gives all of them.
SOLVER = blo.Newton(tol=1e-10, forcing=0.0)


def draw(setting: Setting) -> Data[Tensor]:
    """Draw data in which each coordinate matters less than the one before."""
    samples, d = (30, 5) if setting.quick else (100, 20)
    generator = torch.Generator().manual_seed(setting.seed)
    x = torch.randn(2 * samples, d, generator=generator, dtype=torch.float64)
    weights = torch.linspace(1, 0.2, d).double()
    y = x @ weights + torch.randn(2 * samples, generator=generator, dtype=torch.float64)
    return Data(*(part.to(setting.device) for part in (x[:samples], y[:samples], x[samples:], y[samples:])))


def solve(data: Data[Tensor], theta: Tensor) -> tuple[blo.Hypergradient, blo.FitResult]:
    """Return the hypergradient at theta and the fit from there; theta holds the square roots of the weights."""

    def train(theta: Tensor, z: Tensor) -> Tensor:
        return 0.5 * (data.x @ z - data.y).square().sum() + 0.5 * (theta.square() * z.square()).sum()

    def held_out(theta: Tensor, z: Tensor) -> Tensor:
        return 0.5 * (data.x_held @ z - data.y_held).square().sum()

    lower = blo.LowerProblem(train)
    z0 = data.x.new_zeros(data.x.shape[1])
    at = blo.value_and_hypergrad(held_out, lower, theta, z0)
    lbfgs = partial(
        torch.optim.LBFGS, max_iter=100, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )
    return at, blo.fit(held_out, lower, theta, z0, optimizer=lbfgs, steps=1, solver=SOLVER)


def truth(data: Data[Tensor], theta: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the held-out loss and its gradient in theta, by the normal equations."""
    x, y, x_held, y_held = map(numpy, data)
    weights = theta**2 * np.ones(x.shape[1])
    gram = x.T @ x + np.diag(weights)
    z = np.linalg.solve(gram, x.T @ y)
    off = x_held @ z - y_held
    slope = -2 * theta * z * np.linalg.solve(gram, x_held.T @ off)
    return 0.5 * float(off @ off), slope if theta.size > 1 else slope.sum(keepdims=True)


@benchmark("answer-ridge", "Ridge and per-coordinate ridge against the normal equations")
def run(setting: Setting) -> Outcome:
    data = draw(setting)
    answers = Answers()
    for name, size in (("one weight", 1), ("a weight per coordinate", data.x.shape[1])):
        theta = data.x.new_ones(size)
        at, found = solve(data, theta)
        value, slope = truth(data, np.ones(size))
        best: Any = minimize(partial(truth, data), np.ones(size), jac=True, method="BFGS", options={"gtol": 1e-11})
        answers.add(f"{name}: held-out loss at 1", at.value, value)
        answers.add(f"{name}: hypergradient at 1", at.grad, slope)
        answers.add(f"{name}: least held-out loss", truth(data, numpy(found.theta))[0], best.fun)
        answers.add(f"{name}: optimal weights", found.theta.square(), best.x**2)
    return answers.outcome("Ridge")
