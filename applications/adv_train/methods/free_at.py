"""Free-AT: one backward pass moves the weights and the perturbation (Shafahi et al., NeurIPS 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adv_train.data import Batch
from adv_train.methods.base import METHODS, Method, Step
from adv_train.methods.losses import Losses
from adv_train.methods.moment import Keeps, Moment, Sizes, State
from adv_train.objectives import Objective
from adv_train.objectives.cross_entropy import CrossEntropy
from adv_train.threat import Threat
from adv_train.values import Count, Positive


@METHODS.register("free-at")
@dataclass(frozen=True, kw_only=True)
class FreeAT(Method):
    """Several optimiser steps on each batch; the backward pass of each also moves the perturbation by a sign step.

    The perturbation at each place in the batch is kept from step to step, so the first step on a batch starts from
    perturbations of other images. If it starts from zero, the first step has the gradient of standard training, and its
    new perturbation is that of FGSM; if the weights did not change, step k would have the gradient of PGD-AT with k - 1
    steps. A step costs three forward passes, and an epoch has `repeats` steps for each batch.

    Attributes:
        repeats: number of optimiser steps on each batch; 8 as published for CIFAR-10.
        step: step size, in the units of eps; eps by default.
        train_loss: what training minimises and the perturbation maximises.
    """

    mixes = True
    repeats: Count = 8
    step: Positive | None = None
    train_loss: Objective = CrossEntropy()  # noqa: RUF009  # frozen, so sharing the default is safe

    def remember(self, model: nn.Module, sizes: Sizes) -> State:
        device = next(model.parameters()).device
        return {"delta": torch.zeros(sizes.batch, *sizes.images[1:], device=device)}

    def keeps(self) -> Keeps:
        return "places"

    def replays(self) -> int:
        return self.repeats

    def __call__(
        self,
        model: nn.Module,
        params: dict[str, Tensor],
        batch: Batch,
        threat: Threat,
        *,
        moment: Moment | None = None,
        state: State | None = None,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Step:
        losses = Losses(model, batch, attack=self.train_loss, train=self.train_loss)
        kept = state["delta"] if state else torch.zeros_like(batch.x)
        here = len(batch.x)
        delta = threat.project(batch.x, kept[:here] if start is None else start).requires_grad_()
        loss = losses.train(params, delta)
        *found, slope = torch.autograd.grad(loss, [*params.values(), delta], materialize_grads=True)
        # Detached, since the zeros that torch 2.7 fills in require grad.
        grads = {name: part.detach() for name, part in zip(params, found, strict=True)}
        delta = delta.detach()
        length = threat.eps if self.step is None else self.step
        moved = threat.project(batch.x, delta + length * slope.sign())
        return Step(
            grads,
            delta,
            loss.detach(),
            losses.logits,
            state={"delta": torch.cat((moved, kept[here:]))},
            objective=lambda theta: losses.train(theta, delta),
        )
