"""A forward pass that the attack and the training objective both look at, paid for once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

import blo
from adv_train.methods.losses import Losses

#: Maps parameters, a perturbation and the shared logits to a loss: of shape `()` above, `(batch,)` below.
Objective: TypeAlias = Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]


def value_and_gradient(
    losses: Losses,
    share: Callable[[dict[str, Tensor]], Tensor],
    upper: Objective,
    lower: Objective,
    allowed: blo.sets.Set,
    shared: Tensor,
    params: dict[str, Tensor],
    start: Tensor,
    step: float,
) -> blo.Hypergradient:
    """Solve a bilevel problem by one sign step, without implicit gradient, whose two objectives look at shared logits.

    The logits enter the problem as one more upper variable. The gradient in them, pulled back through the pass that
    computed them, completes that in the parameters: two forward passes in place of the three of a pass of its own.

    Args:
        losses: of the batch.
        share: maps parameters to the shared logits.
        upper: what training minimises.
        lower: what the attack minimises.
        allowed: the set that the attack stays in.
        shared: what `share` gives at `params`, with its graph, which is used up.
        params: the parameters by name.
        start: where the attack starts.
        step: length of the step in pixels.
    """
    losses.upper = lambda theta, delta: upper(theta, delta, share(theta))
    out = blo.value_and_hypergrad(
        lambda theta, delta: upper(theta["weights"], delta, theta["shared"]),
        blo.LowerProblem(lambda theta, delta: lower(theta["weights"], delta, theta["shared"]), allowed, batched=True),
        {"weights": params, "shared": shared.detach()},
        start,
        solver=blo.OneStep(step, direction="sign"),
        gradient=blo.Zero(),
        on_failure="ignore",
    )
    through = torch.autograd.grad(shared, list(params.values()), out.direct["shared"], materialize_grads=True)
    grad = {
        name: (part + more).detach() for (name, part), more in zip(out.direct["weights"].items(), through, strict=True)
    }
    report = replace(out.report, direct_parts=list(grad.values()), implicit_parts=[None] * len(grad))
    return replace(out, grad=grad, direct=grad, report=report)


def logits_and_slope(
    losses: Losses, params: dict[str, Tensor], start: Tensor, objective: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the logits that an attack sees at its start, and the gradient there that it follows.

    Args:
        losses: of the batch.
        params: the parameters by name.
        start: a perturbation.
        objective: maps the logits to what the attack maximises, shape `(batch,)`.

    Returns:
        The logits as a function of `params`, and the gradient of the summed objective in the perturbation, a constant.
    """
    point = start.detach().requires_grad_()
    logits = losses.attack_forward(params, point)
    (slope,) = torch.autograd.grad(objective(logits).sum(), point, retain_graph=True)
    return logits, slope
