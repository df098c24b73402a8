"""Hypergradients whose arithmetic costs next to nothing, so that the time is what blo adds to it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import blo
from benchmarks import floors
from benchmarks.against._pairs import Pair, compare
from benchmarks.registry import Outcome, Setting, benchmark
from benchmarks.smooth import Smooth, quadratic

#: For each number of CG iterations at the known solution, the largest allowed ratio of blo's time to the floor's.
_ITERATIONS = {1: 1.5, 10: 1.3}


@benchmark("small", "hypergradients of 10 unknowns, by CG and by 10 unrolled steps; the last 10 of 1,000 steps")
def run(setting: Setting) -> Outcome:
    """Race blo against the same iterations and steps written by hand."""
    few = quadratic(setting, 10.0, 10)
    size, steps = (12, 25) if setting.quick else (200, 1000)
    many = quadratic(setting, 100.0, size)
    pairs = [
        Pair(
            f"10 unknowns, CG, {count} iteration{'s' * (count > 1)}",
            _at_the_solution(few, count),
            partial(floors.hypergradient, few, count),
            limit=limit,
            data=few.data[:1],
        )
        for count, limit in _ITERATIONS.items()
    ]
    for title, problem, number, limit in (
        ("10 unknowns, 10 unrolled steps", few, 10, 1.15),
        (f"{size} unknowns, the last 10 of {steps:,} steps", many, steps, 1.05),
    ):
        by_hand = partial(_by_hand, problem, number, 10)
        pairs.append(Pair(title, _unrolled(problem, number, 10), by_hand, limit=limit, data=problem.data[:1]))
    table, goals = compare("blo over plain torch", pairs, setting)
    return Outcome([table], goals)


def _at_the_solution(problem: Smooth, iterations: int) -> Callable[[], Tensor]:
    """Return the implicit hypergradient at the known solution."""
    gradient = blo.Implicit(blo.CG(max_iter=iterations, tol=None))
    return _hypergradient(problem, problem.z, blo.Given(), gradient)


def _unrolled(problem: Smooth, steps: int, last: int) -> Callable[[], Tensor]:
    """Return the derivative of the last steps of gradient descent from zero."""
    solver = blo.ProjectedGradient(step=1 / problem.curvature, max_steps=steps, tol=None)
    gradient = blo.Unrolled(last=last if last < steps else None)
    return _hypergradient(problem, torch.zeros_like(problem.z), solver, gradient)


def _hypergradient(
    problem: Smooth, z0: Tensor, solver: blo.solvers.Solver, gradient: blo.gradients.Strategy
) -> Callable[[], Tensor]:
    lower = blo.LowerProblem(problem.inner)

    def run() -> Tensor:
        found = blo.value_and_hypergrad(problem.outer, lower, problem.theta, z0, solver=solver, gradient=gradient)
        grad: Tensor = found.grad
        return grad

    return run


def _by_hand(problem: Smooth, steps: int, last: int) -> Tensor:
    """Return the derivative of the last steps: the steps before them record nothing."""
    theta, rate = problem.theta.detach().requires_grad_(), 1 / problem.curvature
    z = torch.zeros_like(problem.z)
    for _ in range(steps - last):
        at = z.requires_grad_()
        (slope,) = torch.autograd.grad(problem.inner(problem.theta, at), at)
        z = at.detach() - rate * slope
    z = z.requires_grad_()
    for _ in range(last):
        (slope,) = torch.autograd.grad(problem.inner(theta, z), z, create_graph=True)
        z = z - rate * slope
    (found,) = torch.autograd.grad(problem.outer(theta, z), theta)
    return found
