"""Learned N-FGSM: the noise width and the step of the attack are learnt by minimising a held-out robust loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

import blo
from adv_train import ranks, values
from adv_train.methods.base import METHODS, Adversarial
from adv_train.methods.known import train_at
from adv_train.methods.losses import Losses
from adv_train.methods.moment import Sizes, State
from adv_train.ranks import Share, drawing_for
from adv_train.threat import Threat
from adv_train.values import Count, NotNegative, Positive, Range


@METHODS.register("learned-n-fgsm")
@dataclass(frozen=True, kw_only=True)
class LearnedNFGSM(Adversarial):
    """N-FGSM that learns its noise width and its step, which may depend on the confidence of an image.

    The vector phi holds the logarithm of the width and the logarithms of the step at `knots` confidences from 0 to 1,
    all in units of eps. Between the knots the logarithm of the step is interpolated linearly. The confidence of an
    image is the probability of its true class at the noisy image. Besides the weights, each training step updates phi
    by Adam along the hypergradient of a bilevel problem:

        minimise over phi   the loss of w'(phi) under PGD on the held-out part of the batch, where
        w'(phi) = w - unrolled_lr * (gradient of the loss on the rest of the batch, attacked with phi).

    The last line is the solution of a linearised lower problem in the weights. One step solves it, so the implicit
    gradient is the derivative of that step. The signs of gradients are treated as constants in phi. The held-out images
    are left out of w' alone: the gradient for the weights is that of N-FGSM with the present phi on the whole batch. A
    training step costs about 14 forward passes.

    Attributes:
        width: initial half width of the noise in units of eps; 2 as in N-FGSM.
        length: initial step in units of eps; 1 as in N-FGSM.
        knots: number of confidences at which the step is learnt; 1 learns one step for all images.
        reach: largest factor between the initial and the learnt width or step.
        attack_lr: learning rate of Adam for phi; 0 is N-FGSM.
        held_out: share of a batch on which the upper loss is measured.
        unrolled_lr: learning rate of the one unrolled step of the weights.
        judge_steps: number of PGD steps on the held-out images, each of size 2.5 eps / judge_steps.
        products: how `blo` computes products with second derivatives; `finite-difference` waits for the device.
    """

    width: Positive = 2.0
    length: Positive = 1.0
    knots: Count = 1
    reach: Annotated[float, Range(1)] = 4.0
    attack_lr: NotNegative = 0.01
    held_out: Annotated[float, Range(0, 1)] = 0.25
    unrolled_lr: Positive = 0.1
    judge_steps: Count = 5
    products: Literal["reverse", "finite-difference"] = "reverse"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start == "gaussian":
            raise values.refused("start", "uniform or zero for learned-n-fgsm, which learns the width", self.start)

    @property
    def differentiates_once(self) -> bool:
        return False  # the hypergradient differentiates the gradient that the unrolled step follows

    @property
    def differentiates_gradients(self) -> bool:
        return self.products == "reverse"

    def remember(self, model: nn.Module, sizes: Sizes) -> State:
        return self._fresh(next(model.parameters()))

    def allowed(self, x: Tensor, threat: Threat) -> blo.sets.Set:
        return blo.Box(threat.low - x, threat.high - x, validate=False)

    def draw(self, losses: Losses, threat: Threat) -> Tensor:
        """Return the noise, not yet clipped to the range of images: `solve` does that, as a function of phi."""
        phi = (losses.state or self._fresh(losses.x))["phi"]
        wide = threat.eps if self.start == "uniform" else 0.0
        noise = ranks.uniform(losses.x, -wide, wide, generator=losses.generator)
        return noise * phi[0].exp()

    def solve(
        self, attack: blo.LowerProblem, losses: Losses, params: dict[str, Tensor], start: Tensor, threat: Threat
    ) -> blo.Hypergradient:
        state = losses.state or self._fresh(losses.x)
        phi = state["phi"]
        signs = losses.slope(params, self.allowed(losses.x, threat).project(start)).sign()
        confidence = losses.attacked.softmax(1).gather(1, losses.y[:, None])
        places = torch.arange(self.knots, device=phi.device)
        # Linear interpolation: the weight of each knot in an image's step, shape `(batch, knots)`.
        shares = (1 - (confidence * (self.knots - 1) - places).abs()).clamp(min=0)

        def perturbation(trial: Tensor, rows: slice) -> Tensor:
            allowed = self.allowed(losses.x[rows], threat)
            noisy = allowed.project(start[rows] * (trial[0] - phi[0]).exp())
            steps = threat.eps * (shares[rows] * trial[1:]).sum(1).exp()
            return allowed.project(noisy + steps.view(-1, *(1,) * (start.ndim - 1)) * signs[rows])

        (held, judging), (rest, learning) = self._split(losses.share)
        judge, student = losses.part(held, judging), losses.part(rest, learning)

        def upper(_: Tensor, weights: dict[str, Tensor]) -> Tensor:
            still = {name: value.detach() for name, value in weights.items()}
            return judge.train(weights, self._worst(judge, still, threat))

        lower = blo.LowerProblem(
            _of_all(lambda trial, weights: student.train(weights, perturbation(trial, rest)), learning)
        )
        # The Hessian of the linearised problem is I / unrolled_lr: one step solves it, and `HessianFree` is exact.
        found = blo.value_and_hypergrad(
            _of_all(upper, judging),
            lower.linearize(params, curvature=1 / self.unrolled_lr),
            phi,
            params,
            solver=blo.OneStep(self.unrolled_lr),
            gradient=blo.HessianFree(1 / self.unrolled_lr, products=self.products),
            on_failure="ignore",
        )
        moved, first, reach = _adam(state, found.grad, self.attack_lr), self._first(phi), math.log(self.reach)
        losses.state = {**moved, "phi": first + (moved["phi"] - first).clamp(-reach, reach)}
        return train_at(losses, params, perturbation(phi, slice(None)))

    def _first(self, like: Tensor) -> Tensor:
        """Return phi before the first step, on the device and in the dtype of a tensor."""
        phi = like.new_full((1 + self.knots,), math.log(self.length))
        phi[0].fill_(math.log(self.width))
        return phi

    def _fresh(self, like: Tensor) -> State:
        """Return the memory before the first step, on the device and in the dtype of a tensor."""
        phi = self._first(like)
        return {"phi": phi, "mean": torch.zeros_like(phi), "square": torch.zeros_like(phi), "step": like.new_zeros(())}

    def _split(self, share: Share) -> tuple[tuple[slice, Share], tuple[slice, Share]]:
        """Split the batch: return the held-out rows and the rest, each with its share of the batch of all ranks.

        Each has at least two rows on every rank, which BatchNorm needs; in a very small batch the two overlap.
        """
        least = 2 * share.ranks.size
        cut = max(least, round(self.held_out * share.whole))
        judging, spared = share.head(cut), share.head(min(cut, max(share.whole - least, 0)))
        return (slice(len(judging)), judging), (slice(len(spared), None), share.tail(spared.whole))

    def _worst(self, judge: Losses, weights: dict[str, Tensor], threat: Threat) -> Tensor:
        """Return the perturbation that PGD finds for the held-out images."""
        with drawing_for(judge.generator, judge.share):
            start = threat.sample(judge.x, judge.generator)
        found: Tensor = blo.argmin(
            blo.LowerProblem(judge.attack, threat.set(judge.x), batched=True),
            weights,
            start,
            solver=blo.ProjectedGradient(
                2.5 * threat.eps / self.judge_steps, max_steps=self.judge_steps, tol=None, direction="sign"
            ),
            gradient=blo.Zero(),
            on_failure="ignore",
        )
        return found


def _of_all(objective: Callable[..., Tensor], share: Share) -> Callable[..., Tensor]:
    """Turn an objective that is a mean over one rank's samples into the mean over the samples of all ranks.

    The hypergradient of phi is not the mean of the ranks' hypergradients: the lower solution depends on all samples.
    """
    return objective if share.alone else blo.distributed.mean(objective, weight=len(share))


def _adam(state: State, slope: Tensor, rate: float) -> State:
    """Return the memory after a step of Adam (Kingma and Ba, ICLR 2015), which does not depend on the slope's scale."""
    step = state["step"] + 1
    mean = torch.lerp(state["mean"], slope, 0.1)
    square = torch.lerp(state["square"], slope.square(), 0.001)
    size = (square / (1 - 0.999**step)).sqrt() + torch.finfo(slope.dtype).tiny
    return {"phi": state["phi"] - rate * mean / (1 - 0.9**step) / size, "mean": mean, "square": square, "step": step}
