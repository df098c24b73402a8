"""Conformance of lower solvers: feasible points, true residuals, and steps that can be differentiated, or an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from blo._lower import LowerProblem
from blo._parametric_problem import ParametricProblem
from blo._problem_at_theta import ProblemAtTheta
from blo.errors import StructureError
from blo.sets import Box, Free, L2Ball, Set
from blo.solvers import Solution, Solver
from blo.testing._suite import Conformance, Suite, normal, sides


def check_solver(
    solver: Solver, *, constraints: Sequence[Set] = (Free(), Box(-0.4, 0.5), L2Ball(0.6)), seed: int = 0
) -> Conformance:
    """Check a lower solver on well-conditioned quadratic problems of six unknowns, one by one and in a batch of three.

    Args:
        solver: the solver; if it has a `tol`, it must reach it.
        constraints: the sets that it is made for.
        seed: of the random problems.

    Raises:
        AssertionError: if a property fails; the message names it.
    """
    suite, generator = Suite(type(solver).__name__), torch.Generator().manual_seed(seed)
    for constraint in constraints:
        weights, start = normal(generator, 3, 6), normal(generator, 3, 6)
        batch = _solve(suite, solver, _problem(constraint, weights, _theta()), start)
        for lane in range(3):
            alone = _solve(suite, solver, _problem(constraint, weights[lane], _theta()), start[lane])
            text = "a lane of a batch, against itself alone,"
            suite.near("a batch is a loop", batch.z[lane], alone.z, _accuracy(solver), text)
        order = torch.tensor([2, 0, 1])
        turned = solver.solve(_problem(constraint, weights[order], _theta()), start[order])
        suite.near("permuting the lanes permutes the answer", turned.z, batch.z[order], 1e-9, "the permuted answer")
        single = solver.solve(_problem(constraint, weights.float(), _theta().float()), start.float())
        suite.require("dtype is kept", single.z.dtype == torch.float32, f"float32 gave {single.z.dtype}")
        _recorded(suite, solver, constraint, weights, start)
    return suite.report()


def _theta() -> Tensor:
    return torch.tensor([0.4, -0.3], dtype=torch.float64)


def _problem(constraint: Set, weights: Tensor, theta: Tensor) -> ProblemAtTheta:
    """Return `min 1/2 z' D z - (1 + theta_0) w' z + theta_1 sum z` on the set, D from 0.5 to 1."""
    scale = torch.linspace(0.5, 1.0, weights.shape[-1]).to(weights)

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        return (0.5 * scale * z * z - (1 + theta[0]) * weights * z + theta[1] * z).sum(-1)

    lower = LowerProblem(objective, constraint, batched=weights.ndim > 1)
    problem, _, leaves = ParametricProblem.of(lower, theta, torch.zeros_like(weights))
    return problem.bind(leaves)


def _accuracy(solver: Solver) -> float:
    return 1e-9 if solver.tol is None else max(1e-9, 20 * solver.tol)


def _solve(suite: Suite, solver: Solver, problem: ProblemAtTheta, z0: Tensor) -> Solution:
    found: Solution = suite.untouched("the start is not modified", solver.solve, (problem.detach(), z0))
    suite.require("z is like the start", found.z.shape == z0.shape, f"{tuple(z0.shape)} gave {tuple(found.z.shape)}")
    nearest = problem.prox(found.z, 1.0)
    if isinstance(problem.term, Set):
        suite.near("the solution lies in the set", nearest, found.z, 1e-10, "the solution's distance from the set")
    truth = problem.residual(found.z, problem.gradient(found.z))
    if found.residual is not None:
        suite.near("the residual is honest", found.residual, truth, 1e-10, "the reported |z - prox(z - gradient)|")
    if solver.tol is not None:
        text = f"residual {float(truth.max()):.2e}, tolerance {solver.tol:.2e}"
        suite.require("easy problems are solved to the tolerance", bool((truth <= solver.tol * 1.01).all()), text)
    again = solver.solve(problem.detach(), found.z)
    if solver.tol is not None:
        text = "the solution, started from itself,"
        suite.near("a solved problem stays", again.z, found.z, _accuracy(solver), text)
    return found


def _recorded(suite: Suite, solver: Solver, constraint: Set, weights: Tensor, start: Tensor) -> None:
    """Check that a recorded solve is differentiable in theta, or raises `StructureError`."""
    name, direction = "recorded steps are differentiable, or refused", torch.tensor([0.7, -0.6], dtype=torch.float64)
    w = normal(torch.Generator().manual_seed(1), *weights.shape)

    def at(theta: Tensor) -> Tensor:
        return solver.solve(replace(_problem(constraint, weights, theta), recorded=True), start).z

    theta = _theta().requires_grad_()
    try:
        with torch.enable_grad():
            z = at(theta)
    except StructureError:
        suite.held[name] = None
        return
    suite.require(name, z.requires_grad, "the result of a recorded solve carries no graph, and no error was raised")
    (slope,) = torch.autograd.grad((z * w).sum(), theta)
    with torch.no_grad():

        def shifted(t: float) -> Tensor:
            return (solver.solve(_problem(constraint, weights, _theta() + t * direction), start).z * w).sum()

        truth = sides(shifted, 1e-3)
    tolerance = 1e-5 if solver.tol is None else max(1e-5, 1e4 * solver.tol)
    suite.near(name, (slope * direction).sum(), truth, tolerance, "the derivative of the recorded result")
