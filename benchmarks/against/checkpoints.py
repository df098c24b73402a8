"""Memory of an unrolled solve of a thousand steps, with the whole tape and with checkpoints."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import blo
from benchmarks.measure import peak_mib, race, relative_error
from benchmarks.registry import Cell, Goal, Outcome, Setting, Table, benchmark
from benchmarks.smooth import ridge


@benchmark("checkpoints", "memory of an unroll of 1,000 steps, whole tape against checkpoints")
def run(setting: Setting) -> Outcome:
    """Differentiate gradient descent on ridge regression both ways."""
    steps = 25 if setting.quick else 1000
    problem = ridge(setting, 40, 20) if setting.quick else ridge(setting, 200, 2000)
    lower = blo.LowerProblem(problem.inner)
    solver = blo.ProjectedGradient(step=1 / problem.curvature, max_steps=steps, tol=None)
    z0 = torch.zeros_like(problem.z)

    def through(gradient: Any) -> Callable[[], Tensor]:
        def call() -> Tensor:
            theta = problem.theta.detach().requires_grad_()
            z = blo.argmin(lower, theta, z0, solver=solver, gradient=gradient)
            (found,) = torch.autograd.grad(problem.outer(theta, z), theta)
            return found

        return call

    calls: dict[str, Callable[[], Tensor]] = {
        "whole tape": through(blo.Unrolled()),
        "checkpoints": through(blo.Unrolled(checkpoint=True)),
    }
    answer = calls["whole tape"]()
    times = race(calls, setting, floor="whole tape")
    peaks = {name: peak_mib(call, setting.device) for name, call in calls.items()}
    saved = {name: _saved_mib(call) for name, call in calls.items()}
    rows: list[list[Cell]] = [
        [
            name,
            peaks[name],
            saved[name],
            times[name].milliseconds,
            times[name].wall_milliseconds,
            times[name].over_floor,
            relative_error(call(), answer),
        ]
        for name, call in calls.items()
    ]
    columns = ["", "peak MiB", "saved for backward, MiB", "ms", "wall ms", "over whole tape", "difference"]
    share = peaks["checkpoints"] / peaks["whole tape"]
    table = Table(f"{steps:,} steps", columns, rows)
    goals = [Goal("peak memory with checkpoints, share of the whole tape", share, 0.1)]
    return Outcome([table], goals)


def _saved_mib(call: Callable[[], object]) -> float:
    """Return the peak size of what autograd saves for backward passes, each storage counted once, in MiB."""
    alive: dict[int, int] = {}
    most = 0

    class Held:
        """A saved tensor, counted until its graph is freed."""

        def __init__(self, tensor: Tensor) -> None:
            nonlocal most
            self.tensor = tensor
            storage = tensor.untyped_storage()
            place = storage.data_ptr()
            holders[place] = holders.get(place, 0) + 1
            alive[place] = storage.nbytes()
            most = max(most, sum(alive.values()))
            weakref.finalize(self, _release, place)

    holders: dict[int, int] = {}

    def _release(place: int) -> None:
        holders[place] -= 1
        if not holders[place]:
            del holders[place], alive[place]

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        call()
    return most / 2**20
