"""Sinusoid MAML: 25 tasks through `vmap`, each a network that adapts by gradient steps from a shared start."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.func import grad, vmap

import blo
from benchmarks.measure import peak_mib, race, ratio, relative_error
from benchmarks.registry import Cell, Goal, Outcome, Setting, Table, benchmark

Weights: TypeAlias = dict[str, Tensor]
#: `(start, x, y, held x, held y) -> loss after adaptation`, for one task.
Task: TypeAlias = Callable[[Weights, Tensor, Tensor, Tensor, Tensor], Tensor]

_STEPS, _STEP = 5, 0.01


@dataclass(frozen=True, eq=False)
class _Sines:
    """The data of all tasks, each of shape `(tasks, points, 1)`, and the initial weights."""

    data: tuple[Tensor, Tensor, Tensor, Tensor]
    start: Weights

    def gradient(self, task: Task) -> Callable[[], Tensor]:
        """Return a function that computes the flat gradient of the mean loss with respect to the start."""

        def mean(weights: Weights) -> Tensor:
            losses: Tensor = vmap(task, in_dims=(None, 0, 0, 0, 0))(weights, *self.data)
            return losses.mean()

        return lambda: self.differentiate(mean)

    def differentiate(self, function: Callable[[Weights], Tensor]) -> Tensor:
        """Return the gradient at the start by a backward pass, flat."""
        leaves = {name: value.detach().requires_grad_() for name, value in self.start.items()}
        return torch.cat([part.flatten() for part in torch.autograd.grad(function(leaves), list(leaves.values()))])


@benchmark("maml", "sinusoid MAML, 25 tasks through vmap, 5 steps each")
def run(setting: Setting) -> Outcome:
    """Race blo against hand-written `vmap`, eager and compiled."""
    sines = _sines(setting)
    contestants: dict[str, Callable[[], Tensor]] = {
        "by hand, vmap": sines.gradient(_by_hand),
        "blo, vmap over argmin": sines.gradient(_adapted),
        "blo, batched": lambda: sines.differentiate(_batched(sines)),
    }
    notes = []
    for name, task in (("by hand, vmap, compiled", _by_hand), ("blo, vmap over argmin, compiled", _adapted)):
        setting.log(f"  {name}")
        try:
            contestants[name] = _compiled(sines, task)
        except Exception as error:  # torch.compile needs a C++ compiler, and raises many types
            notes.append(f"{name}: {type(error).__name__}")
    times = race(contestants, setting, floor="by hand, vmap")
    answer = contestants["by hand, vmap"]()
    rows: list[list[Cell]] = [
        [
            name,
            relative_error(call(), answer),
            times[name].milliseconds,
            times[name].wall_milliseconds,
            times[name].over_floor,
            peak_mib(call, setting.device),
        ]
        for name, call in contestants.items()
    ]
    rows += [[note, *[None] * 5] for note in notes]
    table = Table(
        f"{len(sines.data[0])} tasks", ["", "difference to by hand", "ms", "wall ms", "over by hand", "peak MiB"], rows
    )
    floor = times["by hand, vmap"].seconds
    goals = []
    for name, limit in (("blo, vmap over argmin", 1.02), ("blo, batched", 1.0)):
        over, off = ratio(times[name].seconds, floor)
        goals.append(Goal(f"{name}, over hand-written vmap", over, limit, off=off))
    # If a path does not compile, its goal counts as missed.
    pair = [times.get(f"{name}, compiled") for name in ("blo, vmap over argmin", "by hand, vmap")]
    over, off = ratio(pair[0].seconds, pair[1].seconds) if pair[0] and pair[1] else (math.nan, 0.0)
    goals.append(Goal("blo over hand-written vmap, both compiled", over, 1.0, off=off))
    return Outcome([table], goals)


def _sines(setting: Setting) -> _Sines:
    tasks, width = (3, 6) if setting.quick else (25, 40)
    generator = setting.generator()

    def uniform(*shape: int) -> Tensor:
        drawn = torch.rand(*shape, generator=generator, dtype=torch.float64)
        return drawn.to(setting.device, setting.dtype)

    amplitude, phase = 0.1 + 4.9 * uniform(tasks, 1, 1), math.pi * uniform(tasks, 1, 1)
    x, held_x = 10 * uniform(tasks, 10, 1) - 5, 10 * uniform(tasks, 10, 1) - 5
    data = x, amplitude * torch.sin(x - phase), held_x, amplitude * torch.sin(held_x - phase)
    start: Weights = {}
    for layer, (fan_in, fan_out) in enumerate(((1, width), (width, width), (width, 1))):
        start[f"w{layer}"] = setting.randn(fan_in, fan_out, generator=generator) / fan_in**0.5
        start[f"b{layer}"] = setting.randn(fan_out, generator=generator)
    return _Sines(data, start)


def _loss(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
    hidden = torch.tanh(x @ weights["w0"] + weights["b0"])
    hidden = torch.tanh(hidden @ weights["w1"] + weights["b1"])
    return (hidden @ weights["w2"] + weights["b2"] - y).square().mean()


def _by_hand(start: Weights, x: Tensor, y: Tensor, held_x: Tensor, held_y: Tensor) -> Tensor:
    weights = start
    for _ in range(_STEPS):
        slope = grad(_loss)(weights, x, y)
        weights = {name: value - _STEP * slope[name] for name, value in weights.items()}
    return _loss(weights, held_x, held_y)


_SOLVER = blo.ProjectedGradient(step=_STEP, max_steps=_STEPS, tol=None)


def _adapted(start: Weights, x: Tensor, y: Tensor, held_x: Tensor, held_y: Tensor) -> Tensor:
    lower = blo.LowerProblem(lambda theta, z: _loss(z, x, y))
    gradient = blo.Unrolled(start=lambda theta: theta)
    z = blo.argmin(lower, start, start, solver=_SOLVER, gradient=gradient, on_failure="ignore")
    return _loss(z, held_x, held_y)


def _batched(sines: _Sines) -> Callable[[Weights], Tensor]:
    """The weights of a task are one flat tensor: `vmap` has a cost for each tensor that it maps."""
    x, y, held_x, held_y = sines.data
    shapes = {name: value.shape for name, value in sines.start.items()}

    def weights(flat: Tensor) -> Weights:
        pieces = zip(shapes.items(), flat.split([shape.numel() for shape in shapes.values()], dim=-1), strict=True)
        return {name: piece.view(shape) if len(shape) > 1 else piece for (name, shape), piece in pieces}

    def spread(start: Weights) -> Tensor:
        return torch.cat([value.flatten() for value in start.values()]).expand(len(x), -1)

    losses = vmap(lambda flat, x, y: _loss(weights(flat), x, y))
    lower = blo.LowerProblem(lambda theta, z: losses(z, x, y), batched=True)
    gradient, z0 = blo.Unrolled(start=spread), spread(sines.start)

    def mean(start: Weights) -> Tensor:
        z = blo.argmin(lower, start, z0, solver=_SOLVER, gradient=gradient, on_failure="ignore")
        value: Tensor = losses(z, held_x, held_y).mean()
        return value

    return mean


def _compiled(sines: _Sines, task: Task) -> Callable[[], Tensor]:
    """Return the gradient as one compiled graph; a break in the graph raises."""

    def mean(weights: Weights, *data: Tensor) -> Tensor:
        losses: Tensor = vmap(task, in_dims=(None, 0, 0, 0, 0))(weights, *data)
        return losses.mean()

    compiled = torch.compile(grad(mean), fullgraph=True)
    compiled(sines.start, *sines.data)
    return lambda: torch.cat([part.flatten() for part in compiled(sines.start, *sines.data).values()])
