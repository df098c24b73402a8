"""SORA: the step shrinks if the attack's gradient changes along it (Teymourian et al., ICML 2026)."""

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

#: Steps have their full length as long as 1 - alignment is at most this, as published.
_BENT = 0.02


@METHODS.register("sora")
@dataclass(frozen=True, kw_only=True)
class SORA(Adversarial):
    """One sign step with a random length for each pixel; the largest length shrinks as the loss curves along the step.

    Let g be the input gradient at the start and g' the input gradient at the perturbed images, which the backward pass
    of training yields at no extra cost. The alignment of a batch is the mean of `<sign g, g'> / |g|_1`, clipped to
    [-1, 1]; it is 1 if the loss is linear. As in the published code, an image with g = 0, such as a very confident one,
    counts as 0 in the mean, and pixels at the end of their range count like all others. With v its moving average, the
    largest length is `longest * min(1, 0.02 / (1 - v))`. Perturbations are not projected onto the ball. Source: "SORA:
    Free second-order attacks in fast adversarial training" and its published code.

    Attributes:
        longest: largest length of the step of a pixel if the loss is linear; 2 eps by default.
        alignment: v at the start of the run.
        alignment_rate: weight of a new batch in the moving average v.
    """

    mixes = True
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
        # The gradient in an offset added to the images is the input gradient, and the same backward pass yields it.
        out = blo.value_and_hypergrad(
            lambda theta, delta: losses.train(theta["weights"], delta + theta["offset"]),
            along(attack, move),
            {"weights": params, "offset": torch.zeros_like(start)},
            start,
            solver=blo.OneStep(1.0),
            gradient=blo.Zero(),
            on_failure="ignore",
        )
        after = len(start) * out.grad["offset"]  # of the summed loss, like `slope`; training takes the mean
        found = (slope.sign() * after).flatten(1).sum(1) / slope.flatten(1).abs().sum(1).clamp(min=1e-12)
        alignment = losses.share.mean(found.mean()).clamp(-1, 1).to(before.dtype)
        losses.state = {"alignment": torch.lerp(before, alignment, self.alignment_rate)}
        report = replace(out.report, direct_parts=list(out.grad["weights"].values()))
        return replace(out, grad=out.grad["weights"], report=report)


def _shrunk(alignment: Tensor) -> Tensor:
    """Return the largest step over the largest step for a linear loss, shape `()`."""
    return _BENT / (1 - alignment).clamp(min=_BENT)
