"""A forward pass whose logits both the attack and the training objective use; it is computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import blo
from adv_train.methods.losses import Losses


@dataclass(frozen=True, eq=False)
class SharedPass:
    """Logits that both the lower and the upper objective use.

    Attributes:
        losses: losses of the batch.
        params: the parameters by name.
        forward: maps parameters to the logits.
        logits: the output of `forward` at `params`, with its graph, which `solve` frees.
    """

    losses: Losses
    params: dict[str, Tensor]
    forward: Callable[[dict[str, Tensor]], Tensor]
    logits: Tensor

    def solve(
        self,
        upper: Callable[[dict[str, Tensor], Tensor, Tensor], Tensor],
        lower: blo.LowerProblem,
        start: Tensor,
        step: float,
    ) -> blo.Hypergradient:
        """Solve a bilevel problem by one sign step, without implicit gradient.

        The logits enter the problem as one more upper variable. Back-propagating the gradient in the logits through the
        shared pass, and adding it to the gradient in the parameters, gives the whole gradient. This costs as much as
        two forward passes; a separate pass for training would cost three.

        Args:
            upper: maps parameters, a perturbation and the logits to what training minimises, shape `()`.
            lower: the attack; its theta has the parameters under `weights` and the logits under `logits`.
            start: the perturbation from which the attack starts.
            step: length of the step in pixels.
        """
        self.losses.upper = lambda theta, delta: upper(theta, delta, self.forward(theta))
        out = blo.value_and_hypergrad(
            lambda theta, delta: upper(theta["weights"], delta, theta["logits"]),
            lower,
            {"weights": self.params, "logits": self.logits.detach()},
            start,
            solver=blo.OneStep(step, direction="sign"),
            gradient=blo.Zero(),
            on_failure="ignore",
        )
        weights = list(self.params.values())
        through = torch.autograd.grad(self.logits, weights, out.grad["logits"], materialize_grads=True)
        parts = zip(out.grad["weights"].items(), through, strict=True)
        grad = {name: (part + more).detach() for (name, part), more in parts}
        report = replace(out.report, direct_parts=list(grad.values()), implicit_parts=[None] * len(grad))
        return replace(out, grad=grad, report=report)


def clean_pass(losses: Losses, params: dict[str, Tensor]) -> SharedPass:
    """Return the shared pass at the clean images."""

    def forward(theta: dict[str, Tensor]) -> Tensor:
        return losses.forward(theta, None)

    return SharedPass(losses, params, forward, forward(params))


def start_pass(
    losses: Losses, params: dict[str, Tensor], start: Tensor, objective: Callable[[Tensor], Tensor]
) -> tuple[SharedPass, Tensor]:
    """Return the shared pass at the start of an attack, and the gradient that the attack follows from there.

    Args:
        losses: losses of the batch.
        params: the parameters by name.
        start: the perturbation from which the attack starts.
        objective: maps the logits to what the attack maximises, shape `(batch,)`.

    Returns:
        The pass, and the gradient of the summed objective in the perturbation, a constant.
    """
    point = start.detach().requires_grad_()
    logits = losses.attack_forward(params, point)
    (slope,) = torch.autograd.grad(objective(logits).sum(), point, retain_graph=True)
    return SharedPass(losses, params, lambda theta: losses.attack_forward(theta, start), logits), slope
