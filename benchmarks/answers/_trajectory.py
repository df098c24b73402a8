"""Runs of the stochastic algorithms on a finite sum, and lines fitted to the results."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import blo
from benchmarks.answers._finite_sum import Batch, FiniteSum, numbered, replicated
from blo.stochastic import Algorithm, State, draw, run


def direction(
    problem: FiniteSum, lower_step: float, products: int, replicas: int, batches: tuple[Batch, Batch] | None = None
) -> Tensor:
    """Return stocBiO's direction for theta at the problem's start, at the exact z; one row for each replica."""
    algorithm = blo.StocBiO(lower_step=lower_step, upper_step=1.0, inner_steps=1, products=products)
    at_solution = replace(problem, z0=problem.solve(problem.theta0[None])[0])
    found: list[Tensor] = []
    execute(at_solution, algorithm, 1, replicas, lambda state: found.append(state["theta"]), batches)
    return problem.theta0 - found[0]


def trajectory(problem: FiniteSum, algorithm: Algorithm, steps: int, replicas: int) -> tuple[Tensor, Tensor]:
    """Return up to 600 step numbers, two thirds of them evenly spaced in the logarithm, and E|grad F|^2 there."""
    even = torch.linspace(0, steps, 200).tolist()
    wanted = {int(k) for k in [*torch.logspace(0, math.log10(steps), 400).tolist(), *even]}
    kept: list[tuple[int, Tensor]] = [(0, problem.theta0[None])]

    def look(state: State) -> None:
        if state["step"] in wanted:
            kept.append((state["step"], state["theta"]))

    execute(problem, algorithm, steps, replicas, look)
    values = torch.stack([problem.squared(theta).mean() for _, theta in kept])
    return torch.tensor([k for k, _ in kept]).double(), values


def execute(
    problem: FiniteSum,
    algorithm: Algorithm,
    steps: int,
    replicas: int,
    look: Callable[[State], None],
    batches: tuple[Batch, Batch] | None = None,
) -> None:
    """Run from the problem's start: on full batches if `replicas` is 0, else on minibatches."""
    generator = torch.Generator().manual_seed(0)
    upper, lower = batches or (problem.upper_batches, problem.lower_batches)
    sources: Any
    if not replicas:
        sources = [[batch] * 100 for batch in problem.full]
    elif isinstance(algorithm, blo.SABA):
        sources = [draw(numbered(b), generator) for b in (upper, lower)]
    else:
        sources = [replicated(b, replicas, generator) for b in (upper, lower)]
    start = (part.expand(max(replicas, 1), -1) for part in (problem.theta0, problem.z0))
    run(
        algorithm,
        algorithm.init(*start),
        problem.upper,
        problem.lower,
        steps=steps,
        upper_batches=sources[0],
        lower_batches=sources[1],
        callback=look,
    )


def last_tenfold(at: Tensor, values: Tensor) -> tuple[float, Tensor, Tensor]:
    """Return the slope of log value in log step over the last tenfold, with the first and last bin's value."""
    edges = torch.logspace(math.log10(float(at[-1]) / 10), math.log10(float(at[-1])), 13)
    edges[-1] += 1
    inside = [(at >= low) & (at < high) for low, high in pairwise(edges)]
    inside = [mask for mask in inside if mask.any()]
    x = torch.stack([at[mask].log().mean() for mask in inside])
    y = torch.stack([values[mask].mean() for mask in inside])
    return line(x, y.log())[0], y[0], y[-1]


def line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the slope of the least-squares line, and r squared."""
    x, y = x - x.mean(), y - y.mean()
    slope = (x * y).sum() / x.square().sum()
    return float(slope), float((x * y).sum().square() / (x.square().sum() * y.square().sum()))
