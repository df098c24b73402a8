"""SORA: the step follows how far the attack's gradient holds along it (Teymourian et al., ICML 2026)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor, nn

import blo
from adv_train import ranks
from adv_train.methods.base import METHODS, Adversarial
from adv_train.methods.known import along
from adv_train.methods.losses import Losses
from adv_train.methods.moment import Sizes, State
from adv_train.threat import Threat
from adv_train.values import Positive, Range

#: Distance of the alignment from 1 up to which steps have full length, as published.
_BENT = 0.02


@METHODS.register("sora")
@dataclass(frozen=True, kw_only=True)
class SORA(Adversarial):
    """Sign steps of random length, pixel by pixel, up to a longest one that shrinks as the loss bends along them.

    With g the input gradient at the start and g' that at the perturbed images, which the training backward gives at no
    extra pass, the alignment of a batch is the mean of `<sign g, g'> / |g|_1`, cut to [-1, 1]; 1 where the loss is
    linear. Its moving average v gives the longest step `longest * min(1, 0.02 / (1 - v))`. Nothing is cut back to the
    ball. Source: "SORA: Free second-order attacks in fast adversarial training" and its published code.

    Attributes:
        longest: longest step of a pixel where the loss is linear; 2 eps by default.
        alignment: v at the start.
        alignment_rate: weight of a new batch in v.
    """

    longest: Positive | None = None
    alignment: Annotated[float, Range(-1, 1)] = 0.99
    alignment_rate: Annotated[float, Range(0, 1)] = 0.05

    def remember(self, model: nn.Module, sizes: Sizes) -> State:
        return {"alignment": next(model.parameters()).new_full((), self.alignment)}

    def allowed(self, x: Tensor, threat: Threat) -> blo.sets.Set:
        return blo.Box(threat.low - x, threat.high - x, validate=False)

    def solve(
        self, attack: blo.LowerProblem, losses: Losses, params: dict[str, Tensor], start: Tensor, threat: Threat
    ) -> blo.Hypergradient:
        before = losses.state.get("alignment", losses.x.new_full((), self.alignment))
        longest = 2 * threat.eps if self.longest is None else self.longest
        lengths = ranks.uniform(start, generator=losses.generator)
        slope = losses.slope(params, start)
        move = longest * _shrunk(before) * lengths * slope.sign()
        # The gradient of an offset of the images is their input gradient, from the same backward pass.
        out = blo.value_and_hypergrad(
            lambda theta, delta: losses.train(theta["weights"], delta + theta["offset"]),
            along(move, self.allowed(losses.x, threat)),
            {"weights": params, "offset": torch.zeros_like(start)},
            start,
            solver=blo.OneStep(1.0),
            gradient=blo.Zero(),
            on_failure="ignore",
        )
        after = len(start) * out.direct["offset"]  # of the summed loss, as the slope is
        found = (slope.sign() * after).flatten(1).sum(1) / slope.flatten(1).abs().sum(1).clamp(min=1e-12)
        alignment = losses.share.mean(found.mean()).clamp(-1, 1).to(before.dtype)
        losses.state = {"alignment": torch.lerp(before, alignment, self.alignment_rate)}
        report = replace(out.report, direct_parts=list(out.direct["weights"].values()))
        return replace(out, grad=out.grad["weights"], direct=out.direct["weights"], report=report)


def _shrunk(alignment: Tensor) -> Tensor:
    """Return the longest step beside that of a linear loss, shape `()`."""
    return _BENT / (1 - alignment).clamp(min=_BENT)
