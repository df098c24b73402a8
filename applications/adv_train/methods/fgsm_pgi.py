"""FGSM-PGI: the attack on an image starts from the result of its earlier attacks (Jia et al., ECCV 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blo
from adv_train import ranks
from adv_train.methods import per_image
from adv_train.methods.base import METHODS, Adversarial, near
from adv_train.methods.known import along
from adv_train.methods.losses import Losses
from adv_train.methods.moment import Keeps, Sizes, State
from adv_train.methods.shared_pass import start_pass
from adv_train.threat import Threat
from adv_train.values import Count, NotNegative, Positive


@METHODS.register("fgsm-pgi")
@dataclass(frozen=True, kw_only=True)
class FGSMPGI(Adversarial):
    """One sign step from a start remembered for each image; training also keeps the outputs at both ends together.

    Let g be the input gradient at the start z0. The momentum m of each image becomes `memory_decay * m + g / |g|_1`,
    where |g|_1 is taken over the batch. The next start of the image is `z0 + step * sign(m)`, projected onto the threat
    (MEP), or the perturbation that was trained on (EP). Training minimises
    `train_loss(x + z) + coefficient * MSE(f(x + z), f(x + z0))`. The published runs smooth the labels of both losses.

    The memory of an image is cropped and flipped with it, whereas the published code ignores the augmentation. The
    memory is as large as the training images in single precision, and twice as large for MEP; every checkpoint of a run
    that can be resumed contains it.

    Attributes:
        start: start of the first attack on an image: `"uniform"` is +step or -step at random for each pixel, projected
            onto the threat.
        memory: source of the next start: `"mep"`, a step along the momentum, or `"ep"`, the last perturbation.
        memory_decay: factor of the old momentum.
        reset_epochs: number of epochs after which the memory of every image is reset.
        coefficient: weight of the squared distance of the outputs, a mean over images and classes.
        step: step size, in the units of eps; eps by default.
    """

    trains_on_attack = True

    memory: Literal["mep", "ep"] = "mep"
    memory_decay: NotNegative = 0.3
    reset_epochs: Count = 40
    coefficient: NotNegative = 10.0
    step: Positive | None = None

    @property
    def differentiates_once(self) -> bool:
        return False  # the pass at the start is differentiated for the attack, and again for training

    def remember(self, model: nn.Module, sizes: Sizes) -> State:
        return per_image.blank(model, sizes, *(("delta", "momentum") if self.memory == "mep" else ("delta",)))

    def keeps(self) -> Keeps:
        return "images"

    def draw(self, losses: Losses, threat: Threat) -> Tensor:
        if self.start == "uniform":
            coins = ranks.coins(losses.x, generator=losses.generator)
            fresh = self._length(threat) * (2 * coins - 1)
        else:  # projected below: the memory is in another layout than the images here
            fresh = near(losses) if self.start == "gaussian" else torch.zeros_like(losses.x)
        if losses.state:
            momentum = {"momentum": torch.zeros_like(fresh)} if self.memory == "mep" else {}
            per_image.renew(losses, self.reset_epochs, delta=fresh, **momentum)
            fresh = per_image.recall(losses, "delta")
        return threat.project(losses.x, fresh)

    def solve(
        self, attack: blo.LowerProblem, losses: Losses, params: dict[str, Tensor], start: Tensor, threat: Threat
    ) -> blo.Hypergradient:
        shared, slope = start_pass(losses, params, start, lambda logits: losses.attack_objective(params, logits))

        def upper(theta: dict[str, Tensor], delta: Tensor, near: Tensor) -> Tensor:
            loss, logits = losses.train_and_logits(theta, delta)
            return loss + self.coefficient * F.mse_loss(logits, near)

        length = self._length(threat)
        out = shared.solve(upper, along(attack, slope), start, length)
        if losses.state and self.memory == "ep":
            per_image.keep(losses, delta=out.z)
        elif losses.state:
            size = losses.share.sum(slope.abs().sum()).clamp(min=torch.finfo(slope.dtype).tiny)
            momentum = self.memory_decay * per_image.recall(losses, "momentum") + slope / size
            ahead = threat.project(losses.x, start + length * momentum.sign())
            per_image.keep(losses, delta=ahead, momentum=momentum)
        return out

    def _length(self, threat: Threat) -> float:
        return threat.eps if self.step is None else self.step
