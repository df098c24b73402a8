"""Training without an adversary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adv_train.methods.base import Method, Step
from adv_train.methods.losses import Losses


@dataclass(frozen=True, kw_only=True)
class Standard(Method):
    """Gradient of the mean loss on clean images: the upper problem alone. eps is not used."""

    def __call__(
        self,
        model: nn.Module,
        params: dict[str, Tensor],
        x: Tensor,
        y: Tensor,
        *,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Step:
        losses = Losses(model, x, y)
        delta = torch.zeros_like(x) if start is None else start
        loss = losses.train(params, delta)
        found = torch.autograd.grad(loss, list(params.values()), materialize_grads=True)
        # Detached, since the zeros that torch 2.7 fills in require grad.
        grads = {name: slope.detach() for name, slope in zip(params, found, strict=True)}
        return Step(grads, delta, loss.detach(), losses.logits)
