"""One penalty of softmax regression on digits, chosen in 20 outer steps with warm starts, over a hand-written floor.

    minimise  loss(z*(theta)) held out,  z*(theta) = argmin  loss(z) + e^theta/2 |z|^2

Truth: Newton's method with dense Hessians in NumPy, and SciPy's scalar minimisation over theta.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

import blo
from benchmarks.answers._digits import Softmax, Split, digits, one_hot
from benchmarks.floors import conjugate_gradients, newton_cg, product
from benchmarks.measure import Passes, race, ratio
from benchmarks.registry import Cell, Goal, Outcome, Setting, Table, benchmark

START, STEPS, TOL = -4.0, 20, 1e-8
#: It uses only the sign of the hypergradient, and its steps shrink when the sign changes.
RPROP = partial(torch.optim.Rprop, lr=1.0)
NEWTON_CG: dict[str, Any] = {
    "solver": blo.Newton(tol=TOL, linear_solver=blo.CG(max_iter=1000)),
    "gradient": blo.Implicit(blo.CG(max_iter=1000, tol=TOL)),
}


class Problem:
    """The bilevel problem in torch; z is the flat vector of the 65 times 10 weights."""

    def __init__(self, train: Split, held: Split, setting: Setting) -> None:
        def move(split: Split) -> tuple[Tensor, Tensor]:
            return (
                torch.as_tensor(split.x).to(setting.device, setting.dtype),
                torch.as_tensor(split.y).to(setting.device),
            )

        self.train, self.held = move(train), move(held)
        self.theta = self.train[0].new_full((), START)
        self.z0 = self.train[0].new_zeros(650)

    def inner(self, theta: Tensor, z: Tensor) -> Tensor:
        x, y = self.train
        return cross_entropy(x @ z.reshape(-1, 10), y) + 0.5 * theta.exp() * z.square().sum()

    def outer(self, theta: Tensor, z: Tensor) -> Tensor:
        x, y = self.held
        return cross_entropy(x @ z.reshape(-1, 10), y)


def truth(train: Split, held: Split) -> tuple[Callable[[float], float], float]:
    """Return the held-out loss as a function of theta, and its minimum."""
    clean = Softmax(held.x, one_hot(held.y, 10), np.full(len(held.y), 1 / len(held.y)), 0.0)

    def value(theta: float) -> float:
        weight = np.full(len(train.y), 1 / len(train.y))
        z = Softmax(train.x, one_hot(train.y, 10), weight, float(np.exp(theta))).minimise(np.zeros((65, 10)))
        return float(clean.weight @ clean.losses(z))

    found: Any = minimize_scalar(value, bounds=(-14.0, 0.0), method="bounded", options={"xatol": 1e-3})
    return value, float(found.fun)


def by_hand(problem: Problem, steps: int, lower: Callable[[Tensor, Tensor], Tensor], **cg: Any) -> Tensor:
    """Return theta after the outer steps, with z from `lower` and q by CG, both started at those of the last step."""
    theta, z, q = problem.theta.clone().requires_grad_(), problem.z0, torch.zeros_like(problem.z0)
    optimizer = RPROP([theta])
    for _ in range(steps):
        z = lower(theta.detach(), z).requires_grad_()
        (v,) = torch.autograd.grad(problem.outer(theta, z), z)
        (slope,) = torch.autograd.grad(problem.inner(theta, z), z, create_graph=True)
        q = conjugate_gradients(product(slope, z), v, q, **cg)
        (theta.grad,) = torch.autograd.grad(slope, theta, -q)
        optimizer.step()
        z = z.detach()
    return theta.detach()


def descend(problem: Problem, theta: Tensor, z: Tensor) -> Tensor:
    """Return z after 100 gradient steps."""
    for _ in range(100):
        at = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(problem.inner(theta, at), at)
        z = z - slope  # the curvature is about one
    return z.detach()


def ours(problem: Problem, steps: int, *, on_failure: Any = "ignore", **options: Any) -> Tensor:
    """Return theta after this many outer steps of blo."""
    found = blo.fit(
        problem.outer,
        blo.LowerProblem(problem.inner),
        problem.theta,
        problem.z0,
        optimizer=RPROP,
        steps=steps,
        on_failure=on_failure,
        **options,
    )
    theta: Tensor = found.theta
    return theta


@benchmark("logistic", "softmax regression on digits: a penalty chosen in 20 outer steps with warm starts")
def run(setting: Setting) -> Outcome:
    """Race blo against Newton-CG and gradient descent, both written by hand."""
    train, held = digits((100, 100) if setting.quick else (1200, 597), setting.seed)
    problem, steps = Problem(train, held, setting), 6 if setting.quick else STEPS
    newton = partial(newton_cg, problem.inner, tol=TOL)
    contestants: dict[str, Callable[[], Tensor]] = {
        "Newton-CG, by hand": lambda: by_hand(problem, steps, newton, tol=TOL, most=1000),
        "blo, Newton and CG": lambda: ours(problem, steps, **NEWTON_CG),
        "blo, defaults": lambda: ours(problem, steps),
        "100 gradient steps and 20 of CG, by hand": lambda: by_hand(
            problem, steps, partial(descend, problem), tol=0.0, most=20
        ),
    }
    slow = "blo, defaults"  # only its passes are counted: timing it like the others would take minutes
    times = race(
        {name: call for name, call in contestants.items() if name != slow}, setting, floor="Newton-CG, by hand"
    )
    value, least = truth(train, held)
    rows: list[list[Cell]] = []
    for name, call in contestants.items():
        with Passes(problem.train[:1]) as passes:
            theta = float(call())
        time = times.get(name)
        took = [time.milliseconds, time.wall_milliseconds, time.over_floor] if time else [None] * 3
        rows.append([name, value(theta) - least, theta, passes.count, *took])
    columns = ["", "held-out loss above the least", "theta", "passes over the data", "ms", "wall ms", "over Newton-CG"]
    above = rows[1][1]
    assert isinstance(above, float)
    over, off = ratio(times["blo, Newton and CG"].seconds, times["Newton-CG, by hand"].seconds)
    goals = [Goal("blo over Newton-CG by hand", over, 1.0, off=off), Goal("blo's loss above the least", above, 1e-3)]
    return Outcome([Table(f"least loss {least:.6f}", columns, rows)], goals)
