"""ATAS: each image has its own start and its own step (Huang et al., IEEE Transactions on Image Processing, 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

import blo
from adv_train import ranks
from adv_train.methods import per_image
from adv_train.methods.base import METHODS, Adversarial, Mode, near
from adv_train.methods.known import along
from adv_train.methods.losses import Losses
from adv_train.methods.moment import Keeps, Sizes, State
from adv_train.threat import Threat
from adv_train.values import Count, Positive, Range


@METHODS.register("atas")
@dataclass(frozen=True, kw_only=True)
class ATAS(Adversarial):
    """One sign step from where the last attack on an image ended, shorter on images whose gradients are large.

    Let g be the input gradient of an image's loss. Its moving average v becomes
    `memory_decay * v + (1 - memory_decay) * |g|^2`, and its step length `step / (1 + sqrt(v) / softness)`, clipped to
    [shortest, longest]. In the first epochs all steps have length eps, and v does not change. As published, the attack
    sees the model in eval mode. The published code takes gradients of the mean loss over a batch of 128, with a
    softness of 0.01; gradients of each image's own loss are 128 times as large, hence the softness of 1.28 here.

    The memory of an image is cropped and flipped with it. The memory is as large as the training images in single
    precision; every checkpoint of a run that can be resumed contains it.

    Attributes:
        start: start of the first attack on an image.
        step: step length in pixels where the gradient vanishes; 2 eps by default.
        shortest: smallest step length; eps/2 by default.
        longest: largest step length; 1.75 eps by default.
        softness: value of sqrt(v) that halves the step length.
        memory_decay: weight of the old v.
        warmup_epochs: number of first epochs in which all steps have length eps.
        reset_epochs: number of epochs after which the start of every image is drawn anew.
    """

    attack_mode: Mode = "eval"
    step: Positive | None = None
    shortest: Positive | None = None
    longest: Positive | None = None
    softness: Positive = 1.28
    memory_decay: Annotated[float, Range(0, 1)] = 0.5
    warmup_epochs: Annotated[int, Range(0)] = 5
    reset_epochs: Count = 10

    def remember(self, model: nn.Module, sizes: Sizes) -> State:
        sharpness = next(model.parameters()).new_zeros(sizes.images[0])
        return {**per_image.blank(model, sizes, "delta"), "sharpness": sharpness}

    def keeps(self) -> Keeps:
        return "images"

    def draw(self, losses: Losses, threat: Threat) -> Tensor:
        if self.start == "uniform":
            fresh = ranks.uniform(losses.x, -threat.eps, threat.eps, generator=losses.generator)
        else:  # projected below: the memory is in another layout than the images here
            fresh = near(losses) if self.start == "gaussian" else torch.zeros_like(losses.x)
        if losses.state:
            per_image.renew(losses, self.reset_epochs, delta=fresh)
            fresh = per_image.recall(losses, "delta")
        return threat.project(losses.x, fresh)

    def solve(
        self, attack: blo.LowerProblem, losses: Losses, params: dict[str, Tensor], start: Tensor, threat: Threat
    ) -> blo.Hypergradient:
        slope = losses.slope(params, start)
        lengths = self._lengths(slope.flatten(1).square().sum(1), losses, threat)
        move = lengths.view(-1, *(1,) * (slope.ndim - 1)) * slope.sign()
        out = blo.value_and_hypergrad(
            losses.train,
            along(attack, move),
            params,
            start,
            solver=blo.OneStep(1.0),
            gradient=blo.Zero(),
            on_failure="ignore",
        )
        if losses.state:
            per_image.keep(losses, delta=out.z)
        return out

    def _lengths(self, found: Tensor, losses: Losses, threat: Threat) -> Tensor:
        """Update v from the squared norms of the gradients, and return the step lengths; both have shape `(batch,)`."""
        full = 2 * threat.eps if self.step is None else self.step
        shortest = threat.eps / 2 if self.shortest is None else self.shortest
        longest = 1.75 * threat.eps if self.longest is None else self.longest
        memory = losses.state.get("sharpness")
        old = torch.zeros_like(found) if memory is None else memory[losses.index]
        new = self.memory_decay * old + (1 - self.memory_decay) * found
        lengths = (full / (1 + new.sqrt() / self.softness)).clamp(shortest, longest)
        if losses.moment is not None:
            warm = losses.moment.epoch < self.warmup_epochs
            lengths, new = torch.where(warm, threat.eps, lengths), torch.where(warm, old, new)
        if memory is not None:
            memory.index_copy_(0, losses.index, new)
        return lengths
