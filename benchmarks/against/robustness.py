"""What each library returns in corner cases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks import peers
from benchmarks.measure import relative_error
from benchmarks.peers import Adapter, Unsupported
from benchmarks.registry import Cell, Goal, Outcome, Setting, Table, benchmark
from benchmarks.smooth import quadratic

Case = Callable[[Adapter, Setting], float]

#: Damping of the case with damping.
_DAMPING = 0.5


@benchmark("robustness", "corner cases: what each library returns")
def run(setting: Setting) -> Outcome:
    """Run every case with every library."""
    found = peers.load()
    rows: list[list[Cell]] = []
    goals: list[Goal] = []
    for title, case, limit in _CASES:
        row: list[Cell] = [title]
        for peer in found:
            if peer.adapter is None:
                row.append("absent")
                continue
            try:
                value: Cell = case(peer.adapter, setting)
            except Unsupported as reason:
                value = str(reason)
            except Exception as error:
                value = type(error).__name__
            row.append(value)
            if peer.name == "blo":
                goals.append(Goal(f"blo: {title}", value if isinstance(value, float) else math.nan, limit))
        rows.append(row)
    notes = [f"{peer.name} is absent: {peer.absent}." for peer in found if peer.adapter is None]
    return Outcome([Table("corner cases", ["case", *(peer.name for peer in found)], rows, notes)], goals)


def _zero(adapter: Adapter, setting: Setting) -> float:
    prepared = adapter.prepare(quadratic(setting, 10.0, size=10, distance=0.0), 10)
    return float(prepared.read(prepared.run()).abs().max())  # keeps NaN


def _scalar(adapter: Adapter, setting: Setting) -> float:
    problem = quadratic(setting, 1.0, size=1)
    prepared = adapter.prepare(problem, 10)
    return relative_error(prepared.read(prepared.run()), problem.exact)


def _past_convergence(adapter: Adapter, setting: Setting) -> float:
    problem = quadratic(setting, 10.0, size=10)
    prepared = adapter.prepare(problem, 200)
    return relative_error(prepared.read(prepared.run()), problem.exact)


def _single(adapter: Adapter, setting: Setting) -> float:
    problem = quadratic(replace(setting, dtype=torch.float32), 1e3, size=50)
    prepared = adapter.prepare(problem, 200)
    return relative_error(prepared.read(prepared.run()), problem.exact)


def _damped(adapter: Adapter, setting: Setting) -> float:
    problem = quadratic(setting, 1e3, size=50)
    matrix, target = (tensor.to("cpu", torch.float64) for tensor in problem.data)
    z = problem.z.to("cpu", torch.float64)
    exact = torch.linalg.solve(matrix + _DAMPING * torch.eye(len(matrix), dtype=torch.float64), z - target)
    prepared = adapter.prepare(problem, 100, _DAMPING)
    return relative_error(prepared.read(prepared.run()), exact)


_CASES: list[tuple[str, Case, float]] = [
    ("zero right-hand side, 10 unknowns: largest entry", _zero, 0.0),
    ("1 unknown: relative error", _scalar, 1e-12),
    ("10 unknowns, 200 products: relative error", _past_convergence, 1e-12),
    ("float32, condition 1e3, 50 unknowns, 200 products: relative error", _single, 1e-2),
    (f"damping {_DAMPING}: relative error to (A + damping I)^-1", _damped, 1e-12),
]
