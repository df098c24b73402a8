"""Lower solvers: L-BFGS against torch's to the same digits, and the default on boxes against active set methods."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import blo
from benchmarks.against import logistic
from benchmarks.against._pairs import Pair, compare
from benchmarks.answers._digits import digits
from benchmarks.boxed import Boxed, boxed
from benchmarks.registry import Outcome, Setting, benchmark

#: Tolerance of L-BFGS for each example of the sum, by dtype.
_TOL = {torch.float64: 1e-7, torch.float32: 1e-4}
#: The ratio of blo's L-BFGS to torch's before it was made faster. It must not return to that; no other goal is set.
_FORMER = 1.95


@benchmark("solvers", "L-BFGS against torch's, and the default on 128 boxes of 64 against active set methods")
def run(setting: Setting) -> Outcome:
    """Race the solves alone.

    L-BFGS has the settings of the default except for the tolerance, which torch's does not reach: its line search
    compares values, whose rounding hides errors of z below the root of that rounding.
    """
    train, held = digits((100, 100) if setting.quick else (1200, 597), setting.seed)
    smooth = logistic.Problem(train, held, setting)
    boxes = boxed(setting, 4, 8) if setting.quick else boxed(setting)
    lbfgs = blo.LBFGS(max_steps=10_000, tol=_TOL[setting.dtype] * len(train.x), relative=True)
    ours = _solved(blo.LowerProblem(partial(_summed, smooth)), smooth.theta, smooth.z0, lbfgs)
    at = ours().requires_grad_()
    (slope,) = torch.autograd.grad(_summed(smooth, smooth.theta, at), at)

    lower = blo.LowerProblem(boxes.inner, blo.Box(-1.0, 1.0), batched=True)
    z0 = torch.zeros_like(boxes.z)
    newton_tol = 1e-11 if setting.dtype == torch.float64 else 1e-5  # the default's
    default, newton = (_solved(lower, boxes.theta, z0, solver) for solver in (None, blo.Newton(tol=newton_tol)))
    title = f"{len(boxes.z)} boxes of {boxes.z.shape[-1]}: default"
    pairs = [
        Pair(
            "softmax regression, 650 unknowns: LBFGS",
            ours,
            partial(_torch_lbfgs, smooth, float(slope.abs().max())),
            "torch.optim.LBFGS",
            _FORMER,
            smooth.train[:1],
            same=1e-6,
        ),
        Pair(title, default, newton, "blo.Newton()", data=(boxes.matrix,)),
        Pair(title, default, partial(_active_set, boxes), "an active set method by hand", data=(boxes.matrix,)),
    ]
    table, goals = compare("lower solvers of blo over others", pairs, setting)
    return Outcome([table], goals)


def _solved(
    lower: blo.LowerProblem, theta: Tensor, z0: Tensor, solver: blo.solvers.Solver | None = None
) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():  # only the solve is timed
            z: Tensor = blo.argmin(lower, theta, z0, solver=solver)
        return z

    return run


def _summed(problem: logistic.Problem, theta: Tensor, z: Tensor) -> Tensor:
    """Return the sum over the examples: torch's L-BFGS ignores the curvature of steps where it is tiny, below 1e-10."""
    return len(problem.train[0]) * problem.inner(theta, z)


def _torch_lbfgs(problem: logistic.Problem, reached: float) -> Tensor:
    """Minimise until no entry of the gradient is larger than the largest one where blo stopped."""
    z = problem.z0.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [z],
        max_iter=10_000,
        max_eval=20_000,
        history_size=10,  # that of blo
        tolerance_grad=reached,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        value = _summed(problem, problem.theta, z)
        (z.grad,) = torch.autograd.grad(value, z)
        return value

    optimizer.step(closure)
    return z.detach()


def _active_set(problem: Boxed) -> Tensor:
    """Solve all boxes by the primal-dual active set method, with a dense solve for each lane.

    Source: Hintermüller, Ito and Kunisch (SIAM J. Optim. 2002), algorithm 2.1.

    Raises:
        RuntimeError: if the active sets still change after 100 steps.
    """
    matrix, right = problem.matrix, problem.theta * problem.scale
    z, multiplier = torch.zeros_like(right), right
    held = torch.full_like(right, 2.0)  # no coordinate has been placed
    for _ in range(100):
        last, held = held, (z + multiplier > 1).to(z.dtype) - (z + multiplier < -1).to(z.dtype)
        if torch.equal(last, held):
            return z
        free = (held == 0).to(z.dtype)
        # Rows of held coordinates become those of the identity, so that all lanes have systems of one size.
        system = matrix * free.unsqueeze(-1) * free.unsqueeze(-2) + torch.diag_embed(1 - free)
        rest = right - (matrix @ held.unsqueeze(-1)).squeeze(-1)
        z = torch.linalg.solve(system, torch.where(free > 0, rest, held))
        multiplier = right - (matrix @ z.unsqueeze(-1)).squeeze(-1)
    raise RuntimeError("the active sets of the boxes still change after 100 steps.")
