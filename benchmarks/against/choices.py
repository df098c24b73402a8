"""What blo chooses by itself: the linear solver of `Auto`, and the projection onto half-spaces that are a simplex."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import blo
from benchmarks.against._pairs import Pair, compare
from benchmarks.registry import Outcome, Setting, benchmark
from benchmarks.smooth import Smooth, quadratic
from blo._layout import Layout


@benchmark("auto", "`Auto` against CG and Direct on quadratics of 960 unknowns")
def auto(setting: Setting) -> Outcome:
    """Race hypergradients at known solutions: CG is cheaper if the condition number is 1e2, and not if it is 1e4.

    `Auto` does not know the condition number. If it factorises as soon as CG has cost as much as that, it costs at most
    twice the cheaper of the two, so two is the goal where CG fails. All is in double precision, which the larger
    condition number needs.
    """
    setting = replace(setting, dtype=torch.float64)
    size = 12 if setting.quick else 960
    easy, hard = (quadratic(setting, condition, size) for condition in (1e2, 1e4))
    chosen, iterated, factorised = blo.Auto(direct=4 if setting.quick else 256), blo.CG(max_iter=4000), blo.Direct()
    pairs = []
    for title, problem, name, other, limit in (
        ("condition 1e2", easy, "CG", iterated, 1.05),
        ("condition 1e2", easy, "Direct", factorised, None),
        ("condition 1e4", hard, "CG", iterated, None),
        ("condition 1e4", hard, "Direct", factorised, 2.0),
    ):
        calls = _hypergradient(problem, chosen), _hypergradient(problem, other)
        pairs.append(Pair(f"{size} unknowns, {title}: Auto", *calls, name, limit, problem.data[:1]))
    table, goals = compare("Auto over one method", pairs, setting)
    return Outcome([table], goals)


def _hypergradient(problem: Smooth, linear_solver: blo.linsolve.LinearSolver) -> Callable[[], Tensor]:
    lower, gradient = blo.LowerProblem(problem.inner), blo.Implicit(linear_solver)

    def run() -> Tensor:
        found = blo.value_and_hypergrad(
            problem.outer, lower, problem.theta, problem.z, solver=blo.Given(), gradient=gradient
        )
        grad: Tensor = found.grad
        return grad

    return run


@benchmark("halfspaces", "projections of 64 points of 20 unknowns: half-spaces against the simplex with a cap")
def halfspaces(setting: Setting) -> Outcome:
    """Race the same set as half-spaces and as a capped simplex.

    The last pair has one more row, which excludes nothing. So the half-spaces are no longer bounds and a sum, and the
    general search for the active rows projects; it has no goal, because the simplex has no such row.
    """
    lanes, size, cap = (3, 6, 0.4) if setting.quick else (64, 20, 0.2)
    generator = setting.generator()
    z, row = setting.randn(lanes, size, generator=generator), setting.randn(1, size, generator=generator)
    one, eye = torch.ones_like(z[:1]), torch.eye(size, dtype=z.dtype, device=z.device)
    rows, right = torch.cat([one, -one, -eye, eye]), torch.cat([z.new_tensor([1.0, -1.0]), z.new_zeros(size)])
    right = torch.cat([right, z.new_full((size,), cap)])
    # In a solve, blo prepares a set once and projects many times. The excluded part lies beyond the longest vector.
    far = torch.cat([right, row.norm().reshape(1) + 1])
    layout = Layout.of(z, batched=True)
    simplex = partial(blo.Simplex(cap=cap).fit(layout).project, z)
    known, general = (
        partial(blo.Halfspaces(A, b).fit(layout).project, z) for A, b in ((rows, right), (torch.cat([rows, row]), far))
    )
    title = f"{lanes} points of {size} unknowns"
    pairs = [
        Pair(title, known, simplex, "Simplex(cap)", 3.0),
        Pair(f"{title}, one redundant row", general, simplex, "Simplex(cap)"),
    ]
    table, goals = compare("Halfspaces over the capped simplex", pairs, setting)
    return Outcome([table], goals)
