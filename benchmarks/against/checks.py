"""The cost of the checks: the share of the time of a hypergradient, with its solve, that each check takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from statistics import median
from typing import Any

import torch

import blo
from benchmarks.against import logistic
from benchmarks.answers._digits import digits
from benchmarks.boxed import boxed
from benchmarks.registry import Cell, Goal, Outcome, Setting, Table, benchmark
from benchmarks.smooth import ridge
from blo._arguments import require_function
from blo._curvature import curvature_along_residual
from blo._draws import may_draw
from blo._failures import Checks
from blo._findings import Findings
from blo._look import _misleads
from blo._torch import versions

_MOST = 0.02
#: Functions of blo by the name of their check in the table.
_CHECKS: dict[str, list[Callable[..., Any]]] = {
    "arguments are functions of theta and z": [require_function],
    "the objective may draw random numbers": [may_draw],
    "torch differentiates it correctly": [_misleads],
    "it writes to its arguments": [versions],
    "the residual hides no large error": [curvature_along_residual],
    "the solve has converged": [Checks.lower, Checks.stationary, Checks.fixed_steps, Checks.repeated],
    "the data are those of the solve": [Checks.changed],
    "the linear system is solved": [Checks.linear, Checks.adjoint],
    "active constraints are clear, values finite": [Findings.degenerate, Findings.gradients],
}


@benchmark("checks", "the share of a hypergradient that each check takes; the goal is 2 %")
def run(setting: Setting) -> Outcome:
    """Time each check within whole hypergradients from cold starts, and within a fit by Newton-CG with warm ones."""
    smooth = ridge(setting, 60, 20) if setting.quick else ridge(setting)
    boxes = boxed(setting, 4, 8) if setting.quick else boxed(setting)
    train, held = digits((100, 100) if setting.quick else (1200, 597), setting.seed)
    digital = logistic.Problem(train, held, setting)
    calls: dict[str, Callable[[], object]] = {
        "ridge, 2,000 x 500": partial(_cold, smooth, blo.LowerProblem(smooth.inner)),
        "128 boxes of 64": partial(_cold, boxes, blo.LowerProblem(boxes.inner, blo.Box(-1.0, 1.0), batched=True)),
        "logistic, Newton-CG": partial(logistic.ours, digital, 6, on_failure=None, **logistic.NEWTON_CG),
    }
    shares = {}
    for title, call in calls.items():
        setting.log(f"  {title}")
        call()
        with _timed() as spent:
            shares[title] = [_shares(call, spent) for _ in range(setting.rounds)]
    middle = {title: {name: median(one[name] for one in found) for name in _CHECKS} for title, found in shares.items()}
    rows: list[list[Cell]] = [[name, *(middle[title][name] for title in calls)] for name in _CHECKS]
    rows.append(["all", *(sum(middle[title].values()) for title in calls)])
    largest = max(share for found in middle.values() for share in found.values())
    return Outcome(
        [Table("Share of the time", ["check", *calls], rows)],
        [Goal("the largest share of a check", largest, _MOST)],
    )


def _cold(problem: Any, lower: blo.LowerProblem) -> object:
    return blo.value_and_hypergrad(problem.outer, lower, problem.theta, torch.zeros_like(problem.z))


def _shares(call: Callable[[], object], spent: dict[str, float]) -> dict[str, float]:
    spent.update(dict.fromkeys(_CHECKS, 0.0))
    start = time.perf_counter()
    call()
    whole = time.perf_counter() - start
    return {name: seconds / whole for name, seconds in spent.items()}


@contextmanager
def _timed() -> Iterator[dict[str, float]]:
    """Time the checks wherever blo calls them; the time of a check that another check calls counts for the caller."""
    spent = dict.fromkeys(_CHECKS, 0.0)
    inside = False

    def timed(name: str, check: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(check)
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal inside
            if inside:
                return check(*arguments, **named)
            inside, start = True, time.perf_counter()
            try:
                return check(*arguments, **named)
            finally:
                spent[name] += time.perf_counter() - start
                inside = False

        return call

    homes = [module for name, module in sys.modules.items() if name.partition(".")[0] == "blo"]
    places = [
        (home, key, check, timed(name, check))
        for name, checks in _CHECKS.items()
        for check in checks
        for home in (*homes, Checks, Findings)
        for key, value in list(vars(home).items())
        if value is check
    ]
    try:
        for home, key, _, replaced in places:
            setattr(home, key, replaced)
        yield spent
    finally:
        for home, key, check, _ in places:
            setattr(home, key, check)
