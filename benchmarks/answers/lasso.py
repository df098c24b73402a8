"""The lasso: one weight chosen by the loss on held-out data, or one for each coordinate.

    minimise  |X z*(theta) - y|^2 / 2n held out,  z*(theta) = argmin |X z - y|^2 / 2n + sum_j e^theta_j |z_j|

Truth: scikit-learn's coordinate descent finds the support, the normal equations on it give z and its derivative, and
SciPy minimises over the one weight.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from sklearn.linear_model import Lasso
from torch import Tensor

import blo
from benchmarks.answers._compare import Answers, numpy
from benchmarks.answers._held_out import Data
from benchmarks.registry import Outcome, Setting, benchmark

Array = npt.NDArray[np.float64]
START = math.log(0.3)


def draw(setting: Setting) -> Data[Array]:
    """Draw fewer samples than features; one feature in ten matters."""
    samples, d = (60, 15) if setting.quick else (80, 200)
    random = np.random.default_rng(setting.seed)
    true = np.where(np.arange(d) % 10 == 0, 1.0, 0.0)
    x, x_held = random.normal(size=(2, samples, d))
    return Data(x, x @ true + random.normal(size=samples), x_held, x_held @ true + random.normal(size=samples))


def problem(data: Data[Array], theta: Array, device: torch.device) -> dict[str, Any]:
    """State the problem as arguments for blo; theta has shape (1,) or (d,)."""
    x, y, x_held, y_held, start = (torch.as_tensor(part, device=device) for part in (*data, theta))

    def train(theta: Tensor, z: Tensor) -> Tensor:
        return 0.5 * (x @ z - y).square().mean()

    return {
        "upper": lambda theta, z: 0.5 * (x_held @ z - y_held).square().mean(),
        "lower": blo.LowerProblem(train, penalty=lambda theta: blo.L1(theta.exp())),
        "theta": start,
        "z0": torch.zeros_like(x[0]),
    }


def truth(data: Data[Array], theta: Array) -> tuple[float, Array, Array]:
    """Return the held-out loss, its gradient in theta and z."""
    x, y, x_held, y_held = data
    samples, d = x.shape
    weight = np.exp(theta) * np.ones(d)
    model = Lasso(alpha=1.0, fit_intercept=False, tol=1e-12, max_iter=1_000_000).fit(x / weight, y)
    sign = np.sign(model.coef_)
    on = sign != 0
    gram = x[:, on].T @ x[:, on] / samples
    z = np.zeros(d)
    z[on] = np.linalg.solve(gram, x[:, on].T @ y / samples - (weight * sign)[on])
    off = x_held @ z - y_held
    slope = np.zeros(d)
    slope[on] = -(weight * sign)[on] * np.linalg.solve(gram, x_held[:, on].T @ off / samples)
    return 0.5 * float(np.mean(off**2)), slope if theta.size > 1 else slope.sum(keepdims=True), z


def require_margin(data: Data[Array], theta: Array, z: Array) -> None:
    """Check that z is a solution, and not close to a change of its support, where the gradient does not exist.

    Raises:
        RuntimeError: if z fails the check.
    """
    weight = np.exp(theta) * np.ones_like(z)
    pull = -data.x.T @ (data.x @ z - data.y) / len(data.y)
    on = z != 0
    wrong = np.abs(pull - weight * np.sign(z))[on].max(initial=0.0)
    if wrong > 1e-12 or (weight - np.abs(pull))[~on].min(initial=1.0) < 1e-6 or np.abs(z[on]).min(initial=1.0) < 1e-6:
        raise RuntimeError("the support is not certain; the truth is not known.")


def lbfgs(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Return torch's L-BFGS with tolerances at the limit of double precision."""
    return torch.optim.LBFGS(
        parameters, max_iter=50, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )


@benchmark("answer-lasso", "The lasso against scikit-learn and the normal equations on the support")
def run(setting: Setting) -> Outcome:
    data = draw(setting)
    d = data.x.shape[1]
    answers = Answers()
    each: Array = np.random.default_rng(setting.seed + 1).normal(START, 0.3, size=(d,))
    one: Array = np.full(1, START)
    for name, theta in (("one weight", one), ("a weight per coordinate", each)):
        at = blo.value_and_hypergrad(**problem(data, theta, setting.device))
        value, slope, z = truth(data, theta)
        require_margin(data, theta, z)
        answers.add(f"{name}: coefficients, {np.count_nonzero(z)} of {d} not zero", at.z, z)
        answers.add(f"{name}: held-out loss", at.value, value)
        answers.add(f"{name}: hypergradient", at.grad, slope)
    given = problem(data, one, setting.device)
    # The optimiser's line search compares values, which need more correct digits than the hypergradient.
    found = blo.fit(**given, optimizer=lbfgs, steps=1, solver=blo.FISTA(tol=1e-12))
    best: Any = minimize_scalar(
        lambda log: truth(data, np.full(1, log))[0], bounds=(START - 2, START + 1), method="bounded",
        options={"xatol": 1e-10},
    )  # fmt: skip
    reached = numpy(found.theta)
    answers.add("least held-out loss", truth(data, reached)[0], best.fun)
    answers.add("optimal weight", np.exp(reached[0]), np.exp(best.x))
    return answers.outcome("Lasso")
