"""iMAML on sinusoids: 25 tasks at once, each with its own parameters, which a proximal term keeps near theta.

    minimise over theta   mean_i loss_i(z_i*) held out,   z_i* = argmin  loss_i(z) + lambda/2 |z - theta|^2

Truth: Newton's method task by task, and dense solves with the Hessian.
Source: Rajeswaran, Finn, Kakade and Levine, NeurIPS 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

import blo
from benchmarks.answers._compare import Answers
from benchmarks.answers._sinusoids import Parameters, Tasks, draw, flat, loss, network
from benchmarks.registry import Outcome, Setting, benchmark

#: Large enough that every task's problem has one minimiser.
LAMBDA = 10.0


def solve(net: torch.nn.Module, tasks: Tasks, theta: Parameters) -> blo.Hypergradient:
    """Return the mean loss of parameters adapted near theta, and its gradient in theta."""
    losses = vmap(lambda z, x, y: loss(net, z, x, y))

    def adapt(theta: Parameters, z: Parameters) -> Tensor:
        away = torch.stack([(z[name] - theta[name]).flatten(1).square().sum(1) for name in theta]).sum(0)
        return losses(z, tasks.x, tasks.y) + 0.5 * LAMBDA * away

    z0 = {name: part.expand(len(tasks.x), *part.shape) for name, part in theta.items()}
    return blo.value_and_hypergrad(
        lambda theta, z: losses(z, tasks.x_held, tasks.y_held).mean(),
        blo.LowerProblem(adapt, batched=True), theta, z0, gradient=blo.Implicit(blo.CG()),
    )  # fmt: skip


def truth(net: torch.nn.Module, tasks: Tasks, theta: Parameters) -> tuple[Tensor, Tensor]:
    """Return the mean loss and its gradient, flat.

    Raises:
        RuntimeError: if the point found for a task is not a minimiser.
    """
    center = flat(theta.values())

    def flat_loss(z: Tensor, x: Tensor, y: Tensor) -> Tensor:
        pieces = zip(theta.items(), z.split([part.numel() for part in theta.values()]), strict=True)
        return loss(net, {name: piece.view_as(like) for (name, like), piece in pieces}, x, y)

    value, slope = torch.zeros_like(center[0]), torch.zeros_like(center)
    for x, y, x_held, y_held in zip(*tasks, strict=True):

        def adapt(z: Tensor, x: Tensor = x, y: Tensor = y) -> Tensor:
            return flat_loss(z, x, y) + 0.5 * LAMBDA * (z - center).square().sum()

        z = center
        while grad(adapt)(z).norm() > 1e-2:  # until Newton's method is safe
            z = z - 0.1 / LAMBDA * grad(adapt)(z)
        for _ in range(6):
            z = z - torch.linalg.solve(jacrev(grad(adapt))(z), grad(adapt)(z))
        bend = jacrev(grad(adapt))(z)
        if grad(adapt)(z).abs().max() > 1e-12 or torch.linalg.eigvalsh(bend).min() <= 0:
            raise RuntimeError("Newton's method found no minimiser; the truth is not known.")
        value = value + flat_loss(z, x_held, y_held) / len(tasks.x)
        v = grad(flat_loss)(z, x_held, y_held) / len(tasks.x)
        slope = slope + LAMBDA * torch.linalg.solve(bend, v)  # the cross derivative is -lambda I
    return value, slope


@benchmark("answer-imaml", "Sinusoid iMAML against dense solves")
def run(setting: Setting) -> Outcome:
    tasks = draw(setting)
    net = network(4 if setting.quick else 10, setting.seed).to(setting.device)
    theta = {name: part.detach() for name, part in net.named_parameters()}
    ours, (value, slope) = solve(net, tasks, theta), truth(net, tasks, theta)
    answers = Answers()
    answers.add("mean loss", ours.value, value)
    answers.add(f"its gradient in the {slope.numel()} parameters", flat(ours.grad.values()), slope)
    return answers.outcome("iMAML")
