"""Training without an adversary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adv_train.data import Batch
from adv_train.methods.base import METHODS, Method, Step
from adv_train.methods.losses import Losses
from adv_train.methods.moment import Moment, State
from adv_train.objectives import Objective
from adv_train.objectives.cross_entropy import CrossEntropy
from adv_train.threat import NORMS, Threat


@METHODS.register("standard")
@dataclass(frozen=True, kw_only=True)
class Standard(Method):
    """Gradient of the mean loss on clean images: the upper problem alone; the threat is not used.

    Attributes:
        train_loss: what training minimises.
    """

    norms = NORMS
    attacks = False
    mixes = True
    train_loss: Objective = CrossEntropy()  # noqa: RUF009  # frozen, so sharing the default is safe

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
        delta = torch.zeros_like(batch.x) if start is None else start
        loss = losses.train(params, delta)
        found = torch.autograd.grad(loss, list(params.values()), materialize_grads=True)
        # Detached, since the zeros that torch 2.7 fills in require grad.
        grads = {name: slope.detach() for name, slope in zip(params, found, strict=True)}
        return Step(
            grads,
            delta,
            loss.detach(),
            losses.logits,
            state=state or {},
            objective=lambda theta: losses.train(theta, delta),
        )
