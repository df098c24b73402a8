"""Logistic regression with a weight for each coordinate: hypertorch's notebook problem, to its true optimum.

    minimise over h >= 1e-8   loss(z*(h)) on held-out data,  z*(h) = argmin loss(z) on training data + 1/2 z' diag(h) z

At the optimum 16 of the 20 weights sit at their bound, 3 lie inside, and one is infinite: its feature is dropped. The
notebook (prolearner/hypertorch, examples/logistic_regression.ipynb) records 0.2805 after 1,000 steps.
Truth: Newton's method for z in NumPy, and SciPy's L-BFGS-B over h / (1 + h), which is bounded where h is infinite.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

import blo
from benchmarks.answers._compare import Answers, numpy
from benchmarks.answers._held_out import Data
from benchmarks.registry import Outcome, Setting, benchmark

# A line search compares values, which need more correct digits than the hypergradient. `Newton` gives all of them: if
# the tolerance cannot be reached, it stops at the rounding error of the gradient.
SOLVER = blo.Newton(tol=1e-14, forcing=0.0)

Array = npt.NDArray[np.float64]
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
LEAST = 1e-8
#: Bounds of h / (1 + h). The weight of a feature that is dropped is 1e12.
LOW, HIGH = LEAST / (1 + LEAST), 1 - 1e-12


def draw(quick: bool = False, seed: int = 1) -> Data[Array]:
    """Draw the notebook's data: its generator, its order of draws, the split of scikit-learn's `train_test_split`."""
    samples, d, noise = (200, 3, 1.0) if quick else (1000, 20, 0.1)
    random = np.random.RandomState(seed)
    oracle = random.randn(d)
    x = random.randn(samples, d)
    y = (x @ oracle + noise * random.randn(samples) > 0).astype(float)
    held, kept = np.split(random.permutation(samples), 2)
    return Data(x[kept], y[kept], x[held], y[held])


def losses(data: Data[Array], device: torch.device) -> tuple[Loss, Loss]:
    """Return the held-out loss and the training loss with its penalty as functions of h and z."""
    x, y, x_held, y_held = (torch.as_tensor(part, device=device) for part in data)
    return (
        lambda h, z: cross_entropy(x_held @ z, y_held),
        lambda h, z: cross_entropy(x @ z, y) + 0.5 * (h * z.square()).sum(),
    )


def bounded(data: Data[Array], device: torch.device, start: float = 0.5) -> Tensor:
    """Return optimal weights by blo's solver for bounds: the upper problem is stated as a lower problem of its own.

    Args:
        data: the problem.
        device: where it is solved.
        start: of every coordinate of s = h / (1 + h), in which dropping a feature, h = infinity, is a point like any
            other.
    """
    held_out, train = losses(data, device)
    lower = blo.LowerProblem(train)
    s = torch.full(data.x.shape[1:], start, dtype=torch.float64, device=device)

    def outer(nothing: Tensor, s: Tensor) -> Tensor:
        h = s / (1 - s)
        return held_out(h, blo.argmin(lower, h, torch.zeros_like(h), solver=SOLVER))

    upper = blo.LowerProblem(outer, blo.Box(LOW, HIGH))
    with torch.no_grad():
        found: Tensor = blo.argmin(upper, torch.zeros_like(s[0]), s, solver=blo.LBFGS(memory=30, tol=1e-9))
    return found / (1 - found)


def angled(data: Data[Array], device: torch.device, start: float = 0.5) -> Tensor:
    """Return optimal weights by torch's L-BFGS, which has no bounds, over angles: see `weights`.

    It is restarted, with angles moved off their bounds, until the weights are stationary within their bounds or the
    loss stops decreasing.

    Args:
        data: the problem.
        device: where it is solved.
        start: of every coordinate of s = h / (1 + h).
    """
    held_out, train = losses(data, device)
    s = torch.full(data.x.shape[1:], start, dtype=torch.float64, device=device)
    angle, last = ((s - LOW) / (HIGH - LOW)).sqrt().asin(), float("inf")
    for _ in range(10):
        h = weights(angle)
        at = blo.value_and_hypergrad(held_out, blo.LowerProblem(train), h, torch.zeros_like(h), solver=SOLVER)
        s, slope = h / (1 + h), at.grad * (1 + h).square()
        moved = (s - (s - slope).clamp(LOW, HIGH)).abs().max()
        if moved <= 1e-9 or at.value >= last:
            break
        last = float(at.value)
        angle = descended(held_out, train, freed(angle, s, slope))
    return weights(angle)


def weights(angle: Tensor) -> Tensor:
    """Return the weights h of these angles: s = h / (1 + h) is the squared sine, scaled to lie within its bounds."""
    s = LOW + (HIGH - LOW) * angle.sin().square()
    return s / (1 - s)


def freed(angle: Tensor, s: Tensor, slope: Tensor) -> Tensor:
    """Return the angles, moved off bounds from which the slope in s leads inside: that in the angle vanishes there."""
    leaving = torch.where(slope < 0, s - LOW, HIGH - s) <= LEAST
    return torch.where(leaving, torch.where(slope < 0, 0.01, 0.5 * torch.pi - 0.01), angle)


def descended(held_out: Loss, train: Loss, angle: Tensor) -> Tensor:
    """Return the angles that torch's L-BFGS reaches from these.

    The loss is divided by its largest slope: torch's L-BFGS takes no curvature from a step if the product of step and
    change of slope is below 1e-10, in any unit. Where a feature is almost dropped, the
    remaining slope is 1e-7 of the curvature at the bounds, and without the division the progress may be very slow.
    """
    lower, z0 = blo.LowerProblem(lambda angle, z: train(weights(angle), z)), torch.zeros_like(angle)
    unit = blo.value_and_hypergrad(held_out, lower, angle, z0, solver=SOLVER).grad.abs().max()
    lbfgs = partial(
        torch.optim.LBFGS, max_iter=300, history_size=30, tolerance_grad=1e-6, tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )  # fmt: skip
    found: Tensor = blo.fit(
        lambda angle, z: held_out(angle, z) / unit, lower, angle, z0, optimizer=lbfgs, steps=1, solver=SOLVER
    ).theta
    return found


def truth(data: Data[Array], h: Array) -> tuple[float, Array]:
    """Return the held-out loss and its gradient in h."""
    x, y, x_held, y_held = data
    z = np.zeros_like(h)
    for _ in range(100):
        p = _sigmoid(x @ z)
        slope = x.T @ (p - y) / len(y) + h * z
        hessian = (x.T * (p * (1 - p))) @ x / len(y) + np.diag(h)
        step, rate = np.linalg.solve(hessian, slope), 1.0
        while _loss(x, y, z - rate * step, h) > _loss(x, y, z, h) + 1e-15 and rate > 1e-6:
            rate /= 2
        z = z - rate * step
        if np.abs(step).max() < 1e-13 * max(1.0, np.abs(z).max()):
            break
    q = np.linalg.solve(hessian, x_held.T @ (_sigmoid(x_held @ z) - y_held) / len(y_held))
    return _loss(x_held, y_held, z), -z * q


def stationarity(data: Data[Array], h: Array) -> float:
    """Return the largest entry of s - project(s - slope), s = h / (1 + h), which is 0 at a KKT point."""
    s, slope = h / (1 + h), truth(data, h)[1] * (1 + h) ** 2
    return float(np.abs(s - np.clip(s - slope, LOW, HIGH)).max())


def optimum(data: Data[Array]) -> tuple[float, Array]:
    """Return the smallest held-out loss found from three starts, and its weights."""

    def value(s: Array) -> tuple[float, Array]:
        found, slope = truth(data, s / (1 - s))
        return found, slope / (1 - s) ** 2

    bounds = [(LOW, HIGH)] * data.x.shape[1]
    options = {"ftol": 0, "gtol": 1e-11, "maxiter": 10_000, "maxfun": 10_000, "maxcor": 30}
    ends: list[Any] = [
        minimize(value, np.full(len(bounds), s), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        for s in (0.05, 0.5, 0.95)
    ]
    best = min(ends, key=lambda end: float(end.fun))
    return float(best.fun), best.x / (1 - best.x)


def _loss(x: Array, y: Array, z: Array, h: Array | float = 0.0) -> float:
    return float(np.mean(np.logaddexp(0, x @ z) - y * (x @ z)) + 0.5 * np.sum(h * z * z))


def _sigmoid(t: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * t))


@benchmark("answer-logistic", "Logistic regression with a weight per coordinate, to the true optimum")
def run(setting: Setting) -> Outcome:
    data = draw(setting.quick)
    ones = np.ones(data.x.shape[1])
    held_out, train = losses(data, setting.device)
    at = blo.value_and_hypergrad(
        held_out, blo.LowerProblem(train), torch.as_tensor(ones, device=setting.device),
        torch.zeros(len(ones), dtype=torch.float64, device=setting.device),
    )  # fmt: skip
    value, slope = truth(data, ones)
    least, h = optimum(data)
    answers, ends = Answers(), [f"{stationarity(data, h):.1e} (truth)"]
    answers.add("held-out loss at h = 1", at.value, value)
    answers.add("its hypergradient in h", at.grad, slope)
    for name, outer in (("blo's LBFGS on bounds", bounded), ("torch's LBFGS on angles", angled)):
        reached = numpy(outer(data, setting.device))
        answers.add(f"least held-out loss, {name}", truth(data, reached)[0], least)
        ends.append(f"{stationarity(data, reached):.1e} ({name})")
        # Most weights are at their bound of 1e-8: differences are divided by 1.
        answers.add("optimal h, those at infinity left out", reached[h < 1e6], h[h < 1e6], scale=1.0)
    inside = (h > 2 * LEAST) & (h < 1e6)
    notes = [
        f"Optimal weights at their bound: {(h <= 2 * LEAST).sum()}, infinite: {(h >= 1e6).sum()}, inside: "
        + ", ".join(f"h[{i}] = {h[i]:.6g}" for i in np.flatnonzero(inside)) + ".",
        "Largest entry of s - project(s - slope), s = h / (1 + h): " + ", ".join(ends) + ".",
    ]  # fmt: skip
    return answers.outcome("Logistic regression", notes)
