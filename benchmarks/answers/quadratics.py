"""Quadratic lower problems whose Hessians have condition 1e1 to 1e5.

    minimise over theta   1/2 |z*(theta) - target|^2 + 1/2 |theta|^2,  z*(theta) = argmin 1/2 z' H z - z' (B theta + c)

Truth: z* is linear in theta, so the optimum is that of linear least squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import blo
from benchmarks.answers._compare import Answers, numpy
from benchmarks.registry import Outcome, Setting, benchmark

# A line search compares values, which need more correct digits than the hypergradient. `Newton` gives all of them.
SOLVER = blo.Newton(tol=1e-10, forcing=0.0)

Array = npt.NDArray[np.float64]
CONDITIONS = (1e1, 1e2, 1e3, 1e4, 1e5)


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The coefficients; `h` has eigenvalues from 1 / condition to 1, spaced evenly on a logarithmic scale."""

    h: Array
    b: Array
    c: Array
    target: Array

    @classmethod
    def draw(cls, condition: float, n: int, m: int, seed: int) -> Quadratic:
        random = np.random.default_rng(seed)
        basis, _ = np.linalg.qr(random.normal(size=(n, n)))
        # b and c lie in the range of h with moderate preimages, so that the solution is of size 1 at every condition.
        h = (basis * np.logspace(-np.log10(condition), 0, n)) @ basis.T
        h = 0.5 * (h + h.T)
        return cls(h, h @ random.normal(size=(n, m)), h @ random.normal(size=n), random.normal(size=n))

    def truth(self) -> tuple[Array, Array, Array]:
        """Return the hypergradient at theta = 0, the optimal theta and the lower solution there."""
        jacobian, offset = np.linalg.solve(self.h, self.b), np.linalg.solve(self.h, self.c)
        m = self.b.shape[1]
        # |J theta + offset - target|^2 + |theta|^2 as one least-squares problem: no squared condition numbers.
        stacked = np.vstack([jacobian, np.eye(m)])
        theta = np.linalg.lstsq(stacked, np.concatenate([self.target - offset, np.zeros(m)]), rcond=None)[0]
        return jacobian.T @ (offset - self.target), theta, jacobian @ theta + offset


def solve(problem: Quadratic, device: torch.device) -> tuple[blo.Hypergradient, blo.FitResult]:
    """Return the hypergradient at theta = 0, from the default solver, and the fit from there."""
    h, b, c, target = (
        torch.as_tensor(part, device=device) for part in (problem.h, problem.b, problem.c, problem.target)
    )

    def upper(theta: Tensor, z: Tensor) -> Tensor:
        return 0.5 * (z - target).square().sum() + 0.5 * theta.square().sum()

    def lbfgs(parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(
            parameters, max_iter=40, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

    lower = blo.LowerProblem(lambda theta, z: 0.5 * z @ h @ z - z @ (b @ theta + c))
    theta, z0 = torch.zeros_like(b[0]), torch.zeros_like(c)
    at = blo.value_and_hypergrad(upper, lower, theta, z0)
    return at, blo.fit(upper, lower, theta, z0, optimizer=lbfgs, steps=1, solver=SOLVER)


@benchmark("answer-quadratics", "Quadratics of condition 1e1 to 1e5 against linear least squares")
def run(setting: Setting) -> Outcome:
    n, m = (8, 3) if setting.quick else (50, 10)
    answers = Answers()
    for condition in CONDITIONS:
        problem = Quadratic.draw(condition, n, m, setting.seed)
        at, found = solve(problem, setting.device)
        slope, theta, z = problem.truth()
        name = f"condition {condition:.0e}"
        answers.add(f"{name}: hypergradient at 0, default solver", at.grad, slope)
        answers.add(f"{name}: optimal theta", numpy(found.theta), theta)
        answers.add(f"{name}: lower solution there", found.z, z)
    return answers.outcome("Quadratics")
