"""blo itself, with the same interface."""

from __future__ import annotations

from torch import Tensor

import blo
from benchmarks.boxed import Boxed
from benchmarks.peers._base import Prepared
from benchmarks.smooth import Smooth
from benchmarks.unrolled import Cleaning

NAME = "blo"
DISTRIBUTION = "torch-blo"
METHOD = "value_and_hypergrad, Implicit(CG)"
ITERATES = True


def prepare(problem: Smooth, products: int, damping: float = 0.0) -> Prepared:
    """Return the hypergradient at the known solution."""
    lower = blo.LowerProblem(problem.inner)
    solver = blo.External(lambda theta, z0: z0)
    # A tolerance of 0 is never reached, so CG makes all `products` iterations; the warning about it is ignored.
    gradient = blo.Implicit(blo.CG(max_iter=products, tol=0.0, damping=damping))

    def run() -> Tensor:
        found = blo.value_and_hypergrad(
            problem.outer, lower, problem.theta, problem.z, solver=solver, gradient=gradient, on_failure="ignore"
        )
        grad: Tensor = found.grad
        return grad

    return Prepared(run, lambda found: found)


def prepare_boxed(problem: Boxed, products: int, tol: float = 0.0) -> Prepared:
    """Return the hypergradient of the box problems at the known solutions."""
    lower = blo.LowerProblem(problem.inner, blo.Box(-1.0, 1.0), batched=True)
    solver = blo.External(lambda theta, z0: z0)
    gradient = blo.Implicit(blo.CG(max_iter=products, tol=tol))

    def run() -> Tensor:
        found = blo.value_and_hypergrad(
            problem.outer, lower, problem.theta, problem.z, solver=solver, gradient=gradient, on_failure="ignore"
        )
        grad: Tensor = found.grad
        return grad

    return Prepared(run, lambda found: found)


def prepare_unrolled(problem: Cleaning, steps: int) -> Prepared:
    """Return the derivative of this many steps."""
    return _solved(problem, steps, blo.Unrolled())


def prepare_implicit(problem: Cleaning, steps: int, products: int) -> Prepared:
    """Return the implicit hypergradient after this many steps."""
    return _solved(problem, steps, blo.Implicit(blo.CG(max_iter=products, tol=0.0)))


def _solved(problem: Cleaning, steps: int, gradient: blo.gradients.Strategy) -> Prepared:
    lower = blo.LowerProblem(problem.inner)
    solver = blo.ProjectedGradient(step=problem.step, max_steps=steps, tol=None)

    def run() -> Tensor:
        found = blo.value_and_hypergrad(
            problem.outer, lower, problem.theta, problem.z0, solver=solver, gradient=gradient, on_failure="ignore"
        )
        grad: Tensor = found.grad
        return grad

    return Prepared(run, lambda found: found)
