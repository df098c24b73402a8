"""MAML on sinusoids: 25 tasks at once, each a network that adapts to ten points of its own sine.

The lower variable z is the change of the weights by a few gradient steps from theta. The steps start at z = 0, a
constant, and theta enters the objective as theta + z, so the derivative includes that of the start.
Truth: plain autodiff through the steps, task by task.
Source: Finn, Abbeel and Levine, ICML 2017, Sec. 5.1.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

import blo
from benchmarks.answers._compare import Answers
from benchmarks.answers._sinusoids import Parameters, Tasks, draw, flat, loss, network
from benchmarks.registry import Outcome, Setting, benchmark

STEP, RATE, META_STEPS = 0.02, 0.01, 3


def problem(net: torch.nn.Module, tasks: Tasks, theta: Parameters, steps: int) -> dict[str, Any]:
    """State the problem as arguments for blo: the mean loss after `steps` gradient steps, over the start theta."""

    def adapted(theta: Parameters, z: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return loss(net, {name: theta[name] + z[name] for name in theta}, x, y)

    losses = vmap(adapted, in_dims=(None, 0, 0, 0))
    return {
        "upper": lambda theta, z: losses(theta, z, tasks.x_held, tasks.y_held).mean(),
        "lower": blo.LowerProblem(lambda theta, z: losses(theta, z, tasks.x, tasks.y), batched=True),
        "theta": theta,
        "z0": {name: part.new_zeros(len(tasks.x), *part.shape) for name, part in theta.items()},
        "solver": blo.ProjectedGradient(step=STEP, max_steps=steps, tol=None),
        "gradient": blo.Unrolled(),
    }


def truth(net: torch.nn.Module, tasks: Tasks, theta: Parameters, steps: int) -> tuple[Tensor, Parameters]:
    """Return the mean loss and its gradient by a loop over tasks, with a graph of all steps of a task."""
    start = {name: part.detach().requires_grad_() for name, part in theta.items()}
    total = torch.zeros((), dtype=torch.float64, device=tasks.x.device)
    for x, y, x_held, y_held in zip(*tasks, strict=True):
        at = start
        for _ in range(steps):
            slopes = torch.autograd.grad(loss(net, at, x, y), list(at.values()), create_graph=True)
            at = {name: part - STEP * slope for (name, part), slope in zip(at.items(), slopes, strict=True)}
        total = total + loss(net, at, x_held, y_held) / len(tasks.x)
    found = torch.autograd.grad(total, list(start.values()))
    return total.detach(), dict(zip(theta, found, strict=True))


@benchmark("answer-maml", "Sinusoid MAML against autodiff through every step")
def run(setting: Setting) -> Outcome:
    tasks = draw(setting)
    net = network(6 if setting.quick else 40, setting.seed).to(setting.device)
    theta = {name: part.detach() for name, part in net.named_parameters()}
    answers = Answers()
    for steps in (1, 5):
        given = problem(net, tasks, theta, steps)
        ours = blo.value_and_hypergrad(**given)
        value, slope = truth(net, tasks, theta, steps)
        answers.add(f"loss after {steps} steps", ours.value, value)
        answers.add(
            f"its gradient in the {flat(theta.values()).numel()} parameters",
            flat(ours.grad.values()),
            flat(slope.values()),
        )
    found = blo.fit(**given, optimizer=partial(torch.optim.SGD, lr=RATE), steps=META_STEPS)
    for _ in range(META_STEPS):
        _, slope = truth(net, tasks, theta, steps)
        theta = {name: part - RATE * slope[name] for name, part in theta.items()}
    answers.add(f"parameters after {META_STEPS} meta-steps", flat(found.theta.values()), flat(theta.values()))
    return answers.outcome("MAML")
